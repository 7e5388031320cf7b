-- SPDX-License-Identifier: MIT
-- Checking: `img:check()` runs the core's check to its end and gives what it found as records with words. Repairing:
-- `img:repair()` checks, has the core repair, checks again, and only then takes off the marks of a damaged image.
local core = require("qcow2.core")
local image = require("qcow2.image")
local jobs = require("qcow2.job")
local options = require("qcow2.options")
local size = require("qcow2.size")

local check = {}

local BATCH = 1024

-- Where a finding is, in words: the parts that it has.
local function place_of(finding)
  local parts = { finding.reason }
  local function part(format, ...)
    parts[#parts + 1] = format:format(...)
  end
  if finding.first and finding.second then
    part("%s and %s", finding.first, finding.second)
  elseif finding.first then
    part("%s", finding.first)
  end
  if finding.snapshot then
    part("snapshot number %d", finding.snapshot)
  end
  if finding.index then
    part("index %d", finding.index)
  end
  if finding.entry then
    part("entry %#x", finding.entry)
  end
  if finding.bitmap then
    part("bitmap %#x", finding.bitmap)
  end
  if finding.entry_offset then
    part("at file offset %#x", finding.entry_offset)
  end
  if finding.host_offset then
    part(finding.host_length and "host range %#x+%#x" or "host offset %#x", finding.host_offset,
      finding.host_length)
  end
  if finding.guest_offset then
    part("guest range %#x+%#x", finding.guest_offset, finding.guest_length)
  end
  if finding.refcount then
    part("refcount=%s", size.unsigned(finding.refcount))
  end
  if finding.references then
    part("reference=%d", finding.references)
  end
  return table.concat(parts, ", ")
end

local function describe(finding)
  local place = place_of(finding)
  return finding.meaning .. (place ~= "" and " (" .. place .. ")" or "")
end

---What can be found: by word, and in the order of the table.
check.problems = {}

local dresses = {}

for number, problem in ipairs(core.problems) do
  check.problems[number] = problem
  check.problems[problem.kind] = problem
  dresses[problem.kind] = {
    __index = { meaning = problem.meaning, loss = problem.loss },
    __tostring = describe,
    __name = "qcow2.finding",
  }
end

local report_class = { __name = "qcow2.check_report" }

function report_class:__tostring()
  if self.corruptions + self.leaks + self.check_errors == 0 then
    return "no errors"
  end
  return ("%d corruptions, %d leaks, %d structures unreadable"):format(self.corruptions, self.leaks,
    self.check_errors)
end

-- All findings of a check or a repair, dressed.
local function findings_of(job)
  local list = {}
  repeat
    local batch = job:findings(#list, BATCH)
    for _, finding in ipairs(batch) do
      list[#list + 1] = setmetatable(finding, dresses[finding.kind])
    end
  until #batch < BATCH
  return list
end

-- Checks. gives: the core's check, to be closed, and the report; nil, message, kind, errno.
local function look(self, o)
  -- Without its data file an image is checked too; the report says that nobody looked.
  image.attach_data(self, image.state_of(self))
  local job, message, kind, errno = core.check(self, { most = o.most, threads = o.threads })
  if not job then
    return nil, message, kind, errno
  end
  local fine
  fine, message, kind, errno = jobs.run(job, o.progress)
  if not fine then
    job:close()
    return nil, message, kind, errno
  end
  local report = job:result()
  report.findings = findings_of(job)
  return job, setmetatable(report, report_class)
end

local function check_numbers(o)
  for _, name in ipairs({ "most", "threads" }) do
    if o[name] and o[name] < 1 then
      error(name .. " must be at least 1", 3)
    end
  end
end

local known = { most = "integer", threads = "integer", progress = "function" }

---@see qcow2.image.check
function image.methods:check(given)
  local o = options.check(given, known)
  check_numbers(o)
  local job, report, kind, errno = look(self, o)
  if not job then
    return nil, report, kind, errno
  end
  job:close()
  return report
end

-- ---- repair --------------------------------------------------------------------------------

local COPIED = { ["copied-l2"] = true, ["copied-data"] = true }
local MARKS = { dirty = true, ["marked-corrupt"] = true }

-- Which kinds the options ask for: set of words.
local function wanted_kinds(o)
  local wanted = {}
  for _, problem in ipairs(check.problems) do
    wanted[problem.kind] = o.all and problem.repairable or nil
  end
  for _, kind in ipairs(o.leaks and { "leak", "bitmaps-stale" } or {}) do
    wanted[kind] = true
  end
  for _, kind in ipairs(o.kinds or {}) do
    wanted[kind] = true
  end
  return wanted
end

-- The findings that are gone, and the sums, into the report of the second check.
local function tell_fixed(after, before, wanted, flags, flags_fixed)
  local repaired, corruptions = {}, flags_fixed
  for _, finding in ipairs(before.findings) do
    local kind = finding.kind
    if wanted[kind] and not COPIED[kind] and not MARKS[kind] and not after.found[kind] then
      repaired[#repaired + 1] = finding
    end
  end
  table.move(flags, 1, #flags, #repaired + 1, repaired)
  for kind, count in pairs(before.found) do
    if check.problems[kind].severity == "corruption" and not COPIED[kind] then
      corruptions = corruptions + math.max(0, count - (after.found[kind] or 0))
    end
  end
  after.repaired = repaired
  after.leaks_fixed = math.max(0, before.leaks - after.leaks)
  after.corruptions_fixed = corruptions
end

-- The marks of a damaged image are gone: so are the notes about them.
local function drop_marks(report)
  local kept = {}
  for _, finding in ipairs(report.findings) do
    if MARKS[finding.kind] then
      report.found[finding.kind] = nil
      report.repaired[#report.repaired + 1] = finding
    else
      kept[#kept + 1] = finding
    end
  end
  report.findings = kept
end

-- Has the core repair what `job` found. gives: the flags that were set right, and how many; nil, message, kind, errno.
local function apply(job, o)
  local repair <close>, message, kind, errno = core.repair(job, { leaks = o.leaks, all = o.all, kinds = o.kinds })
  if not repair then
    return nil, message, kind, errno
  end
  local fine
  fine, message, kind, errno = jobs.run(repair, o.progress)
  if not fine then
    return nil, message, kind, errno
  end
  return findings_of(repair), repair:flags_fixed()
end

-- Repairs an image that is open for writing but not begun.
local function repair_image(self, o)
  local job, report, kind, errno = look(self, o)
  if not job then
    return nil, report, kind, errno
  end
  local wanted = wanted_kinds(o)
  local before, work = report, false
  local flags_alone = o.leaks
  for found in pairs(before.found) do
    work = work or wanted[found] and not MARKS[found]
    flags_alone = flags_alone and (COPIED[found] or check.problems[found].severity ~= "corruption")
  end
  -- As with QEMU, what repairs leaks also sets flags right where nothing else is wrong.
  work = work or flags_alone and (before.found["copied-l2"] or before.found["copied-data"])
  local flags, flags_fixed = {}, 0
  if work then
    flags, flags_fixed, kind, errno = apply(job, o)
    job:close()
    if not flags then
      return nil, flags_fixed, kind, errno
    end
    job, report, kind, errno = look(self, o)
    if not job then
      return nil, report, kind, errno
    end
  end
  tell_fixed(report, before, wanted, flags, flags_fixed)
  local marked = report.found.dirty or report.found["marked-corrupt"]
  if marked and report.corruptions + report.check_errors == 0 then
    local fine, message
    fine, message, kind, errno = job:accept()
    if not fine then
      job:close()
      return nil, message, kind, errno
    end
    drop_marks(report)
  end
  job:close()
  return report
end

local repair_options = { leaks = "boolean", all = "boolean", kinds = "table", most = "integer", threads = "integer",
  progress = "function" }

---@see qcow2.image.repair
function image.methods:repair(given)
  local o = options.check(given, repair_options)
  check_numbers(o)
  for _, kind in ipairs(o.kinds or {}) do
    local problem = check.problems[kind]
    if not problem or type(kind) ~= "string" then
      error(("option 'kinds' has '%s', which is no kind of problem"):format(tostring(kind)), 2)
    elseif not problem.repairable then
      error(("option 'kinds' has '%s', which cannot be repaired"):format(kind), 2)
    end
  end
  if not (o.leaks or o.all or o.kinds and #o.kinds > 0) then
    error("what to repair is missing: leaks, all or kinds", 2)
  end
  local state = image.state_of(self)
  if state.mode ~= "rw" then
    image.raw.disk_bytes(self) -- raises for a closed image
    return nil, "The image was opened read-only", "readonly"
  end
  local began = image.raw.is_writable(self)
  if began then
    local fine, message, kind, errno = image.raw.finish(self)
    if not fine then
      return nil, message, kind, errno
    end
  end
  local report, message, kind, errno = repair_image(self, o)
  if began then
    local fine, why, why_kind, why_errno = image.begin(self, state)
    if report and not fine then
      return nil, why, why_kind, why_errno
    end
  end
  return report, message, kind, errno
end

---Before the first write to an image that was not closed: its counts are put right. true; nil, message, kind, errno.
function check.mend_dirty(self)
  image.raw.disk_bytes(self)
  local report, message, kind, errno = repair_image(self, { all = true })
  if not report then
    return nil, "Could not repair the image, which was not closed: " .. message, kind, errno
  elseif report.corruptions + report.check_errors > 0 then
    return nil, ("The image was not closed and cannot be made sound: %s are left; see what check says of it")
      :format(tostring(report)), "corrupt"
  end
  return true
end

return check
