-- SPDX-License-Identifier: MIT
-- Failing disks: every call that an operation makes to its stores fails once, or from then on. The operation has
-- to say so, nothing may be corrupt, contents are old or new, and no error is forgotten afterwards.
--
-- Scenarios are those of crash.lua.

local core = require "qcow2.core"
local crash = require "spec.support.crash"
local random = require "spec.support.random"
local raw = require("qcow2.image").raw
local session = require "spec.support.session"

local faults = {}

local EIO, ENOSPC = 5, 28
local WORDS = { [EIO] = { "io", "Input/output error" }, [ENOSPC] = { "nospace", "No space left on device" } }

-- After a failure: either the image goes on and its end succeeds, or it has failed for good, and every later
-- call repeats one error. gives: list of sentences, whether the end succeeded.
local function aftermath(s, failure, case)
  local list = {}
  local ok, message = s:try("finish")
  if ok then
    if case.kind == "f" then list[1] = "a flush failed, and the end of writing succeeded" end
    return list, true
  end
  if not case.sticky and message ~= failure.message then
    list[#list + 1] = ("the end of writing says %q after %q"):format(message, failure.message)
  end
  local later = { write = { raw.write(s.img, 0, "x") }, zero = { raw.zero(s.img, 0, 512) },
    flush = { raw.flush(s.img) }, finish = { raw.finish(s.img) } }
  for verb, answer in pairs(later) do
    if answer[1] ~= nil or answer[2] ~= message then
      list[#list + 1] = ("a later %s says %q after %q"):format(verb, tostring(answer[2]), message)
    end
  end
  if not raw.read(s.img, 0, 512) and not case.sticky then
    list[#list + 1] = "a failed image cannot be read any more"
  end
  return list, false
end

-- Runs the scenario once with one call failing. gives: list of sentences, whether the call was reached.
local function run_once(parts, scenario, case)
  local stores, inner = {}, {}
  inner.image = assert(core.store_memory(parts.image))
  inner.data = parts.data and assert(core.store_memory(parts.data))
  for name, store in pairs(inner) do
    stores[name] = name == case.store and assert(store:fault(case.kind, case.nth, case.errno, case.sticky)) or store
  end
  local list, marks = {}, nil
  local s, message, kind = session.open(stores, parts)
  local failure = not s and { message = message, kind = kind }
  if s then
    local ok, raised = pcall(function()
      scenario.run(s)
      s:finish()
    end)
    if not ok then
      if getmetatable(raised) ~= session.Failure then error(raised, 0) end
      failure = raised
    end
    marks = s.marks
  else
    marks = { { disk = parts.disk, snapshots = parts.snapshots or {}, verb = "open" } }
  end
  local reached = stores[case.store]:fault_calls() >= case.nth
  local last_ok = marks[#marks]
  if failure then
    if failure.kind ~= WORDS[case.errno][1] or not failure.message:find(WORDS[case.errno][2], 1, true) then
      list[#list + 1] = ("the failure is told as %s: %s"):format(failure.kind, failure.message)
    end
    if s then
      local ended
      local more
      more, ended = aftermath(s, failure, case)
      table.move(more, 1, #more, #list + 1, list)
      if ended then
        -- What succeeded is there; of what failed every sector is old or new.
        last_ok = marks[#marks]
        marks = { last_ok, marks[#marks - 1] }
      else
        marks = crash.marks_at(marks, math.maxinteger)
      end
    end
  else
    marks = { last_ok }
    if reached and case.kind:find("[wfs]") then list[#list + 1] = "the failure was told to nobody" end
  end
  if s then s:close() end
  local image = inner.image:read(0, inner.image:length())
  local data = inner.data and inner.data:read(0, inner.data:length())
  local problems, got, dirty = crash.judge(image, data, marks, parts, scenario.whole and not parts.raw)
  table.move(problems, 1, #problems, #list + 1, list)
  for _, store in pairs(inner) do store:close() end
  for _, store in pairs(stores) do store:close() end
  return list, reached, image, data, got, dirty
end

local function describe_case(case)
  return ("call %d of kind '%s' to the %s fails with errno %d%s"):format(case.nth, case.kind, case.store, case.errno,
    case.sticky and " from then on" or "")
end

--- Lets every call fail that the scenario makes (a sample of them unless long). Raises on the first broken
-- promise. gives: how many failures were tried.
function faults.play(name, scenario)
  local parts = session.make(scenario)
  local rng = random.new(name)
  local tried = 0
  for _, store in ipairs(parts.data and { "image", "data" } or { "image" }) do
    for _, how in ipairs { { EIO, false }, { ENOSPC, true } } do
      for kind in ("wfpsr"):gmatch(".") do
        local nth, reached = 0, true
        while reached do
          nth = nth + (crash.long and 1 or rng:int(1, nth < 8 and 3 or 12))
          local case = { store = store, kind = kind, nth = nth, errno = how[1], sticky = how[2] }
          local list, image, data, got, dirty
          list, reached, image, data, got, dirty = run_once(parts, scenario, case)
          if reached then
            tried = tried + 1
            if #list == 0 and not parts.raw and rng:int(1, 400) == 1 then
              list[1] = crash.ask_qemu(image, data, parts, got, dirty)
            end
          end
          if #list > 0 then
            error(("%s (Q2_SEED=%s)\n%s\n%s"):format(name, os.getenv("Q2_SEED") or 0, describe_case(case),
              table.concat(list, "\n")), 0)
          end
        end
      end
    end
  end
  return tried
end

return faults
