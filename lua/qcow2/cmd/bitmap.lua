-- SPDX-License-Identifier: MIT
-- `bitmap`: adds, removes, clears, enables, disables and merges persistent bitmaps, one step after the other in the
-- order of the command line.
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local number = require("qcow2.cli.number")
local text = require("qcow2.cli.text")

local LEAST_GRANULARITY, MOST_GRANULARITY = 512, 1 << 31
local LONGEST_NAME = 1023

local function step(name, help, arg)
  return { long = name, arg = arg, help = help, key = "steps", many = true, ordered = true }
end

local bitmap = {
  name = "bitmap",
  summary = "Change a persistent bitmap of an image",
  details = {
    "Steps are taken in the order in which they are given, each to the bitmap BITMAP; when one fails, those before it "
      .. "have been done. Guest data is not touched, and no other file is opened than FILE and SOURCE_FILE.",
    "A new bitmap follows the guest's writes from then on, unless --disable comes behind --add.",
  },
  options = {
    step("add", "add a bitmap, of the granularity of -g, in which nothing is dirty"),
    step("remove", "remove the bitmap; the only step that works for an inconsistent one"),
    step("clear", "make everything in it clean"),
    step("enable", "let it follow writes"),
    step("disable", "let it stay as it is"),
    step("merge", "make dirty what is dirty in the bitmap SOURCE of the same image, or of SOURCE_FILE", "SOURCE"),
    { short = "b", long = "source-file", arg = "FILE", help = "the image that has the bitmap of --merge" },
    options.with(options.format, { key = "source_format", short = "F", long = "source-format",
      help = "format of SOURCE_FILE" }),
    { short = "g", long = "granularity", arg = "SIZE",
      help = "bytes that a bit of a new bitmap stands for, a power of two from 512 (default: the cluster size, but "
        .. "at least 4 KiB and at most 64 KiB)" },
    options.format,
    options.image_opts,
    options.object,
  },
  operands = {
    { name = "FILE", help = "the image" },
    { name = "BITMAP", help = "name of the bitmap that is changed" },
  },
}

-- What contradicts itself, before any file is opened.
local function misuse(values)
  local wanted = {}
  for _, item in ipairs(values.steps or {}) do
    wanted[item.option] = true
  end
  if not values.steps then
    return "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
  elseif values.granularity and not wanted.add then
    return "granularity only supported with --add"
  elseif values.source_format and not values.source_file then
    return "-F only supported with -b"
  elseif values.source_file and not wanted.merge then
    return "Merge bitmap source file only supported with --merge"
  elseif #values.operands ~= 2 then
    return "Expecting filename and bitmap name"
  end
end

local function granularity_of(word)
  local bytes, message = number.read(word, "granularity")
  -- To qemu-img 0 says "as if -g were not given".
  return bytes and bytes > 0 and bytes or nil, message
end

local function refuse_new(image, name, granularity)
  if image.format ~= "qcow2" then
    return "Only qcow2 images have persistent bitmaps: Operation not supported"
  elseif image.version < 3 then
    return ("Can't make bitmap '%s' persistent in '%s': Cannot store dirty bitmaps in qcow2 v2 files"):format(
      text.escape(name), text.escape(image.path))
  elseif name == "" then
    return "Bitmap name cannot be empty"
  elseif #name > LONGEST_NAME then
    return ("Can't make bitmap '%s' persistent in '%s': Name length exceeds maximum (%d characters)"):format(
      text.escape(name), text.escape(image.path), LONGEST_NAME)
  elseif image:bitmap(name) then
    return "Bitmap already exists: " .. text.escape(name)
  elseif granularity and (granularity < LEAST_GRANULARITY or granularity & (granularity - 1) ~= 0) then
    return "Granularity must be power of 2 and at least 512"
  elseif granularity and granularity > MOST_GRANULARITY then
    return ("Can't make bitmap '%s' persistent in '%s': Granularity exceeds maximum (%d bytes)"):format(
      text.escape(name), text.escape(image.path), MOST_GRANULARITY)
  end
end

-- A bitmap that is to be used; `remove` takes inconsistent ones too.
local function refuse_known(image, name, removing)
  local found, why, kind
  if image.format == "qcow2" then
    found, why, kind = image:bitmap(name)
  end
  if not found then
    return kind and kind ~= "missing" and why or ("Dirty bitmap '%s' not found"):format(text.escape(name))
  elseif found.in_use and not removing then
    return ("Bitmap '%s' is inconsistent and cannot be used\nTry 'bitmap --remove' to delete this bitmap from disk")
      :format(text.escape(name))
  end
end

local function refuse_sizes(image, source)
  if image.size ~= source.size then
    return ("Bitmaps are of different sizes (destination size is %d, source size is %d) and can't be merged")
      :format(image.size, source.size)
  end
end

local take = {}

function take.add(image, name, call)
  local why = refuse_new(image, name, call.granularity)
  if why then
    return nil, why
  end
  return image:bitmap_add(name, { granularity = call.granularity })
end

function take.merge(image, name, call, from)
  local source = call.source or image
  local why = refuse_known(image, name) or refuse_known(source, from) or refuse_sizes(image, source)
  if why then
    return nil, why
  end
  return image:bitmap_merge(name, from, { from = source })
end

for word, method in pairs({ remove = "bitmap_remove", clear = "bitmap_clear", enable = "bitmap_enable",
  disable = "bitmap_disable" }) do
  take[word] = function(image, name)
    local why = refuse_known(image, name, word == "remove")
    if why then
      return nil, why
    end
    return image[method](image, name)
  end
end

local function take_all(image, name, steps, call)
  for _, item in ipairs(steps) do
    local done, why = take[item.option](image, name, call, item.value)
    if not done then
      return nil, ("Operation %s on bitmap %s failed: %s"):format(item.option, text.escape(name), why)
    end
  end
  return true
end

-- The image of -b; nothing at all without it.
local function open_source(context, values)
  if values.source_file then
    return images.open(context, values.source_file, { format = values.source_format, tables_only = true })
  end
end

function bitmap.run(context, values)
  local granularity, why
  if values.granularity then
    granularity, why = granularity_of(values.granularity)
  end
  why = why or misuse(values)
  if why then
    return nil, why
  end
  local path, name = table.unpack(values.operands)
  local image <close>, message = images.open(context, path,
    { format = values.format, image_opts = values.image_opts, mode = "rw", tables_only = true })
  if not image then
    return nil, message
  end
  local source <close>, source_message = open_source(context, values)
  if source_message then
    return nil, source_message
  end
  local done
  done, message = images.close(image,
    take_all(image, name, values.steps, { granularity = granularity, source = source }))
  if not done then
    return nil, message
  end
  return 0
end

return bitmap
