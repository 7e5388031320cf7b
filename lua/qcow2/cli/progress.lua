-- SPDX-License-Identifier: MIT
-- Progress of long commands: qemu-img's counter on stdout, more than that on a terminal, or JSON lines on stderr.
local core = require("qcow2.core")
local text = require("qcow2.cli.text")

---@class qcow2.cli.progress
local progress = {}
progress.__index = progress

---What `-p` / `--progress[=json]` asks for: nil, "text" or "json"; false and a message for another word.
---@param value true|string|nil
---@param quiet boolean?
---@return "text"|"json"|nil|false mode, string? message
function progress.mode(value, quiet)
  if value ~= nil and value ~= true and value ~= "json" then
    return false, ("--progress expects 'json' or nothing, not '%s'"):format(value)
  end
  if quiet or value == nil then
    return nil
  end
  return value == "json" and "json" or "text"
end

---Starts a counter at 0. `mode` nil shows nothing. Steps below `skip` percent are not shown.
---@param context qcow2.cli.context
---@param mode "text"|"json"|nil
---@param skip number
---@return qcow2.cli.progress
function progress.start(context, mode, skip)
  local self = setmetatable({
    context = context,
    mode = mode or false,
    skip = skip,
    shown = 0,
    started = os.time(),
    terminal = mode == "text" and context:is_terminal(1),
  }, progress)
  core.progress_wanted() -- from here on SIGUSR1 asks, and does not end the program
  self:show(0, 0, nil)
  return self
end

---How fast and how long still, for people.
function progress:forecast(done, total)
  local seconds = os.time() - self.started
  if not self.terminal or seconds < 1 or done <= 0 then
    return ""
  end
  local left = math.floor((total - done) * (seconds / done))
  return ("  %s/s, %d:%02d:%02d left  "):format(text.size(done // seconds), left // 3600, left // 60 % 60, left % 60)
end

function progress:show(percent, done, total)
  if self.mode == "json" then
    if total then
      io.stderr:write(('{"done": %d, "total": %d, "percent": %.2f}\n'):format(done, total, percent))
    end
  elseif self.mode == "text" then
    self.context:write(("    (%3.2f/100%%)%s\r"):format(percent, total and self:forecast(done, total) or ""))
    io.stdout:flush()
  end
end

---Says how far the work is.
---@param done integer
---@param total integer
function progress:update(done, total)
  local percent = total > 0 and done * 100.0 / total or 100.0
  if core.progress_wanted() and not self.mode then
    io.stderr:write(("    (%3.2f/100%%)\n"):format(percent))
  end
  if self.mode and (percent > self.shown + self.skip or (percent >= 100 and self.shown < 100)) then
    self.shown = percent
    self:show(percent, done, total)
  end
end

---Ends the line; `complete` says that all was done.
---@param complete boolean
function progress:finish(complete)
  if complete and self.shown < 100 then
    self.shown = 100
    self:show(100, 0, nil)
  end
  if self.mode == "text" then
    self.context:write("\n")
  elseif self.mode == "json" then
    io.stderr:write(('{"complete": %s}\n'):format(complete))
  end
end

return progress
