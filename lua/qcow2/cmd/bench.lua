-- SPDX-License-Identifier: MIT
-- `bench`: times requests of one size at places one step apart, reads or writes.
local core = require("qcow2.core")
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local number = require("qcow2.cli.number")
local text = require("qcow2.cli.text")

local MOST = (1 << 31) - 1
local AIO = { threads = true, native = true, io_uring = true }

local bench = {
  name = "bench",
  summary = "Time a run of reads or writes",
  details = {
    "The first request is made at OFFSET, each following one STEP bytes further on; at the disk's end it goes on from "
      .. "the begin. With -w the disk's contents are overwritten.",
    "Requests are made one after the other, each done before the next begins, so that DEPTH, the engine of -i and "
      .. "--no-drain change nothing but what is printed; they are taken for the sake of scripts.",
  },
  options = {
    options.format,
    options.image_opts,
    {
      short = "t",
      long = "cache",
      arg = "CACHE",
      choices = options.CACHE_MODES,
      help = "cache mode: writethrough and directsync flush after each write; all go through the host's cache",
    },
    { short = "c", long = "count", arg = "COUNT", help = "number of requests (default: 75000)" },
    { short = "s", long = "buffer-size", arg = "SIZE", help = "bytes of a request (default: 4096)" },
    { short = "d", long = "depth", arg = "DEPTH", help = "requests at once (default: 64)" },
    { short = "o", long = "offset", arg = "OFFSET", help = "place of the first request (default: 0)" },
    { short = "S", long = "step-size", arg = "STEP", help = "from one request to the next (default: SIZE)" },
    { short = "i", long = "aio", arg = "AIO", choices = { "threads", "native", "io_uring" },
      help = "engine of requests" },
    { short = "n", long = "native", help = "the same as -i native" },
    { short = "w", long = "write", help = "write, do not read" },
    { long = "pattern", arg = "BYTE", help = "the byte that is written (default: 0)" },
    { long = "flush-interval", arg = "COUNT", help = "flush after so many writes; no fewer than DEPTH" },
    { long = "no-drain", help = "do not wait for requests before a flush" },
    options.force_share,
    options.quiet,
  },
  operands = { { name = "FILE", help = "the image" } },
}

-- What a number is called, where it is kept, and its bounds; `plain` ones take no suffix.
local NUMBERS = {
  { "count", "request count", 1, MOST, 75000, plain = true },
  { "depth", "queue depth", 1, MOST, 64, plain = true },
  { "offset", "offset", 0, math.maxinteger, 0 },
  { "buffer_size", "buffer size", 1, MOST, 4096 },
  { "step_size", "step size", 0, MOST, 0 },
  { "flush_interval", "flush interval", 0, MOST, 0, plain = true },
  { "pattern", "pattern byte", 0, 255, 0, plain = true },
}

local function read_numbers(values)
  local found = {}
  for _, wanted in ipairs(NUMBERS) do
    local key, name, least, most, default = table.unpack(wanted)
    local word = values[key]
    local message
    found[key] = default
    if word then
      found[key], message = number.read(word, name, least, most, wanted.plain)
    end
    if message then
      return nil, message
    end
  end
  if found.step_size == 0 then
    found.step_size = found.buffer_size
  end
  return found
end

-- What contradicts itself; before any file is opened.
local function misuse(values, numbers)
  local cached = values.cache ~= "none" and values.cache ~= "off" and values.cache ~= "directsync"
  if values.cache and not images.is_cache_mode(values.cache) then
    return "Invalid cache mode"
  elseif values.aio and not AIO[values.aio] then
    return "Invalid aio option: " .. text.escape(values.aio)
  elseif not values.write and numbers.flush_interval > 0 then
    return "--flush-interval is only available in write tests"
  elseif numbers.flush_interval > 0 and numbers.flush_interval < numbers.depth then
    return "Flush interval can't be smaller than depth"
  elseif values.write and values.force_share then
    return images.could_not_open(values.operands[1], "force-share=on can only be used with read-only images")
  elseif (values.native or values.aio == "native") and cached then
    return images.could_not_open(values.operands[1],
      "aio=native was specified, but it requires cache.direct=on, which was not specified.")
  end
end

-- The requests of one run. gives: true, or nil and a message.
local function send(image, values, numbers)
  local size, length, offset = image.size, numbers.buffer_size, numbers.offset
  local through = values.cache == "writethrough" or values.cache == "directsync"
  local bytes = values.write and string.char(numbers.pattern):rep(length)
  for done = 1, numbers.count do
    local fine, why
    if values.write then
      fine, why = image:write(offset, bytes)
    else
      fine, why = image:read(offset, length)
    end
    if fine and values.write and (through or numbers.flush_interval > 0 and done % numbers.flush_interval == 0) then
      fine, why = image:flush()
    end
    if not fine then
      return nil, why
    end
    offset = size > 0 and (offset + numbers.step_size) % size or 0
  end
  if values.write then
    return image:flush()
  end
  return true
end

function bench.run(context, values)
  local numbers, message = read_numbers(values)
  if not numbers then
    return nil, message
  elseif #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  message = misuse(values, numbers)
  if message then
    return nil, message
  end
  local image <close>, why = images.open(context, values.operands[1], {
    format = values.format,
    image_opts = values.image_opts,
    force_share = values.force_share,
    mode = values.write and "rw" or nil,
    whole = true,
  })
  if not image then
    return nil, why
  end
  context:printf("Sending %d %s requests, %d bytes each, %d in parallel (starting at offset %d, step size %d)\n",
    numbers.count, values.write and "write" or "read", numbers.buffer_size, numbers.depth, numbers.offset,
    numbers.step_size)
  if numbers.flush_interval > 0 then
    context:printf("Sending flush every %d requests\n", numbers.flush_interval)
  end
  local began = core.clock()
  local fine
  fine, why = send(image, values, numbers)
  local seconds = core.clock() - began
  local closed, close_why = image:close()
  if not fine then
    return nil, "Failed request: " .. why
  elseif not closed then
    return nil, close_why
  end
  context:printf("Run completed in %.3f seconds.\n", seconds)
  return 0
end

return bench
