-- SPDX-License-Identifier: MIT
-- `map`: which parts of the disk are backed by what, through the whole chain.
local images = require("qcow2.cli.images")
local listing = require("qcow2.listing")
local options = require("qcow2.cli.options")
local number = require("qcow2.cli.number")
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

-- Prints `head` and the rows from `start` on, up to `length` bytes.
local function list(context, image, start, length, head, json)
  local layers = listing.layers(image, text.escape)
  if layers.missing and length > 0 then
    -- Nothing is printed of a list that would break off where the missing file is needed.
    local fine = context.try(listing.rows, image, layers, start, length, true, function() end)
    if not fine then
      return nil, images.could_not_open(image.path, layers.missing)
    end
  end
  context:write(head)
  -- The rows raise what the world does.
  local fine, whole, unplaced = context.try(listing.rows, image, layers, start, length, json, function(rows)
    context:write(rows)
  end)
  if not fine then
    return nil, ("Could not read file metadata: %s"):format(whole)
  elseif unplaced then
    return nil, "File contains external, encrypted or compressed clusters."
  end
  return true
end

function map.run(context, values)
  local message
  local start, length = 0, nil
  if values.start_offset then
    start, message = number.read(values.start_offset, "start offset")
    if not start then
      return nil, message
    end
  end
  if values.max_length then
    length, message = number.read(values.max_length, "max length")
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
    fine, message = list(context, image, start, length, "[", true)
    if fine then
      context:write("]\n")
    end
  else
    local heads = ("%-16s%-16s%-16s%s\n"):format("Offset", "Length", "Mapped to", "File")
    fine, message = list(context, image, start, length, heads, false)
  end
  if not fine then
    return nil, message
  end
  return 0
end

return map
