-- SPDX-License-Identifier: MIT
-- `commit`: moves what an image has beyond its backing file into the backing file.
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")
local number = require("qcow2.cli.number")
local qcow2 = require("qcow2")
local run_job = require("qcow2.cli.run_job")

local commit = {
  name = "commit",
  summary = "Move an image's changes into its backing file",
  details = {
    "The backing file grows when it is smaller than FILE. Afterwards FILE is emptied, unless -d or -b is given.",
    "With -b the changes of all images between go into BASE too, and the images between are no longer valid: they "
      .. "show other bytes than before.",
  },
  options = {
    options.format,
    options.image_opts,
    {
      short = "t",
      long = "cache",
      arg = "CACHE",
      choices = options.CACHE_MODES,
      help = "cache mode; taken for the sake of scripts, what is done is always on disk at the end",
    },
    { short = "b", long = "base", arg = "BASE", help = "the file of the backing chain to move into; implies -d" },
    { short = "d", long = "drop", help = "do not empty FILE: it is about to be deleted" },
    { short = "r", long = "rate-limit", arg = "RATE", help = "at most RATE bytes a second" },
    options.progress,
    options.quiet,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

function commit.run(context, values)
  local mode, message = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, message
  end
  local rate
  if values.rate_limit then
    rate, message = number.read(values.rate_limit, "rate limit")
    if not rate then
      return nil, message
    end
  end
  if #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  elseif values.cache and not images.is_cache_mode(values.cache) then
    return nil, "Invalid cache option: " .. values.cache
  end
  local keep = values.drop or values.base ~= nil
  local image <close>, why = images.open(context, values.operands[1], {
    format = values.format,
    image_opts = values.image_opts,
    mode = keep and "r" or "rw",
  })
  if not image then
    return nil, why
  elseif image.format ~= "qcow2" then
    return nil, "Image does not have a backing file"
  end
  local job
  job, message = qcow2.commit(image, { keep = keep, base = values.base, rate = rate })
  if not job then
    return nil, message
  end
  local fine
  fine, message = images.close(image, run_job(context, job, mode, 1))
  if not fine then
    return nil, message
  end
  if not values.quiet then
    context:write("Image committed.\n")
  end
  return 0
end

return commit
