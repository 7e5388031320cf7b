-- SPDX-License-Identifier: MIT
-- Runs named workloads, ours beside qemu-img and others, in turns (A B A B ...) after one warm-up each, and says
-- whether the targets are met.
--
--   lua5.4 spec/bench/run.lua [--runs N] [--size small|full] [--json] [--list] [NAME ...]
--
-- NAME is part of a workload's name ("convert", "reading"). From the environment: Q2_BUILD (default build).
-- Inputs and targets of copies are files under $Q2_BUILD/bench; small ones make a check of the bench itself, the
-- targets speak of the full ones.
--
-- Every file of spec/bench/groups is a function of the bench that gives a list of workloads:
--   name        unique; the group's name is put before it
--   runs        at most so many runs (long ones)
--   contenders  function(bench): list of contenders, ours first. A contender has
--                 label    unique in the workload
--                 command  what is timed. It may make or change files named by bench:output(label, ...): all are
--                          removed before every run and at the end
--                 prepare  list of commands that run before every run and are not timed
--                 reads    files whose data is brought into the page cache before every run
--                 format   of its output, "raw" by default
--                 rate     true when the command prints how many operations a second it did; or function(text)
--                          that gives it from what was printed
--   targets     list of targets, see spec/bench/judge.lua
--   same        all outputs must hold the same disk (looked at once, after the warm-up)
--   note        function(bench): a sentence for the table, or nothing
package.path = "./?.lua;" .. package.path

local inputs = require("spec.bench.inputs")
local judge = require("spec.bench.judge")
local shell = require("spec.bench.shell")

local GROUPS = { "reading", "writing", "managing" }

-- What takes less than this (seconds) runs eight times as often: it is noisier and costs nothing.
local SHORT = 0.1

-- What takes longer than this runs once: its warm-up counts.
local LONG = 15

local function usage(message)
  io.stderr:write("bench: ", message,
    "\nusage: run.lua [--runs N] [--size small|full] [--json] [--list] [NAME ...]\n")
  os.exit(2)
end

local function read_options()
  local options, at = { runs = 5, size = "full", names = {} }, 1
  while arg[at] do
    local word = arg[at]
    local name, value = word:match("^(%-%-[%w]+)=?(.*)$")
    if name == "--runs" or name == "--size" then
      if value == "" then
        at = at + 1
        value = arg[at]
      end
      options[name:sub(3)] = value
    elseif word == "--json" or word == "--list" then
      options[word:sub(3)] = true
    elseif word:sub(1, 1) == "-" then
      usage("unknown option " .. word)
    else
      table.insert(options.names, word)
    end
    at = at + 1
  end
  options.runs = math.tointeger(tonumber(options.runs))
  if not options.runs or options.runs < 1 then
    usage("--runs needs a number of 1 or more")
  elseif options.size ~= "small" and options.size ~= "full" then
    usage("--size is small or full")
  end
  return options
end

local Bench = {}
Bench.__index = Bench

local function open_bench(options)
  local top = shell.read("pwd"):gsub("\n", "")
  local build = os.getenv("Q2_BUILD") or "build"
  if build:sub(1, 1) ~= "/" then
    build = top .. "/" .. build
  end
  local dir = build .. "/bench"
  local self = setmetatable({
    top = top,
    build = build,
    dir = dir,
    program = build .. "/bin/qcow2",
    lua = os.getenv("Q2_LUA") or "lua5.4",
    timer = dir .. "/timer",
    pread = dir .. "/pread",
    runs = options.runs,
    small = options.size == "small",
    outputs = {},
  }, Bench)
  for _, needed in ipairs({ self.program, self.timer, self.pread }) do
    if not shell.exists(needed) then
      error(needed .. " is missing: run the bench by `make bench`", 0)
    end
  end
  self.inputs = inputs.open({ dir = dir, small = self.small })
  return self
end

---A file that a contender makes or changes: in `dir`, by default the bench's own. The first that is asked for is its
---output, which is measured and compared; others have a name.
function Bench:output(label, name, dir)
  local path = ("%s/out-%s"):format(dir or self.dir, label:gsub("%W", "-"))
  path = name and path .. "-" .. name or path
  self.outputs[label] = self.outputs[label] or {}
  table.insert(self.outputs[label], path)
  return path
end

---The command that runs one of our Lua programs with the library of this build.
function Bench:script(name, ...)
  return {
    "env",
    ("LUA_PATH=%s/lua/?.lua;%s/lua/?/init.lua"):format(self.top, self.top),
    ("LUA_CPATH=%s/lib/lua/5.4/?.so"):format(self.build),
    self.lua,
    ("%s/spec/bench/%s.lua"):format(self.top, name),
    ...,
  }
end

---A folder where a file of `bytes` can be made without blocks: the bench's own or tmpfs; nil when neither can.
function Bench:room(bytes)
  for _, dir in ipairs({ self.dir, "/dev/shm" }) do
    local path = dir .. "/q2-bench-room"
    local fine = os.execute(("truncate -s %d %s 2>/dev/null"):format(bytes, shell.quote(path)))
    os.remove(path)
    if fine then
      return dir
    end
  end
end

function Bench:remove_outputs()
  for _, paths in pairs(self.outputs) do
    for _, path in ipairs(paths) do
      os.remove(path)
    end
  end
end

-- Runs a contender once. gives: { wall, user, sys, memory (KiB), rate, length (of its output) }.
function Bench:time(contender)
  local paths = self.outputs[contender.label]
  for _, path in ipairs(paths or {}) do
    os.remove(path)
  end
  for _, command in ipairs(contender.prepare or {}) do
    shell.run(command)
  end
  if paths then
    -- What others left to be written is not this run's to pay for.
    shell.run("sync")
  end
  local printed = self.dir .. "/stdout"
  local line = { self.timer }
  for _, read in ipairs(contender.reads or {}) do
    table.insert(line, "-w")
    table.insert(line, read)
  end
  table.insert(line, contender.rate and printed or "/dev/null")
  line = shell.line(table.move(contender.command, 1, #contender.command, #line + 1, line))
  local wall, user, sys, memory, status = shell.read(line):match("(%S+) (%S+) (%S+) (%d+) (%d+)")
  if status ~= "0" then
    error(("%s\nended with status %s"):format(shell.line(contender.command), status), 0)
  end
  local sample = { wall = tonumber(wall), user = tonumber(user), sys = tonumber(sys), memory = tonumber(memory) }
  if contender.rate then
    local file <close> = assert(io.open(printed))
    local text = file:read("a")
    local rate = contender.rate == true and text:match("^%d+") or contender.rate ~= true and contender.rate(text)
    sample.rate = assert(tonumber(rate), "no rate was printed")
  end
  local output <close> = paths and io.open(paths[1], "rb")
  sample.length = output and output:seek("end")
  return sample
end

local function middle(samples, of)
  local values = {}
  for index, sample in ipairs(samples) do
    values[index] = of(sample)
  end
  table.sort(values)
  local n = #values
  return { min = values[1], median = (values[(n + 1) // 2] + values[n // 2 + 1]) / 2, max = values[n] }
end

local function summary(contender, samples)
  local result = {
    label = contender.label,
    runs = #samples,
    wall = middle(samples, function(s) return s.wall end),
    cpu = middle(samples, function(s) return s.user + s.sys end),
    memory = middle(samples, function(s) return s.memory end),
  }
  if contender.rate then
    result.rate = middle(samples, function(s) return s.rate end)
  end
  if samples[1].length then
    result.length = middle(samples, function(s) return s.length end)
  end
  return result
end

-- The outputs of all contenders, byte by byte but for holes.
local function compare_outputs(bench, contenders)
  local first, first_format
  for _, contender in ipairs(contenders) do
    local path, format = (bench.outputs[contender.label] or {})[1], contender.format or "raw"
    if path and first then
      shell.run({ "qemu-img", "compare", "-f", first_format, "-F", format, first, path })
    elseif path then
      first, first_format = path, format
    end
  end
end

function Bench:measure(workload)
  self.outputs = {}
  -- A run that fails leaves nothing of its gigabytes behind.
  local _ <close> = setmetatable({}, { __close = function() self:remove_outputs() end })
  local contenders = workload.contenders(self)
  local runs = math.min(self.runs, workload.runs or self.runs)
  local samples, slowest = {}, 0
  for index, contender in ipairs(contenders) do
    local first = self:time(contender)
    slowest = math.max(slowest, first.wall)
    samples[index] = first.wall > LONG and { first } or {}
    contender.enough = first.wall > LONG
  end
  if slowest < SHORT then
    runs = runs * 8
  end
  if workload.same then
    compare_outputs(self, contenders)
  end
  for _ = 1, runs do
    for index, contender in ipairs(contenders) do
      if not contender.enough then
        table.insert(samples[index], self:time(contender))
      end
    end
  end
  local result = { name = workload.name, contenders = {}, note = workload.note and workload.note(self) }
  for index, contender in ipairs(contenders) do
    local one = summary(contender, samples[index])
    result.contenders[index] = one
    result.contenders[one.label] = one
  end
  result.targets = judge.all(workload.targets or {}, result.contenders)
  return result
end

local function print_result(result)
  for index, one in ipairs(result.contenders) do
    local times = one.rate and ("%9.0f %9.0f %9.0f /s"):format(one.rate.min, one.rate.median, one.rate.max)
      or ("%9.4f %9.4f %9.4f s "):format(one.wall.min, one.wall.median, one.wall.max)
    print(("%-40s %-10s %s %8.3f %8.1f"):format(index == 1 and result.name or "", one.label, times, one.cpu.median,
      one.memory.median / 1024))
  end
  for _, target in ipairs(result.targets) do
    print(("%40s %-32s %24s  %s"):format("", target.text, target.value, target.met and "met" or "MISSED"))
  end
  if result.note then
    print((" "):rep(41) .. result.note)
  end
  io.flush()
end

local function load_groups(bench, names)
  local list = {}
  for _, group in ipairs(GROUPS) do
    for _, workload in ipairs(require("spec.bench.groups." .. group)(bench)) do
      workload.name = group .. ": " .. workload.name
      local wanted = #names == 0
      for _, name in ipairs(names) do
        wanted = wanted or workload.name:find(name, 1, true) ~= nil
      end
      if wanted then
        list[#list + 1] = workload
      end
    end
  end
  return list
end

local function first_line(path)
  local file <close> = assert(io.open(path))
  return file:read("l")
end

local function main()
  local options = read_options()
  local bench = open_bench(options)
  local workloads = load_groups(bench, options.names)
  if #workloads == 0 then
    usage("no workload is named so")
  end
  if options.list then
    for _, workload in ipairs(workloads) do
      print(workload.name)
    end
    return
  end
  local results = { size = options.size, load = first_line("/proc/loadavg"):match("%S+"), workloads = {} }
  if not options.json then
    print(("size %s, %s processors, load %s before the first run; wall seconds or operations a second"):format(
      options.size, shell.read("nproc"):gsub("\n", ""), results.load))
    print(("%-40s %-10s %9s %9s %9s    %8s %8s"):format("workload", "program", "min", "median", "max", "user+sys",
      "peak MiB"))
  end
  local met, missed = 0, 0
  for _, workload in ipairs(workloads) do
    local result = bench:measure(workload)
    for _, target in ipairs(result.targets) do
      met, missed = met + (target.met and 1 or 0), missed + (target.met and 0 or 1)
    end
    table.insert(results.workloads, result)
    if not options.json then
      print_result(result)
    end
  end
  if options.json then
    for _, result in ipairs(results.workloads) do
      for key in pairs(result.contenders) do
        if type(key) == "string" then
          result.contenders[key] = nil
        end
      end
    end
    results.met, results.missed = met, missed
    print(require("dkjson").encode(results, { indent = true }))
  else
    print(("%d targets met, %d missed"):format(met, missed))
  end
end

main()
