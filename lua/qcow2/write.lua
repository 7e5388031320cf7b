-- SPDX-License-Identifier: MIT
-- What changes an image: guest writes, size, snapshots. Methods of the image class.
local image = require("qcow2.image")
local options = require("qcow2.options")
local references = require("qcow2.references")
local size = require("qcow2.size")

local methods, raw, with_references = image.methods, image.raw, image.with_references

-- ---- guest writes --------------------------------------------------------------------------

function methods:write(offset, bytes)
  return with_references(self, raw.write, offset, bytes)
end

function methods:write_compressed(offset, bytes)
  return with_references(self, raw.write_compressed, offset, bytes)
end

local zero_options = { unmap = "boolean" }

function methods:zero(offset, length, given)
  local o = options.check(given, zero_options)
  return with_references(self, raw.zero, offset, length, o.unmap or false)
end

function methods:discard(offset, length)
  return with_references(self, raw.discard, offset, length)
end

function methods:flush()
  return raw.flush(self)
end

-- ---- size ----------------------------------------------------------------------------------

local resize_options = { shrink = "boolean", preallocation = { "off", "metadata", "falloc", "full" } }

function methods:resize(new_size, given)
  local o = options.check(given, resize_options)
  local bytes = size.argument(new_size, "size") or error("size is missing", 2)
  -- A longer backing file would show in the grown part, so its length has to be known.
  if raw.is_writable(self) and bytes > raw.disk_bytes(self) and raw.names(self) then
    local ok, message, kind, errno = methods.attach(self)
    if not ok then
      return nil, message, kind, errno
    end
  end
  return raw.resize(self, bytes, o.shrink or false, o.preallocation or "off")
end

-- ---- the backing file's name ----------------------------------------------------------------

---Stores another backing name and format in the header; nothing is opened or compared.
function methods:set_backing(name, format)
  if name ~= nil and type(name) ~= "string" then
    error("name must be a string or nil, not " .. type(name), 2)
  elseif format ~= nil and format ~= "qcow2" and format ~= "raw" then
    error("format must be \"qcow2\" or \"raw\"", 2)
  elseif name and not format then
    error("a backing file needs its format", 2)
  end
  return raw.set_backing(self, name, format)
end

-- ---- snapshots -----------------------------------------------------------------------------

local function check_name(name)
  if type(name) ~= "string" then
    error("snapshot name must be a string, not " .. type(name), 3)
  end
  if name:find("\0", 1, true) then
    error("snapshot name has a NUL in it", 3)
  end
end

function methods:snapshot_create(name)
  check_name(name)
  return raw.snapshot_create(self, name)
end

function methods:snapshot_apply(id_or_name)
  local index, message, kind, errno = image.find_snapshot(self, id_or_name)
  if not index then
    return nil, message, kind, errno
  end
  return raw.snapshot_apply(self, index)
end

function methods:snapshot_delete(id_or_name)
  local index, message, kind, errno = image.find_snapshot(self, id_or_name)
  if not index then
    return nil, message, kind, errno
  end
  return raw.snapshot_delete(self, index)
end

function methods:snapshot_rename(id_or_name, name)
  check_name(name)
  local index, message, kind, errno = image.find_snapshot(self, id_or_name)
  if not index then
    return nil, message, kind, errno
  end
  return raw.snapshot_rename(self, index, name)
end

-- ---- bitmaps -------------------------------------------------------------------------------

-- The number (from 0) and entry of a bitmap; nil, message, kind, errno.
local function find_bitmap(self, name)
  if type(name) ~= "string" then
    error("bitmap name must be a string, not " .. type(name), 3)
  end
  local count, message, kind, errno = raw.bitmap_count(self)
  if not count then
    return nil, message, kind, errno
  end
  for i = 0, count - 1 do
    local entry
    entry, message, kind, errno = raw.bitmap_entry(self, i)
    if not entry then
      return nil, message, kind, errno
    end
    if entry.name == name then
      return i, entry
    end
  end
  return nil, ("Bitmap '%s' does not exist"):format(references.escape(name)), "missing"
end

local add_options = { granularity = "size", disabled = "boolean" }

function methods:bitmap_add(name, given)
  if type(name) ~= "string" then
    error("bitmap name must be a string, not " .. type(name), 2)
  end
  local o = options.check(given, add_options)
  local granularity = size.argument(o.granularity, "granularity")
  if not granularity then
    -- As QEMU chooses: the cluster size, but from 4 KiB to 64 KiB.
    local header = raw.header_fields(self)
    granularity = math.max(4096, math.min(65536, header and 1 << header.cluster_bits or 65536))
  end
  return raw.bitmap_add(self, name, granularity, not o.disabled)
end

local function on_bitmap(change)
  return function(self, name, ...)
    local index, message, kind, errno = find_bitmap(self, name)
    if not index then
      return nil, message, kind, errno
    end
    return change(self, index, ...)
  end
end

methods.bitmap_remove = on_bitmap(raw.bitmap_remove)
methods.bitmap_enable = on_bitmap(function(self, index) return raw.bitmap_enable(self, index, true) end)
methods.bitmap_disable = on_bitmap(function(self, index) return raw.bitmap_enable(self, index, false) end)
methods.bitmap_set = on_bitmap(function(self, index, offset, length)
  return raw.bitmap_change(self, index, offset, length, true)
end)
methods.bitmap_clear = on_bitmap(function(self, index, offset, length)
  offset = offset or 0
  return raw.bitmap_change(self, index, offset, length or raw.disk_bytes(self) - offset, false)
end)

local merge_options = { from = "userdata" }

function methods:bitmap_merge(name, source_name, given)
  local o = options.check(given, merge_options)
  local source = o.from or self
  local from, message, kind, errno = find_bitmap(source, source_name)
  if not from then
    return nil, message, kind, errno
  end
  local index
  index, message, kind, errno = find_bitmap(self, name)
  if not index then
    return nil, message, kind, errno
  end
  return raw.bitmap_merge(self, index, source, from)
end

return methods
