-- SPDX-License-Identifier: MIT
-- Long lists, a batch a call: the rows of `map` as text and the sums of `measure` (an image may have tens of millions
-- of extents), the rows of snapshots and bitmaps as text (65,536 of each).
local files = require("qcow2.attach")

local listing = {}

local raw = files.raw

---What the lists need to know of each layer of the chain, top first.
---@class qcow2.listing.layers
---@field holes boolean       the host's holes inside qcow2 files count: the host is to be asked
---@field missing? string     why the chain breaks off
---@field encrypted boolean
---@field [integer] { size:integer, holes_data:boolean, holes_zero:boolean, file:string }

---@param source qcow2.image
---@param escape fun(name:string):string  how file names are shown
---@return qcow2.listing.layers
function listing.layers(source, escape)
  local layers = { holes = false, encrypted = source.encryption ~= nil }
  for index, link in ipairs(source:chain()) do
    local layer = link.image
    if layer then
      files.attach_data(layer, files.state_of(layer)) -- the host knows the holes of a data file
      local tables = link.format == "qcow2" and not layer.external_data
      -- Data by the tables and a hole for the host: QEMU says both where it finds metadata preallocated. Where it
      -- does not, it does not look for holes inside a qcow2 file.
      local both = link.format == "qcow2" and layer.preallocated or false
      layers[index] = { size = link.size, holes_data = both or tables, holes_zero = both or not tables,
        file = escape(raw.data_file_name(layer) or "") }
      layers.holes = layers.holes or both
    end
    layers.missing = link.missing
  end
  return layers
end

---Writes the rows of a part of the disk. gives: true, or nil and true when the form cannot show what comes next.
---Raises what the world does.
---@param source qcow2.image
---@param layers qcow2.listing.layers
---@param start integer
---@param length integer
---@param json boolean
---@param write fun(text:string)
---@return true?, true?
function listing.rows(source, layers, start, length, json, write)
  local stop = start + length
  repeat
    local text, next_start, unplaced = files.with_references(source, raw.map_rows, start, stop - start, layers.holes,
      layers, json)
    if not text then
      error(next_start, 0)
    end
    write(text)
    if unplaced then
      return nil, true
    end
    start = next_start
  until start >= stop
  return true
end

---How many clusters of `cluster_size` bytes the data of the disk touches. Raises what the world does.
---@param source qcow2.image
---@param cluster_size integer
---@return integer
function listing.data_clusters(source, cluster_size)
  local layers = listing.layers(source, tostring)
  local start, stop, position, total = 0, source.size, 0, 0
  while start < stop do
    local clusters, next_start, counted = files.with_references(source, raw.data_clusters, start, stop - start,
      cluster_size, position, layers.holes, layers)
    if not clusters then
      error(next_start, 0)
    end
    start, position, total = next_start, counted, total + clusters
  end
  return total
end

---Writes the rows of an image's snapshots or bitmaps, each line begun with `indent`. Raises what the world does.
---@param source qcow2.image
---@param what "snapshot"|"bitmap"
---@param indent string
---@param json boolean  as the items of a list
---@param write fun(text:string)
function listing.records(source, what, indent, json, write)
  local count, message = raw[what .. "_count"](source)
  local index = 0
  while count and index < count do
    local text, next_index = raw[what .. "_rows"](source, index, count, indent, json)
    if not text then
      error(next_index, 0)
    end
    write(text)
    index = next_index
  end
  if not count then
    error(message, 0)
  end
end

return listing
