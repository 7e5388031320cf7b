-- SPDX-License-Identifier: MIT
-- External data files: the guest's data moves out into one or back in, and img:verify{...} compares file and disk.
--
-- A data file that externalize made is removed when it fails before the image was to be switched; afterwards it may
-- be the disk, so it stays whatever happens. No other file is ever removed or shortened.
local adopt = require("qcow2.adopt")
local core = require("qcow2.core")
local image = require("qcow2.image")
local jobs = require("qcow2.job")
local options = require("qcow2.options")
local references = require("qcow2.references")

local methods, raw, state_of = image.methods, image.raw, image.state_of

local datafile = {}

local SPARSE_SIZE = 4096

local function check_path(path, what)
  if type(path) ~= "string" then
    error(("%s must be a path, not %s"):format(what, type(path)), 3)
  end
end

-- What the image has by itself is to be copied: its backing file becomes an empty disk.
local function hide_backing(img)
  if not raw.names(img) then
    return true
  end
  local nothing <close> = assert(core.store_memory(0))
  local empty <close> = assert(core.image_open(nothing, "raw"))
  return raw.attach_backing(img, empty)
end

local function fill(img, store, o)
  local ok, message, kind, errno = hide_backing(img)
  local job
  if ok then
    job, message, kind, errno = core.copy({ img }, store,
      { sparse_size = SPARSE_SIZE, threads = o.threads, sync = true })
  end
  if not job then
    return nil, message, kind, errno
  end
  local _ <close> = job
  return jobs.run(job, o.progress)
end

local externalize_options = { raw = "boolean", threads = "integer", progress = "function", image = "table" }

-- The image's options of opening, for writing.
local function opening(given)
  local o = {}
  for key, value in pairs(given or {}) do
    o[key] = value
  end
  o.mode = "rw"
  return o
end

local function move_out(img, path, data_path, o)
  local ok, message, kind, errno = core.externalize_check(img, o.raw or false)
  if not ok then
    return nil, message, kind, errno
  end
  local store <close>, store_message, store_kind, store_errno =
    core.store_file(data_path, { create = true, exclusive = true })
  if not store then
    return nil, store_message, store_kind, store_errno
  end
  local ours = true
  local guard <close> = setmetatable({}, { -- luacheck: ignore 211
    __close = function()
      if ours then
        os.remove(data_path)
      end
    end,
  })
  local name
  name, message, kind, errno = adopt.name(data_path, path)
  if not name then
    return nil, message, kind, errno
  end
  ok, message, kind, errno = fill(img, store, o)
  if ok then
    -- The file's name has to be on disk before anything needs the file.
    local directory = references.directory(data_path)
    ok, message, kind, errno = core.sync_directory(directory == "" and "." or directory)
  end
  if not ok then
    return nil, message, kind, errno
  end
  ours = false
  ok, message, kind, errno = core.externalize(img, store, name, o.raw or false)
  if not ok then
    return nil, ("%s (the data file '%s' is complete and was left)"):format(message, references.escape(data_path)),
      kind, errno
  end
  ok, message, kind, errno = core.gather(img)
  if not ok then
    return nil, "The data has moved, but the image file could not be made shorter: " .. message, kind, errno
  end
  return true
end

---@see qcow2.externalize
function datafile.externalize(path, data_path, given)
  check_path(path, "the image")
  check_path(data_path, "the data file")
  local o = options.check(given, externalize_options)
  local img <close>, message, kind, errno = image.open(path, opening(o.image))
  if not img then
    return nil, message, kind, errno
  end
  return image.close_after(img, move_out(img, path, data_path, o))
end

local internalize_options = { progress = "function", image = "table" }

---@see qcow2.internalize
function datafile.internalize(path, given)
  check_path(path, "the image")
  local o = options.check(given, internalize_options)
  local img <close>, message, kind, errno = image.open(path, opening(o.image))
  if not img then
    return nil, message, kind, errno
  end
  local task
  task, message, kind, errno = core.internalize(img)
  if not task then
    return image.close_after(img, nil, message, kind, errno)
  end
  local _ <close> = task
  return image.close_after(img, jobs.run(task, o.progress))
end

local verify_options = { resync = { "data", "metadata" }, progress = "function" }

---@see qcow2.image.verify
function methods:verify(given)
  local o = options.check(given, verify_options)
  local task, message, kind, errno = core.verify(self, o.resync or "none")
  if not task and kind == "missing" then
    local ok
    ok, message, kind, errno = image.attach_data(self, state_of(self))
    if ok then
      task, message, kind, errno = core.verify(self, o.resync or "none")
    end
  end
  if not task then
    return nil, message, kind, errno
  end
  local _ <close> = task
  local report = { divergences = {} }
  local ok
  ok, message, kind, errno = jobs.run(task, o.progress)
  if not ok then
    return nil, message, kind, errno
  end
  for index = 0, math.huge do
    local divergence = task:divergence(index)
    if not divergence then
      break
    end
    report.divergences[#report.divergences + 1] = divergence
  end
  report.raw = self.data_file_raw
  report.found, report.mended = task:counts()
  report.omitted = report.found - #report.divergences
  report.same = report.found == report.mended
  return report
end

return datafile
