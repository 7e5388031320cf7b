-- SPDX-License-Identifier: MIT
-- `rebase`: another backing file for an image that goes on showing the same disk.
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")
local qcow2 = require("qcow2")
local run_job = require("qcow2.cli.run_job")
local text = require("qcow2.cli.text")

local FORMATS = { qcow2 = true, raw = true }

local rebase = {
  name = "rebase",
  summary = "Change the backing file of an image",
  details = {
    "What differs between the old and the new backing file is copied into FILE first, so that the disk stays the "
      .. "same. With -b \"\" FILE has no backing file afterwards.",
    "With -u only the name in FILE changes: for a backing file that was moved. Nothing else is opened, and nobody "
      .. "checks that the disk stays the same.",
  },
  options = {
    options.format,
    options.image_opts,
    {
      short = "t",
      long = "cache",
      arg = "CACHE",
      choices = options.CACHE_MODES,
      help = "cache mode of FILE; taken for the sake of scripts, what is done is always on disk at the end",
    },
    { short = "b", long = "backing", arg = "BACKING", help = "the new backing file; \"\" for none" },
    {
      short = "F",
      long = "backing-format",
      arg = "FMT",
      choices = { "qcow2", "raw" },
      hidden = { "B" },
      help = "format of BACKING",
    },
    {
      short = "T",
      long = "backing-cache",
      arg = "CACHE",
      choices = options.CACHE_MODES,
      help = "cache mode of BACKING; taken for the sake of scripts, changes nothing",
    },
    { short = "u", long = "backing-unsafe", help = "change the name alone" },
    { short = "c", long = "compress", help = "compress what is copied into FILE" },
    options.force_share,
    options.progress,
    options.quiet,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

-- What the command line says wrong; QEMU's words.
local function mistake(values)
  if values.cache and not images.is_cache_mode(values.cache) then
    return "Invalid cache option: " .. values.cache
  elseif values.backing_cache and not images.is_cache_mode(values.backing_cache) then
    return "Invalid source cache option: " .. values.backing_cache
  elseif values.backing_format and not FORMATS[values.backing_format] then
    return ("Invalid format name: '%s'"):format(text.escape(values.backing_format))
  end
end

local function references(context)
  return #context.allowed > 0 and context.allowed or "beside"
end

local function change(context, values, image, name, mode)
  local shown = text.escape(name or "")
  if image.format ~= "qcow2" and values.compress then
    return nil, "Compression not supported for this file format"
  elseif image.format ~= "qcow2" then
    return nil, ("Could not change the backing file to '%s': Operation not supported"):format(shown)
  elseif name and not values.backing_format then
    return nil, ("Could not change the backing file to '%s': backing format must be specified"):format(shown)
  end
  if values.backing_unsafe then
    local shown_progress = progress.start(context, mode, 1)
    local fine, message = image:set_backing(name, values.backing_format)
    shown_progress:finish(fine == true)
    return fine, message and ("Could not change the backing file to '%s': %s"):format(shown, message)
  end
  local job, message = qcow2.rebase(image, {
    backing_file = name,
    backing_fmt = values.backing_format,
    compress = values.compress,
    force_share = values.force_share,
    references = references(context),
  })
  if not job then
    return nil, message
  end
  return run_job(context, job, mode, 1)
end

function rebase.run(context, values)
  local mode, message = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, message
  elseif #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  elseif not values.backing_unsafe and not values.backing then
    return context:misused("Must specify backing file (-b) or use unsafe mode (-u)")
  end
  message = mistake(values)
  if message then
    return nil, message
  end
  local image <close>, why = images.open(context, values.operands[1],
    { format = values.format, image_opts = values.image_opts, mode = "rw" })
  if not image then
    return nil, why
  end
  local name = values.backing
  if name == "" then
    name = nil
  end
  local fine
  fine, message = images.close(image, change(context, values, image, name, mode))
  if not fine then
    return nil, message
  end
  return 0
end

return rebase
