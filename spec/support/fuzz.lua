-- SPDX-License-Identifier: MIT
-- Runs fuzz targets one after the other, FUZZ_SECONDS each, and ends with the line "N passed, N failed".
--
--   lua5.4 spec/support/fuzz.lua FOLDER-OF-TARGETS [TARGET ...]
--
-- New inputs go to build/fuzz/<target>/, inputs that break something to build/fuzz/<target>-broken-*. What is
-- worth keeping is copied to spec/fuzz/corpus/<target>/ by hand (libFuzzer's -merge=1 finds it).
local folder = assert(arg[1], "usage: fuzz.lua FOLDER [TARGET ...]")
local seconds = os.getenv("FUZZ_SECONDS") or "60"

local targets = { table.unpack(arg, 2) }
if #targets == 0 then
  local pipe = assert(io.popen("ls " .. folder))
  for name in pipe:lines() do
    targets[#targets + 1] = name
  end
  pipe:close()
end

local passed, failed = 0, 0
for _, name in ipairs(targets) do
  local new, corpus = "build/fuzz/" .. name, "spec/fuzz/corpus/" .. name
  os.execute(("mkdir -p %s %s"):format(new, corpus))
  print(("fuzzing %s for %s s"):format(name, seconds))
  local fine = os.execute(("%s/%s -max_total_time=%s -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 "
    .. "-verbosity=0 -artifact_prefix=%s-broken- %s %s"):format(folder, name, seconds, new, new, corpus))
  print(("%-6s %s"):format(fine and "ok" or "FAILED", name))
  if fine then
    passed = passed + 1
  else
    failed = failed + 1
  end
end
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0 and passed > 0, true)
