-- SPDX-License-Identifier: MIT
-- What changes an image: guest writes, size, snapshots. Methods of the image class.
local image = require("qcow2.image")
local options = require("qcow2.options")
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

local resize_options = { shrink = "boolean" }

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
  return raw.set_size(self, bytes, o.shrink or false)
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
  return raw.snapshot_take(self, name, os.time(), 0)
end

function methods:snapshot_apply(id_or_name)
  local index, message, kind, errno = image.find_snapshot(self, id_or_name)
  if not index then
    return nil, message, kind, errno
  end
  return raw.snapshot_revert(self, index)
end

function methods:snapshot_delete(id_or_name)
  local index, message, kind, errno = image.find_snapshot(self, id_or_name)
  if not index then
    return nil, message, kind, errno
  end
  return raw.snapshot_drop(self, index)
end

function methods:snapshot_rename(id_or_name, name)
  check_name(name)
  local index, message, kind, errno = image.find_snapshot(self, id_or_name)
  if not index then
    return nil, message, kind, errno
  end
  return raw.snapshot_name(self, index, name)
end

return methods
