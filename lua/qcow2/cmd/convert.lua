-- SPDX-License-Identifier: MIT
-- `convert`: copies a disk, or several one behind the other, into a new file of another form.
local formats = require("qcow2.cli.formats")
local images = require("qcow2.cli.images")
local optlist = require("qcow2.cli.optlist")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

local SECTOR = 512
local MAX_SPARSE = 16 << 20
local MAX_PARALLEL = 16
local CACHE_CHOICES = { "none", "writeback", "writethrough", "directsync", "unsafe" }

local convert = {
  name = "convert",
  summary = "Copy one or more disks into a new image",
  details = {
    "What is zero in the source is a hole in the target. With several sources the target is one behind the other.",
  },
  options = {
    options.with(options.format, { long = "source-format", key = "format", help = "format of the sources" }),
    options.with(options.image_opts, { help = "each source is a list of options, not a name" }),
    {
      short = "T",
      long = "source-cache",
      arg = "CACHE",
      choices = CACHE_CHOICES,
      help = "cache mode of the sources; taken for the sake of scripts, changes nothing",
    },
    {
      short = "l",
      long = "snapshot",
      arg = "SNAPSHOT",
      help = "copy an internal snapshot: its id or name, or snapshot.id=ID,snapshot.name=NAME",
    },
    { long = "bitmaps", help = "copy the persistent bitmaps too" },
    { long = "skip-broken-bitmaps", help = "leave out bitmaps that were not stored completely" },
    { long = "salvage", help = "what cannot be read becomes zeros" },
    {
      short = "O",
      long = "target-format",
      arg = "FMT",
      choices = { "qcow2", "raw" },
      help = "format of the target (default: raw)",
    },
    { long = "target-image-opts", help = "TARGET is a list of options, not a name; only with -n" },
    {
      short = "o",
      long = "target-format-options",
      arg = "OPTIONS",
      many = true,
      help = "creation options of the target, key=value,...; -o help lists them",
    },
    {
      short = "t",
      long = "target-cache",
      arg = "CACHE",
      choices = CACHE_CHOICES,
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
  local bytes = qcow2.size(value)
  if not bytes then
    return nil, ("Invalid buffer size for sparse output specified: '%s'"):format(text.escape(value))
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
local function beyond_format(values, format)
  if values.rate_limit then
    if not qcow2.size(values.rate_limit) then
      return ("Invalid rate limit specified: '%s'"):format(text.escape(values.rate_limit))
    end
    return "-r, --rate-limit is unsupported"
  elseif values.target_image_opts then
    return "--target-image-opts is unsupported"
  elseif format == "raw" then
    if values.backing then
      return "Backing file not supported for file format 'raw'"
    elseif values.backing_format then
      return "Backing file format not supported for file format 'raw'"
    elseif values.compress then
      return "Compression not supported for this file format"
    elseif values.bitmaps then
      return "Format driver 'raw' does not support bitmaps"
    end
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
  return true
end

local function copy(context, values, mode, copying)
  local opened <close> = setmetatable({}, {
    __close = function(list)
      for _, image in ipairs(list) do
        image:close()
      end
    end,
  })
  local target = values.operands[#values.operands]
  local fine, message = open_sources(context, values, opened)
  if not fine then
    return nil, message
  end
  local sources = values.snapshot and { opened[1] } or { table.unpack(opened) }
  local job, why = qcow2.convert(sources, target, copying)
  if job then
    fine, why = run_job(context, job, values, mode)
  else
    fine = nil
  end
  if not fine then
    return nil, ("%s: error while converting %s: %s"):format(text.escape(target), copying.format, why)
  end
  return 0
end

function convert.run(context, values)
  local mode, message = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, message
  end
  local copying = {
    salvage = values.salvage,
    target_exists = values.no_create,
    target_is_zero = values.target_is_zero,
    overwrite = not values.no_create,
    sync = values.target_cache ~= nil and values.target_cache ~= "unsafe",
  }
  if values.sparse_size then
    copying.sparse_size, message = sparse_size(values.sparse_size)
    if message then
      return nil, message
    end
  end
  if values.parallel then
    copying.threads = math.tointeger(tonumber(values.parallel))
    if not copying.threads or copying.threads < 1 or copying.threads > MAX_PARALLEL then
      return nil, ("Invalid number of coroutines specified. Must be between 1 and %d."):format(MAX_PARALLEL)
    end
  end
  message = contradiction(values)
  if message then
    return nil, message
  end
  copying.format = values.target_format or "raw"
  local format, list
  format, message = formats.find(copying.format)
  if not format then
    return nil, message
  end
  list, message = formats.join_options(values.target_format_options)
  if not list then
    return nil, message
  elseif optlist.wants_help(list) then
    context:write(formats.options_help(format))
    return 0
  end
  if #values.operands < 2 then
    return nil, "Must specify image file name"
  end
  message = beyond_format(values, copying.format)
  if message then
    return nil, message
  end
  local fine
  fine, message = formats.check_raw_options(list)
  if not fine then
    return nil, message
  end
  return copy(context, values, mode, copying)
end

return convert
