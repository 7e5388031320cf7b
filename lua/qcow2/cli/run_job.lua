-- SPDX-License-Identifier: MIT
-- Goes through the steps of a job with a counter; one that is left early lets go of what it made.
local progress = require("qcow2.cli.progress")

---@param context qcow2.cli.context
---@param job qcow2.job
---@param mode "text"|"json"|nil  what progress.mode answered
---@param skip number             percent that are not worth a new line
---@return true?, string? message
return function(context, job, mode, skip)
  local _ <close> = job
  local shown = progress.start(context, mode, skip)
  local next_step = job:steps()
  while true do
    local fine, done, total = context.try(next_step)
    if not fine then
      shown:finish(false)
      return nil, tostring(done)
    elseif not done then
      break
    end
    shown:update(done, total)
  end
  shown:finish(true)
  return true
end
