-- SPDX-License-Identifier: MIT
-- `convert`: copies a disk, or several one behind the other, into a new file of another form.
local creation = require("qcow2.cli.creation")
local formats = require("qcow2.cli.formats")
local images = require("qcow2.cli.images")
local optlist = require("qcow2.cli.optlist")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")
local number = require("qcow2.cli.number")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

local SECTOR = 512
local MAX_SPARSE = 16 << 20
local MAX_PARALLEL = 16

local convert = {
  name = "convert",
  summary = "Copy one or more disks into a new image",
  details = {
    "What is zero in the source takes no space in the target. With several sources the target is one behind the other.",
    "An external data file (-o data_file=NAME) that exists and holds data is not overwritten, unless the image to be "
      .. "overwritten names it as its own or -o overwrite=on allows it.",
  },
  options = {
    options.with(options.format, { long = "source-format", key = "format", help = "format of the sources" }),
    options.with(options.image_opts, { hidden = { "source-image-opts" },
      help = "each source is a list of options, not a name" }),
    {
      short = "T",
      long = "source-cache",
      arg = "CACHE",
      choices = options.CACHE_MODES,
      help = "cache mode of the sources; taken for the sake of scripts, changes nothing",
    },
    {
      short = "l",
      long = "snapshot",
      hidden = { "source-snapshot" },
      arg = "SNAPSHOT",
      help = "copy an internal snapshot: its id or name, or snapshot.id=ID,snapshot.name=NAME",
    },
    { long = "bitmaps", help = "copy the persistent bitmaps too" },
    { long = "skip-broken-bitmaps", help = "leave out bitmaps that were not stored completely" },
    { long = "salvage", help = "what cannot be read becomes zeros" },
    { long = "strict", help = "an image file that ends before its own data is an error, not zeros" },
    {
      short = "O",
      long = "target-format",
      hidden = { "output-format" },
      arg = "FMT",
      choices = { "qcow2", "raw" },
      help = "format of the target (default: raw)",
    },
    { long = "target-image-opts", help = "TARGET is a list of options, not a name; only with -n" },
    {
      short = "o",
      long = "target-format-options",
      hidden = { "options", "target-options" },
      arg = "OPTIONS",
      many = true,
      help = "creation options of the target, key=value,...; -o help lists them",
    },
    {
      short = "t",
      long = "target-cache",
      arg = "CACHE",
      choices = options.CACHE_MODES,
      help = "cache mode of the target; with another one than unsafe (the default) it is flushed at the end",
    },
    { short = "B", long = "backing", arg = "FILE", hidden = { "b" }, help = "the target's backing file" },
    { short = "F", long = "backing-format", arg = "FMT", help = "format of the backing file" },
    {
      short = "S",
      long = "sparse-size",
      arg = "SIZE",
      help = "zeros shorter than SIZE are written out (default: 4k); 0: write everything",
    },
    { short = "n", long = "no-create", help = "write into a target that exists" },
    { long = "target-is-zero", help = "the target of -n is all zeros already" },
    { short = "c", long = "compress", help = "compress the target" },
    options.force_share,
    { short = "r", long = "rate-limit", arg = "RATE", help = "at most RATE bytes a second" },
    { short = "m", long = "parallel", arg = "COUNT", help = "work COUNT pieces at once, 1 to 16" },
    { short = "W", long = "oob-writes", help = "the order of writes may differ from the disk's order" },
    { short = "C", long = "copy-range-offloading", help = "let the host copy inside its file system" },
    options.progress,
    options.quiet,
    options.object,
  },
  operands = {
    { name = "SOURCE", usage = "SOURCE...", help = "the images to copy" },
    { name = "TARGET", help = "the file to make" },
  },
}

local function sparse_size(value)
  local bytes, message = number.read(value, "buffer size for sparse output")
  if not bytes then
    return nil, message
  elseif bytes % SECTOR ~= 0 or bytes > MAX_SPARSE then
    return nil, ("Invalid buffer size for sparse output specified. Valid sizes are multiples of %d up to %d. Select "
      .. "0 to disable sparse detection (fully allocates output)."):format(SECTOR, MAX_SPARSE)
  end
  return bytes
end

-- What a command line can say that makes no sense, in QEMU's words where it has some.
local function contradiction(values)
  if values.skip_broken_bitmaps and not values.bitmaps then
    return "Use of --skip-broken-bitmaps requires --bitmaps"
  elseif values.compress and values.copy_range_offloading then
    return "Cannot enable copy offloading when -c is used"
  elseif values.sparse_size and values.copy_range_offloading then
    return "Cannot enable copy offloading when -S is used"
  elseif values.copy_range_offloading and values.salvage then
    return "Cannot use copy offloading in salvaging mode"
  elseif values.target_image_opts and values.target_format then
    return "--image-opts and --format are mutually exclusive"
  elseif values.target_image_opts and not values.no_create then
    return "--target-image-opts requires use of -n flag"
  elseif values.no_create and values.target_format_options then
    return "-o has no effect when skipping image creation"
  elseif values.target_is_zero and not values.no_create then
    return "--target-is-zero requires use of -n flag"
  elseif values.target_is_zero and values.backing then
    return "Cannot use --target-is-zero when the destination image has a backing file"
  elseif #values.operands > 2 and values.backing then
    return "Having a backing file for the target makes no sense when concatenating multiple input images"
  elseif #values.operands > 2 and values.snapshot then
    return "No support for concatenating multiple snapshot"
  elseif #values.operands > 2 and values.bitmaps then
    return "Copying bitmaps only possible with single source"
  elseif values.source_cache and not images.is_cache_mode(values.source_cache) then
    return "Invalid source cache option: " .. values.source_cache
  elseif values.target_cache and not images.is_cache_mode(values.target_cache) then
    return "Invalid cache option: " .. values.target_cache
  end
end

-- What the target's format cannot do.
local function beyond_format(values, made)
  local given = made.values
  if made.format == "raw" then
    if values.backing then
      return "Backing file not supported for file format 'raw'"
    elseif values.backing_format then
      return "Backing file format not supported for file format 'raw'"
    elseif values.compress then
      return "Compression not supported for this file format"
    elseif values.bitmaps then
      return "Format driver 'raw' does not support bitmaps"
    end
  elseif given.backing_file and not given.backing_fmt and not values.no_create then
    return "Use of backing file requires explicit backing format"
  elseif values.compress and given.preallocation and given.preallocation ~= "off" then
    return "Compression and preallocation not supported at the same time"
  elseif values.compress and (given.encryption or given["encrypt.format"]) then
    return "Compression and encryption not supported at the same time"
  elseif values.bitmaps and (given.compat == "0.10" or given.compat == "v2") then
    return "Format driver 'qcow2' does not support bitmaps"
  elseif given.keep_data_file then
    return "keep_data_file is for adopting a data file: convert writes to it"
  end
end

-- snapshot.id=ID,snapshot.name=NAME, or one word that is an id or else a name.
local function wanted_snapshot(word)
  local wanted = { word = word }
  if word:sub(1, 9) == "snapshot." then
    wanted = {}
    for _, entry in ipairs(optlist.parse(word)) do
      local field = entry.key:match("^snapshot%.(.*)$")
      if field ~= "id" and field ~= "name" then
        return nil, ("Invalid parameter '%s'"):format(text.escape(entry.key))
      end
      wanted[field] = entry.value
    end
  end
  return wanted
end

local function find_snapshot(snapshots, wanted)
  local function find(fits)
    for _, snapshot in ipairs(snapshots) do
      if fits(snapshot) then
        return snapshot
      end
    end
  end
  if wanted.word then
    return find(function(snapshot)
      return snapshot.id == wanted.word
    end) or find(function(snapshot)
      return snapshot.name == wanted.word
    end)
  end
  return find(function(snapshot)
    return (not wanted.id or snapshot.id == wanted.id) and (not wanted.name or snapshot.name == wanted.name)
  end)
end

-- The sources, open; the caller closes them.
local function open_sources(context, values, opened)
  local wanted, message
  if values.snapshot then
    wanted, message = wanted_snapshot(values.snapshot)
    if not wanted then
      return nil, message
    end
  end
  for index = 1, #values.operands - 1 do
    local asked = { format = values.format, image_opts = values.image_opts, force_share = values.force_share }
    local name = values.operands[index]
    local image
    image, message = images.open(context, name, asked)
    if not image then
      return nil, message
    end
    opened[index] = image
    if wanted then
      local snapshots, why = {}, nil
      if image.format == "qcow2" then
        snapshots, why = images.table_of(image, "snapshots")
      end
      local snapshot = snapshots and find_snapshot(snapshots, wanted)
      if not snapshots then
        return nil, why
      elseif not snapshot then
        return nil, "Failed to load snapshot: Can't find snapshot"
      end
      local disk
      disk, message = image:snapshot(snapshot.id)
      if not disk then
        return nil, "Failed to load snapshot: " .. message
      end
      table.insert(opened, 1, disk)
    end
  end
  return true
end

-- Goes through the steps of a job; one that is left early lets go of what it made.
local function run_job(context, job, values, mode)
  local _ <close> = job
  local shown = progress.start(context, mode, 1)
  local next_step = job:steps()
  while true do
    local fine, done, total = context.try(next_step)
    if not fine then
      shown:finish(false)
      return nil, done
    elseif not done then
      break
    end
    shown:update(done, total)
  end
  shown:finish(true)
  if job.lost_bytes > 0 and not values.quiet then
    context:report(("warning: %d bytes could not be read; they are zeros in the target"):format(job.lost_bytes))
  end
  if job.missing_bytes > 0 then
    context:report(("warning: an image file ends before its data: %d bytes between %#x and %#x of the disk are zeros "
      .. "in the target"):format(job.missing_bytes, job.missing_from, job.missing_to))
  end
  return true
end

-- The bitmaps to be copied are sound, or are to be skipped.
local function check_bitmaps(context, source, values)
  if source.format ~= "qcow2" or source.version < 3 then
    return nil, "Source lacks bitmap support"
  end
  local bitmaps, message = images.table_of(source, "bitmaps")
  if not bitmaps then
    return nil, message
  end
  for _, bitmap in ipairs(bitmaps) do
    if bitmap.in_use and not values.skip_broken_bitmaps then
      return nil, ("Cannot copy inconsistent bitmap '%s'\nTry --skip-broken-bitmaps, or use '%s bitmap --remove'")
        :format(text.escape(bitmap.name), context.name)
    elseif bitmap.in_use and not values.quiet then
      context:report(("warning: Skipping inconsistent bitmap '%s'"):format(text.escape(bitmap.name)))
    end
  end
  return true
end

-- The target of --target-image-opts: an image that is open, or of a raw one its path.
local function open_target(context, values, copying)
  local name = values.operands[#values.operands]
  if not values.target_image_opts then
    return name
  end
  local image, message = images.open(context, name, { image_opts = true, mode = "rw" })
  if not image then
    return nil, message
  end
  copying.format = image.format
  if image.format == "raw" then
    local path = image.path
    image:close()
    return path
  end
  return image
end

local function copy(context, values, mode, copying)
  local opened <close> = setmetatable({}, {
    __close = function(list)
      for _, image in ipairs(list) do
        image:close()
      end
    end,
  })
  local name = values.operands[#values.operands]
  local fine, message = open_sources(context, values, opened)
  if fine and values.bitmaps then
    fine, message = check_bitmaps(context, opened[1], values)
  end
  if not fine then
    return nil, message
  end
  local target
  target, message = open_target(context, values, copying)
  if not target then
    return nil, message
  end
  if copying.format == "raw" then
    copying.target_backing, copying.compress, copying.bitmaps, copying.skip_broken_bitmaps = nil, nil, nil, nil
  end
  local sources = values.snapshot and { opened[1] } or { table.unpack(opened) }
  local job, why = qcow2.convert(sources, target, copying)
  if job then
    for _, note in ipairs(job.notes) do
      context:report(("%s: %s"):format(text.escape(name), note))
    end
    fine, why = run_job(context, job, values, mode)
  else
    fine = nil
  end
  if type(target) ~= "string" then
    local closed, close_why = target:close()
    if fine and not closed then
      fine, why = nil, close_why
    end
  end
  if not fine then
    return nil, ("%s: error while converting %s: %s"):format(text.escape(name), copying.format, why)
  end
  return 0
end

-- -o, -B and -F together; nil and a message.
local function read_creation(values, format, list)
  local made, message = creation.parse(format, list)
  if not made then
    return nil, message
  end
  if format == "qcow2" then
    for name, value in pairs({ backing_file = values.backing, backing_fmt = values.backing_format }) do
      local fine
      fine, message = creation.set(made, name, value)
      if not fine then
        return nil, message
      end
    end
  end
  -- The size is the sources' whatever this option says.
  made.values.size = nil
  return made
end

-- The library's options of creation; nil and a message.
local function creation_options(context, values, made)
  local fine, message = creation.check(made)
  if not fine then
    return nil, message
  end
  local unheeded = creation.unheeded(made)
  if unheeded then
    context:report(unheeded)
  end
  local o = creation.options(made)
  o.format = nil
  if made.format == "qcow2" then
    o.references = { "beside", table.unpack(context.allowed) }
  end
  if values.backing_format and not o.backing_file then
    return nil, "Backing format cannot be used without backing file"
  end
  return o
end

-- Numbers on the command line: -S, -m, -r.
local function read_numbers(values, copying)
  local message
  if values.sparse_size then
    copying.sparse_size, message = sparse_size(values.sparse_size)
  end
  if not message and values.parallel then
    copying.threads = math.tointeger(tonumber(values.parallel))
    if not copying.threads or copying.threads < 1 or copying.threads > MAX_PARALLEL then
      message = ("Invalid number of coroutines specified. Must be between 1 and %d."):format(MAX_PARALLEL)
    end
  end
  if not message and values.rate_limit then
    copying.rate, message = number.read(values.rate_limit, "rate limit")
  end
  return message
end

function convert.run(context, values)
  local mode, message = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, message
  end
  local copying = {
    format = values.target_format or "raw",
    salvage = values.salvage,
    strict = values.strict,
    target_exists = values.no_create,
    target_is_zero = values.target_is_zero,
    target_backing = values.no_create and values.backing ~= nil or nil,
    overwrite = not values.no_create,
    compress = values.compress,
    bitmaps = values.bitmaps,
    skip_broken_bitmaps = values.skip_broken_bitmaps,
    sync = values.target_cache ~= nil and values.target_cache ~= "unsafe",
  }
  message = read_numbers(values, copying) or contradiction(values)
  if message then
    return nil, message
  end
  local fine, list, made
  fine, message = formats.find(copying.format)
  if fine then
    list, message = formats.join_options(values.target_format_options)
  end
  if not list then
    return nil, message
  elseif optlist.wants_help(list) then
    context:write(creation.help(copying.format, #values.operands >= 2))
    return 0
  end
  if #values.operands < 2 then
    return nil, "Must specify image file name"
  end
  made, message = read_creation(values, copying.format, list)
  if made then
    message = not values.target_image_opts and beyond_format(values, made)
  end
  if message then
    return nil, message
  end
  if not values.no_create then
    copying.create, message = creation_options(context, values, made)
    if not copying.create then
      return nil, ("%s: error while converting %s: %s"):format(text.escape(values.operands[#values.operands]),
        copying.format, message)
    end
  end
  return copy(context, values, mode, copying)
end

return convert
