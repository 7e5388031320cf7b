-- SPDX-License-Identifier: MIT
-- `adopt`: makes an image around a raw disk that exists; the disk itself is only read.
local adopt_disk = require("qcow2.adopt")
local create = require("qcow2.cmd.create")
local create_image = require("qcow2.create")
local creation = require("qcow2.cli.creation")
local formats = require("qcow2.cli.formats")
local optlist = require("qcow2.cli.optlist")
local options = require("qcow2.cli.options")
local text = require("qcow2.cli.text")

-- The options of `create` that mean something here, and two of our own.
local TAKEN = { cluster_size = true, compat = true, compression_type = true, extended_l2 = true,
  lazy_refcounts = true, nocow = true, overwrite = true, refcount_bits = true, size = true }

local adopt = {
  name = "adopt",
  summary = "Make an image around a raw disk, whose bytes stay where they are",
  details = {
    "IMAGE gets the metadata alone and names DISK, a file or a block device, as its external data file; not one "
      .. "byte of DISK is written. Snapshots are not possible in such an image, dirty bitmaps are.",
    "With raw=on, the default, DISK stays a plain raw disk at every moment: whoever reads it sees what the image "
      .. "shows. With raw=off zeros may live in the image's tables alone; holes of DISK are noted there as zeros "
      .. "(holes=zero), or mapped like data (holes=data).",
    "The disk is exactly as long as DISK. A file whose length is no multiple of 512 is refused, because QEMU would "
      .. "not show its last bytes to a guest: extend it first (truncate -s %512 DISK). A block device may be longer "
      .. "than the disk that -o size= says.",
    "DISK is named by where it lies seen from IMAGE's directory, or by its whole path when it is not in that "
      .. "directory or below; then opening IMAGE later needs --allow.",
  },
  options = {
    { short = "o", long = "options", arg = "OPTIONS", many = true,
      help = "raw=on|off, holes=zero|data, overwrite=on (IMAGE may exist) and creation options: cluster_size, "
        .. "extended_l2, refcount_bits, lazy_refcounts, compression_type, size; -o help lists them" },
    options.quiet,
  },
  operands = {
    { name = "DISK", help = "the raw disk: a file or a block device" },
    { name = "IMAGE", help = "the image to make" },
  },
}

local function help()
  local lines = {
    "  holes=<str>            - What holes of the disk become with raw=off: zero or data (default: zero)",
    "  raw=<bool (on/off)>    - The disk must stay valid as a raw image (default: on)",
  }
  for line in creation.help("qcow2", true):gmatch("  [^\n]+") do
    if TAKEN[line:match("^  ([%w_]+)")] and not line:find("overwrite=", 1, true) then
      lines[#lines + 1] = line
    end
  end
  lines[#lines + 1] = "  overwrite=<bool (on/off)> - An image that exists may be overwritten"
  table.sort(lines)
  return "Supported options:\n" .. table.concat(lines, "\n") .. "\n"
end

-- Our own words of -o, and the rest for `create`.
local function read_options(list)
  local made, own, message = creation.parse("qcow2", ""), { holes = "zero" }, nil
  for _, entry in ipairs(optlist.parse(list)) do
    local fine = true
    if entry.key == "raw" then
      fine, message = creation.set(made, "data_file_raw", entry.value)
    elseif entry.key == "holes" and (entry.value == "zero" or entry.value == "data") then
      own.holes = entry.value
    elseif entry.key == "holes" then
      fine, message = nil, ("Parameter 'holes' does not accept value '%s'"):format(text.escape(entry.value))
    elseif TAKEN[entry.key] then
      fine, message = creation.set(made, entry.key, entry.value)
    else
      fine, message = nil, ("Invalid parameter '%s'"):format(text.escape(entry.key))
    end
    if not fine then
      return nil, message
    end
  end
  if made.values.data_file_raw == nil then
    creation.set(made, "data_file_raw", "on")
  end
  return made, own
end

function adopt.run(context, values)
  local list, message = formats.join_options(values.options)
  if not list then
    return nil, message
  elseif optlist.wants_help(list) then
    context:write(help())
    return 0
  elseif #values.operands ~= 2 then
    return context:misused("Expecting a raw disk and the name of an image")
  end
  local disk, path = table.unpack(values.operands)
  local shown = text.escape(path)
  local made, own = read_options(list)
  if not made then
    return nil, ("%s: %s"):format(shown, own)
  end
  local name
  name, message = adopt_disk.name(disk, path)
  if not name then
    return nil, ("%s: Could not open '%s': %s"):format(shown, text.escape(disk), message:match("[^:]*$"):sub(2))
  end
  creation.set(made, "data_file", name)
  creation.set(made, "keep_data_file", "on")
  local o = creation.options(made)
  o.keep_holes = own.holes == "data"
  local plan
  plan, message = create_image.resolve(path, o)
  if not plan then
    return nil, ("%s: %s"):format(shown, message)
  end
  return create.make(context, values, made, plan, made.values.overwrite)
end

return adopt
