-- SPDX-License-Identifier: MIT
-- Copies disks into a new file: what may be a target, and what becomes of it when the copy does not finish.
--
-- A target that this copy made is removed when the copy fails or is given up; one that it was told to overwrite is
-- left empty, because its old bytes went when the copy began; one that was to be written into (target_exists) keeps
-- what was written. So no half-made disk looks like a whole one.
--
-- A qcow2 image that is made here is hidden until all is in it (the core's business): what a kill leaves looks like
-- no image.
local core = require("qcow2.core")
local create = require("qcow2.create")
local image = require("qcow2.image")
local job = require("qcow2.job")
local options = require("qcow2.options")
local references = require("qcow2.references")
local size = require("qcow2.size")

local SECTOR = 512
local SPARSE_SIZE = 4096

local known = {
  format = { "raw", "qcow2" },
  source = "table",
  target = "table",
  create = "table",
  target_exists = "boolean",
  target_is_zero = "boolean",
  target_backing = "boolean",
  overwrite = "boolean",
  compress = "boolean",
  bitmaps = "boolean",
  skip_broken_bitmaps = "boolean",
  sparse_size = "size",
  rate = "size",
  start = "size",
  length = "size",
  salvage = "boolean",
  strict = "boolean",
  threads = "integer",
  sync = "boolean",
}

-- Options that only mean something for a target in format qcow2.
local qcow2_only = { "target", "target_backing", "compress", "bitmaps", "skip_broken_bitmaps" }

local function misuse(message, ...)
  error(message:format(...), 4)
end

-- The target's format when none is named: qcow2 when its name or an option says so.
local function default_format(o, path)
  local is_qcow2 = type(path) ~= "string" or path:lower():find("%.qcow2$") ~= nil
  for _, name in ipairs(qcow2_only) do
    is_qcow2 = is_qcow2 or o[name] ~= nil
  end
  return is_qcow2 and "qcow2" or "raw"
end

local function check(given, path)
  local o = {}
  for key, value in pairs(options.check(given, known, 4)) do
    o[key] = value
  end
  o.sparse_size = size.argument(o.sparse_size, "sparse_size") or SPARSE_SIZE
  o.rate = size.argument(o.rate, "rate")
  o.start, o.length = size.argument(o.start, "start"), size.argument(o.length, "length")
  o.format = o.format or default_format(o, path)
  if o.sparse_size % SECTOR ~= 0 then
    misuse("sparse_size must be a multiple of %d", SECTOR)
  elseif o.threads and o.threads < 1 then
    misuse("threads must be at least 1")
  elseif o.target_exists and o.overwrite then
    misuse("options 'target_exists' and 'overwrite' exclude one another")
  elseif o.target_exists and o.create then
    misuse("options 'target_exists' and 'create' exclude one another")
  end
  for _, name in ipairs({ "target", "target_is_zero", "target_backing" }) do
    if o[name] and not o.target_exists then
      misuse("option '%s' needs 'target_exists'", name)
    end
  end
  for _, name in ipairs(qcow2_only) do
    if o.format == "raw" and o[name] then
      misuse("option '%s' needs format = \"qcow2\"", name)
    end
  end
  if o.skip_broken_bitmaps and not o.bitmaps then
    misuse("option 'skip_broken_bitmaps' needs 'bitmaps'")
  elseif o.target_is_zero and o.target_backing then
    misuse("options 'target_is_zero' and 'target_backing' exclude one another")
  elseif o.bitmaps and o.length then
    misuse("options 'bitmaps' and 'length' exclude one another")
  elseif o.length == 0 or o.start and not o.length then
    misuse("a part of the source is said by 'length', which is more than 0, and 'start'")
  elseif o.create and o.create.size then
    misuse("the target's size is that of the sources")
  end
  return o
end

local function is_image(value)
  return type(value) == "userdata" and debug.getmetatable(value) == core.classes.image
end

local function close_all(images)
  for _, one in ipairs(images) do
    one:close()
  end
end

-- The sources as open images with all that they need; `opened` are those to close.
local function open_sources(sources, opening)
  local list, opened = {}, {}
  for i, source in ipairs(sources) do
    local one, message, kind, errno = source, nil, nil, nil
    if not is_image(source) then
      one, message, kind, errno = image.open(source, opening)
      opened[#opened + 1] = one
    end
    local ready = one
    if one then
      ready, message, kind, errno = one:attach()
    end
    if not ready then
      close_all(opened)
      return nil, message, kind, errno
    end
    list[i] = one
  end
  return list, opened
end

-- ---- what becomes of the target --------------------------------------------------------------

-- The identity of the file that is at `path` now, "device:inode"; nil when it does not open.
local function identity_of(path)
  local store <close> = core.store_file(path, { force_share = true })
  local device, inode
  if store then
    device, inode = store:identity()
  end
  return device and device .. ":" .. inode
end

-- Takes back a file that is of no use to anyone: removes it when we `made` it, else leaves it empty; unless its
-- name leads to another file by now.
local function take_back(path, made, identity)
  if not identity or identity_of(path) ~= identity then
    return
  elseif made then
    os.remove(path)
    return
  end
  -- That this too may fail changes nothing.
  local store <close> = core.store_file(path, { write = true })
  if store then
    store:resize(0)
  end
end

-- ---- raw targets -----------------------------------------------------------------------------

-- gives: the store, and whether we made the file.
local function open_store(path, o)
  if o.target_exists then
    return core.store_file(path, { write = true })
  end
  local store, message, kind, errno = core.store_file(path, { create = true, exclusive = true })
  if store then
    return store, true
  elseif kind == "exists" and o.overwrite then
    return core.store_file(path, { write = true })
  end
  return nil, message, kind, errno
end

local raw_creation = { preallocation = { "off", "falloc", "full" }, nocow = "boolean" }

-- A target is { handle, started, finish(complete) }: what the core copies into, and what is done with it at the end.
-- `started`: the copy has begun, so a target that was to be overwritten has lost what it held. `prepared`: it is
-- empty and has its length.
local function raw_target(path, o, bytes)
  local given = options.check(o.create, raw_creation, 5)
  local store, made, kind, errno = open_store(path, o)
  if not store then
    return nil, made, kind, errno
  end
  local identity = identity_of(path)
  local target = { handle = store }
  function target.finish(complete)
    -- While it is open nobody else begins to use it.
    if not complete and made then
      take_back(path, true, identity)
    elseif not complete and target.started and not o.target_exists then
      store:resize(0)
    end
    store:close()
    return true
  end
  if given.preallocation or given.nocow then
    target.started, target.prepared = true, true
    local ok, message
    ok, message, kind, errno = core.create_raw(store, bytes, given.preallocation or "off", given.nocow or false)
    if not ok then
      target.finish(false)
      return nil, message, kind, errno
    end
    if given.nocow and not core.create_has_nocow(store) then
      target.notes = { create.no_nocow(path) }
    end
  end
  return target
end

-- ---- qcow2 targets ---------------------------------------------------------------------------

-- Can the bitmaps of the source be copied?
local function check_bitmaps(images, o)
  local source = images[1]
  if #images > 1 then
    return nil, "Copying bitmaps only possible with single source", "conflict"
  elseif source.format ~= "qcow2" or source.version < 3 then
    return nil, "Source lacks bitmap support", "unsupported"
  end
  local count, message, kind, errno = image.raw.bitmap_count(source)
  if not count then
    return nil, message, kind, errno
  end
  for i = 0, count - 1 do
    local bitmap
    bitmap, message, kind, errno = image.raw.bitmap_entry(source, i)
    if not bitmap then
      return nil, message, kind, errno
    elseif bitmap.in_use and not o.skip_broken_bitmaps then
      return nil, ("Cannot copy inconsistent bitmap '%s'; leave such bitmaps out or remove them"):format(
        references.escape(bitmap.name)), "conflict"
    end
  end
  return true
end

-- Contradictions that the options of creation do not show by themselves.
local function check_creation(o, given)
  local why
  if given.keep_data_file then
    why = "keep_data_file is for adopting a data file: a copy writes to it"
  elseif given.format and given.format ~= "qcow2" then
    why = "The target's format is qcow2"
  elseif o.compress and given.data_file then
    why = "Clusters in an external data file cannot be compressed"
  elseif o.compress and given.preallocation and given.preallocation ~= "off" then
    why = "Compression and preallocation not supported at the same time"
  elseif o.bitmaps and (given.compat == "0.10" or given.compat == "v2") then
    why = "Bitmaps need an image of version 3 (compat=1.1)"
  end
  if why then
    return nil, why, "conflict"
  end
  return true
end

local function plan_of(path, o, bytes)
  local given = { size = bytes }
  for key, value in pairs(o.create or {}) do
    given[key] = value
  end
  local ok, message, kind, errno = check_creation(o, given)
  if not ok then
    return nil, message, kind, errno
  end
  local plan
  plan, message, kind, errno = create.plan(path, given)
  if not plan then
    return nil, message, kind, errno
  end
  plan.overwrite_image = o.overwrite or given.overwrite
  plan.opened = true
  ok, message, kind, errno = create.check(plan)
  if not ok then
    return nil, message, kind, errno
  end
  return plan
end

-- Is the file at `path` one of those that the sources are read from? (Locks do not tell when they are off.)
local function check_is_not_read(images, path)
  local identity, found = identity_of(path), false
  for _, one in ipairs(images) do
    for i, layer in ipairs(one:chain()) do
      local state = image.state_of(layer.image)
      found = found or identity and
        (state.identity == identity or state.data_path and identity_of(state.data_path) == identity)
      if i > 1 then
        image.raw.close(layer.image)
      end
    end
  end
  if found then
    return nil, ("'%s' is a file that is read: it cannot be the target too"):format(references.escape(path)),
      "conflict"
  end
  return true
end

local function new_qcow2(path, o, bytes, images)
  local plan, message, kind, errno = plan_of(path, o, bytes)
  if not plan then
    return nil, message, kind, errno
  end
  local ok
  for _, name in ipairs({ path, plan.data_path }) do
    ok, message, kind, errno = check_is_not_read(images, name)
    if not ok then
      return nil, message, kind, errno
    end
  end
  ok, message, kind, errno = create.make(plan)
  if not ok then
    return nil, message, kind, errno
  end
  local target = { notes = message }
  local identity, data_identity = identity_of(path), plan.data_path and identity_of(plan.data_path)
  function target.finish(complete)
    if complete then
      return target.handle:close()
    end
    if plan.made then
      take_back(path, true, identity)
    end
    if plan.data_made then
      take_back(plan.data_path, true, data_identity)
    end
    if target.handle then
      -- Nothing is written any more, not even by a flush.
      image.raw.close(target.handle)
    end
    if not plan.made then
      take_back(path, false, identity)
    end
    if plan.data_path and not plan.data_made then
      take_back(plan.data_path, false, data_identity)
    end
    return true
  end
  target.handle = plan.image
  if not plan.options.backing_unsafe then
    ok, message, kind, errno = target.handle:attach()
  end
  if not ok then
    target.finish(false)
    return nil, message, kind, errno
  end
  return target
end

local function existing_qcow2(path, o)
  local opening = { mode = "rw", format = "qcow2" }
  for key, value in pairs(o.target or {}) do
    opening[key] = value
  end
  local handle, message, kind, errno = path, nil, nil, nil
  if type(path) == "string" then
    handle, message, kind, errno = image.open(path, opening)
  end
  if not handle then
    return nil, message, kind, errno
  end
  local target = { handle = handle }
  function target.finish()
    -- What was written stays, and stays sound.
    if is_image(path) then
      return true
    end
    return handle:close()
  end
  -- Writes to parts of clusters need what the target's backing file has.
  local ok
  ok, message, kind, errno = handle:attach()
  if not ok then
    target.finish()
    return nil, message, kind, errno
  end
  return target
end

local function open_target(path, o, images)
  local bytes = o.length and (o.length + SECTOR - 1) // SECTOR * SECTOR or 0
  for _, one in ipairs(o.length and {} or images) do
    bytes = bytes + (one.size + SECTOR - 1) // SECTOR * SECTOR
  end
  if o.format == "raw" then
    return raw_target(path, o, bytes)
  end
  local ok, message, kind, errno = true, nil, nil, nil
  if o.bitmaps then
    ok, message, kind, errno = check_bitmaps(images, o)
  end
  if not ok then
    return nil, message, kind, errno
  elseif o.target_exists then
    return existing_qcow2(path, o)
  end
  return new_qcow2(path, o, bytes, images)
end

-- ---- for users -------------------------------------------------------------------------------

local function check_sources(source)
  local sources = source
  if type(source) ~= "table" then
    sources = { source }
  end
  if #sources == 0 then
    error("there is no source", 3)
  end
  for _, one in ipairs(sources) do
    if type(one) ~= "string" and not is_image(one) then
      error("a source must be a path or an open image, not " .. type(one), 3)
    end
  end
  return sources
end

---@see qcow2.convert
return function(source, path, given)
  local o = check(given, path)
  local sources = check_sources(source)
  if type(path) ~= "string" and not (is_image(path) and o.target_exists and o.format == "qcow2") then
    error("target must be a path, not " .. type(path), 2)
  end
  local images, opened, kind, errno = open_sources(sources, o.source)
  if not images then
    return nil, opened, kind, errno
  end
  local target, message
  if o.length and (#images > 1 or o.length > images[1].size - (o.start or 0)) then
    close_all(opened)
    return nil, "The part to be copied is not inside one disk", "range"
  end
  target, message, kind, errno = open_target(path, o, images)
  if not target then
    close_all(opened)
    return nil, message, kind, errno
  end
  local handle, kept
  local function finish(complete)
    local ok, why, why_kind, why_errno = target.finish(complete)
    close_all(opened)
    return ok, why, why_kind, why_errno
  end
  -- Until there is a job that cleans up: an interrupt may come too.
  local guard <close> = setmetatable({}, { -- luacheck: ignore 211
    __close = function()
      if not kept then
        finish(false)
      end
    end,
  })
  handle, message, kind, errno = core.copy(images, target.handle, {
    sparse_size = o.sparse_size,
    threads = o.threads,
    target_exists = o.target_exists or target.prepared,
    target_is_zero = o.target_is_zero or target.prepared,
    target_backing = o.target_backing,
    salvage = o.salvage,
    strict = o.strict,
    sync = o.sync,
    compress = o.compress,
    bitmaps = o.bitmaps,
    rate = o.rate,
    start = o.length and (o.start or 0),
    length = o.length,
  })
  if not handle then
    return nil, message, kind, errno
  end
  target.started = true
  local held = table.move(images, 1, #images, 1, {})
  held[#held + 1] = type(path) == "userdata" and path or nil
  local result = job.new(handle, held, finish)
  result.notes = target.notes or {}
  kept = true
  return result
end
