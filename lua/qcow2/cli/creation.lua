-- SPDX-License-Identifier: MIT
-- Creation options as -o gives them: which there are for each format, their texts, and their way into the
-- library's options. Used by every verb that makes images.
local optlist = require("qcow2.cli.optlist")
local number = require("qcow2.cli.number")
local text = require("qcow2.cli.text")

local creation = {}

local SWITCH = "bool (on/off)"
local SWITCHES = { on = true, yes = true, ["true"] = true, y = true, off = false, no = false, ["false"] = false,
  n = false }
local MODES = { off = true, metadata = true, falloc = true, full = true }
local RAW_MODES = { off = true, falloc = true, full = true }

-- In the order in which the "Formatting" line shows them. `protocol`: options of the file that holds the image.
-- `ours`: options that qemu-img does not have. `default` is shown in that line, also when it was not given.
local QCOW2 = {
  { name = "encryption", type = SWITCH,
    help = "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)" },
  { name = "encrypt.format", type = "str", help = "Encrypt the image, format choices: 'aes', 'luks'" },
  { name = "encrypt.key-secret", type = "str", help = "ID of secret providing qcow AES key or LUKS passphrase" },
  { name = "encrypt.cipher-alg", type = "str", help = "Name of encryption cipher algorithm" },
  { name = "encrypt.cipher-mode", type = "str", help = "Name of encryption cipher mode" },
  { name = "encrypt.ivgen-alg", type = "str", help = "Name of IV generator algorithm" },
  { name = "encrypt.ivgen-hash-alg", type = "str", help = "Name of IV generator hash algorithm" },
  { name = "encrypt.hash-alg", type = "str", help = "Name of encryption hash algorithm" },
  { name = "encrypt.iter-time", type = "num", help = "Time to spend in PBKDF in milliseconds" },
  { name = "cluster_size", type = "size", help = "qcow2 cluster size", default = "65536" },
  { name = "extended_l2", type = SWITCH, help = "Extended L2 tables", default = "off" },
  { name = "preallocation", type = "str", words = MODES,
    help = "Preallocation mode (allowed values: off, metadata, falloc, full)" },
  { name = "compression_type", type = "str", words = { zlib = true, zstd = true }, said = "compression-type",
    help = "Compression method used for image cluster compression", default = "zlib" },
  { name = "size", type = "size", help = "Virtual disk size" },
  { name = "compat", type = "str", words = { ["0.10"] = true, ["1.1"] = true, v2 = true, v3 = true },
    said = "version", help = "Compatibility level (v2 [0.10] or v3 [1.1])" },
  { name = "backing_file", type = "str", help = "File name of a base image" },
  { name = "backing_fmt", type = "str", words = { qcow2 = true, raw = true }, said = "backing-fmt",
    help = "Image format of the base image" },
  { name = "data_file", type = "str", help = "File name of an external data file" },
  { name = "data_file_raw", type = SWITCH, help = "The external data file must stay valid as a raw image" },
  { name = "keep_data_file", type = SWITCH, ours = true,
    help = "What the external data file holds becomes the disk's contents; it is not written to" },
  { name = "overwrite", type = SWITCH, ours = true,
    help = "An external data file that holds data may be overwritten" },
  { name = "lazy_refcounts", type = SWITCH, help = "Postpone refcount updates", default = "off" },
  { name = "refcount_bits", type = "num", help = "Width of a reference count entry in bits", default = "16" },
  { name = "nocow", type = SWITCH, help = "Turn off copy-on-write (valid only on btrfs)", protocol = true },
  { name = "extent_size_hint", type = "size", help = "Extent size hint for the image file, 0 to disable",
    protocol = true },
}

local RAW = {
  { name = "size", type = "size", help = "Virtual disk size" },
  { name = "nocow", type = SWITCH, help = "Turn off copy-on-write (valid only on btrfs)", protocol = true },
  { name = "preallocation", type = "str", words = RAW_MODES, protocol = true,
    help = "Preallocation mode (allowed values: off, falloc, full)" },
  { name = "extent_size_hint", type = "size", help = "Extent size hint for the image file, 0 to disable",
    protocol = true },
}

---The options of each format that can be made.
creation.formats = { qcow2 = QCOW2, raw = RAW }

---The list that `-o help` prints; without a file name the file's own options are left out.
---@param format string
---@param has_path boolean
---@return string
function creation.help(format, has_path)
  local lines = {}
  for _, option in ipairs(creation.formats[format]) do
    if has_path or not option.protocol then
      local spelled = ("%s=<%s>"):format(option.name, option.type)
      lines[#lines + 1] = ("  %-22s - %s%s"):format(spelled, option.help,
        option.default and (" (default: %s)"):format(option.default) or "")
    end
  end
  table.sort(lines)
  if has_path then
    return "Supported options:\n" .. table.concat(lines, "\n") .. "\n"
  end
  return ("Supported %s options:\n%s\n\nThe protocol level may support further options.\n"
    .. "Specify the target filename to include those options.\n"):format(format, table.concat(lines, "\n"))
end

local function find(format, name)
  for _, option in ipairs(creation.formats[format]) do
    if option.name == name then
      return option
    end
  end
end

-- A value by its option's type. gives: the library's value, the text for the "Formatting" line; or nil, message.
local function read_value(option, value)
  if option.type == SWITCH then
    if SWITCHES[value] == nil then
      return nil, ("Parameter '%s' expects 'on' or 'off'"):format(option.name)
    end
    return SWITCHES[value], value
  elseif option.type == "size" then
    local bytes, message = number.size_parameter(value, option.name)
    return bytes, bytes and ("%d"):format(bytes) or message
  elseif option.type == "num" then
    local found, message = number.parameter(value, option.name)
    return found, found and ("%d"):format(found) or message
  end
  return value, (value:gsub(",", ",,"))
end

---Options read from -o and friends: `values` for the library by name, `shown` for the "Formatting" line.
---@class qcow2.cli.creation
---@field format string
---@field values table<string, any>
---@field shown table<string, string>

---Sets one option. gives: true, or nil and a message.
---@param made qcow2.cli.creation
---@param name string
---@param value string
function creation.set(made, name, value)
  local option = find(made.format, name)
  if not option then
    if name == "backing_file" then
      return nil, ("Backing file not supported for file format '%s'"):format(made.format)
    elseif name == "backing_fmt" then
      return nil, ("Backing file format not supported for file format '%s'"):format(made.format)
    end
    return nil, ("Invalid parameter '%s'"):format(text.escape(name))
  end
  local read, shown = read_value(option, value)
  if read == nil then
    return nil, shown
  end
  made.values[name], made.shown[name] = read, shown
  return true
end

---Reads the joined lists of -o. Words that a later check refuses (creation.check) are taken as they are.
---@param format string  one of creation.formats
---@param list string
---@return qcow2.cli.creation? made, string? message
function creation.parse(format, list)
  local made = { format = format, values = {}, shown = {} }
  for _, entry in ipairs(optlist.parse(list)) do
    local fine, message = creation.set(made, entry.key, entry.value)
    if not fine and not find(format, entry.key) then
      message = ("Invalid parameter '%s'"):format(text.escape(entry.key))
    end
    if not fine then
      return nil, message
    end
  end
  return made
end

---The line that says what will be made.
---@param made qcow2.cli.creation
---@param path string
---@param bytes integer  the disk's size
---@return string
function creation.line(made, path, bytes)
  local parts = { ("Formatting '%s', fmt=%s"):format(text.escape(path), made.format) }
  for _, option in ipairs(creation.formats[made.format]) do
    local shown = made.shown[option.name] or option.default
    if option.name == "size" then
      shown = ("%d"):format(bytes)
    end
    if shown then
      parts[#parts + 1] = option.name .. "=" .. text.escape(shown)
    end
  end
  return table.concat(parts, " ") .. "\n"
end

---Refuses what can be said but not made. gives: true, or nil and a message.
---@param made qcow2.cli.creation
function creation.check(made)
  for _, option in ipairs(creation.formats[made.format]) do
    local value = made.values[option.name]
    if value and option.words and not option.words[value] then
      if made.format == "raw" then
        return nil, (MODES[value] and "Unsupported preallocation mode: " or "invalid parameter value: ")
          .. text.escape(value)
      end
      return nil, ("Parameter '%s' does not accept value '%s'"):format(option.said or option.name, text.escape(value))
    elseif value and option.name:find("^encrypt") then
      return nil, ("%s is unsupported: this build makes no encrypted images"):format(option.name)
    end
  end
  return true
end

---What of the options is not heeded, as a warning; nil when all is.
---@param made qcow2.cli.creation
---@return string?
function creation.unheeded(made)
  if (made.values.extent_size_hint or 0) ~= 0 then
    return "warning: Failed to set extent size hint: Operation not supported"
  end
end

---The library's options (qcow2.create_options). needs: creation.check passed, or what it would refuse is left out.
---@param made qcow2.cli.creation
---@return table
function creation.options(made)
  local o = { format = made.format }
  for _, option in ipairs(creation.formats[made.format]) do
    local value = made.values[option.name]
    local fits = not option.words or option.words[value]
    if value ~= nil and fits and not option.name:find("^encrypt") and option.name ~= "extent_size_hint" then
      o[option.name] = value
    end
  end
  return o
end

return creation
