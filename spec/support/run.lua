-- SPDX-License-Identifier: MIT
-- Runs spec files, each in a process of its own and as many at once as there are processors, and ends with
-- the line "N passed, N failed".
--
--   lua5.4 spec/support/run.lua [--long] [--valgrind] [FILE|DIR ...]
--
-- From the environment: Q2_BUILD (default build), Q2_LUA (the interpreter), JOBS (processes at once). A file
-- that dies or hangs counts as one failure. Specs tagged #long run with --long only.
if arg[1] == "--one" then
  arg = { [0] = arg[0], "--ignore-lua", "--output=spec/support/count.lua", "-Xoutput=" .. arg[2], arg[2] }
  require("busted.runner")({ standalone = false })
  return
end

local SECONDS, SECONDS_LONG = 280, 3000

local build = os.getenv("Q2_BUILD") or "build"
local lua = os.getenv("Q2_LUA") or "lua5.4"
local long, valgrind, paths = false, false, {}
for _, word in ipairs(arg) do
  if word == "--long" then
    long = true
  elseif word == "--valgrind" then
    valgrind = true
  else
    paths[#paths + 1] = word
  end
end
if #paths == 0 then
  paths[1] = "spec"
end

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

local function lines_of(command)
  local pipe, list = assert(io.popen(command)), {}
  for line in pipe:lines() do
    list[#list + 1] = line
  end
  pipe:close()
  return list
end

local function read_file(path)
  local file = io.open(path, "rb")
  local text = file and file:read("a")
  if file then
    file:close()
  end
  return text
end

local function write_file(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  assert(file:close())
end

local existing = {}
for _, path in ipairs(paths) do
  existing[#existing + 1] = quote(path)
end
local files = lines_of("find " .. table.concat(existing, " ") .. " -name '*_spec.lua' 2>/dev/null | LC_ALL=C sort -u")

-- The slowest of the last run go first, so that none of them is left to run alone at the end.
local times_path, times = build .. "/test/times", {}
for seconds, name in (read_file(times_path) or ""):gmatch("(%S+) (%S+)\n") do
  times[name] = tonumber(seconds)
end
table.sort(files, function(a, b)
  local x, y = times[a] or math.huge, times[b] or math.huge
  if x ~= y then
    return x > y
  end
  return a < b
end)

-- A folder of this run's own: several runs may share a build.
local home = lines_of(("mkdir -p %s/test && mktemp -d %s/test/run.XXXXXX"):format(quote(build), quote(build)))[1]
assert(home, "no folder for the logs could be made in " .. build)

-- One job: the output goes to a log that is shown in one piece, so that two files' lines do not mix.
local prefix = valgrind
    and "valgrind -q --error-exitcode=97 --leak-check=full --errors-for-leak-kinds=definite --keep-debuginfo=yes "
  or ""
local script = [[
name=$1; out=]] .. quote(home) .. [[/$(printf %s "$name" | tr / .)
start=$(date +%s.%N)
Q2_COUNT=$out.count timeout -k 5 ]] .. (long and SECONDS_LONG or SECONDS) .. " " .. prefix .. quote(lua) .. [[ \
  spec/support/run.lua --one "$name" >"$out.log" 2>&1 </dev/null
status=$?
echo "$status $start $(date +%s.%N)" >"$out.status"
[ -e "$out.count" ] || echo "FAILED $name: ended with status $status before its end" >>"$out.log"
if [ $status = 97 ]; then echo "FAILED $name: valgrind found errors" >>"$out.log"; fi
cat "$out.log"
]]
write_file(home .. "/job.sh", script)
write_file(home .. "/files", table.concat(files, "\n") .. (#files > 0 and "\n" or ""))
local jobs = os.getenv("JOBS") or lines_of("nproc")[1] or "1"
os.execute(("%s xargs -a %s -d '\\n' -P %s -n 1 sh %s"):format(long and "Q2_LONG=1" or "",
  quote(home .. "/files"), jobs, quote(home .. "/job.sh")))

local passed, failed, pending, bad, now = 0, 0, 0, {}, {}
for _, name in ipairs(files) do
  local out = home .. "/" .. name:gsub("/", ".")
  local status, start, stop = (read_file(out .. ".status") or "-1 0 0"):match("(%S+) (%S+) (%S+)")
  local counts = read_file(out .. ".count")
  local p, f, s = (counts or "0 0 0"):match("(%d+) (%d+) (%d+)")
  p, f, s = tonumber(p), tonumber(f), tonumber(s)
  if (tonumber(status) ~= 0 or not counts) and f == 0 then
    f = 1 -- died, hung, or a sanitizer spoke up at the exit
  end
  passed, failed, pending = passed + p, failed + f, pending + s
  if f > 0 then
    bad[#bad + 1] = name
  end
  now[#now + 1] = ("%.2f %s\n"):format(tonumber(stop) - tonumber(start), name)
end
write_file(times_path, table.concat(now))
os.execute("rm -rf " .. quote(home))

if #bad > 0 then
  print("\nfiles with failures: " .. table.concat(bad, " "))
end
if pending > 0 then
  print(pending .. " pending")
end
if passed + failed == 0 then
  print("nothing ran")
end
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0 and passed > 0, true)
