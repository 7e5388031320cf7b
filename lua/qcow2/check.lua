-- SPDX-License-Identifier: MIT
-- Checking: `img:check()` runs the core's check to its end and gives what it found as records with words.
local core = require("qcow2.core")
local image = require("qcow2.image")
local options = require("qcow2.options")

local check = {}

local BATCH = 1024

-- Where a finding is, in words: the parts that it has.
local function place_of(finding)
  local parts = {}
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
    part("refcount=%d", finding.refcount)
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

local known = { most = "integer", threads = "integer", progress = "function" }

---@see qcow2.image.check
function image.methods:check(given)
  local o = options.check(given, known)
  for _, name in ipairs({ "most", "threads" }) do
    if o[name] and o[name] < 1 then
      error(name .. " must be at least 1", 2)
    end
  end
  -- Without its data file an image is checked too; the report says that nobody looked.
  image.attach_data(self, image.state_of(self))
  local job <close>, message, kind, errno = core.check(self, { most = o.most, threads = o.threads })
  if not job then
    return nil, message, kind, errno
  end
  repeat
    local done, total, more, code = job:step()
    if not done then
      return nil, total, more, code
    end
    if o.progress then
      o.progress(done, total)
    end
  until not more
  local report = job:result()
  local findings = {}
  repeat
    local batch = job:findings(#findings, BATCH)
    for _, finding in ipairs(batch) do
      findings[#findings + 1] = setmetatable(finding, dresses[finding.kind])
    end
  until #batch < BATCH
  report.findings = findings
  return setmetatable(report, report_class)
end

return check
