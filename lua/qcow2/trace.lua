-- SPDX-License-Identifier: MIT
-- A line for each call of the stores: QCOW2_TRACE=FILE for every program that has the library, -T for the command.
local core = require("qcow2.core")

local trace = {}

local STDERR = 2
local EVENTS = { "read", "write", "flush", "punch", "allocate", "resize", "extent" }

local function to_pattern(glob)
  return "^" .. glob:gsub("[^%w*?]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".") .. "$"
end

---The events whose names, store_read and so on, match one of these patterns with * and ?.
---@param globs string[]
---@return string[]
---@return string[] unknown  patterns that match none
function trace.events(globs)
  local found, unknown = {}, {}
  for _, glob in ipairs(globs) do
    local any = false
    for _, event in ipairs(EVENTS) do
      if ("store_" .. event):find(to_pattern(glob)) then
        found[#found + 1] = event
        any = true
      end
    end
    if not any then
      unknown[#unknown + 1] = glob
    end
  end
  return found, unknown
end

---Traces every file that is opened from now on.
---@param path? string      lines are appended to this file; default: the standard error
---@param events? string[]  default: all
---@return true?
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function trace.begin(path, events)
  local fd, message, kind, errno = STDERR, nil, nil, nil
  if path then
    fd, message, kind, errno = core.trace_file(path)
  end
  if not fd then
    return nil, message, kind, errno
  end
  local open = core.store_file
  core.store_file = function(...)
    local store, why, why_kind, why_errno = open(...)
    if not store then
      return nil, why, why_kind, why_errno
    end
    local traced
    traced, why, why_kind, why_errno = store:trace(fd, events)
    store:close()
    return traced, why, why_kind, why_errno
  end
  return true
end

---What qemu's programs know as -T: [[enable=]PATTERN][,events=FILE][,file=FILE].
---@param text string
---@return true?
---@return string? message
function trace.option(text)
  local globs, file = {}, nil
  for part in (text .. ","):gmatch("(.-),") do
    local name, value = part:match("^(%l+)=(.*)$")
    if name == "file" then
      file = value
    elseif name == "events" then
      local list, message = io.open(value)
      if not list then
        return nil, message
      end
      for line in list:lines() do
        globs[#globs + 1] = line:match("^%s*([^#%s-]%S*)")
      end
      list:close()
    elseif name == "enable" or not name then
      globs[#globs + 1] = part ~= "" and (value or part) or nil
    else
      return nil, ("Invalid parameter '%s'"):format(name)
    end
  end
  local events, unknown = trace.events(globs)
  local message
  if #unknown > 0 then
    message = ("warning: trace event '%s' does not exist"):format(table.concat(unknown, "', '"))
  end
  if #events == 0 then
    return true, message
  end
  local fine, why = trace.begin(file, events)
  return fine, fine and message or why
end

---As the environment wants it. A file that cannot be written is told of by the first file that is opened.
function trace.from_environment()
  local path = not trace.begun and os.getenv("QCOW2_TRACE")
  if not path or path == "" then
    return
  end
  trace.begun = true
  local fine, message, kind, errno = trace.begin(path ~= "-" and path or nil)
  if not fine then
    core.store_file = function()
      return nil, "QCOW2_TRACE: " .. message, kind, errno
    end
  end
end

return trace
