-- SPDX-License-Identifier: MIT
-- `explain`: the way from one byte of the disk to the byte of a file that holds it.
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local options = require("qcow2.cli.options")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

local explain = {
  name = "explain",
  summary = "Show how one byte of a disk is found",
  details = {
    "From the header over the L1 and L2 entries, with their raw values, to the byte of the file or of the backing "
      .. "file. OFFSET is a place on the disk, in bytes: 1048576, 0x100000, 1M.",
  },
  options = {
    options.format,
    options.image_opts,
    options.force_share,
    options.output,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" }, { name = "OFFSET", help = "a byte of the disk" } },
}

-- The fields of an explanation, which are plain values and tables of such, as JSON in alphabetical order.
local function plain(value, depth)
  if type(value) ~= "table" then
    local kind = type(value)
    return (kind == "number" or kind == "boolean" or kind == "string") and value or tostring(value)
  elseif depth == 0 then
    return "..."
  elseif #value > 0 then
    local list = {}
    for index, item in ipairs(value) do
      list[index] = plain(item, depth - 1)
    end
    return list
  end
  local names, members = {}, {}
  for name, item in pairs(value) do
    if type(name) == "string" and not name:find("%s") then
      names[#names + 1] = name
      -- Raw words use all 64 bits: as a number many would be negative.
      local is_word = math.type(item) == "integer" and (name:find("_raw$") or name == "bitmap")
      members[name] = is_word and ("0x%016x"):format(item) or plain(item, depth - 1)
    end
  end
  table.sort(names)
  return json.object(table.concat(names, " "), members)
end

-- Written in hexadecimal too, as the output of `dump` and `explain` is.
local function offset_of(word)
  if word:find("^0[xX]%x+$") then
    return math.tointeger(tonumber(word))
  end
  return qcow2.size(word)
end

function explain.run(context, values)
  if #values.operands ~= 2 then
    return context:misused("Expecting an image file name and an offset")
  end
  local offset = offset_of(values.operands[2])
  if not offset then
    return nil, ("Invalid offset specified: '%s'"):format(text.escape(values.operands[2]))
  end
  local image <close>, message = images.open(context, values.operands[1],
    { format = values.format, image_opts = values.image_opts, force_share = values.force_share })
  if not image then
    return nil, message
  end
  local way, why = image:explain(offset)
  if not way then
    return nil, why
  end
  if values.output == "json" then
    local fields = {}
    for name, value in pairs(way) do
      fields[name] = value
    end
    context:write(json.pretty(plain(fields, 6)), "\n")
  else
    context:write((tostring(way):gsub("\n*$", "\n")))
  end
  return 0
end

return explain
