-- SPDX-License-Identifier: MIT
-- Making images: which files are looked at, which may be overwritten, and what is taken back when it fails.
--
-- Three moves: resolve() finds out what is to be made (it opens the backing file and the data file for a look),
-- check() refuses what contradicts itself or would lose something, make() makes it. Nothing is made or changed
-- before make(). The command line prints its line between the first two.
--
-- A relative data file name counts from the image's directory, like a backing file's name, and is stored as it
-- was given. What an error takes back is only what this very call made; a file that was to be overwritten stays,
-- without its old contents.
local core = require("qcow2.core")
local image = require("qcow2.image")
local options = require("qcow2.options")
local references = require("qcow2.references")
local size = require("qcow2.size")

local create = {}

local SECTOR = 512

local known = {
  format = { "qcow2", "raw" },
  size = "size",
  compat = { "0.10", "1.1", "v2", "v3" },
  cluster_size = "size",
  refcount_bits = "integer",
  lazy_refcounts = "boolean",
  extended_l2 = "boolean",
  compression_type = { "zlib", "zstd" },
  preallocation = { "off", "metadata", "falloc", "full" },
  backing_file = "string",
  backing_fmt = { "qcow2", "raw" },
  backing_unsafe = "boolean",
  data_file = "string",
  data_file_raw = "boolean",
  keep_data_file = "boolean",
  keep_holes = "boolean",
  overwrite = "boolean",
  nocow = "boolean",
  encryption = { "aes", "luks" },
  references = "string|table|function",
}

-- What only qcow2 has: given for a raw file it is refused, by name.
local qcow2_only = { "compat", "cluster_size", "refcount_bits", "lazy_refcounts", "extended_l2", "compression_type",
  "backing_file", "backing_fmt", "data_file", "data_file_raw", "keep_data_file", "keep_holes", "encryption" }

local function show(name)
  return references.escape(name)
end

-- ---- looking -------------------------------------------------------------------------------

-- The same file, as far as names tell: also for files that are not there yet.
local function place(path)
  local real = core.realpath(path)
  if real then
    return real
  end
  local directory = core.realpath(references.directory(path) == "" and "." or references.directory(path))
  return directory and directory .. "/" .. path:match("[^/]*$") or path
end

-- What is at `path` now: { length, has_data, device, identity }, false when nothing, or nil and why not.
local function look(path)
  local store <close>, message, kind, errno = core.store_file(path, { force_share = true })
  if not store then
    if kind == "missing" then
      return false, message
    end
    return nil, message, kind, errno
  end
  local length
  length, message, kind, errno = store:length()
  if not length then
    return nil, message, kind, errno
  end
  local found = { length = length, device = store:is_device(), has_data = false }
  local device, inode = store:identity()
  found.identity = device and device .. ":" .. inode
  if found.device then
    found.has_data = true
  elseif length > 0 then
    -- A file that is one hole has nothing to lose.
    local is_data, run, why, number = store:extent(0, length)
    if is_data == nil then
      return nil, run, why, number
    end
    found.has_data = is_data or run < length
  end
  return found
end

local function resolve_backing(plan, o)
  local name = o.backing_file
  if name == plan.path then
    return nil, "Error: Trying to create an image with the same filename as the backing file", "conflict"
  elseif name == "" then
    return nil, "Expected backing file name, got empty string", "range"
  elseif name:find("\0", 1, true) then
    return nil, "The backing file's name has a NUL in it", "range"
  end
  plan.backing_path = references.resolve(plan.path, name)
  if o.backing_unsafe then
    if not o.backing_fmt then
      return nil, "Backing file specified without backing format", "conflict"
    end
    return true
  end
  -- Only a look: an overlay is made over the disk of a machine that runs, as qemu-img does.
  local backing <close>, message, kind, errno = image.open(plan.backing_path,
    { format = o.backing_fmt, references = o.references, force_share = true })
  if not backing then
    return nil, message .. "\nCould not open backing image.", kind, errno
  end
  if not o.backing_fmt then
    return nil, ("Backing file specified without backing format\nDetected format of %s."):format(backing.format),
      "conflict"
  end
  local target = place(plan.path)
  for _, layer in ipairs(backing:chain()) do
    if core.realpath(layer.path) == target then
      return nil, ("'%s' is in the backing chain of '%s': it would be its own backing file"):format(
        show(plan.path), show(name)), "conflict"
    end
  end
  plan.size = plan.size or backing.size
  return true
end

local function resolve_data(plan, o)
  local name = o.data_file
  if name == "" or name:find("\0", 1, true) then
    return nil, "The data file's name is empty or has a NUL in it", "range"
  end
  plan.data_path = references.resolve(plan.path, name)
  local found, message, kind, errno = look(plan.data_path)
  if found == nil then
    return nil, message, kind, errno
  elseif not found and o.keep_data_file then
    return nil, message, "missing"
  end
  plan.data_there = found
  if o.keep_data_file then
    plan.size = plan.size or found.length
  end
  return true
end

---Finds out what is to be made. gives: a plan, or nil, message, kind, errno.
---@param path string
---@param given table  checked options
function create.resolve(path, given)
  local o = {}
  for key, value in pairs(given) do
    o[key] = value
  end
  local plan = { path = path, options = o, format = o.format or "qcow2", size = o.size }
  local ok, message, kind, errno = true, nil, nil, nil
  if plan.format == "raw" then
    for _, name in ipairs(qcow2_only) do
      if o[name] then
        return nil, ("Option '%s' is not supported for file format 'raw'"):format(name), "conflict"
      end
    end
  end
  if o.backing_file then
    ok, message, kind, errno = resolve_backing(plan, o)
  end
  if ok and o.data_file then
    ok, message, kind, errno = resolve_data(plan, o)
  end
  if not ok then
    return nil, message, kind, errno
  elseif not plan.size then
    return nil, "Image creation needs a size parameter", "range"
  end
  return plan
end

-- ---- refusing ------------------------------------------------------------------------------

local function core_options(plan)
  local o = plan.options
  return {
    size = plan.size,
    version = (o.compat == "0.10" or o.compat == "v2") and 2 or 3,
    cluster_size = o.cluster_size,
    refcount_bits = o.refcount_bits,
    compression_type = o.compression_type,
    preallocation = o.preallocation,
    lazy_refcounts = o.lazy_refcounts,
    extended_l2 = o.extended_l2,
    backing_file = o.backing_file,
    backing_format = o.backing_fmt,
    data_file = o.data_file,
    data_file_raw = o.data_file_raw,
    keep_data_file = o.keep_data_file,
    keep_holes = o.keep_holes,
    nocow = o.nocow,
  }
end

-- Does the image that is there, and will be overwritten, name this very file as its data file?
local function is_own_data_file(plan)
  local old <close> = image.open(plan.path, { format = "qcow2", force_share = true, data_file = false })
  local name = old and old.external_data and old.data_file
  return name and core.realpath(references.resolve(plan.path, name)) == core.realpath(plan.data_path)
end

-- Contents that cannot be had back are not lost without a word.
local function check_data_file(plan, image_there)
  local there, o = plan.data_there, plan.options
  if place(plan.data_path) == place(plan.path)
    or (there and image_there and there.identity and there.identity == image_there.identity) then
    return nil, ("'%s' cannot be its own data file"):format(show(plan.path)), "conflict"
  end
  if there and there.has_data and not o.keep_data_file and not plan.overwrite_data
    and not (image_there and is_own_data_file(plan)) then
    return nil, ("Data file '%s' exists and %s; keep_data_file=on makes what it holds the disk's contents, "
      .. "overwrite=on discards it"):format(show(plan.data_path),
      there.device and "is a block device" or "holds data"), "exists"
  end
  return true
end

---Refuses what contradicts itself or would lose something. gives: true, or nil, message, kind, errno.
function create.check(plan)
  if plan.options.encryption then
    return nil, ("Encryption ('%s') is unsupported: this build makes no encrypted images")
      :format(plan.options.encryption), "unsupported"
  end
  local ok, message, kind, errno = true, nil, nil, nil
  if (plan.options.refcount_bits or 0) < 0 then
    return nil, "Refcount width must be a power of two and may not exceed 64 bits", "range"
  end
  if plan.format == "qcow2" then
    ok, message, kind, errno = core.create_check(core_options(plan))
  elseif plan.options.preallocation == "metadata" then
    ok, message, kind = nil, "Unsupported preallocation mode: metadata", "conflict"
  end
  if not ok then
    return nil, message, kind, errno
  end
  local there
  there, message, kind, errno = look(plan.path)
  if there == nil then
    return nil, message, kind, errno
  elseif there and not plan.overwrite_image then
    return nil, ("'%s' exists; the option overwrite would discard what it holds"):format(show(plan.path)), "exists"
  end
  if plan.data_path then
    return check_data_file(plan, there)
  end
  return true
end

-- ---- making --------------------------------------------------------------------------------

-- Opens `path` for writing. The second result says whether this call made the file.
local function open_target(path, may_exist)
  local store, message, kind, errno = core.store_file(path, { create = true, exclusive = true })
  if store then
    return store, true
  elseif kind ~= "exists" or not may_exist then
    return nil, message, kind, errno
  end
  -- With create: a symbolic link may lead to a file that is not there.
  store, message, kind, errno = core.store_file(path, { create = true })
  if not store then
    return nil, message, kind, errno
  end
  return store, false
end

-- The data file of the plan, open; nil without a message when there is none. As open_target.
local function open_data(plan)
  if not plan.data_path then
    return nil
  elseif plan.options.keep_data_file then
    local store, message, kind, errno = core.store_file(plan.data_path, {})
    return store, message or false, kind, errno
  end
  return open_target(plan.data_path, plan.data_there ~= false)
end

local function fill(plan, store, data)
  if plan.format == "raw" then
    return core.create_raw(store, (plan.size + SECTOR - 1) // SECTOR * SECTOR, plan.options.preallocation or "off",
      plan.options.nocow or false)
  end
  if not plan.opened then
    return core.create(store, data, core_options(plan))
  end
  local self, message, kind, errno = core.create_open(store, data, core_options(plan))
  if not self then
    return nil, message, kind, errno
  end
  local o = plan.options
  plan.image = image.enter(self, store, {
    path = plan.path,
    references = o.references,
    data_file = plan.data_path,
    data_path = plan.data_path,
    backing = plan.backing_path,
    backing_format = o.backing_fmt,
  })
  return true
end

---What is said when `nocow` cannot be had.
---@param path string
---@return string
function create.no_nocow(path)
  return ("nocow=on has no effect: the file system of '%s' knows no copy-on-write that could be turned off")
    :format(show(path))
end

---Makes what the plan says. With plan.opened it is plan.image, open, and looks like no image until a copy into it has
---ended. gives: true and a list of notes, or nil, message, kind, errno.
function create.make(plan)
  local store <close>, made, store_kind, store_errno = open_target(plan.path, plan.overwrite_image)
  if not store then
    return nil, made, store_kind, store_errno
  end
  local ok, message
  local data <close>, data_made, kind, errno = open_data(plan)
  if data or not data_made then
    ok, message, kind, errno = fill(plan, store, data)
  else
    message = data_made
  end
  if not ok then
    -- Still open, so still locked: nobody else has begun to use them.
    if made then
      os.remove(plan.path)
    end
    if data and data_made == true then
      os.remove(plan.data_path)
    end
    return nil, message, kind, errno
  end
  plan.made, plan.data_made = made, data_made == true
  local notes = {}
  if plan.options.nocow and not core.create_has_nocow(store) then
    notes[1] = create.no_nocow(plan.path)
  end
  return true, notes
end

-- ---- for users -----------------------------------------------------------------------------

---Checks the options and resolves them. gives: a plan, or nil, message, kind, errno; raises for misuse.
---@param path string
---@param given qcow2.create_options
function create.plan(path, given)
  local o = {}
  for key, value in pairs(options.check(given, known, 4)) do
    o[key] = value
  end
  o.size, o.cluster_size = size.argument(o.size, "size"), size.argument(o.cluster_size, "cluster_size")
  local plan, message, kind, errno = create.resolve(path, o)
  if not plan then
    return nil, message, kind, errno
  end
  plan.overwrite_image, plan.overwrite_data = o.overwrite, o.overwrite
  return plan
end

---Makes an image. gives: true, or nil, message, kind, errno.
---@param path string
---@param given qcow2.create_options
function create.create(path, given)
  if type(path) ~= "string" then
    error("path must be a string, not " .. type(path), 2)
  end
  -- Its size is one that is given, or that of a file.
  if type(given) == "table" and not (given.size or given.backing_file or given.data_file) then
    error("size is missing", 2)
  elseif type(given) == "table" and math.type(given.refcount_bits) == "integer" and given.refcount_bits < 0 then
    error("refcount_bits must not be negative", 2)
  end
  local plan, message, kind, errno = create.plan(path, given)
  if not plan then
    return nil, message, kind, errno
  end
  local ok
  ok, message, kind, errno = create.check(plan)
  if ok then
    ok, message, kind, errno = create.make(plan)
  end
  if not ok then
    return nil, message, kind, errno
  end
  return true
end

create.place = place

return create
