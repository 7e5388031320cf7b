-- SPDX-License-Identifier: MIT
-- Random operations on an image file beside a string that holds what its disk must show. Options of the image,
-- operations and their places all come from one seed; after the sequence contents, tables and bitmaps are judged,
-- by us and by qemu-img.

local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local model = {}

local SECTOR = 512

local function zeros(length)
  return ("\0"):rep(length)
end

local function cut(disk, size)
  return #disk >= size and disk:sub(1, size) or disk .. zeros(size - #disk)
end

-- ---- options ---------------------------------------------------------------------------------

local cluster_sizes = { 512, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 65536, 131072, 262144, 524288,
  1 << 20, 2 << 20 }

-- Draws the options of an image. gives: options of qcow2.create, and plan: data, backing, bitmaps.
local function draw_options(rng)
  local o, plan = {}, {}
  o.cluster_size = rng:pick(cluster_sizes)
  -- Large clusters need a disk of several of them, small ones a disk that takes few tables.
  local most = math.max(5000, 3 * o.cluster_size // SECTOR)
  o.size = rng:int(1, math.min(most, 8 * o.cluster_size)) * SECTOR
  if rng:chance(15) then
    o.compat = "0.10"
  else
    o.refcount_bits = 1 << rng:int(0, 6)
    o.lazy_refcounts = rng:chance(20) or nil
    if o.cluster_size >= 16384 then o.extended_l2 = rng:chance(40) or nil end
    if rng:chance(30) and qcow2.features.zstd then o.compression_type = "zstd" end
    if rng:chance(20) then
      plan.data = true
      o.data_file = "data"
      o.data_file_raw = rng:chance(50) or nil
    end
    plan.bitmaps = rng:chance(25)
  end
  if not o.data_file_raw and rng:chance(35) then
    plan.backing = rng:pick { "raw", "qcow2" }
    plan.backing_size = rng:chance(70) and rng:int(1, 2 * o.size // SECTOR) * SECTOR or o.size
    o.backing_file, o.backing_fmt = "backing", plan.backing
  end
  if not plan.backing and rng:chance(20) then o.preallocation = rng:pick { "metadata", "falloc", "full" } end
  return o, plan
end

local function describe(o, plan)
  local list = {}
  for key, value in pairs(o) do list[#list + 1] = key .. "=" .. tostring(value) end
  table.sort(list)
  return table.concat(list, " ") .. (plan.bitmaps and " bitmaps" or "")
end

-- The backing file's disk: sectors that differ, a few of them zeros.
local function backing_disk(rng, size)
  local out = {}
  for i = 1, size // SECTOR do
    out[i] = (rng:chance(25) and "\0" or string.char(rng:int(1, 255))):rep(SECTOR)
  end
  return table.concat(out)
end

-- ---- the sequence ------------------------------------------------------------------------------

local Play = {}
Play.__index = Play

function Play:fail(text, ...)
  error(("%s\nseed %s, step %d (%s)\nimage: %s"):format(text:format(...), self.seed, self.step, self.what,
    self.options_text), 0)
end

function Play:ok(value, message, kind)
  if value == nil then self:fail("%s (%s)", message, kind) end
  return value
end

function Play:put(offset, bytes)
  self.disk = self.disk:sub(1, offset) .. bytes .. self.disk:sub(offset + #bytes + 1)
end

-- Somewhere in the disk: offset and length, sometimes whole clusters.
function Play:place()
  local rng, size, cs = self.rng, #self.disk, self.cluster_size
  local offset = rng:int(0, size - 1)
  local length = math.min(size - offset, rng:int(1, rng:chance(33) and 3 * cs or 5000))
  if rng:chance(25) then
    offset = offset // cs * cs
    length = math.min(size - offset, rng:int(1, 4) * cs)
  end
  return offset, length
end

local steps = {}

function steps.write(self)
  local offset, length = self:place()
  local bytes = string.char(self.rng:int(0, 255)):rep(length)
  self:ok(self.img:write(offset, bytes))
  self:put(offset, bytes)
end

function steps.zero(self)
  local offset, length = self:place()
  self:ok(self.img:zero(offset, length, { unmap = self.rng:chance(50) }))
  self:put(offset, zeros(length))
end

-- A discard makes whole clusters zeros.
function Play:empty(offset, length)
  local low, high, cs = offset, offset + length, self.cluster_size
  if self.version == 2 and self.plan.backing then return end
  if not self.raw_data then
    low = (low + cs - 1) // cs * cs
    if high < #self.disk then high = high // cs * cs end
  end
  if low < high then self:put(low, zeros(high - low)) end
end

function steps.discard(self)
  local offset, length = self:place()
  self:ok(self.img:discard(offset, length))
  self:empty(offset, length)
end

function steps.write_compressed(self)
  if self.plan.data then return end
  local offset = self:place() // self.cluster_size * self.cluster_size
  local length = math.min(self.cluster_size, #self.disk - offset)
  local bytes
  if self.rng:chance(20) then
    bytes = self.rng:bytes(length)
  else
    bytes = (string.char(self.rng:int(1, 255)):rep(self.rng:int(1, 9)) .. "x"):rep(length // 2 + 1):sub(1, length)
  end
  self:ok(self.img:write_compressed(offset, bytes))
  self:put(offset, bytes)
end

function steps.flush(self)
  self:ok(self.img:flush())
end

function Play:draw_size()
  return self.rng:int(1, math.max(5000, 3 * self.cluster_size // SECTOR)) * SECTOR
end

-- What the disk grows by is zeros, and clean.
function Play:resized(size)
  self.disk = cut(self.disk, size)
  for name, start in pairs(self.bitmaps) do self.bitmaps[name] = cut(start, size) end
end

function steps.resize(self)
  if self.version == 2 and next(self.snapshots) then return end
  local size = self:draw_size()
  local mode = self.rng:pick { "off", "off", "off", "metadata", "falloc", "full" }
  if size > #self.disk and mode ~= "off" and not self.plan.backing then
    self:ok(self.img:resize(size, { preallocation = mode }))
  else
    self:ok(self.img:resize(size, { shrink = true }))
  end
  self:resized(size)
end

function steps.reopen(self)
  self:close()
  self:open()
end

-- What would make a count overflow is refused with "range", and nothing has changed. gives: was it done?
function Play:fits(ok, message, kind)
  if not ok and kind ~= "range" then self:fail("%s (%s)", message, kind) end
  return ok
end

local function names_of(map)
  local names = {}
  for name in pairs(map) do names[#names + 1] = name end
  table.sort(names)
  return names
end

function steps.snapshot(self)
  if self.plan.data then return end
  local names = names_of(self.snapshots)
  local name = #names > 0 and self.rng:pick(names)
  local which = self.rng:int(1, 5)
  if which <= 2 or not name then
    local new = "s" .. self.step
    if self:fits(self.img:snapshot_create(new)) then self.snapshots[new] = self.disk end
  elseif which == 3 then
    if self.plan.bitmaps and #self.snapshots[name] ~= #self.disk then return end
    if self:fits(self.img:snapshot_apply(name)) then self.disk = self.snapshots[name] end
  elseif which == 4 then
    self:ok(self.img:snapshot_delete(name))
    self.snapshots[name] = nil
  else
    local new = "r" .. self.step
    self:ok(self.img:snapshot_rename(name, new))
    self.snapshots[name], self.snapshots[new] = nil, self.snapshots[name]
  end
  self:ok(self.img:flush())
  for each, disk in pairs(self.snapshots) do
    local view <close> = self:ok(self.img:snapshot(each))
    if self:ok(view:read(0, view.size)) ~= disk then self:fail("snapshot %s has changed", each) end
  end
end

function steps.bitmap(self)
  if not self.plan.bitmaps then return end
  local names = names_of(self.bitmaps)
  local name = #names > 0 and self.rng:pick(names)
  local which = self.rng:int(1, 4)
  if not name or which == 1 and #names < 5 then
    local new = "b" .. self.step
    self:ok(self.img:bitmap_add(new, { granularity = 512 << self.rng:int(0, 8) }))
    self.bitmaps[new] = self.disk
  elseif which == 2 then
    self:ok(self.img:bitmap_remove(name))
    self.bitmaps[name] = nil
  elseif which == 3 then
    self:ok(self.img:bitmap_clear(name))
    self.bitmaps[name] = self.disk
  end
end

-- Sectors, since qemu-io takes no less.
function Play:sectors()
  local offset, length = self:place()
  local last = (offset + length - 1) // SECTOR
  offset = offset // SECTOR
  return offset * SECTOR, (last + 1 - offset) * SECTOR
end

-- Another writer's turn: what it makes of the disk, and the command for qemu-io.
local turns = {}

function turns.write(self, offset, length)
  local byte = self.rng:int(1, 255)
  self:put(offset, string.char(byte):rep(length))
  return ("write -P %d %d %d"):format(byte, offset, length)
end

function turns.zero(self, offset, length)
  self:put(offset, zeros(length))
  return ("write -z%s %d %d"):format(self.rng:chance(50) and "u" or "", offset, length)
end

-- Old bytes may stay in its raw data files, which then are not the disk.
function turns.discard(self, offset, length)
  if self.raw_data then return turns.zero(self, offset, length) end
  self:empty(offset, length)
  return ("discard %d %d"):format(offset, length)
end

-- QEMU writes in our place for a while.
function steps.qemu(self)
  self:close()
  self.by_qemu = true
  local commands = {}
  for i = 1, self.rng:int(1, 6) do
    commands[i] = turns[self.rng:pick { "write", "write", "write", "zero", "discard" }](self, self:sectors())
  end
  qemu.io(self.path, commands)
  -- When counts are too narrow for its snapshot QEMU leaves leaks.
  if not self.plan.data and (self.options.refcount_bits or 16) >= 8 and self.rng:chance(15) then
    local name = "q" .. self.step
    qemu.snapshot(self.path, "-c", name)
    self.snapshots[name] = self.disk
  end
  if self.rng:chance(20) and (self.version == 3 or not next(self.snapshots)) then
    local size = self:draw_size()
    -- What a shrunk disk left in its last cluster it would show again.
    if #self.disk % self.cluster_size ~= 0 then size = math.min(size, #self.disk) end
    qemu.resize(self.path, tostring(size), "--shrink")
    self:resized(size)
  end
  self:open()
end

-- ---- chains ------------------------------------------------------------------------------------

-- A new file for the image to stand on.
function Play:new_backing()
  local rng = self.rng
  local below = { name = "backing" .. self.step, format = rng:pick { "raw", "qcow2" } }
  below.disk = backing_disk(rng, rng:int(1, 2 * #self.disk // SECTOR) * SECTOR)
  self:make_backing(below)
  return below
end

function steps.rebase(self)
  if self.raw_data or next(self.snapshots) then return end
  local below = not (self.plan.backing and self.rng:chance(30)) and self:new_backing() or nil
  self:close()
  local job = self:ok(qcow2.rebase(self.path, { backing_file = below and below.name,
    backing_fmt = below and below.format, compress = not self.plan.data and self.rng:chance(30) }))
  self:ok(job:run())
  self.below, self.plan.backing = below, below and below.format
  self:open()
end

-- What the disk has of its own goes below, where nothing else changes.
function steps.commit(self)
  if not self.below or next(self.snapshots) then return end
  self:close()
  self:ok(self:ok(qcow2.commit(self.path, { keep = self.rng:chance(50) })):run())
  local below = self.below
  below.disk = self.disk .. below.disk:sub(#self.disk + 1)
  local base <close> = self:ok(qcow2.open(self.dir .. "/" .. below.name, { format = below.format }))
  if base.size ~= #below.disk or self:ok(base:read(0, base.size)) ~= below.disk then
    self:fail("the backing file does not hold what was committed")
  end
  if below.format == "qcow2" and not qemu.sound(self.dir .. "/" .. below.name) then
    self:fail("qemu-img check: the backing file is not sound")
  end
  self:open()
end

local weights = { { 48, "write" }, { 62, "zero" }, { 72, "discard" }, { 80, "write_compressed" }, { 83, "flush" },
  { 86, "resize" }, { 89, "reopen" }, { 94, "snapshot" }, { 97, "bitmap" }, { 98, "rebase" }, { 99, "commit" },
  { 100, "qemu" } }

local function pick_step(rng)
  local draw = rng:int(1, 100)
  for _, weight in ipairs(weights) do
    if draw <= weight[1] then return weight[2] end
  end
end

-- ---- judging -----------------------------------------------------------------------------------

function Play:compare()
  if self.raw_data then
    local data = sh.slurp(self.dir .. "/data")
    -- QEMU makes it longer, up to a whole cluster.
    if data ~= self.disk and not (self.by_qemu and data:sub(1, #self.disk) == self.disk) then
      self:fail("the raw data file is not the disk")
    end
  end
  local got = self:ok(self.img:read(0, #self.disk))
  if self.img.size ~= #self.disk then self:fail("the disk has %d bytes, not %d", self.img.size, #self.disk) end
  if got == self.disk then return end
  local at = 1
  while got:byte(at) == self.disk:byte(at) do at = at + 1 end
  self:fail("byte %d of %d is %d, not %d", at - 1, #self.disk, got:byte(at), self.disk:byte(at))
end

function Play:open()
  self.img = self:ok(qcow2.open(self.path, { mode = "rw" }))
end

-- Closes the image; then its tables have to be clean by both checks.
function Play:close()
  self:ok(self.img:close())
  local img <close> = self:ok(qcow2.open(self.path))
  local report = self:ok(img:check())
  if report.corruptions + report.leaks + report.check_errors > 0 then
    self:fail("our check: %s: %s", report, report.findings[1])
  end
  for name, start in pairs(self.bitmaps) do self:judge_bitmap(img, name, start) end
  if self.rng:chance(self.thorough and 100 or 30) then
    local sound, text = qemu.sound(self.path)
    if not sound then self:fail("qemu-img check: %s", text) end
  end
end

-- Every sector that is not as it was when the bitmap began has its bit set.
function Play:judge_bitmap(img, name, start)
  local dirty = {}
  local bitmap = self:ok(img:bitmap(name))
  if bitmap.in_use then self:fail("bitmap %s is marked in use", name) end
  for offset, length in bitmap:extents() do
    for at = offset // SECTOR, (offset + length - 1) // SECTOR do dirty[at] = true end
  end
  for at = 0, #self.disk - 1, SECTOR do
    if self.disk:sub(at + 1, at + SECTOR) ~= start:sub(at + 1, at + SECTOR) and not dirty[at // SECTOR] then
      self:fail("bitmap %s misses the change at %d", name, at)
    end
  end
end

-- QEMU reads the disk and every snapshot as we do.
function Play:ask_qemu()
  local want = self.dir .. "/want"
  sh.spit(want, self.disk)
  local same, text = qemu.compare(self.path, want, { format_b = "raw" })
  if not same then self:fail("qemu-img compare: %s", text) end
  local name = names_of(self.snapshots)[1]
  if not name then return end
  -- It gives every snapshot the size of the active disk.
  local got = qemu.read_all(self.path, self.dir .. "/got", { snapshot = name })
  local length = math.min(#got, #self.snapshots[name])
  if got:sub(1, length) ~= self.snapshots[name]:sub(1, length) then self:fail("qemu-img: snapshot %s differs", name) end
end

function Play:make_backing(below)
  local path = self.dir .. "/" .. below.name
  sh.spit(path, below.disk)
  if below.format == "raw" then return end
  os.rename(path, path .. ".raw")
  qemu.convert(path .. ".raw", path, { source_format = "raw", format = "qcow2" })
end

local function make(self)
  local o, plan, rng = self.options, self.plan, self.rng
  self.disk = zeros(o.size)
  if plan.backing then
    self.below = { name = "backing", format = plan.backing, disk = backing_disk(rng, plan.backing_size) }
    self:make_backing(self.below)
    self.disk = cut(self.below.disk, o.size)
  end
  if rng:chance(30) then
    local theirs = {}
    for key, value in pairs(o) do theirs[key] = value end
    qemu.create(self.path, theirs)
    self.by_qemu = true
  else
    self:ok(qcow2.create(self.path, o))
  end
end

--- Plays one sequence. options: steps (how many), thorough (everything is asked of qemu-img too). Raises with the
-- seed when something is wrong. gives: the options of its image, in words.
function model.play(seed, options)
  local rng = random.new(seed)
  local o, plan = draw_options(rng)
  local dir = tmp.dir("model")
  local self = setmetatable({ rng = rng, seed = seed, options = o, plan = plan, dir = dir, path = dir .. "/image",
    snapshots = {}, bitmaps = {}, step = 0, what = "making it", cluster_size = o.cluster_size,
    version = o.compat == "0.10" and 2 or 3, raw_data = o.data_file_raw, thorough = options.thorough,
    options_text = describe(o, plan) }, Play)
  make(self)
  self:open()
  for step = 1, options.steps do
    self.step, self.what = step, pick_step(rng)
    steps[self.what](self)
    self:compare()
  end
  self:close()
  self:ask_qemu()
  tmp.remove(dir)
  return self.options_text
end

return model
