-- SPDX-License-Identifier: MIT
-- `map`: which parts of the disk are backed by what, through the whole chain.
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

local map = {
  name = "map",
  summary = "List which parts of a disk are data, zeros or holes, and where they lie",
  details = {
    "The human form lists data only, with the place in the file that holds it; it cannot show compressed or "
      .. "encrypted data, the JSON form can.",
  },
  options = {
    options.format,
    options.image_opts,
    { short = "s", long = "start-offset", arg = "OFFSET", help = "begin at OFFSET, not at the disk's begin" },
    { short = "l", long = "max-length", arg = "LENGTH", help = "list at most LENGTH bytes" },
    options.force_share,
    options.output,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

-- What `entry_of` must know of each layer of the chain: its size, and how its holes are to be told. `holes`: the
-- host is to be asked, for at least one layer.
local function layers_of(image)
  local layers = { holes = false, missing = nil }
  for index, link in ipairs(image:chain()) do
    if link.image then
      local qcow = link.format == "qcow2"
      layers[index] = {
        size = link.size,
        -- Data by the tables and a hole for the host: QEMU says both where it finds metadata preallocated.
        both = qcow and link.image.preallocated,
        -- Where it does not, it does not look for holes inside a qcow2 file.
        ignored = qcow and not link.image.external_data,
      }
      layers.holes = layers.holes or layers[index].both
    end
    layers.missing = link.missing
  end
  return layers
end

-- One extent as QEMU's map names its properties, put into `entry`: an image may have millions of them.
local function fill(entry, extent, layers, encrypted)
  local kind, depth, present = extent.kind, extent.depth, extent.present
  local layer = layers[depth + 1]
  local data = kind == "data" or kind == "compressed"
  local zero = not data
  if extent.hole and layer then
    data = layer.both or layer.ignored
    zero = layer.both or not data
  elseif depth > 0 and layer and extent.offset >= layer.size then
    -- Past the end of a short backing file it is the layer above that says zeros, and nobody holds them.
    depth, present = depth - 1, false
  end
  entry.start, entry.length, entry.depth, entry.present = extent.offset, extent.length, depth, present
  entry.zero, entry.data, entry.compressed, entry.file = zero, data, kind == "compressed", extent.file
  -- A compressed stream or a cipher text has no byte for each byte of the disk.
  entry.offset = not encrypted and kind ~= "compressed" and extent.host_offset or nil
end

local function continues(last, next_entry)
  return last.zero == next_entry.zero
    and last.data == next_entry.data
    and last.compressed == next_entry.compressed
    and last.depth == next_entry.depth
    and last.present == next_entry.present
    and last.file == next_entry.file
    and (last.offset and last.offset + last.length) == next_entry.offset
end

local function print_human(context, entry)
  if not entry.data or entry.zero then
    return true
  elseif not entry.offset then
    return nil, "File contains external, encrypted or compressed clusters."
  end
  context:write(("%#-16x%#-16x%#-16x%s\n"):format(entry.start, entry.length, entry.offset,
    text.escape(entry.file or "")))
  return true
end

local JSON_LINE = '{ "start": %d, "length": %d, "depth": %d, "present": %s, "zero": %s, "data": %s, '
  .. '"compressed": %s%s%s'

local function print_json(context, entry, last)
  local offset = entry.offset and (', "offset": %d'):format(entry.offset) or ""
  context:write(JSON_LINE:format(entry.start, entry.length, entry.depth, entry.present, entry.zero, entry.data,
    entry.compressed, offset, last and "}" or "},\n"))
  return true
end

local function size_option(name, value)
  local bytes = qcow2.size(value)
  if not bytes then
    return nil, ("Invalid %s specified: '%s'"):format(name, text.escape(value))
  end
  return bytes
end

-- Prints the entries of the extents but the last, which it gives; nil and a message when it cannot be printed.
local function list_extents(context, image, extents, layers, print_entry)
  local encrypted = image.encryption ~= nil
  local entry, found = { length = 0 }, {}
  for extent in extents do
    fill(found, extent, layers, encrypted)
    if entry.length > 0 and continues(entry, found) then
      entry.length = entry.length + found.length
    else
      if entry.length > 0 then
        local printed, message = print_entry(context, entry, false)
        if not printed then
          return nil, message
        end
      end
      entry, found = found, entry
    end
  end
  return entry
end

-- Prints `head` and the entries from `start` on, up to `length` bytes.
local function list(context, image, start, length, head, print_entry)
  local entry = { start = start, length = 0, depth = 0, present = false, zero = false, data = false,
    compressed = false }
  local layers = length > 0 and layers_of(image)
  if layers and layers.missing then
    -- Nothing is printed of a list that would break off where the missing file is needed.
    local fine = context.try(function()
      for _ in image:extents({ start = start, length = length }) do end -- luacheck: ignore 542
    end)
    if not fine then
      return nil, images.could_not_open(image.path, layers.missing)
    end
  end
  context:write(head)
  if layers then
    local extents = image:extents({ start = start, length = length, holes = layers.holes })
    -- The iterator raises what the world does.
    local fine, last, message = context.try(list_extents, context, image, extents, layers, print_entry)
    if not fine then
      return nil, ("Could not read file metadata: %s"):format(last)
    elseif not last then
      return nil, message
    end
    entry = last
  end
  return print_entry(context, entry, true)
end

function map.run(context, values)
  local message
  local start, length = 0, nil
  if values.start_offset then
    start, message = size_option("start offset", values.start_offset)
    if not start then
      return nil, message
    end
  end
  if values.max_length then
    length, message = size_option("max length", values.max_length)
    if not length then
      return nil, message
    end
  end
  if #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  local image <close>, why = images.open(context, values.operands[1],
    { format = values.format, image_opts = values.image_opts, force_share = values.force_share })
  if not image then
    return nil, why
  end
  local rest = math.max(image.size - start, 0)
  length = math.min(length or rest, rest)
  local fine
  if values.output == "json" then
    fine, message = list(context, image, start, length, "[", print_json)
    if fine then
      context:write("]\n")
    end
  else
    local heads = ("%-16s%-16s%-16s%s\n"):format("Offset", "Length", "Mapped to", "File")
    fine, message = list(context, image, start, length, heads, print_human)
  end
  if not fine then
    return nil, message
  end
  return 0
end

return map
