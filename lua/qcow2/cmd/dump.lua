-- SPDX-License-Identifier: MIT
-- `dump`: every structure of an image with its place in the file, its bytes and what they mean.
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local options = require("qcow2.cli.options")
local structures = require("qcow2.cli.structures")
local text = require("qcow2.cli.text")

-- Bytes of a row that people see, and programs.
local SHOWN, GIVEN = 8, 512

local function bytes_of(file, row, most)
  local count = math.min(row.length, most)
  if not file:seek("set", row.offset) then
    return ""
  end
  local bytes = file:read(count) or ""
  return (bytes:gsub(".", function(char)
    return ("%02x "):format(char:byte())
  end):gsub(" $", "")) .. (row.length > most and " .." or "")
end

local function print_human(context, file, structure)
  context:write(("%s at %s, %d bytes\n"):format(structure.name, ("0x%x"):format(structure.offset), structure.length))
  for _, row in ipairs(structure.rows) do
    context:write(("  0x%010x  %-26s  %-23s  %s\n"):format(row.offset, bytes_of(file, row, SHOWN), row.name,
      row.meaning))
  end
  if structure.problem then
    context:write("  ! ", text.escape(structure.problem), "\n")
  end
end

local function json_of(file, structure)
  local rows = setmetatable({}, {
    __len = function()
      return #structure.rows
    end,
    __index = function(_, index)
      local row = structure.rows[index]
      return json.object("offset length bytes name value meaning", {
        offset = row.offset,
        length = row.length,
        bytes = bytes_of(file, row, GIVEN),
        name = row.name,
        value = row.value,
        meaning = row.meaning,
      })
    end,
  })
  return json.object("structure offset length rows problem", { structure = structure.name, offset = structure.offset,
    length = structure.length, rows = rows, problem = structure.problem })
end

local dump = {
  name = "dump",
  summary = "Print every structure of an image: place, bytes, meaning",
  details = {
    "Header, header extensions, refcount table and blocks, L1 and L2 tables, snapshots and bitmaps. Neighbouring "
      .. "entries of a table that differ only by one cluster are one line.",
  },
  options = {
    options.format,
    options.image_opts,
    options.force_share,
    { long = "json", help = "the same as --output=json" },
    options.output,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

function dump.run(context, values)
  if #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  local image <close>, message = images.open(context, values.operands[1],
    { format = values.format, image_opts = values.image_opts, force_share = values.force_share })
  if not image then
    return nil, message
  elseif image.format ~= "qcow2" then
    return nil, ("'%s' is a %s image, it has no structures"):format(text.escape(image.path), image.format)
  end
  local file <close>, why = io.open(image.path, "rb")
  if not file then
    return nil, images.could_not_open(image.path, why)
  end
  local count, as_json = 0, values.json or values.output == "json"
  local function put(structure)
    count = count + 1
    if as_json then
      context:write(count > 1 and ",\n    " or "[\n    ")
      json.write(json_of(file, structure), function(piece)
        context:write((piece:gsub("\n", "\n    ")))
      end)
    else
      context:write(count > 1 and "\n" or "")
      print_human(context, file, structure)
    end
  end
  structures.each(image, file, put)
  if as_json then
    context:write("\n]\n")
  end
  return 0
end

return dump
