-- SPDX-License-Identifier: MIT
-- How large an image would be: with the contents of another image, or of a given size.
--
-- The figures are those that qemu-img names, and never too small: all of the metadata that a full image needs is
-- counted, whatever is allocated. With an external data file its share is counted apart.
local core = require("qcow2.core")
local image = require("qcow2.image")
local listing = require("qcow2.listing")
local options = require("qcow2.options")
local size = require("qcow2.size")

local measure = {}

local SECTOR = 512
local BITMAP_ENTRY = 24 -- bytes of a bitmap directory entry before its name

local known = {
  size = "size",
  format = { "qcow2", "raw" },
  source = "table",
  compat = { "0.10", "1.1", "v2", "v3" },
  cluster_size = "size",
  refcount_bits = "integer",
  extended_l2 = "boolean",
  preallocation = { "off", "metadata", "falloc", "full" },
  backing_file = "string",
  data_file = "string",
  data_file_raw = "boolean",
}

local function round_up(value, unit)
  return (value + unit - 1) // unit * unit
end

local function div_up(value, unit)
  return (value + unit - 1) // unit
end

-- Clusters of refcount table and blocks for so many other clusters; they count themselves too.
local function refcount_clusters(clusters, per_block, per_table)
  local blocks, table_clusters = 0, 0
  repeat
    local last = blocks + table_clusters
    blocks = div_up(clusters + last, per_block)
    table_clusters = div_up(blocks, per_table)
  until blocks + table_clusters == last
  return blocks + table_clusters, table_clusters
end

-- Bytes of refcount table and blocks for so many other clusters. A table of several clusters came to be by growing:
-- each time a half longer than was needed, beside the one before.
local function refcount_bytes(clusters, cluster_size, bits)
  local per_block, per_table = cluster_size * 8 // bits, cluster_size // 8
  local own, tables = refcount_clusters(clusters, per_block, per_table)
  -- With clusters of 64 KiB that takes a disk of 16 TiB: the figures stay those of qemu-img.
  if tables > 1 and cluster_size < 65536 then
    local moved = 3 * tables + 1
    own = moved + refcount_clusters(clusters + moved, per_block, per_table)
  end
  return own * cluster_size
end

-- Bytes of an image whose every guest cluster is allocated; `inside`: the guest's clusters lie in it.
local function full_size(disk, cluster_size, bits, entry_size, inside)
  local entries = round_up(div_up(disk, cluster_size), cluster_size // entry_size)
  local l2 = entries * entry_size
  local l1 = round_up(l2 // cluster_size * 8, cluster_size)
  local bytes = cluster_size + l2 + l1 + (inside and round_up(disk, cluster_size) or 0)
  return bytes + refcount_bytes(bytes // cluster_size, cluster_size, bits)
end

-- Bytes that the persistent bitmaps of `source` would take in the new image.
local function bitmap_bytes(source, cluster_size)
  local total, directory = 0, 0
  for _, bitmap in ipairs(source.bitmaps) do
    if not bitmap.in_use then
      local clusters = div_up(div_up(div_up(source.size, bitmap.granularity), 8), cluster_size)
      total = total + clusters * cluster_size + round_up(clusters * 8, cluster_size)
      directory = directory + round_up(BITMAP_ENTRY + #bitmap.name, 8)
    end
  end
  return total + round_up(directory, cluster_size)
end

local function measure_qcow2(source, disk, o)
  local cluster_size, bits = o.cluster_size or 65536, o.refcount_bits or 16
  local version = (o.compat == "0.10" or o.compat == "v2") and 2 or 3
  local fine, message, kind = core.create_check({ size = disk, version = version, cluster_size = cluster_size,
    refcount_bits = bits, extended_l2 = o.extended_l2 })
  if not fine then
    return nil, message, kind
  end
  local whole = round_up(disk, cluster_size)
  local required = 0
  if o.preallocation == "falloc" or o.preallocation == "full" or (source and o.backing_file) then
    -- How much a backing file shares is not known here.
    required = whole
  elseif source then
    required = listing.data_clusters(source, cluster_size) * cluster_size
  end
  local result = {}
  local full = full_size(disk, cluster_size, bits, o.extended_l2 and 16 or 8, not o.data_file)
  if o.data_file then
    result.required, result.fully_allocated = full, full
    result.data_required = math.min(required, round_up(disk, SECTOR))
    result.data_fully_allocated = round_up(disk, SECTOR)
  else
    result.required, result.fully_allocated = full - whole + required, full
  end
  if source and version >= 3 and source.format == "qcow2" and source.version >= 3 then
    result.bitmaps = bitmap_bytes(source, cluster_size)
  end
  return result
end

---Measures for an open image, or for a disk of `o.size` bytes when `source` is nil. Options are checked.
---gives: the figures, or nil, message, kind. Raises what the tables of `source` raise.
function measure.figures(source, o)
  local disk = source and source.size or o.size
  if disk > math.maxinteger - SECTOR then
    return nil, ("Disk size %d is too large"):format(disk), "range"
  elseif o.format == "raw" then
    local bytes = round_up(disk, SECTOR)
    return { required = bytes, fully_allocated = bytes }
  end
  return measure_qcow2(source, disk, o)
end

local function open_path(source, opening)
  if type(source) == "string" then
    return image.open(source, opening)
  end
end

---Says how large an image would be.
---@param source string|qcow2.image|nil
---@param given qcow2.measure_options?
---@return qcow2.measurement? figures, string? message, qcow2.kind? kind, integer? errno
function measure.measure(source, given)
  local o = {}
  for key, value in pairs(options.check(given, known)) do
    o[key] = value
  end
  for _, name in ipairs({ "size", "cluster_size" }) do
    o[name] = size.argument(o[name], name)
  end
  if (source == nil) == (o.size == nil) then
    error("either a source or the option 'size' is needed", 2)
  end
  local opened <close>, message, kind, errno = open_path(source, o.source)
  if message then
    return nil, message, kind, errno
  end
  local fine, figures, why, what = pcall(measure.figures, opened or source, o)
  if not fine then
    return nil, tostring(figures), "io"
  end
  return figures, why, what
end

return measure
