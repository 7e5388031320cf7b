-- SPDX-License-Identifier: MIT
-- Damaged images in memory: opened for repair over stores, and what can be read of them, cluster by cluster. And
-- images that are damaged at random.

local core = require "qcow2.core"
local forge = require "spec.support.forge"
local image = require "qcow2.image"
local sh = require "spec.support.sh"

local mending = {}

local MOST_CLUSTERS = 400
local COPIED = 1 << 63

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

-- ---- random damage --------------------------------------------------------------------------

local LETTERS = "abcdefghijklmnopqrstuvwxyz"

-- A small image with some of everything.
local function build(rng)
  local bits, extended = rng:pick { 9, 10, 12, 16 }, rng:chance(20)
  if extended then bits = 14 end
  local step, version = 1 << bits, not extended and rng:chance(20) and 2 or 3
  local function cluster()
    local kind, at = rng:int(1, 10), rng:int(1, 26)
    local letter = LETTERS:sub(at, at)
    if kind <= 2 and version == 3 then return "zero" end
    if kind <= 4 then return { compressed = forge.deflate(letter:rep(rng:int(10, step // 2))) } end
    if kind <= 5 and extended then return { data = letter:rep(step), alloc = 0xff00ff, zero = 0xff00 } end
    return { data = letter:rep(step) }
  end
  local made = { header = { cluster_bits = bits, size = step * 200, version = version,
    refcount_order = version == 2 and 4 or rng:int(2, 6) }, clusters = {} }
  for _ = 1, rng:int(3, 40) do made.clusters[rng:int(0, 190)] = cluster() end
  if rng:chance(40) then made.snapshots = { {} } end
  if made.snapshots and rng:chance(50) then
    made.snapshots[2] = { clusters = { [0] = cluster(), [7] = cluster() } }
  end
  if version == 3 and rng:chance(30) then
    made.bitmaps = { { name = "a", granularity_bits = 9, entries = { [0] = "xyz" } },
      { name = "b", granularity_bits = 12, entries = { [0] = "ones" } } }
  end
  return made, step
end

-- Places of the tables that the recipe made, as { offset, length }.
local function tables_of(at, step)
  local list = { { at.l1, 64 }, { at.refcount_table, 64 } }
  local function add(offset, length) list[#list + 1] = { offset, length } end
  for _, offset in ipairs(at.refcount_blocks) do add(offset, math.min(256, step)) end
  for _, offset in pairs(at.l2) do add(offset, step) end
  if at.snapshot_table then add(at.snapshot_table, at.snapshot_table_length) end
  for _, snapshot in ipairs(at.snapshots) do add(snapshot.l1, 32) end
  if at.bitmap_directory then add(at.bitmap_directory, 64) end
  for _, bitmap in ipairs(at.bitmaps) do add(bitmap.table, 16) end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

local function harm(rng, bytes, places, step)
  local function put(offset, new) bytes = bytes:sub(1, offset) .. new .. bytes:sub(offset + #new + 1) end
  local function word_in(place) return place[1] + rng:int(0, place[2] // 8 - 1) * 8 end
  for _ = 1, rng:int(1, 6) do
    local place, how = rng:pick(places), rng:int(1, 4)
    local offset = place[1] + rng:int(0, place[2] - 1)
    if how == 1 and offset < #bytes then
      put(offset, string.char(bytes:byte(offset + 1) ~ 1 << rng:int(0, 7)))
    elseif how == 2 and offset < #bytes then
      put(offset, string.char(rng:int(0, 255)))
    elseif how == 3 then
      local host = rng:int(0, #bytes // step + 2) * step
      put(word_in(place), string.pack(">i8", host | (rng:chance(50) and COPIED or 0)))
    elseif how == 4 then
      local from = word_in(rng:pick(places))
      put(word_in(place), bytes:sub(from + 1, from + 8))
    end
  end
  return rng:chance(10) and bytes:sub(1, rng:int(#bytes // 2, #bytes)) or bytes
end

--- The bytes of a small image with some of everything, and one to six words of its tables wrong; sometimes cut off.
-- `path`: a file to make it in.
function mending.harmed(rng, path)
  local made, step = build(rng)
  local at = forge.write(path, made)
  return harm(rng, sh.slurp(path), tables_of(at, step), step)
end

return mending
