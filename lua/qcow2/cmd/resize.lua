-- SPDX-License-Identifier: MIT
-- `resize`: changes the size of a disk.
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local number = require("qcow2.cli.number")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

local SECTOR = 512
local MODES = { off = true, metadata = true, falloc = true, full = true }

local resize = {
  name = "resize",
  summary = "Change the size of a disk",
  details = {
    "SIZE is the new size, or with a sign in front what the disk grows or shrinks by. New space reads as zeros.",
    "Before shrinking, make the file systems and partitions on the disk smaller: what lies behind the new end is "
      .. "lost. After growing, make them larger to use the space.",
  },
  options = {
    negative = true,
    options.format,
    options.image_opts,
    {
      long = "preallocation",
      arg = "MODE",
      choices = { "off", "metadata", "falloc", "full" },
      help = "give the new part its space in the file at once (default: off)",
    },
    { long = "shrink", help = "allow the disk to become smaller" },
    options.quiet,
    options.object,
  },
  operands = {
    { name = "FILE", help = "the image" },
    { name = "SIZE", usage = "[+|-]SIZE", help = "the new size, or the change" },
  },
}

-- The sign, "" without one, and the number of bytes; nil and a message.
local function parse_size(word)
  local sign, rest = word:match("^([+-]?)(.*)$")
  -- No second sign.
  local bytes, message = number.size_parameter(rest:find("^%s*[-+]") and "" or rest, "size")
  return bytes and sign, bytes or message
end

-- Resizing touches no byte of a raw disk, so one that was only guessed to be raw may be resized, with a warning.
local function open(context, values, name)
  local asked = { format = values.format, image_opts = values.image_opts, mode = "rw" }
  if not values.format and not values.image_opts and qcow2.probe(name) == "raw" then
    asked.format = "raw"
    io.stderr:write(("WARNING: Image format was not specified for '%s' and probing guessed raw.\n"):format(
      text.escape(name)), "         Specify the 'raw' format explicitly to have it taken for granted.\n")
  end
  return images.open(context, name, asked)
end

local function change(context, values, image, sign, bytes)
  local mode = values.preallocation or "off"
  local now = image.size
  local wanted = sign == "+" and now + bytes or sign == "-" and now - bytes or bytes
  if wanted <= 0 then
    return nil, "New image size must be positive"
  elseif wanted <= now and mode ~= "off" then
    return nil, "Preallocation can only be used for growing images"
  elseif wanted < now and not values.shrink then
    context:report("Use the --shrink option to perform a shrink operation.")
    context:report("warning: Shrinking an image will delete all data beyond the shrunken image's end. Before "
      .. "performing such an operation, make sure there is no important data there.")
    return nil
  elseif image.format == "qcow2" and wanted % SECTOR ~= 0 then
    return nil, "The new size must be a multiple of 512"
  elseif image.format == "raw" and mode == "metadata" then
    return nil, "Unsupported preallocation mode: metadata"
  end
  local fine, message = image:resize(wanted, { shrink = values.shrink, preallocation = mode })
  if not fine then
    return nil, message
  end
  return image:close()
end

function resize.run(context, values)
  if values.preallocation and not MODES[values.preallocation] then
    return nil, ("Invalid preallocation mode '%s'"):format(text.escape(values.preallocation))
  elseif #values.operands ~= 2 then
    return context:misused("Expecting image file name and size")
  end
  local sign, bytes = parse_size(values.operands[2])
  if not sign then
    return nil, bytes
  end
  local image, message = open(context, values, values.operands[1])
  if not image then
    return nil, message
  end
  local fine
  fine, message = change(context, values, image, sign, bytes)
  if not fine then
    image:close()
    if not message then
      return 1
    end
    return nil, message
  end
  if not values.quiet then
    context:write("Image resized.\n")
  end
  return 0
end

return resize
