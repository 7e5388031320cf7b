-- SPDX-License-Identifier: MIT
-- Rebase: another backing file below a disk that goes on showing the same bytes.
local core = require("qcow2.core")
local image = require("qcow2.image")
local job = require("qcow2.job")
local options = require("qcow2.options")
local references = require("qcow2.references")

local known = {
  backing_file = "string",
  backing_fmt = { "qcow2", "raw" },
  compress = "boolean",
  references = "string|table|function",
  source = "table",
  force_share = "boolean",
  threads = "integer",
}

local function check(disk, given)
  local o = options.check(given, known)
  if type(disk) ~= "string" and (type(disk) ~= "userdata" or debug.getmetatable(disk) ~= core.classes.image) then
    error("disk must be a path or an open image, not " .. type(disk), 3)
  elseif o.backing_file and not o.backing_fmt then
    error("a backing file needs its format", 3)
  elseif o.threads and o.threads < 1 then
    error("threads must be at least 1", 3)
  end
  return o
end

---@see qcow2.rebase
return function(disk, given)
  local o = check(disk, given)
  local overlay, message, kind, errno = disk, nil, nil, nil
  local opened = {} -- closed at the end, the last one first
  local function finish(complete)
    local result = { complete or nil }
    for i = #opened, 1, -1 do
      local fine, why, why_kind, why_errno = opened[i]:close()
      if not fine and complete then
        result = { nil, why, why_kind, why_errno }
      end
    end
    return table.unpack(result, 1, 4)
  end
  if type(disk) == "string" then
    local opening = { mode = "rw" }
    for key, value in pairs(o.source or {}) do
      opening[key] = value
    end
    overlay, message, kind, errno = image.open(disk, opening)
    opened[1] = overlay
  end
  local ready
  if overlay then
    ready, message, kind, errno = overlay:attach()
  end
  local backing
  if ready and o.backing_file then
    -- Who names it has allowed it; what it names itself is under the policy.
    backing, message, kind, errno = image.open(references.resolve(overlay.path, o.backing_file),
      { format = o.backing_fmt, references = o.references, force_share = o.force_share })
    opened[#opened + 1] = backing
    ready = backing
    if backing then
      ready, message, kind, errno = backing:attach()
    end
    if not ready then
      message = ("Could not open new backing file '%s': %s"):format(references.escape(o.backing_file), message)
    end
  end
  local handle
  if ready then
    local name = o.backing_file
    handle, message, kind, errno = core.rebase(overlay, backing, name, name and o.backing_fmt, o.compress or false,
      o.threads)
  end
  if not handle then
    finish(false)
    return nil, message, kind, errno
  end
  return job.new(handle, { overlay }, finish)
end
