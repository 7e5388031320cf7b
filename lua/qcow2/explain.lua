-- SPDX-License-Identifier: MIT
-- How one guest byte is found: the path through the tables, with every raw value on the way.
local references = require("qcow2.references")

local explain = {}

local raw = require("qcow2.image").raw -- loaded after it, when something is explained

local function describe(path)
  local lines = {}
  local function line(...)
    lines[#lines + 1] = string.format(...)
  end
  for depth, layer in ipairs(path.layers) do
    line("%s'%s' (%s), guest offset 0x%x", depth > 1 and "backing file " or "", references.escape(layer.path or "?"),
      layer.format, path.offset)
    if layer.l1_index then
      line("  header   l1_table_offset 0x%x, cluster_bits %d", layer.l1_table_offset, layer.cluster_bits)
      line("  L1[%d]  at 0x%x = 0x%016x", layer.l1_index, layer.l1_entry_offset, layer.l1_raw)
    end
    if layer.l2_entry_offset then
      line("  L2[%d]  at 0x%x = 0x%016x%s", layer.l2_index, layer.l2_entry_offset, layer.l2_raw,
        layer.bitmap and (" bitmap 0x%016x"):format(layer.bitmap) or "")
    end
    if layer.subcluster then
      line("  subcluster %d of %d", layer.subcluster, layer.subclusters)
    end
    line("  -> %s", layer.verdict)
  end
  return table.concat(lines, "\n")
end

-- What one layer says, and whether the layer below has to be asked.
local function explain_layer(image, offset)
  local layer = { path = image.path, format = image.format }
  if offset >= raw.disk_bytes(image) then
    layer.verdict = "past the end of this layer: zeros"
    return layer, false
  end
  local header = raw.header_fields(image)
  if not header then
    layer.host_offset, layer.verdict = offset, ("host byte 0x%x of the raw file"):format(offset)
    return layer, false
  end
  local g = raw.geometry(image)
  local cluster = offset // g.cluster_size
  local l1_index, l2_index = cluster // g.l2_entries, cluster % g.l2_entries
  local word, message, kind = raw.l1_entry(image, l1_index)
  if not word then
    return nil, message, kind
  end
  -- An internal snapshot has an L1 table of its own.
  local snapshot = (debug.getuservalue(image, 1) or {}).snapshot
  local l1_offset = snapshot and snapshot.l1_offset or header.l1_table_offset
  layer.cluster_bits, layer.l1_table_offset = header.cluster_bits, l1_offset
  layer.l1_index, layer.l1_raw, layer.l1_entry_offset = l1_index, word, l1_offset + 8 * l1_index
  local l2_raw, bitmap, at = raw.l2_entry(image, l1_index, l2_index)
  if not l2_raw then
    return nil, bitmap, at
  end
  if at ~= 0 then
    layer.l2_index, layer.l2_raw, layer.l2_entry_offset = l2_index, l2_raw, at
    if g.subclusters > 1 then
      layer.bitmap, layer.subclusters = bitmap, g.subclusters
      layer.subcluster = offset % g.cluster_size // (g.cluster_size // g.subclusters)
    end
  end
  local batch
  batch, message, kind = raw.extent_batch(image, offset, 1, 1, false, true)
  if not batch then
    return nil, message, kind
  end
  local extent = batch[1]
  layer.kind, layer.host_offset, layer.host_length = extent.kind, extent.host_offset, extent.host_length
  if extent.kind == "data" then
    local file = header.incompatible_features & 4 ~= 0 and "external data file" or "image file"
    layer.verdict = ("host byte 0x%x of the %s%s"):format(extent.host_offset, file, extent.copied and ", copied" or "")
  elseif extent.kind == "compressed" then
    layer.verdict = ("byte 0x%x of the compressed cluster at host byte 0x%x, up to %d bytes"):format(
      offset % g.cluster_size, extent.host_offset, extent.host_length)
  elseif extent.kind == "zero" then
    layer.verdict = "reads as zeros"
      .. (extent.host_offset and (" (space kept at host byte 0x%x)"):format(extent.host_offset) or "")
  elseif raw.names(image) then
    layer.verdict = ("unallocated: ask the backing file '%s'"):format(references.escape((raw.names(image))))
    return layer, true
  else
    layer.verdict = "unallocated: zeros"
  end
  return layer, false
end

---@param image qcow2.image
---@param offset integer
function explain.explain(image, offset)
  if offset >= raw.disk_bytes(image) then
    return nil, ("Offset %d is past the disk's end %d"):format(offset, raw.disk_bytes(image)), "range"
  end
  local path, chain = { offset = offset, layers = {} }, image:chain()
  local _ <close> = setmetatable({}, { __close = function()
    for depth = 2, #chain do
      if chain[depth].image then
        chain[depth].image:close()
      end
    end
  end })
  for _, item in ipairs(chain) do
    if item.missing then
      path.layers[#path.layers + 1] = { path = item.path, format = "missing", verdict = item.missing }
      break
    end
    local layer, deeper, kind = explain_layer(item.image, offset)
    if not layer then
      return nil, deeper, kind
    end
    path.layers[#path.layers + 1] = layer
    if not deeper then
      break
    end
  end
  local last = path.layers[#path.layers]
  path.kind, path.host_offset, path.depth = last.kind, last.host_offset, #path.layers - 1
  return setmetatable(path, { __tostring = describe })
end

return explain
