-- SPDX-License-Identifier: MIT
-- `compare`: do two images hold the same disk? Exit code 0: the same, 1: not, 2: could not open, 3 and 4: could
-- not read.
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")
local qcow2 = require("qcow2")

local COULD_NOT_OPEN, COULD_NOT_READ = 2, 4

local compare = {
  name = "compare",
  cannot_begin = COULD_NOT_OPEN,
  summary = "Check whether two images hold the same disk",
  details = {
    "Images of different size are the same when the longer one is zero where the other has ended.",
    "The exit code is 0 when they are the same, 1 when they differ, 2 when one cannot be opened, 3 or 4 when one "
      .. "cannot be read.",
  },
  options = {
    options.with(options.format, { key = "format1", long = "a-format", help = "format of FILE1" }),
    options.with(options.format, { key = "format2", short = "F", long = "b-format", help = "format of FILE2" }),
    options.with(options.image_opts, { help = "FILE1 and FILE2 are lists of options, not names" }),
    { short = "s", long = "strict", help = "differ in size or in what is allocated: not the same" },
    {
      short = "T",
      long = "cache",
      arg = "CACHE",
      choices = options.CACHE_MODES,
      help = "cache mode; taken for the sake of scripts, reading goes through the host's cache always",
    },
    options.force_share,
    options.progress,
    options.quiet,
    options.object,
  },
  operands = { { name = "FILE1", help = "an image" }, { name = "FILE2", help = "an image" } },
}

local function fail(context, code, message)
  context:report(message)
  return code
end

local function verdict(context, values, result, a, b)
  local function say(line)
    if not values.quiet then
      context:write(line, "\n")
    end
  end
  if result.same then
    if a.size ~= b.size then
      say("Warning: Image size mismatch!")
    end
    say("Images are identical.")
    return 0
  elseif result.reason == "size" then
    say("Strict mode: Image size mismatch!")
  elseif result.reason == "allocation" then
    say(("Strict mode: Offset %d block status mismatch!"):format(result.offset))
  else
    if a.size ~= b.size and result.offset >= math.min(a.size, b.size) then
      say("Warning: Image size mismatch!")
    end
    say(("Content mismatch at offset %d!"):format(result.offset))
  end
  return 1
end

function compare.run(context, values)
  local mode, why = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, why
  end
  if #values.operands ~= 2 then
    return context:misused("Expecting two image file names")
  end
  if values.cache and not images.is_cache_mode(values.cache) then
    return fail(context, COULD_NOT_OPEN, "Invalid source cache option: " .. values.cache)
  end
  local function open(index)
    return images.open(context, values.operands[index], {
      format = values["format" .. index],
      image_opts = values.image_opts,
      force_share = values.force_share,
      whole = true,
    })
  end
  local a <close>, a_message = open(1)
  if not a then
    return fail(context, COULD_NOT_OPEN, a_message)
  end
  local b <close>, b_message = open(2)
  if not b then
    return fail(context, COULD_NOT_OPEN, b_message)
  end
  local shown = progress.start(context, mode, 1)
  local result, message = qcow2.compare(a, b, {
    strict = values.strict,
    progress = mode and function(done, total)
      shown:update(done, total)
    end,
  })
  local code = result and verdict(context, values, result, a, b) or fail(context, COULD_NOT_READ, message)
  shown:finish(code == 0)
  return code
end

return compare
