-- SPDX-License-Identifier: MIT
-- `dd`: copies a stretch of a disk into a new file, with dd's operands.
local core = require("qcow2.core")
local formats = require("qcow2.cli.formats")
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local number = require("qcow2.cli.number")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

local SECTOR = 512
local MAX_BLOCK = (1 << 31) - 1
local PIECE = 2 << 20

local dd = {
  name = "dd",
  summary = "Copy a stretch of a disk into a new file",
  details = {
    "count= is counted from the disk's begin, as qemu-img does: skip= lessens what is copied. The target's length "
      .. "is a whole number of sectors of 512 bytes.",
  },
  options = {
    options.with(options.format, { help = "format of INPUT (default: found by its first bytes)" }),
    options.with(options.image_opts, { help = "INPUT is a list of options, not a name" }),
    {
      short = "O",
      long = "output-format",
      arg = "FMT",
      choices = { "raw", "qcow2" },
      help = "format of OUTPUT (default: raw)",
    },
    options.force_share,
    options.object,
  },
  operands = {
    { name = "bs", usage = "[bs=BLOCK_SIZE]", help = "bytes of a block (default: 512)" },
    { name = "count", usage = "[count=BLOCKS]", help = "end after so many blocks of the disk (default: all)" },
    { name = "skip", usage = "[skip=BLOCKS]", help = "begin after so many blocks of the disk" },
    { name = "if", usage = "if=INPUT", help = "the image to copy from" },
    { name = "of", usage = "of=OUTPUT", help = "the file to make; one that exists is overwritten" },
  },
}

local function read_operands(words)
  local found = { bs = SECTOR }
  for _, word in ipairs(words) do
    local name, value = word:match("^([^=]*)=(.*)$")
    local message
    if name == "if" or name == "of" then
      found[name] = value
    elseif name == "bs" then
      found.bs, message = number.read(value, name, 1, MAX_BLOCK)
    elseif name == "count" or name == "skip" then
      found[name], message = number.read(value, name, 0, math.maxinteger)
    else
      message = "unrecognized operand " .. text.escape(name or word)
    end
    if message then
      return nil, message
    end
  end
  if not found["if"] or not found.of then
    return nil, "Must specify both input and output files"
  end
  return found
end

-- Where the copied stretch begins and ends on the disk; a begin behind the end stands for nothing to copy.
local function stretch(size, found)
  local blocks = size // found.bs
  local stop = found.count and found.count <= blocks and found.count * found.bs or size
  local start = (found.skip or 0) <= blocks and (found.skip or 0) * found.bs or stop + 1
  return start, stop
end

local function is_same_file(a, b)
  local a_device, a_inode = a:identity()
  local b_device, b_inode = b:identity()
  return a_device and a_device == b_device and a_inode == b_inode
end

-- The target, empty but for its length. It is emptied only after its locks are held, so that a file in use, our
-- own input among them, stays as it is; with -U the input holds no locks and is compared by hand.
local function open_target(path, image, length)
  local target, message, kind = core.store_file(path, { create = true, exclusive = true })
  local made = target ~= nil
  if kind == "exists" then
    target, message = core.store_file(path, { write = true })
  end
  if not target then
    return nil, message
  end
  local input <close> = core.store_file(image.path, { force_share = true })
  if input and is_same_file(input, target) then
    target:close()
    return nil, "It is the input"
  end
  local fine
  if target:is_device() then
    local room
    room, message = target:length()
    fine = room and room >= length
    if room and not fine then
      message = ("The device has %d bytes, %d are needed"):format(room, length)
    end
    if fine then
      fine, message = target:punch(0, length)
    end
  else
    fine, message = target:resize(0)
    if fine then
      fine, message = target:resize(length)
    end
  end
  if not fine then
    if made then
      os.remove(path)
    end
    target:close()
    return nil, message
  end
  return target, made
end

local function copy_data(image, target, extent, start)
  local offset, stop = extent.offset, extent.offset + extent.length
  while offset < stop do
    local length = math.min(PIECE, stop - offset)
    local bytes, message = image:read(offset, length)
    if not bytes then
      return nil, "error while reading from input image file: " .. message
    end
    local written
    written, message = target:write(offset - start, bytes)
    if not written then
      return nil, "error while writing to output image file: " .. message
    end
    offset = offset + length
  end
  return true
end

local function copy(context, image, target, start, stop)
  local next_extent = image:extents({ start = start, length = stop - start })
  while true do
    -- The iterator raises what the world does.
    local fine, extent = context.try(next_extent)
    if not fine then
      return nil, "error while reading from input image file: " .. tostring(extent)
    elseif not extent then
      return true
    end
    if extent.kind == "data" or extent.kind == "compressed" then
      local copied, message = copy_data(image, target, extent, start)
      if not copied then
        return nil, message
      end
    end
  end
end

-- Into a new qcow2 image: a conversion of a part.
local function convert(image, path, start, length)
  local target, message
  if length == 0 then
    target, message = qcow2.create(path, { size = 0, overwrite = true })
  else
    target, message = qcow2.convert(image, path, { format = "qcow2", overwrite = true, start = start, length = length,
      sync = true })
    if target then
      target, message = target:run()
    end
  end
  if not target then
    return nil, ("%s: error while creating output image: %s"):format(text.escape(path), message)
  end
  return 0
end

function dd.run(context, values)
  local found, message = read_operands(values.operands)
  if not found then
    return nil, message
  end
  local image <close>, why = images.open(context, found["if"],
    { format = values.format, image_opts = values.image_opts, force_share = values.force_share, whole = true })
  if not image then
    return nil, why
  end
  local format
  format, message = formats.find(values.output_format or "raw")
  if not format then
    return nil, message
  end
  local start, stop = stretch(image.size, found)
  local length = math.max(stop - start, 0)
  if values.output_format == "qcow2" then
    if start > stop then
      context:report(("%s: cannot skip to specified offset"):format(text.escape(found["if"])))
    end
    return convert(image, found.of, start, length)
  end
  local target <close>, made = open_target(found.of, image, (length + SECTOR - 1) // SECTOR * SECTOR)
  if not target then
    return nil, ("%s: error while creating output image: %s"):format(text.escape(found.of), made)
  end
  if start > stop then
    context:report(("%s: cannot skip to specified offset"):format(text.escape(found["if"])))
  end
  local fine = true
  if length > 0 then
    fine, message = copy(context, image, target, start, stop)
  end
  if fine then
    fine, message = target:flush()
  end
  if not fine then
    if made then
      os.remove(found.of)
    end
    return nil, message
  end
  return 0
end

return dd
