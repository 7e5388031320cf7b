-- SPDX-License-Identifier: MIT
-- One image through many operations of many kinds in few sessions, beside a model of its disk, its snapshots and its
-- bitmaps. What is drawn: lazy counts, all cluster sizes and widths of counts, data files that are raw or not and end
-- inside a cluster, backing files longer and shorter, and everything that changes an image, QEMU's own writes among it.
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local dimensions = {}

local SECTOR <const> = 512
local ZERO <const> = ("\0"):rep(SECTOR)

local run = {}
run.__index = run

-- ---- the model: a disk is a list of sectors ---------------------------------------------------

local function bytes_of(disk, first, count)
  return table.concat(disk, "", first + 1, first + count)
end

local function put(disk, first, bytes)
  for i = 0, #bytes // SECTOR - 1 do disk[first + i + 1] = bytes:sub(i * SECTOR + 1, (i + 1) * SECTOR) end
end

local function resized(disk, sectors)
  local new = table.move(disk, 1, math.min(#disk, sectors), 1, {})
  for i = #new + 1, sectors do new[i] = ZERO end
  return new
end

function run:note(text, ...)
  self.log[#self.log + 1] = text:format(...)
end

function run:fail(text, ...)
  error(("seed %s: %s\n%s\nafter:\n  %s"):format(self.seed, text:format(...), self.options,
    table.concat(self.log, "\n  ", math.max(1, #self.log - 30))), 0)
end

function run:must(answer, message, kind)
  if not answer then self:fail("%s (%s)", tostring(message), tostring(kind)) end
  return answer
end

-- Sectors [first, first + count) change or may have changed.
function run:mark(first, count)
  for _, bitmap in pairs(self.bitmaps) do
    if bitmap.enabled and count > 0 then
      local low, high = first * SECTOR // bitmap.granularity, ((first + count) * SECTOR - 1) // bitmap.granularity
      for granule = low, high do bitmap.bits[granule] = true end
    end
  end
end

function run:range()
  local first = self.rng:int(0, #self.disk - 1)
  return first, self.rng:int(1, math.min(#self.disk - first, self.rng:pick { 1, 8, self.cluster * 2, 400 }))
end

function run:fill(count)
  local out = {}
  for i = 1, count do
    self.stamp = self.stamp + 1
    out[i] = self.rng:chance(10) and ZERO or string.pack(">I4", self.stamp):rep(SECTOR // 4)
  end
  return table.concat(out)
end

-- ---- operations -------------------------------------------------------------------------------

local ops = {}

function ops.write(r)
  local first, count = r:range()
  local data = r:fill(count)
  r:note("write %d+%d", first, count)
  r:must(r.img:write(first * SECTOR, data))
  put(r.disk, first, data)
  r:mark(first, count)
end

function ops.write_compressed(r)
  if r.data then return end
  local first = r.rng:int(0, #r.disk - 1) // r.cluster * r.cluster
  local count = math.min(r.cluster, #r.disk - first)
  local data = r.rng:chance(70) and ("%d"):format(r.stamp):rep(count * SECTOR):sub(1, count * SECTOR) or r:fill(count)
  r.stamp = r.stamp + 1
  r:note("write_compressed %d+%d", first, count)
  r:must(r.img:write_compressed(first * SECTOR, data))
  put(r.disk, first, data)
  r:mark(first, count)
end

function ops.zero(r)
  local first, count = r:range()
  local options = { unmap = r.rng:chance(50) }
  r:note("zero %d+%d", first, count)
  r:must(r.img:zero(first * SECTOR, count * SECTOR, options))
  put(r.disk, first, ZERO:rep(count))
  r:mark(first, count)
end

function ops.discard(r)
  local first, count = r:range()
  r:note("discard %d+%d", first, count)
  r:must(r.img:discard(first * SECTOR, count * SECTOR))
  local got = r:must(r.img:read(first * SECTOR, count * SECTOR))
  for i = 0, count - 1 do
    local sector = got:sub(i * SECTOR + 1, (i + 1) * SECTOR)
    if sector ~= ZERO and sector ~= r.disk[first + i + 1] then r:fail("discard left other bytes in %d", first + i) end
    r.disk[first + i + 1] = sector
  end
  r:mark(first, count)
end

function ops.flush(r) r:must(r.img:flush()) end

function ops.read(r)
  local first, count = r:range()
  if r:must(r.img:read(first * SECTOR, count * SECTOR)) ~= bytes_of(r.disk, first, count) then
    r:fail("read of %d+%d is another", first, count)
  end
end

function ops.resize(r)
  local sectors = math.max(1, #r.disk + r.rng:int(-#r.disk // 3, r.most - #r.disk // 2))
  r:note("resize to %d", sectors)
  local preallocation = sectors > #r.disk and r.rng:chance(20) and r.rng:pick { "metadata", "falloc", "full" } or nil
  local done, message, kind = r.img:resize(sectors * SECTOR, { shrink = true, preallocation = preallocation })
  if not done and (kind == "unsupported" or kind == "range") then return end
  r:must(done, message, kind)
  r.disk = resized(r.disk, sectors)
  for _, bitmap in pairs(r.bitmaps) do
    for granule in pairs(bitmap.bits) do
      if granule * bitmap.granularity >= sectors * SECTOR then bitmap.bits[granule] = nil end
    end
    bitmap.cut = true -- a granule that the end lies in may tell more than the disk has
  end
end

local function some(r, map)
  local names = {}
  for name in pairs(map) do names[#names + 1] = name end
  table.sort(names)
  return #names > 0 and r.rng:pick(names) or nil
end

function ops.snapshot_create(r)
  if r.data then return end
  r.stamp = r.stamp + 1
  local name = "s" .. r.stamp
  r:note("snapshot_create %s", name)
  local done, message, kind = r.img:snapshot_create(name)
  if not done and kind == "range" then return end -- counts of few bits
  r:must(done, message, kind)
  r.snapshots[name] = table.move(r.disk, 1, #r.disk, 1, {})
end

function ops.snapshot_delete(r)
  local name = some(r, r.snapshots)
  if not name then return end
  r:note("snapshot_delete %s", name)
  r:must(r.img:snapshot_delete(name))
  r.snapshots[name] = nil
end

function ops.snapshot_apply(r)
  local name = some(r, r.snapshots)
  if not name then return end
  r:note("snapshot_apply %s", name)
  local done, message, kind = r.img:snapshot_apply(name)
  if not done and (kind == "conflict" or kind == "range") then return end
  r:must(done, message, kind)
  r:mark(0, #r.disk)
  r.disk = table.move(r.snapshots[name], 1, #r.snapshots[name], 1, {})
end

function ops.bitmap_add(r)
  if r.version2 then return end
  r.stamp = r.stamp + 1
  local name, granularity = "b" .. r.stamp, 512 << r.rng:int(0, 8)
  local enabled = r.rng:chance(70)
  r:note("bitmap_add %s", name)
  r:must(r.img:bitmap_add(name, { granularity = granularity, disabled = not enabled }))
  r.bitmaps[name] = { granularity = granularity, enabled = enabled, bits = {} }
end

function ops.bitmap_remove(r)
  local name = some(r, r.bitmaps)
  if not name then return end
  r:note("bitmap_remove %s", name)
  r:must(r.img:bitmap_remove(name))
  r.bitmaps[name] = nil
end

function ops.bitmap_change(r)
  local name = some(r, r.bitmaps)
  if not name then return end
  local bitmap, first, count = r.bitmaps[name], r:range()
  local what = r.rng:pick { "enable", "disable", "clear", "set", "merge" }
  r:note("bitmap_%s %s", what, name)
  if what == "enable" or what == "disable" then
    r:must(r.img["bitmap_" .. what](r.img, name))
    bitmap.enabled = what == "enable"
  elseif what == "clear" then
    r:must(r.img:bitmap_clear(name))
    bitmap.bits = {}
  elseif what == "set" then
    r:must(r.img:bitmap_set(name, first * SECTOR, count * SECTOR))
    for g = first * SECTOR // bitmap.granularity, ((first + count) * SECTOR - 1) // bitmap.granularity do
      bitmap.bits[g] = true
    end
  else
    local from = some(r, r.bitmaps)
    r:must(r.img:bitmap_merge(name, from))
    local source, size = r.bitmaps[from], #r.disk * SECTOR
    for granule in pairs(source.bits) do
      local low = granule * source.granularity
      local high = math.min(low + source.granularity, size) - 1
      for g = low // bitmap.granularity, high // bitmap.granularity do bitmap.bits[g] = true end
    end
  end
end

function ops.amend(r)
  if r.version2 then return end
  local what = r.rng:pick { { lazy_refcounts = true }, { lazy_refcounts = false },
    { refcount_bits = 1 << r.rng:int(2, 6) } }
  for key, value in pairs(what) do r:note("amend %s=%s", key, value) end
  local done, message, kind = r.img:amend(what)
  if not done and kind == "range" then return end
  r:must(done, message, kind)
end

function ops.declare_raw(r)
  if not r.data or r.data_raw or r.backed then return end
  r:note("amend data_file_raw=on")
  local done, message, kind = r.img:amend({ data_file_raw = true })
  if not done and kind == "conflict" then return end -- somebody's bytes behind the end
  r:must(done, message, kind)
  r.data_raw = true
end

function ops.reopen(r)
  r:note("reopen")
  r:close()
  r:open()
end

function ops.commit(r)
  if r.backed ~= "qcow2" or next(r.snapshots) then return end
  r:note("commit")
  r:close()
  local job <close> = r:must(qcow2.commit(r.path))
  local done, message, kind = job:run()
  r:must(done, message, kind)
  r:open()
  r:mark(0, #r.disk) -- what moves may be marked
  r.loose = true
end

function ops.rebase(r)
  if not r.backed or next(r.snapshots) or r.rng:chance(70) then return end
  r:note("rebase to nothing")
  r:close()
  local job <close> = r:must(qcow2.rebase(r.path))
  r:must(job:run())
  r.backed = nil
  r:open()
  r:mark(0, #r.disk)
  r.loose = true
end

-- QEMU writes, as a machine would between two of our sessions.
function ops.by_qemu(r)
  local first, count = r:range()
  r:close()
  local byte = r.rng:int(1, 255)
  local command, data = ("write -P %d"):format(byte), string.char(byte):rep(SECTOR)
  if r.rng:chance(30) then command, data = "write -z", ZERO end
  r:note("qemu-io %s %d+%d", command, first, count)
  qemu.io(r.path, { ("%s %d %d"):format(command, first * SECTOR, count * SECTOR) })
  for i = first + 1, first + count do r.disk[i] = data end
  r:open()
  r:mark(first, count)
end

-- ---- judging ----------------------------------------------------------------------------------

function run:judge_bitmaps()
  for name, model in pairs(self.bitmaps) do
    local bitmap = self:must(self.img:bitmap(name))
    local found = {}
    for offset, length in bitmap:extents() do
      for g = offset // model.granularity, (offset + length - 1) // model.granularity do found[g] = true end
    end
    for granule in pairs(model.bits) do
      if not found[granule] and not self.loose then self:fail("bitmap %s misses granule %d", name, granule) end
    end
    for granule in pairs(found) do
      if not model.bits[granule] and not model.enabled and not model.cut and not self.loose then
        self:fail("bitmap %s has granule %d", name, granule)
      end
    end
    -- From here on the model follows what is there; nothing was missing.
    model.bits = found
  end
  self.loose = false
end

function run:judge(all)
  if self:must(self.img:read(0, self.img.size)) ~= table.concat(self.disk) then
    local got = self.img:read(0, self.img.size)
    for i = 1, #self.disk do
      if got:sub((i - 1) * SECTOR + 1, i * SECTOR) ~= self.disk[i] then self:fail("sector %d is another", i - 1) end
    end
    self:fail("the disk has %d bytes", #got)
  end
  local report = self:must(self.img:check())
  if report.corruptions > 0 or report.leaks > 0 then
    self:fail("check finds %s", tostring(report.findings[1] and report.findings[1].kind))
  end
  if not all then return end
  for name, disk in pairs(self.snapshots) do
    local view <close> = self:must(self.img:snapshot(name))
    if view:read(0, view.size) ~= table.concat(disk) then self:fail("snapshot %s is another", name) end
  end
  self:judge_bitmaps()
end

-- With nothing open: the data file, and what qemu-img says.
function run:judge_closed(by_qemu)
  if self.data_raw and sh.slurp(self.dir .. "/data") ~= table.concat(self.disk) then
    self:fail("the raw data file is not the disk")
  end
  if by_qemu then
    local sound, report = qemu.sound(self.path)
    if not sound then self:fail("qemu-img: %s", report) end
  end
end

function run:open()
  local img, message, kind = qcow2.open(self.path, { mode = "rw" })
  self.img = self:must(img, message, kind)
end

function run:close()
  local ok, message, kind = self.img:close()
  self:must(ok, message, kind)
  self:judge_closed(self.each_by_qemu)
end

-- ---- a run ------------------------------------------------------------------------------------

local CLUSTERS <const> = { 512, 512, 512, 1024, 2048, 4096, 16384, 65536, 65536, 262144, 2 << 20 }

function run:draw()
  local rng, o = self.rng, {}
  o.cluster_size = rng:pick(CLUSTERS)
  self.cluster = o.cluster_size // SECTOR
  self.most = math.max(1500, 4 * self.cluster)
  local sectors = rng:int(1, self.most)
  o.size = sectors * SECTOR
  if rng:chance(10) then
    o.compat, self.version2 = "0.10", true
  else
    o.refcount_bits = 1 << rng:int(0, 6)
    o.lazy_refcounts = rng:chance(40) or nil
    if o.cluster_size >= 16384 then o.extended_l2 = rng:chance(40) or nil end
    if rng:chance(35) then
      self.data, o.data_file = true, "data"
      self.data_raw = rng:chance(50) or nil
      o.data_file_raw = self.data_raw
    end
  end
  self.disk = resized({}, sectors)
  if not self.data_raw and rng:chance(40) then
    self.backed = rng:pick { "raw", "qcow2" }
    local length = rng:int(1, sectors * 2)
    local below = self:fill(length)
    if self.backed == "raw" then
      sh.spit(self.dir .. "/base", below)
    else
      assert(qcow2.create(self.dir .. "/base", { size = length * SECTOR, cluster_size = rng:pick { 512, 65536 } }))
      local base <close> = assert(qcow2.open(self.dir .. "/base", { mode = "rw" }))
      assert(base:write(0, below))
    end
    put(self.disk, 0, below:sub(1, sectors * SECTOR))
    o.backing_file, o.backing_fmt = "base", self.backed
  end
  local words = {}
  for key, value in pairs(o) do words[#words + 1] = ("%s=%s"):format(key, value) end
  table.sort(words)
  self.options = table.concat(words, " ")
  assert(qcow2.create(self.path, o))
end

local WEIGHTS <const> = { write = 20, write_compressed = 6, zero = 6, discard = 8, flush = 3, read = 6, resize = 4,
  snapshot_create = 5, snapshot_delete = 4, snapshot_apply = 2, bitmap_add = 2, bitmap_remove = 1, bitmap_change = 5,
  amend = 2, declare_raw = 1, reopen = 4, commit = 1, rebase = 1, by_qemu = 1 }

--- Runs `count` operations from a seed; raises with the seed and the last operations where anything differs.
-- each_by_qemu: qemu-img checks whenever the image is closed.
function dimensions.run(seed, count, each_by_qemu)
  local dir = tmp.dir()
  local r = setmetatable({ seed = seed, rng = random.new("dimensions " .. seed), dir = dir, path = dir .. "/image",
    log = {}, stamp = 0, snapshots = {}, bitmaps = {}, each_by_qemu = each_by_qemu }, run)
  r:draw()
  r:open()
  local lots = {}
  for name, weight in pairs(WEIGHTS) do
    for i = 1, weight do lots[#lots + 1] = name .. i end
  end
  table.sort(lots)
  for n = 1, count do
    ops[r.rng:pick(lots):match("^[%a_]+")](r)
    if n % 5 == 0 then r:judge(n % 25 == 0) end
  end
  r:judge(true)
  r:must(r.img:close())
  r:judge_closed(true)
  tmp.remove(dir)
end

return dimensions
