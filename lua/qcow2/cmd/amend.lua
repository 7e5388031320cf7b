-- SPDX-License-Identifier: MIT
-- `amend`: changes what can be changed of an image that exists.
local creation = require("qcow2.cli.creation")
local formats = require("qcow2.cli.formats")
local images = require("qcow2.cli.images")
local optlist = require("qcow2.cli.optlist")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")
local number = require("qcow2.cli.number")
local text = require("qcow2.cli.text")

local amend = {
  name = "amend",
  summary = "Change options of an image that exists",
  details = {
    "Everything that can be refused is refused before anything changes. Each option is then one switch on disk, and "
      .. "the disk's contents are the same at every instant, whatever happens in between.",
    "backing_file and backing_fmt change the stored name and format and nothing else, as rebase -u does: the disk then "
      .. "shows what it is over the new backing file. data_file_raw=on writes what an external data file lacks of the "
      .. "disk; data_file only changes the stored name; an empty one removes it.",
  },
  options = {
    { short = "o", long = "options", arg = "OPTIONS", many = true,
      help = "what to change, key=value,...; -o help lists what there is" },
    options.format,
    options.image_opts,
    { short = "t", long = "cache", arg = "CACHE",
      help = "cache mode; taken for the sake of scripts, what is to be on disk is flushed always" },
    { long = "force", help = "allow size= to be smaller than the disk is" },
    options.progress,
    options.quiet,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

local HELP = [[
Amend options for 'qcow2':
  backing_file=<str>     - File name of a base image
  backing_fmt=<str>      - Image format of the base image
  compat=<str>           - Compatibility level (v2 [0.10] or v3 [1.1])
  data_file=<str>        - File name of an external data file
  data_file_raw=<bool (on/off)> - The external data file must stay valid as a raw image
  lazy_refcounts=<bool (on/off)> - Postpone refcount updates
  refcount_bits=<num>    - Width of a reference count entry in bits
  size=<size>            - Virtual disk size
]]

local LEVELS = { ["0.10"] = "0.10", v2 = "0.10", ["1.1"] = "1.1", v3 = "1.1" }

local read = {}

function read.compat(o, value)
  o.compat = LEVELS[value]
  return o.compat, ("Unknown compatibility level %s"):format(text.escape(value))
end

function read.refcount_bits(o, value)
  local bits, message = number.parameter(value, "refcount_bits")
  if not bits then
    return nil, message
  end
  o.refcount_bits = bits
  return bits >= 1 and bits <= 64 and bits & (bits - 1) == 0,
    "Refcount width must be a power of two and may not exceed 64 bits"
end

function read.size(o, value)
  local message
  o.size, message = number.size_parameter(value, "size")
  return o.size, message
end

function read.backing_file(o, value)
  o.backing_file = value ~= "" and value
  return true
end

function read.backing_fmt(o, value)
  o.backing_fmt = value
  return value == "qcow2" or value == "raw", ("Unknown backing format '%s'"):format(text.escape(value))
end

function read.data_file(o, value)
  o.data_file = value
  return not value:find("\0", 1, true), "The data file's name has a NUL in it"
end

for _, name in ipairs({ "lazy_refcounts", "data_file_raw" }) do
  read[name] = function(o, value)
    o[name] = value == "on"
    return value == "on" or value == "off", ("Parameter '%s' expects 'on' or 'off'"):format(name)
  end
end

local function unknown(key)
  if key:find("^encrypt%.") then
    return "Can't amend encryption options - encryption not present"
  end
  local message = ("Invalid parameter '%s'"):format(text.escape(key))
  for _, option in ipairs(creation.formats.qcow2) do
    if option.name == key then
      return message .. "\nThis option is only supported for image creation"
    end
  end
  return message
end

-- The library's options, or nil and a message.
local function parse(list)
  local o = {}
  for _, entry in ipairs(optlist.parse(list)) do
    local take = read[entry.key]
    if not take then
      return nil, unknown(entry.key)
    end
    local fine, message = take(o, entry.value)
    if not fine then
      return nil, message
    end
  end
  return o
end

local function help(context, format)
  if format == "raw" then
    return nil, "Format driver 'raw' does not support option amendment"
  elseif format ~= "qcow2" then
    return nil, ("Unknown file format '%s'"):format(text.escape(format))
  end
  context:write(HELP)
  return 0
end

local function change(context, values, mode, list)
  local o, message = parse(list)
  -- What is only about tables works without the external data file.
  local asked = { format = values.format, image_opts = values.image_opts, mode = "rw",
    tables_only = not (o and (o.data_file_raw or o.size)) }
  local image <close>, open_message = images.open(context, values.operands[1], asked)
  if not image then
    return nil, open_message
  elseif image.format ~= "qcow2" then
    return help(context, image.format)
  elseif optlist.wants_help(list) then
    return help(context, "qcow2")
  elseif not o then
    return nil, message
  end
  local shown = progress.start(context, mode, 1)
  o.shrink = values.force
  o.progress = function(done, total)
    shown:update(done, total)
  end
  local done
  done, message = images.close(image, image:amend(o))
  shown:finish(done ~= nil)
  if not done then
    -- As qemu-img says it: the file is the one that was named.
    local lead = text.escape(values.operands[1]) .. ": "
    return nil, message:sub(1, #lead) == lead and message:sub(#lead + 1) or message
  end
  return 0
end

function amend.run(context, values)
  local mode, why = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, why
  elseif not values.options then
    return context:misused("Must specify options (-o)")
  end
  local list, message = formats.join_options(values.options)
  if not list then
    return nil, message
  elseif values.format and optlist.wants_help(list) then
    return help(context, values.format)
  elseif #values.operands ~= 1 then
    return nil, "Expecting one image file name"
  elseif values.cache and not images.is_cache_mode(values.cache) then
    return nil, "Invalid cache option: " .. values.cache
  end
  return change(context, values, mode, list)
end

return amend
