-- SPDX-License-Identifier: MIT
-- Amending: what can be changed of an image that exists. Adds img:amend{...} to the image class.
local core = require("qcow2.core")
local image = require("qcow2.image")
local jobs = require("qcow2.job")
local options = require("qcow2.options")
local size = require("qcow2.size")

local methods, raw, state_of = image.methods, image.raw, image.state_of

local VERSIONS = { ["0.10"] = 2, v2 = 2, ["1.1"] = 3, v3 = 3 }

local known = {
  compat = { "0.10", "1.1", "v2", "v3" },
  lazy_refcounts = "boolean",
  refcount_bits = "integer",
  backing_file = "string|boolean",
  backing_fmt = { "qcow2", "raw" },
  data_file = "string",
  data_file_raw = "boolean",
  size = "size",
  shrink = "boolean",
  progress = "function",
}

local function check(given)
  local o = options.check(given, known)
  if o.backing_file == true then
    error("option 'backing_file' must be a name, or false for none", 3)
  elseif o.refcount_bits and (o.refcount_bits < 1 or o.refcount_bits > math.maxinteger >> 32) then
    error("option 'refcount_bits' must be a width in bits", 3)
  end
  return o, size.argument(o.size, "size")
end

-- What is said about the backing file, for the core: a new name needs a format, a format alone keeps the name.
local function backing(self, o, wanted)
  local name = raw.names(self)
  if o.backing_file == nil and o.backing_fmt == nil then
    return true
  elseif o.backing_file == nil and not name then
    return nil, "The image has no backing file whose format could be changed", "conflict"
  elseif o.backing_file and not o.backing_fmt then
    return nil, "Backing file specified without backing format", "conflict"
  elseif o.backing_file == false and o.backing_fmt then
    return nil, "A backing format without a backing file", "conflict"
  end
  wanted.set_backing = true
  wanted.backing_file = o.backing_file ~= false and (o.backing_file or name) or nil
  wanted.backing_format = o.backing_fmt
  return true
end

---@see qcow2.image.amend
function methods:amend(given)
  local o, bytes = check(given)
  local wanted = { version = VERSIONS[o.compat], refcount_bits = o.refcount_bits, lazy_refcounts = o.lazy_refcounts,
    data_file = o.data_file, data_file_raw = o.data_file_raw, size = bytes, shrink = o.shrink }
  local ok, message, kind, errno = backing(self, o, wanted)
  -- A longer backing file would show in the grown part, so its length has to be known.
  if ok and bytes and raw.is_writable(self) and bytes > raw.disk_bytes(self) and raw.names(self) then
    ok, message, kind, errno = methods.attach(self)
  end
  if not ok then
    return nil, message, kind, errno
  end
  local task
  task, message, kind, errno = core.amend(self, wanted)
  if not task and kind == "missing" and image.attach_data(self, state_of(self)) then
    task, message, kind, errno = core.amend(self, wanted)
  end
  if not task then
    return nil, message, kind, errno
  end
  do
    local _ <close> = task
    ok, message, kind, errno = jobs.run(task, o.progress)
  end
  if wanted.set_backing then
    local state = state_of(self)
    state.backing, state.backing_format, state.below = nil, nil, nil
  end
  if ok then
    ok, message, kind, errno = raw.flush(self)
  end
  return ok, message, kind, errno
end

return methods
