-- SPDX-License-Identifier: MIT
-- Compares two disks as the guest sees them.
local core = require("qcow2.core")
local image = require("qcow2.image")
local jobs = require("qcow2.job")
local options = require("qcow2.options")

local known = { strict = "boolean", source = "table", progress = "function", threads = "integer" }

-- gives: an image with all that it needs, and the one to close, if any.
local function open(disk, opening, name)
  local one, message, kind, errno = disk, nil, nil, nil
  if type(disk) == "string" then
    one, message, kind, errno = image.open(disk, opening)
  elseif type(disk) ~= "userdata" or debug.getmetatable(disk) ~= core.classes.image then
    error(("%s must be a path or an open image, not %s"):format(name, type(disk)), 3)
  end
  if not one then
    return nil, message, kind, errno
  end
  local ready
  ready, message, kind, errno = one:attach()
  if ready then
    return one, one ~= disk and one or nil
  elseif one ~= disk then
    one:close()
  end
  return nil, message, kind, errno
end

-- gives: the result, or nil, message, kind, errno.
local function run(handle, progress)
  local ok, message, kind, errno = jobs.run(handle, progress)
  if not ok then
    return nil, message, kind, errno
  end
  local reason, offset = handle:difference()
  if reason == "same" then
    return { same = true }
  end
  return { same = false, reason = reason, offset = offset }
end

---@see qcow2.compare
return function(a, b, given)
  local o = options.check(given, known)
  if o.threads and o.threads < 1 then
    error("threads must be at least 1", 2)
  end
  local one, opened, kind, errno = open(a, o.source, "a")
  if not one then
    return nil, opened, kind, errno
  end
  local first <close> = opened -- luacheck: ignore 211
  local other
  other, opened, kind, errno = open(b, o.source, "b")
  if not other then
    return nil, opened, kind, errno
  end
  local second <close> = opened -- luacheck: ignore 211
  local handle <close>, message, why, os_errno =
    core.compare(one, other, { strict = o.strict, threads = o.threads })
  if not handle then
    return nil, message, why, os_errno
  end
  return run(handle, o.progress)
end
