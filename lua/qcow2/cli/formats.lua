-- SPDX-License-Identifier: MIT
-- What -O and -o may say: the formats that can be written, and each format's creation options.
local optlist = require("qcow2.cli.optlist")
local text = require("qcow2.cli.text")

local formats = {}

-- Creation options of raw files, in QEMU's order; `handled` are those that mean something here.
local RAW_OPTIONS = {
  { name = "extent_size_hint", type = "size", help = "Extent size hint for the image file, 0 to disable" },
  { name = "nocow", type = "bool (on/off)", help = "Turn off copy-on-write (valid only on btrfs)" },
  { name = "preallocation", type = "str", help = "Preallocation mode (allowed values: off, falloc, full)" },
  { name = "size", type = "size", help = "Virtual disk size" },
}

---The formats that can be written, by name.
formats.writable = {
  raw = { options = RAW_OPTIONS },
}

---Can this format be written? nil and a message when not.
---@param name string
---@return table? format, string? message
function formats.find(name)
  if formats.writable[name] then
    return formats.writable[name]
  elseif name == "qcow2" then
    return nil, "Writing qcow2 images is unsupported: this build has no creation of images"
  end
  return nil, ("Unknown file format '%s'"):format(text.escape(name))
end

---The list that `-o help` prints.
---@param format table
---@return string
function formats.options_help(format)
  local lines = { "Supported options:" }
  for _, option in ipairs(format.options) do
    lines[#lines + 1] = ("  %-22s - %s"):format(("%s=<%s>"):format(option.name, option.type), option.help)
  end
  return table.concat(lines, "\n") .. "\n"
end

---Joins the lists of repeated -o; nil and a message when one does not join.
---@param lists string[]?
---@return string? joined, string? message
function formats.join_options(lists)
  for _, list in ipairs(lists or {}) do
    if not optlist.joinable(list) then
      return nil, "Invalid option list: " .. list
    end
  end
  return table.concat(lists or {}, ",")
end

---Reads creation options for raw files; an option that is known and not built is an error, never ignored.
---@param list string
---@return true?, string? message
function formats.check_raw_options(list)
  for _, entry in ipairs(optlist.parse(list)) do
    if entry.key == "preallocation" then
      if entry.value == "falloc" or entry.value == "full" then
        return nil, ("preallocation=%s is unsupported for raw files"):format(entry.value)
      elseif entry.value ~= "off" then
        return nil, "invalid parameter value: " .. text.escape(entry.value)
      end
    elseif entry.key == "nocow" then
      if entry.value == "on" then
        return nil, "nocow=on is unsupported"
      elseif entry.value ~= "off" then
        return nil, "Parameter 'nocow' expects 'on' or 'off'"
      end
    elseif entry.key == "backing_file" then
      return nil, "Backing file not supported for file format 'raw'"
    elseif entry.key == "backing_fmt" then
      return nil, "Backing file format not supported for file format 'raw'"
    elseif entry.key == "extent_size_hint" then
      if entry.value ~= "0" then
        return nil, "extent_size_hint is unsupported"
      end
    elseif entry.key ~= "size" then
      -- The size is the source's whatever this option says.
      return nil, ("Invalid parameter '%s'"):format(text.escape(entry.key))
    end
  end
  return true
end

return formats
