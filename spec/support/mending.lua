-- SPDX-License-Identifier: MIT
-- Damaged images in memory: opened for repair over stores, and what can be read of them, cluster by cluster.

local core = require "qcow2.core"
local image = require "qcow2.image"

local mending = {}

local MOST_CLUSTERS = 400

--- Opens the image in `stores.image` (with `stores.data` when there is one) for repair. nil, message, kind.
function mending.open(stores, backing)
  local img, message, kind = core.image_open(stores.image, "qcow2", true)
  if not img then return nil, message, kind end
  debug.setuservalue(img, { path = "memory", mode = "rw", format = "qcow2", data_file = false }, 1)
  if stores.data then assert(image.raw.attach_data(img, stores.data)) end
  if backing then
    local store <close> = assert(core.store_memory(backing))
    local below <close> = assert(core.image_open(store, "raw"))
    assert(image.raw.attach_backing(img, below))
  end
  return img
end

local function take(into, name, img)
  local size, step = image.raw.disk_bytes(img), img.cluster_size
  for offset = 0, math.min(size, MOST_CLUSTERS * step) - 1, step do
    into[name .. offset] = image.raw.read(img, offset, math.min(step, size - offset)) or false
  end
end

--- What the disk and its snapshots show: "offset" or "id:name:offset" -> the cluster's bytes, false when it cannot be
-- read.
function mending.contents(img)
  local into = {}
  take(into, "", img)
  for i = 0, (image.raw.snapshot_count(img) or 0) - 1 do
    local entry, view = image.raw.snapshot_entry(img, i), image.raw.open_snapshot(img, i)
    if view then
      take(into, ("%s:%s:"):format(entry.id, entry.name), view)
      view:close()
    end
  end
  return into
end

--- What could be read and has changed: a sentence, or nil.
function mending.lost(before, after)
  for place, bytes in pairs(before) do
    if bytes and after[place] ~= bytes then
      return ("%s %s"):format(place, after[place] == nil and "is gone" or after[place] and "has changed"
        or "cannot be read any more")
    end
  end
end

--- The same of bytes in memory. gives: contents, or nil and a message.
function mending.contents_of(bytes, data, backing)
  local stores = { image = assert(core.store_memory(bytes)), data = data and assert(core.store_memory(data)) }
  local img <close>, message = mending.open(stores, backing)
  local contents = img and mending.contents(img)
  for _, store in pairs(stores) do store:close() end
  return contents, message
end

--- Repairs bytes in memory. gives: bytes, data, report; nil, message, kind.
function mending.repair(bytes, data, backing, want)
  local stores = { image = assert(core.store_memory(bytes)), data = data and assert(core.store_memory(data)) }
  local img <close>, message, kind = mending.open(stores, backing)
  if not img then return nil, message, kind end
  local report
  report, message, kind = img:repair(want)
  if not report then return nil, message, kind end
  local left = stores.image:read(0, stores.image:length())
  local data_left = data and stores.data:read(0, stores.data:length())
  for _, store in pairs(stores) do store:close() end
  return left, data_left, report
end

return mending
