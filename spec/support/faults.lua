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
  -- Jobs do not put the image's name in front.
  if not case.sticky and message:sub(-#failure.message) ~= failure.message then
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
  local list = {}
  local marks = { { disk = parts.disk, snapshots = parts.snapshots or {},
    bitmaps = session.bitmaps_of(parts), verb = "open" } }
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

-- Makes an image once with one call failing: it says so, or the image is there and whole. A data file that is kept
-- is never written to.
local function create_once(case_of, case)
  local inner = { image = assert(core.store_memory(case_of.old or 0)) }
  inner.data = case_of.data and assert(core.store_memory(case_of.data))
  local stores = { image = inner.image, data = inner.data }
  stores[case.store] = assert(inner[case.store]:fault(case.kind, case.nth, case.errno, case.sticky))
  local ok, message, kind = core.create(stores.image, stores.data, case_of.create)
  local reached = stores[case.store]:fault_calls() >= case.nth
  local image, list = inner.image:read(0, inner.image:length()), {}
  local data = inner.data and inner.data:read(0, inner.data:length())
  if ok and reached and case.kind:find("[wfs]") then list[1] = "the failure was told to nobody" end
  if not ok and (kind ~= WORDS[case.errno][1] or not message:find(WORDS[case.errno][2], 1, true)) then
    list[1] = ("the failure is told as %s: %s"):format(kind, message)
  end
  local kept = case_of.create.keep_data_file
  if kept and data ~= case_of.data then list[#list + 1] = "the data file was written to" end
  if ok or image:sub(1, 4) == "QFI\xfb" and image ~= case_of.old then
    local disk = session.cut(kept and case_of.data or case_of.backing or "", case_of.create.size)
    local problems = crash.judge(image, data, { { disk = disk, snapshots = {} } }, { backing = case_of.backing }, true)
    table.move(problems, 1, #problems, #list + 1, list)
  end
  for _, store in pairs(inner) do store:close() end
  for _, store in pairs(stores) do store:close() end
  return list, reached
end

local function describe_case(case)
  return ("call %d of kind '%s' to the %s fails with errno %d%s"):format(case.nth, case.kind, case.store, case.errno,
    case.sticky and " from then on" or "")
end

-- Calls try(case) for every call to every store, or a sample of them. try gives: list of sentences, whether the
-- call was reached. gives: how many were.
local function each_case(name, has_data, rng, try)
  local tried = 0
  for _, store in ipairs(has_data and { "image", "data" } or { "image" }) do
    for _, how in ipairs { { EIO, false }, { ENOSPC, true } } do
      for kind in ("wfpsr"):gmatch(".") do
        local nth, reached = 0, true
        while reached do
          nth = nth + (crash.long and 1 or rng:int(1, nth < 8 and 3 or 12))
          local case = { store = store, kind = kind, nth = nth, errno = how[1], sticky = how[2] }
          local list
          list, reached = try(case)
          tried = tried + (reached and 1 or 0)
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

--- Lets every call fail that the scenario makes (a sample of them unless long). Raises on the first broken
-- promise. gives: how many failures were tried.
function faults.play(name, scenario)
  local parts = session.make(scenario)
  local rng = random.new(name)
  return each_case(name, parts.data, rng, function(case)
    local list, reached, image, data, got, dirty = run_once(parts, scenario, case)
    if reached and #list == 0 and not parts.raw and rng:int(1, 400) == 1 then
      list[1] = crash.ask_qemu(image, data, parts, got, dirty)
    end
    return list, reached
  end)
end

--- The same for making an image. case: as crash.play_create's.
function faults.play_create(name, case)
  return each_case(name, case.data, random.new(name), function(failing)
    return create_once(case, failing)
  end)
end

return faults
