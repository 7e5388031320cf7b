-- SPDX-License-Identifier: MIT
-- A disk that fails under the command: every verb that writes says so in a line and exits with 1, leaves no image
-- corrupt, shows old or new contents, no half-made target that looks whole, and what it only reads as it was.

local cli = require "qcow2.cli"
local core = require "qcow2.core"
local crash = require "spec.support.crash"
local qcow2 = require "qcow2"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local EIO = 5
local REASONS = { [EIO] = "Input/output error", [28] = "No space left on device" }

-- ---- running a verb over failing stores -------------------------------------------------------

local store_file = core.store_file

-- For a store that outlives the verb's and so must not hold its locks.
local function unlocked(flags)
  local all = { unlocked = true }
  for name, value in pairs(flags) do all[name] = value end
  return all
end

-- Calls run() while of store number `case.store` among those opened for writing call number `case.nth` fails.
-- gives: how many stores were opened, and whether that call was reached.
local function with_failing(case, run)
  local opened, failing = 0, nil
  core.store_file = function(path, flags)
    if not (flags and (flags.write or flags.create)) then return store_file(path, flags) end
    opened = opened + 1
    if opened ~= case.store then return store_file(path, flags) end
    local store <close>, message, kind, errno = store_file(path, unlocked(flags))
    if not store then return nil, message, kind, errno end
    failing = assert(store:fault(case.kind, case.nth, case.errno, case.sticky))
    return assert(failing:fault("w", 0, 1, false))
  end
  local fine, raised = pcall(run)
  core.store_file = store_file
  assert(fine, raised)
  local reached = failing and failing:fault_calls() >= case.nth
  if failing then failing:close() end
  return opened, reached
end

-- Calls run() and looks at what is written to files. gives: path -> was anything written after the last flush?
local function unflushed_by(run)
  local records, loose = {}, {}
  core.store_file = function(path, flags)
    if not (flags and (flags.write or flags.create)) then return store_file(path, flags) end
    local store <close>, message, kind, errno = store_file(path, unlocked(flags))
    if not store then return nil, message, kind, errno end
    local power = assert(store:power())
    records[#records + 1] = { path = path, power = power }
    return assert(power:fault("w", 0, 1, false))
  end
  local fine, raised = pcall(run)
  core.store_file = store_file
  assert(fine, raised)
  for _, record in ipairs(records) do
    for i = 0, record.power:power_count() - 1 do
      local kind = record.power:power_op(i)
      -- Space given back to the host is nothing to wait for.
      if kind ~= "p" then loose[record.path] = kind ~= "f" end
    end
    record.power:close()
  end
  return loose
end

-- Runs the command in this process. gives: exit code, what it said on stderr.
local function command(words)
  local said = {}
  local stdout, stderr = io.stdout, io.stderr
  io.stdout = { write = function(self) return self end, flush = function() return true end } -- luacheck: ignore 122
  io.stderr = { write = function(_, ...) said[#said + 1] = table.concat({ ... }) end } -- luacheck: ignore 122
  local fine, code = pcall(cli.main, "qcow2", words)
  io.stdout, io.stderr = stdout, stderr -- luacheck: ignore 122
  assert(fine, code)
  return code, table.concat(said)
end

-- ---- the verbs --------------------------------------------------------------------------------

local CREATE = "qemu-img create -q -f qcow2 "
local FILL = " -c 'write -P 1 0 6k' -c 'write -P 2 10k 9k' -c 'write -z 12k 2k' "
local IMAGE = CREATE .. "-o cluster_size=512 a 24k; qemu-io -f qcow2" .. FILL .. "a >/dev/null; "
local LAZY = CREATE .. "-o cluster_size=512,lazy_refcounts=on a 24k; qemu-io -f qcow2" .. FILL .. "a >/dev/null; "
local SNAPSHOT = IMAGE .. "qemu-img snapshot -c s a; qemu-io -f qcow2 -c 'write -P 3 1k 3k' a >/dev/null; "
local RAW = "qemu-img create -q -f raw r 24k; qemu-io -f raw -c 'write -P 7 3k 9k' r >/dev/null; "
local function chain(below, format)
  return below .. CREATE .. ("-o cluster_size=512 -b %s -F %s top 24k; qemu-io -f qcow2 -c 'write -P 4 2k 5k' "
    .. "-c 'write -z 16k 1k' top >/dev/null; "):format(format == "raw" and "r" or "a", format)
end
local DATA = CREATE .. "-o cluster_size=512,data_file=d,data_file_raw=%s a 24k; qemu-io -f qcow2" .. FILL
  .. "a >/dev/null; "
local BITMAPS = IMAGE .. "qemu-img bitmap --add -g 512 a one; qemu-img bitmap --add -g 4096 --disable a two; "
  .. "qemu-io -f qcow2 -c 'write -P 3 1k 3k' a >/dev/null; "
-- Leaks: what was written to the copy's end is in no table.
local LEAKS = IMAGE .. "cp a b; qemu-io -f qcow2 -c 'write -P 9 19k 4k' b >/dev/null; "
  .. "dd if=a of=b bs=512 skip=4 seek=4 count=1 conv=notrunc 2>/dev/null; "

-- script; words; what is checked of each file: "same", "sectors" (old or new), "either" (old or new as a whole),
-- "fresh" (no image, or the whole new one), "removed" (no file), "kept" (byte for byte). damaged: the tables are.
-- unsafe: nothing is flushed unless -t asks for it, as by qemu-img.
local verbs = {
  ["snapshot -c"] = { SNAPSHOT, { "snapshot", "-c", "new", "a" }, { a = "same" } },
  ["snapshot -a"] = { SNAPSHOT, { "snapshot", "-a", "s", "a" }, { a = "either" } },
  ["snapshot -d"] = { SNAPSHOT, { "snapshot", "-d", "s", "a" }, { a = "same" } },
  ["snapshot -c with lazy counts"] = { LAZY, { "snapshot", "-c", "new", "a" }, { a = "same" } },
  ["resize"] = { IMAGE, { "resize", "a", "900k" }, { a = "either" } },
  ["resize --shrink"] = { IMAGE, { "resize", "--shrink", "a", "5k" }, { a = "either" } },
  ["resize --preallocation"] = { IMAGE, { "resize", "--preallocation=full", "a", "40k" }, { a = "either" } },
  ["resize of a raw disk"] = { RAW, { "resize", "-f", "raw", "r", "40k" }, { r = "either" } },
  ["convert -n"] = { SNAPSHOT .. RAW, { "convert", "-n", "-f", "raw", "-O", "qcow2", "r", "a" },
    { a = "sectors", r = "kept" } },
  ["convert -n -c"] = { SNAPSHOT .. RAW, { "convert", "-n", "-c", "-f", "raw", "-O", "qcow2", "r", "a" },
    { a = "sectors", r = "kept" } },
  ["convert -n with lazy counts"] = { LAZY .. RAW, { "convert", "-n", "-f", "raw", "-O", "qcow2", "r", "a" },
    { a = "sectors", r = "kept" } },
  ["convert -n under a bitmap"] = { BITMAPS .. RAW, { "convert", "-n", "-f", "raw", "-O", "qcow2", "r", "a" },
    { a = "sectors", r = "kept" } },
  ["convert -n of a raw disk"] = { IMAGE .. RAW, { "convert", "-n", "-O", "raw", "a", "r" },
    { a = "kept", r = "sectors" }, unsafe = true },
  ["convert"] = { RAW, { "convert", "-f", "raw", "-O", "qcow2", "r", "new" }, { new = "fresh", r = "kept" },
    unsafe = true },
  ["convert -c -t writeback"] = { RAW, { "convert", "-c", "-t", "writeback", "-f", "raw", "-O", "qcow2", "r", "new" },
    { new = "fresh", r = "kept" } },
  ["convert over an image"] = { RAW .. IMAGE, { "convert", "-f", "raw", "-O", "qcow2", "r", "a" },
    { a = "fresh", r = "kept" }, unsafe = true },
  ["convert --bitmaps"] = { BITMAPS, { "convert", "--bitmaps", "-O", "qcow2", "a", "new" },
    { new = "fresh", a = "kept" }, unsafe = true },
  ["convert -O raw"] = { IMAGE, { "convert", "-O", "raw", "a", "new" }, { a = "kept", new = "removed" },
    unsafe = true },
  ["create"] = { "", { "create", "-f", "qcow2", "new", "1M" }, { new = "fresh" } },
  ["create over an image"] = { IMAGE, { "create", "-f", "qcow2", "-o", "preallocation=metadata", "a", "1M" },
    { a = "fresh" } },
  ["create with a raw data file"] = { "", { "create", "-f", "qcow2", "-o", "data_file_raw=on", "-o", "data_file=d",
    "new", "64k" }, { new = "fresh" } },
  ["adopt"] = { RAW, { "adopt", "r", "new" }, { new = "fresh", r = "kept" } },
  ["dd"] = { IMAGE, { "dd", "-O", "raw", "if=a", "of=new", "bs=1k", "count=9" },
    { a = "kept", new = "removed" } },
  ["dd -O qcow2"] = { IMAGE, { "dd", "-O", "qcow2", "if=a", "of=new", "bs=1k", "count=9" },
    { new = "fresh", a = "kept" } },
  ["commit"] = { chain(IMAGE, "qcow2"), { "commit", "top" }, { top = "same", a = "sectors" } },
  ["commit -d"] = { chain(IMAGE, "qcow2"), { "commit", "-d", "top" }, { top = "same", a = "sectors" } },
  ["commit with lazy counts"] = { chain(LAZY, "qcow2"), { "commit", "top" }, { top = "same", a = "sectors" } },
  ["commit under a bitmap"] = { chain(BITMAPS, "qcow2"), { "commit", "-d", "top" }, { top = "same", a = "sectors" } },
  ["commit into a raw disk"] = { chain(RAW, "raw"), { "commit", "top" }, { top = "same", r = "sectors" } },
  ["rebase"] = { chain(IMAGE, "qcow2") .. RAW, { "rebase", "-b", "r", "-F", "raw", "top" },
    { top = "same", a = "kept", r = "kept" } },
  ["rebase with lazy counts"] = { chain(IMAGE, "qcow2"):gsub("size=512 %-b", "size=512,lazy_refcounts=on -b") .. RAW,
    { "rebase", "-b", "r", "-F", "raw", "top" }, { top = "same", a = "kept", r = "kept" } },
  ["rebase -c onto nothing"] = { chain(IMAGE, "qcow2"), { "rebase", "-c", "-b", "", "top" },
    { top = "same", a = "kept" } },
  ["rebase -u"] = { chain(IMAGE, "qcow2") .. "cp a b; ", { "rebase", "-u", "-b", "b", "-F", "qcow2", "top" },
    { top = "same", a = "kept", b = "kept" } },
  ["bitmap --add"] = { BITMAPS, { "bitmap", "--add", "a", "new" }, { a = "same" } },
  ["bitmap --remove"] = { BITMAPS, { "bitmap", "--remove", "a", "one" }, { a = "same" } },
  ["bitmap, several steps"] = { BITMAPS, { "bitmap", "--clear", "--merge", "one", "--enable", "a", "two" },
    { a = "same" } },
  ["amend compat"] = { SNAPSHOT, { "amend", "-o", "compat=0.10", "a" }, { a = "same" } },
  ["amend refcount_bits"] = { SNAPSHOT, { "amend", "-o", "refcount_bits=64", "a" }, { a = "same" } },
  ["amend lazy_refcounts"] = { LAZY, { "amend", "-o", "lazy_refcounts=off", "a" }, { a = "same" } },
  ["amend size"] = { IMAGE, { "amend", "-o", "size=200k", "a" }, { a = "either" } },
  ["amend data_file_raw"] = { DATA:format("off"), { "amend", "-o", "data_file_raw=on", "a" }, { a = "same" } },
  ["externalize"] = { IMAGE, { "externalize", "a", "d" }, { a = "same" } },
  ["internalize"] = { DATA:format("on"), { "internalize", "a" }, { a = "same" } },
  ["verify --to-data"] = { DATA:format("off") .. "truncate -s 12k d; ", { "verify", "--to-data", "a" },
    { a = "sectors" } },
  ["verify --to-metadata"] = { DATA:format("off") .. "printf zz | dd of=d bs=1 seek=13000 conv=notrunc 2>/dev/null; ",
    { "verify", "--to-metadata", "a" }, { a = "sectors", d = "kept" } },
  ["check --repair-kind of a data file"] = { DATA:format("on") .. "truncate -s 12k d; ",
    { "check", "--repair-kind=data-file-short", "a" }, { a = "same" } },
  ["check -r leaks"] = { LEAKS, { "check", "-r", "leaks", "b" }, { b = "same" } },
  ["check -r all"] = { LEAKS .. "printf '\\0\\0' | dd of=b bs=1 seek=1032 conv=notrunc 2>/dev/null; ",
    { "check", "-r", "all", "b" }, { b = "same" }, damaged = true },
}

-- ---- judging ----------------------------------------------------------------------------------

local function files_in(dir)
  local files = {}
  for name in require("lfs").dir(dir) do
    if name:sub(1, 1) ~= "." then files[name] = sh.slurp(dir .. "/" .. name) end
  end
  return files
end

local function put_files(dir, files)
  for name in pairs(files_in(dir)) do
    if not files[name] then os.remove(dir .. "/" .. name) end
  end
  for name, bytes in pairs(files) do sh.spit(dir .. "/" .. name, bytes) end
end

local function is_qcow2(bytes)
  return bytes ~= nil and bytes:sub(1, 4) == "QFI\xfb"
end

-- What the disk in this file shows; false when there is no file, nil and why when it cannot be read.
local function disk_of(dir, name, bytes)
  if not bytes then return false end
  if not is_qcow2(bytes) then return bytes end
  local img <close>, message = qcow2.open(dir .. "/" .. name, { format = "qcow2", force_share = true })
  if not img then return nil, message end
  return img:read(0, img.size)
end

local function disks_of(dir, verb)
  local disks = {}
  for name in pairs(verb[3]) do disks[name] = assert(disk_of(dir, name, sh.slurp(dir .. "/" .. name))) end
  return disks
end

-- Is every sector old or new?
local function by_sectors(got, old, new)
  for at = 1, #got, 512 do
    local sector = got:sub(at, at + 511)
    if sector ~= old:sub(at, at + 511) and sector ~= new:sub(at, at + 511) then return false end
  end
  return #got == #old or #got == #new
end

-- `done`: the command says that it has succeeded.
local function problems_of(dir, verb, done, before, old, new)
  local list, files = {}, files_in(dir)
  for name, bytes in pairs(files) do
    if is_qcow2(bytes) and not verb.damaged then
      for _, problem in ipairs(crash.corruptions(bytes)) do list[#list + 1] = name .. ": " .. problem end
    end
  end
  for name, promise in pairs(verb[3]) do
    local got, why = disk_of(dir, name, files[name])
    local fine
    if done and promise ~= "kept" then
      fine = got == new[name]
    elseif promise == "removed" then
      fine = got == false
    elseif promise == "kept" then
      fine = files[name] == before[name]
    elseif promise == "fresh" then
      fine = not is_qcow2(files[name]) or got == new[name] or files[name] == before[name]
    elseif promise == "sectors" then
      fine = got and by_sectors(got, old[name], new[name])
    else
      fine = got and (got == old[name] or promise == "either" and got == new[name])
    end
    if not fine then list[#list + 1] = ("%s is not what was promised (%s): %s"):format(name, promise, why) end
  end
  return list
end

-- ---- specs ------------------------------------------------------------------------------------

-- Makes the files. gives: their folder, and the command with their paths.
local function make(verb)
  local dir, words = tmp.dir(), {}
  sh.check("set -e; :; " .. verb[1], { cwd = dir })
  for i, word in ipairs(verb[2]) do
    local key, name = word:match("^(%l+=)(%l+)$")
    local is_file = i > 1 and (verb[3][name or word] or word == "d") and not word:find("^%-")
    words[i] = is_file and (key or "") .. dir .. "/" .. (name or word) or word
  end
  return dir, words
end

describe("Who exits with 0", function()
  for title, verb in pairs(verbs) do
    if not verb.unsafe then
      it(("has flushed all that was written: '%s'"):format(title), function()
        local _, words = make(verb)
        local code, said
        local loose = unflushed_by(function() code, said = command(words) end)
        assert.equal(0, code, said)
        assert.is_truthy(next(loose), "nothing was written")
        for path, is_loose in pairs(loose) do assert.is_false(is_loose, path) end
      end)
    end
  end
end)

describe("On a failing disk", function()
  for title, verb in pairs(verbs) do
    it(("'%s' says so, exits with 1 and breaks no promise"):format(title), function()
      local dir, words = make(verb)
      local before, old = files_in(dir), {}
      for name in pairs(verb[3]) do old[name] = before[name] and assert(disk_of(dir, name, before[name])) end
      local code, said = command(words)
      assert.equal(0, code, said)
      local new, tried = disks_of(dir, verb), 0
      local rng = random.new(title)
      for errno, reason in pairs(REASONS) do
        for kind in (errno == EIO and "wfsr" or "wfs"):gmatch(".") do
          local case = { store = 1, kind = kind, nth = 1, errno = errno, sticky = errno ~= EIO }
          repeat
            put_files(dir, before)
            local opened, reached = with_failing(case, function() code, said = command(words) end)
            local list = problems_of(dir, verb, code == 0, before, old, new)
            local last = said:match("[^\n]*\n$") or ""
            local told = code == 1 and last:sub(1, 7) == "qcow2: " and (kind == "r" or last:find(reason, 1, true))
            -- Not every failed read matters: some only look whether a warning is due.
            if reached and not told and not (kind == "r" and code == 0) then
              list[#list + 1] = ("exit code %d: %s"):format(code, said)
            end
            if #list > 0 then
              error(("%s, call %d of kind '%s' to store %d, errno %d (Q2_SEED=%s)\n%s"):format(title, case.nth, kind,
                case.store, errno, os.getenv("Q2_SEED") or 0, table.concat(list, "\n")), 0)
            end
            if reached then
              tried = tried + 1
              case.nth = case.nth + (crash.long and 1 or rng:int(1, case.nth < 6 and 2 or 6))
            else
              case.store, case.nth = case.store + 1, 1
            end
          until not reached and case.store > opened
        end
      end
      assert.is_true(tried > 0)
    end)
  end
end)
