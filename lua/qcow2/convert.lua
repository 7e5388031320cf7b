-- SPDX-License-Identifier: MIT
-- Copies disks into a new file: what may be a target, and what becomes of it when the copy does not finish.
--
-- A target that this copy made is removed when the copy fails or is given up; one that it was told to overwrite is
-- left empty, because its old bytes went when the copy began; one that was to be written into (target_exists) keeps
-- what was written. So no half-made disk looks like a whole one.
local core = require("qcow2.core")
local image = require("qcow2.image")
local job = require("qcow2.job")
local options = require("qcow2.options")
local size = require("qcow2.size")

local SPARSE_SIZE = 4096

local known = {
  format = { "raw", "qcow2" },
  source = "table",
  target_exists = "boolean",
  target_is_zero = "boolean",
  overwrite = "boolean",
  sparse_size = "size",
  salvage = "boolean",
  threads = "integer",
  sync = "boolean",
}

local function check(given)
  local o = options.check(given, known)
  local sparse_size = size.argument(o.sparse_size, "sparse_size") or SPARSE_SIZE
  if sparse_size % 512 ~= 0 then
    error("sparse_size must be a multiple of 512", 3)
  elseif o.threads and o.threads < 1 then
    error("threads must be at least 1", 3)
  elseif o.target_exists and o.overwrite then
    error("options 'target_exists' and 'overwrite' exclude one another", 3)
  elseif o.target_is_zero and not o.target_exists then
    error("option 'target_is_zero' needs 'target_exists'", 3)
  end
  return o, sparse_size
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

-- gives: the store, and whether we made the file.
local function open_target(path, o)
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

-- Removes the file that is open in `store`, unless its name leads to another one by now.
local function remove(store, path)
  local device, inode = store:identity()
  local there <close> = core.store_file(path, { force_share = true })
  local device_there, inode_there
  if there then
    device_there, inode_there = there:identity()
  end
  if device == device_there and inode == inode_there then
    os.remove(path)
  end
end

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
return function(source, target, given)
  local o, sparse_size = check(given)
  local sources = check_sources(source)
  if type(target) ~= "string" then
    error("target must be a path, not " .. type(target), 2)
  elseif o.format == "qcow2" then
    return nil, "Copying into a qcow2 image is not supported", "unsupported"
  end
  local images, opened, kind, errno = open_sources(sources, o.source)
  if not images then
    return nil, opened, kind, errno
  end
  local store, made
  store, made, kind, errno = open_target(target, o)
  if not store then
    close_all(opened)
    return nil, made, kind, errno
  end
  local handle, kept
  local function finish(complete)
    if not complete and made then
      remove(store, target)
    elseif not complete and handle and not o.target_exists then
      -- What was written is of no use to anyone; that this too may fail changes nothing.
      store:resize(0)
    end
    store:close()
    close_all(opened)
  end
  -- Until there is a job that cleans up: an interrupt may come too.
  local guard <close> = setmetatable({}, { -- luacheck: ignore 211
    __close = function()
      if not kept then
        finish(false)
      end
    end,
  })
  local message
  handle, message, kind, errno = core.copy(images, store, {
    sparse_size = sparse_size,
    threads = o.threads,
    target_exists = o.target_exists,
    target_is_zero = o.target_is_zero,
    salvage = o.salvage,
    sync = o.sync,
  })
  if not handle then
    return nil, message, kind, errno
  end
  local result = job.new(handle, finish)
  kept = true
  return result
end
