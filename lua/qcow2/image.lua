-- SPDX-License-Identifier: MIT
-- Image objects: opening, properties, reading, extents. The core's handle is the object; this file dresses its class.
local core = require("qcow2.core")
local jobs = require("qcow2.job")
local layers = require("qcow2.attach")
local options = require("qcow2.options")
local references = require("qcow2.references")
local size = require("qcow2.size")
local tables = require("qcow2.tables")

local image = {}

local class = core.classes.image
local raw = layers.raw
local methods = { attach = layers.attach }
local properties = {}

local attach_data, attach_backing, lower = layers.attach_data, layers.attach_backing, layers.lower
local state_of, with_references = layers.state_of, layers.with_references

-- ---- opening -------------------------------------------------------------------------------

local open_options = {
  mode = { "r", "rw" },
  format = { "qcow2", "raw" },
  references = "string|table|function",
  data_file = "string|boolean",
  backing = "string|userdata|boolean",
  backing_format = { "qcow2", "raw" },
  snapshot = "string",
  force_share = "boolean",
  damaged = "boolean",
}

local EXTERNAL_DATA = 4 -- of the incompatible features

local function check_open_options(given)
  local o = options.check(given, open_options, 4)
  if type(o.references) == "string" and o.references ~= "beside" and o.references ~= "none" and o.references ~= "any"
  then
    error("option 'references' must be \"beside\", \"none\", \"any\", a list of directories or a function", 3)
  end
  if o.data_file == true or o.backing == true then
    error("options 'data_file' and 'backing' are a path or false", 3)
  end
  if type(o.references) == "table" then
    for _, directory in ipairs(o.references) do
      if type(directory) ~= "string" then
        error("option 'references' must list directories as strings, not " .. type(directory), 3)
      end
    end
  end
  if type(o.backing) == "userdata" and (debug.getmetatable(o.backing) ~= class or not raw.is_open(o.backing)) then
    error("option 'backing' must be a path, an open image or false", 3)
  end
  if o.mode == "rw" and (o.force_share or o.snapshot) then
    error("mode \"rw\" excludes force_share and snapshot", 3)
  end
  return o
end

function image.open(path, given)
  if type(path) ~= "string" then
    error("path must be a string, not " .. type(path), 2)
  elseif path:find("\0", 1, true) then
    error("path has a NUL in it", 2)
  end
  local o = check_open_options(given)
  local mode = o.mode or "r"
  local self, state, kind, errno = layers.open_one(path, mode, o.format,
    { write = mode == "rw", force_share = o.force_share }, o.damaged)
  if not self then
    return nil, state, kind, errno
  end
  state.references = o.references
  state.data_file = o.data_file
  state.backing = o.backing
  state.backing_format = o.backing_format
  state.force_share = o.force_share
  if type(o.data_file) == "string" then
    local header = raw.header_fields(self)
    if not header or header.incompatible_features & EXTERNAL_DATA == 0 then
      raw.close(self)
      return nil, ("'%s' has no external data file, so none can be given"):format(references.escape(path)), "conflict"
    end
  end
  if o.snapshot then
    local view, message
    view, message, kind, errno = methods.snapshot(self, o.snapshot)
    raw.close(self)
    return view, message, kind, errno
  end
  -- A damaged image is opened for its repair alone.
  if mode == "rw" and not o.damaged then
    local ok, message
    ok, message, kind, errno = image.begin(self, state)
    if not ok then
      raw.close(self)
      return nil, message, kind, errno
    end
  end
  return self
end

-- A core image that was made just now, over `store`, is one of the library's from now on.
function image.enter(self, store, state)
  state.mode, state.format = "rw", "qcow2"
  layers.enter(self, store, state)
  return self
end

function image.probe(path)
  local store, message, kind, errno = core.store_file(path, { force_share = true })
  if not store then
    return nil, message, kind, errno
  end
  local format
  format, message, kind, errno = core.image_probe(store)
  store:close()
  return format, message, kind, errno
end

-- ---- reading -------------------------------------------------------------------------------

local core_read = raw.read

function methods:read(offset, length)
  local bytes, message, kind, errno = core_read(self, offset, length)
  if bytes or kind ~= "missing" then
    return bytes, message, kind, errno
  end
  return with_references(self, core_read, offset, length)
end

local extents_options = { start = "size", length = "size", layer = "boolean", holes = "boolean" }

function methods:extents(given)
  local o = options.check(given, extents_options)
  local disk = raw.disk_bytes(self)
  local start = size.argument(o.start, "start") or 0
  local length = size.argument(o.length, "length")
  if start > disk then
    error(("start %d is past the disk's end %d"):format(start, disk), 2)
  end
  length = math.min(length or math.maxinteger, disk - start)
  local holes = o.holes
  if holes == nil then
    local state = state_of(self)
    if state.preallocated == nil then
      state.preallocated = raw.is_preallocated(self) or false
    end
    holes = state.preallocated
  end
  -- The host knows the holes of a data file; without it the tables alone answer.
  local layer = self
  while layer do
    attach_data(layer, state_of(layer))
    local next_layer = not o.layer and lower(layer)
    if layer ~= self then
      raw.close(layer)
    end
    layer = next_layer
  end
  local batch, index, room = {}, 0, 16
  return function()
    index = index + 1
    if not batch[index] then
      if length == 0 then
        return nil
      end
      local message
      batch, message = with_references(self, raw.extent_batch, start, length, room, holes, o.layer or false)
      if not batch then
        error(message, 0)
      end
      index, room = 1, math.min(room * 4, 1024)
      local last = batch[#batch]
      length = length - (last.offset + last.length - start)
      start = last.offset + last.length
    end
    return setmetatable(batch[index], tables.extent_meta)
  end
end

-- ---- snapshots, bitmaps, chain ---------------------------------------------------------------

-- The number (from 0) and entry of a snapshot; nil, message, kind, errno. An id goes before a name, the first
-- before the second.
function image.find_snapshot(self, id_or_name)
  if type(id_or_name) ~= "string" then
    error("snapshot id or name must be a string, not " .. type(id_or_name), 3)
  end
  local count, message, kind, errno = raw.snapshot_count(self)
  if not count then
    return nil, message, kind, errno
  end
  local index, found
  for i = 0, count - 1 do
    local entry = raw.snapshot_entry(self, i)
    if entry.id == id_or_name then
      return i, entry
    elseif entry.name == id_or_name and not index then
      index, found = i, entry
    end
  end
  if not index then
    return nil, ("Snapshot '%s' does not exist"):format(references.escape(id_or_name)), "missing"
  end
  return index, found
end

function methods:snapshot(id_or_name)
  local index, found, kind, errno = image.find_snapshot(self, id_or_name)
  if not index then
    return nil, found, kind, errno
  end
  local message
  local view
  view, message, kind, errno = raw.open_snapshot(self, index)
  if not view then
    return nil, message, kind, errno
  end
  local state = {}
  for key, value in pairs(state_of(self)) do
    state[key] = value
  end
  state.mode, state.snapshot, state.preallocated = "r", found, nil
  debug.setuservalue(view, state, 1)
  return view
end

function methods:bitmap(name)
  if type(name) ~= "string" then
    error("bitmap name must be a string, not " .. type(name), 2)
  end
  local count, message, kind, errno = raw.bitmap_count(self)
  if not count then
    return nil, message, kind, errno
  end
  for i = 0, count - 1 do
    local entry = raw.bitmap_entry(self, i)
    if entry.name == name then
      return tables.bitmap(self, i, entry)
    end
  end
  return nil, ("Bitmap '%s' does not exist"):format(references.escape(name)), "missing"
end

function methods:chain()
  local list, layer, seen = {}, self, {}
  while layer do
    local state = state_of(layer)
    local item = { path = state.path, format = state.format, size = raw.disk_bytes(layer), image = layer }
    item.backing_file, item.backing_format, item.data_file = raw.names(layer)
    list[#list + 1] = item
    -- One step at a time: the layers above a missing file are still worth showing.
    local ok, message, kind = attach_backing(layer, seen)
    if not ok then
      local path = type(state.backing) == "string" and state.backing
        or references.resolve(state.path, item.backing_file)
      list[#list + 1] = { path = path, missing = message, kind = kind }
    end
    layer = ok and lower(layer)
  end
  return list
end

function methods:refcount(cluster)
  return raw.refcount(self, cluster)
end

function methods:explain(offset)
  return require("qcow2.explain").explain(self, size.argument(offset, "offset") or error("offset is missing", 2))
end

-- ---- writing: lua/qcow2/write.lua adds what changes an image -----------------------------------

local DIRTY, CORRUPT = 1, 2

-- Was the image merely not closed, so that its counts can be put right before it is written to?
local function only_dirty(self)
  local header = raw.header_fields(self)
  return header and header.incompatible_features & (DIRTY | CORRUPT) == DIRTY and header.crypt_method == 0
end

-- Makes the image writable: its data file has to be there, its backing file only once bytes of it are needed. With
-- data_file = false the tables alone can be changed. An image that was not closed is repaired first.
function image.begin(self, state)
  local begin = state.data_file == false and raw.begin_tables or raw.begin
  if begin == raw.begin then
    local ok, message, kind, errno = attach_data(self, state)
    if not ok then
      return nil, message, kind, errno
    end
  end
  if only_dirty(self) then
    local ok, message, kind, errno = require("qcow2.check").mend_dirty(self)
    if not ok then
      return nil, message, kind, errno
    end
  end
  return begin(self)
end

function methods:close()
  if not raw.is_open(self) then
    return true
  end
  -- What works on the image is given up first, as if the job itself had been closed.
  jobs.cancel_of(self)
  if raw.is_held(self) then
    -- Another handle's job goes on with the image, and with it its end.
    raw.close(self)
    return true
  end
  local ok, message, kind, errno = raw.finish(self)
  raw.close(self)
  return ok, message, kind, errno
end

-- Closes an image after work on it that answered the rest: true, or nil, message, kind, errno. The close of an image
-- that failed only repeats its error; what it says counts when the work succeeded.
function image.close_after(self, done, ...)
  local closed, message, kind, errno = methods.close(self)
  if done and not closed then
    return nil, message, kind, errno
  end
  return done, ...
end

-- ---- properties ----------------------------------------------------------------------------

local function header_property(name, compute)
  properties[name] = function(self)
    local header = raw.header_fields(self)
    return header and compute(header, self)
  end
end

for _, name in ipairs({ "path", "format", "mode", "data_path" }) do
  properties[name] = function(self)
    return state_of(self)[name]
  end
end

properties.size = raw.disk_bytes
properties.header = tables.header
properties.extensions = tables.extensions

header_property("version", function(h) return h.version end)
header_property("cluster_size", function(h) return 1 << h.cluster_bits end)
header_property("subcluster_size", function(h)
  return 1 << (h.incompatible_features & 16 ~= 0 and h.cluster_bits - 5 or h.cluster_bits)
end)
header_property("refcount_bits", function(h) return 1 << h.refcount_order end)
header_property("compression_type", function(h) return h.compression_type == 1 and "zstd" or "zlib" end)
header_property("extended_l2", function(h) return h.incompatible_features & 16 ~= 0 end)
header_property("external_data", function(h) return h.incompatible_features & 4 ~= 0 end)
header_property("lazy_refcounts", function(h) return h.compatible_features & 1 ~= 0 end)
header_property("dirty", function(h) return h.incompatible_features & 1 ~= 0 end)
header_property("corrupt", function(h) return h.incompatible_features & 2 ~= 0 end)
header_property("encryption", function(h) return ({ "aes", "luks" })[h.crypt_method] end)
header_property("data_file_raw", function(h)
  return h.incompatible_features & 4 ~= 0 and h.autoclear_features & 2 ~= 0
end)

properties.backing_file = function(self) return (raw.names(self)) end
properties.backing_format = function(self) return (select(2, raw.names(self))) end
properties.data_file = function(self) return (select(3, raw.names(self))) end

---Where the stored backing name leads; nil without one. Nothing is opened.
properties.backing_path = function(self)
  local name = raw.names(self)
  return name and references.resolve(state_of(self).path, name)
end

---Where the data file is looked for; nil without one.
properties.data_file_path = function(self)
  local _, _, name = raw.names(self)
  local state = state_of(self)
  return state.data_path or state.data_file or name and references.resolve(state.path, name)
end

---Bytes of the regular file there, which is not opened; nil when there is none or the policy keeps out of it.
properties.data_file_length = function(self)
  local _, _, name = raw.names(self)
  local state = state_of(self)
  local path = state.data_path or state.data_file
    or name and references.allow(state.references, state.path, name, "data_file")
  return path and core.file_length(path)
end

properties.file_length = function(self) return (raw.file_lengths(self)) end
properties.disk_size = function(self) return (select(2, raw.file_lengths(self))) end
properties.preallocated = raw.is_preallocated

properties.snapshots = tables.snapshots
properties.bitmaps = tables.bitmaps
properties.features = tables.features
properties.feature_names = tables.feature_names
properties.l1 = tables.l1
properties.refcount_table = tables.refcount_table

-- ---- the class -----------------------------------------------------------------------------

-- What no job changes.
local steady = { path = true, format = true, mode = true, data_path = true, size = true, file_length = true,
  disk_size = true }

-- Files that add methods, loaded when one is asked for that is not known yet.
local more = { "qcow2.write", "qcow2.check", "qcow2.amend", "qcow2.datafile" }

---All methods are in image.methods when this returns; true when some were not.
---@return boolean
function image.complete()
  local names = more
  more = {}
  for _, name in ipairs(names) do
    require(name)
  end
  return #names > 0
end

class.__index = function(self, key)
  local method = methods[key]
  if method then
    return method
  end
  local property = properties[key]
  if property then
    -- nil would be an answer.
    if not steady[key] and raw.is_held(self) then
      error("the image is held by a job that has not ended", 2)
    end
    return property(self)
  end
  if image.complete() then
    return class.__index(self, key)
  end
  error(("an image has no '%s'"):format(tostring(key)), 2)
end

class.__newindex = function(_, key)
  error(("an image's '%s' cannot be assigned"):format(tostring(key)), 2)
end

local shown = { "path", "format", "mode", "size", "version", "cluster_size", "subcluster_size", "refcount_bits",
  "compression_type", "extended_l2", "lazy_refcounts", "dirty", "corrupt", "encryption", "external_data", "data_file",
  "data_file_raw", "backing_file", "backing_format", "file_length", "disk_size" }

class.__pairs = function(self)
  raw.disk_bytes(self) -- raises for a closed image
  local i = 0
  return function()
    while i < #shown do
      i = i + 1
      local value = properties[shown[i]](self)
      if value ~= nil then
        return shown[i], value
      end
    end
  end
end

-- A block that ended normally learns that its last flush failed; one that ended by an error keeps its error.
class.__close = function(self, raised)
  local ok, message = methods.close(self)
  if not ok and raised == nil then
    error(message, 0)
  end
end

class.__tostring = function(self)
  if not raw.is_open(self) then
    return "qcow2.image (closed)"
  end
  local state = state_of(self)
  local parts = { ("%s image '%s', %d bytes"):format(state.format or "qcow2", references.escape(state.path or "?"),
    raw.disk_bytes(self)) }
  local header = raw.header_fields(self)
  if header then
    parts[#parts + 1] = ("version %d, clusters of %d"):format(header.version, 1 << header.cluster_bits)
    local backing, _, data = raw.names(self)
    if backing then
      parts[#parts + 1] = ("backing file '%s'"):format(references.escape(backing))
    end
    if data then
      parts[#parts + 1] = ("data file '%s'"):format(references.escape(data))
    end
  end
  if state.snapshot then
    parts[#parts + 1] = ("snapshot '%s'"):format(references.escape(state.snapshot.name))
  end
  parts[#parts + 1] = state.mode == "rw" and "read-write" or "read-only"
  return table.concat(parts, ", ")
end

image.methods = methods
image.attach_data = attach_data
image.with_references = with_references
image.raw = raw
image.state_of = state_of
image.bitmap_methods = tables.bitmap_methods

return image
