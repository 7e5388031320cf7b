-- SPDX-License-Identifier: MIT
-- Jobs: a core job as users hold it, done in steps, and what is to be done when it ends; and work that is gone
-- through at once.
local job = {}

local methods = {}
local class = { __name = "qcow2.job" }

-- The running jobs of each image; neither keeps the other alive.
local running = setmetatable({}, { __mode = "k" })

---Makes a job of a core handle.
---@param handle userdata          a core job
---@param images userdata[]        the user's images that it holds: who closes one of them cancels the job first
---@param finish fun(complete: boolean): true?, string?, string?, integer?  called once, after the threads have ended:
---all was done, or not; nil and a message when the end itself failed
function job.new(handle, images, finish)
  local new = setmetatable({ handle = handle, finish = finish, done = false }, class)
  for _, image in ipairs(images) do
    running[image] = running[image] or setmetatable({}, { __mode = "k" })
    running[image][new] = true
  end
  return new
end

---Cancels what runs on the image.
---@param image userdata
function job.cancel_of(image)
  local jobs = running[image]
  running[image] = nil
  for one in pairs(jobs or {}) do
    one:cancel()
  end
end

local function finish(self, complete)
  local handle, last = self.handle, self.finish
  self.handle, self.finish = nil, nil
  self.lost_bytes = handle:lost()
  self.missing_bytes, self.missing_from, self.missing_to = handle:missing()
  handle:close()
  return last(complete)
end

-- done, total; nil at the end; nil, message, kind, errno.
local function step(self)
  if self.done then
    return nil
  elseif self.failure then
    return nil, table.unpack(self.failure, 1, 3)
  elseif not self.handle then
    error("attempt to go on with a cancelled job", 0)
  end
  local done, total, more, errno = self.handle:step()
  if not done then
    self.failure = { total, more, errno }
    finish(self, false)
    return nil, total, more, errno
  end
  if not more then
    local ended, message, kind
    ended, message, kind, errno = finish(self, true)
    if not ended then
      self.failure = { message, kind, errno }
      return nil, message, kind, errno
    end
    self.done = true
  end
  return done, total
end

-- The step as a core job's handle has it: whether there is more comes third.
local function goes_on(self)
  local done, total, kind, errno = step(self)
  if not done then
    return nil, total, kind, errno
  end
  return done, total, not self.done
end

function methods:steps()
  return function()
    local done, total = step(self)
    if not done and total then
      error(total, 0)
    end
    return done, total
  end
end

function methods:run()
  if self.done then
    return true
  end
  return job.run({ step = function() return goes_on(self) end })
end

function methods:cancel()
  if self.handle then
    finish(self, false)
  end
end

class.__index = methods
class.__close = methods.cancel
class.__gc = methods.cancel

class.__tostring = function(self)
  local state = self.done and "done" or self.failure and "failed" or self.handle and "not done" or "cancelled"
  return ("qcow2.job (%s)"):format(state)
end

---Goes through a core job to its end. It stays open, so that it can be asked for its results.
---@param handle userdata
---@param progress? fun(done: integer, total: integer)
---@return true? done
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function job.run(handle, progress)
  local done, total, more, errno
  repeat
    done, total, more, errno = handle:step()
    if not done then
      return nil, total, more, errno
    end
    if progress then
      progress(done, total)
    end
  until not more
  return true
end

job.methods = methods

return job
