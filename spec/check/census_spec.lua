-- SPDX-License-Identifier: MIT
-- The census: every count right, wherever clusters lie and however often tables are shared; by qemu-img's sums.

local cc = require "spec.support.cc"
local core = require "qcow2.core"
local fixtures = require "spec.support.fixtures"
local forge = require "spec.support.forge"
local poke = require "spec.support.poke"
local made = require("spec.support.made")
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local COPIED = 1 << 63
local CLUSTER = 65536

-- The lines and sums of check, by qemu-img and by ours. Findings come in no order that is promised.
local function both(path)
  local out = {}
  for i, result in ipairs { qemu.img({ "check", "-f", "qcow2", path }), sh.qcow2 { "check", path } } do
    local lines = {}
    for line in result.stderr:gmatch("[^\n]+") do
      if not line:find("^Note: ") then lines[#lines + 1] = line end
    end
    table.sort(lines)
    out[i] = { code = result.code, stdout = result.stdout, lines = lines }
  end
  return out[1], out[2]
end

-- Random damage that leaves all entries where they are: refcounts and COPIED flags.
local function damage_counts(path, rng, times)
  local img <close> = assert(qcow2.open(path))
  local bits, header = img.refcount_bits, img.header
  local clusters = img.file_length // img.cluster_size
  local table_offset = header.refcount_table_offset
  local per_block = img.cluster_size * 8 // bits
  for _ = 1, times do
    local cluster = rng:int(0, clusters - 1)
    local block = poke.get_u64(path, table_offset + cluster // per_block * 8)
    if rng:chance(70) and block ~= 0 then
      local bit = cluster % per_block * bits + (bits > 8 and bits - 8 or 0)
      local at = block + bit // 8
      poke.u8(path, at, poke.read(path, at, 1):byte() ~ 1 << bit % 8 + (bits > 1 and rng:int(0, 1) or 0))
    else
      local l1 = img.l1[rng:int(0, #img.l1 - 1)]
      local l2 = l1.l2
      local entry = l2 and l2[rng:int(0, #l2 - 1)]
      if entry and entry.host_offset and entry.kind ~= "compressed" then
        poke.flip(path, l1.offset + entry.index * (img.extended_l2 and 16 or 8), COPIED)
      elseif l1.offset ~= 0 then
        poke.flip(path, header.l1_table_offset + l1.index * 8, COPIED)
      end
    end
  end
end

describe("The census agrees with qemu-img", function()
  local dir
  lazy_setup(function() dir = tmp.dir() end)
  lazy_teardown(function() tmp.remove(dir) end)

  for number, recipe in ipairs(fixtures.of("options")) do
    local title = recipe:title()
    it("line by line on random damage to " .. title, function()
      local image = recipe:make(dir)
      local seed = os.getenv("Q2_SEED") or "census " .. number
      local rng = random.new(seed)
      for round = 1, 3 do
        damage_counts(image.path, rng, round * 4)
        local theirs, ours = both(image.path)
        assert.are.same(theirs, ours, "seed " .. seed)
      end
    end)
  end

  for _, recipe in ipairs(fixtures.of("snapshots")) do
    it("line by line on random damage to " .. recipe.name, function()
      local image = recipe:make(dir)
      local rng = random.new(recipe.name)
      for round = 1, 3 do
        damage_counts(image.path, rng, round * 4)
        local theirs, ours = both(image.path)
        assert.are.same(theirs, ours)
      end
    end)
  end
end)

describe("The census of clusters that lie one behind the other", function()
  local dir
  lazy_setup(function() dir = tmp.dir() end)
  lazy_teardown(function() tmp.remove(dir) end)

  -- 8192 clusters of 4 KiB: L2 tables of 512 entries lie between their data, so some pages of 1024 words are of
  -- one word and others are not; with one L2 table in the first place all pages of the data are.
  local function make(name, more)
    local path = dir .. "/" .. name .. ".qcow2"
    local options = { size = 32 << 20, cluster_size = more and more.cluster_size or 4096, preallocation = "metadata" }
    local img = made(path, options)
    assert(img:close())
    return path
  end

  for _, size in ipairs { 4096, 65536, 512 } do
    it(("line by line on random damage, clusters of %d"):format(size), function()
      local path = make("damage" .. size, { cluster_size = size })
      local rng = random.new("page " .. size)
      for round = 1, 4 do
        damage_counts(path, rng, round * 3)
        local theirs, ours = both(path)
        assert.are.same(theirs, ours)
      end
    end)
  end

  it("finds data that two entries share inside such a run", function()
    local path = make("shared")
    local img = assert(qcow2.open(path))
    local l2, first = img.l1[1].offset, img.l1[9].l2[0].host_offset
    assert(img:close())
    for i = 0, 99 do poke.u64(path, l2 + i * 8, first + i * 4096 | COPIED) end
    local theirs, ours = both(path)
    assert.are.same(theirs, ours)
    assert.are.equal(2, ours.code)
  end)

  it("finds a table that lies on such a run", function()
    local path = make("table")
    local img = assert(qcow2.open(path))
    local victim = img.l1[9].l2[100].host_offset
    poke.u64(path, img.header.l1_table_offset + 8, victim | COPIED)
    assert(img:close())
    local damaged <close> = assert(qcow2.open(path))
    local report = assert(damaged:check())
    assert.are.equal(1, report.found.overlap)
    for _, finding in ipairs(report.findings) do
      if finding.kind == "overlap" then
        assert.are.same({ victim, 4096 }, { finding.host_offset, finding.host_length })
      end
    end
  end)

  it("is repaired by qemu-img's sums", function()
    local path = make("repaired")
    damage_counts(path, random.new("repaired page"), 20)
    assert.are.equal(0, sh.qcow2({ "check", "-r", "all", path }).code)
    local theirs, ours = both(path)
    assert.are.same(theirs, ours)
    assert.are.equal(0, ours.code)
  end)
end)

-- An image whose guest data lies 1.5 TiB and more into a sparse file, behind what the census holds as an array.
-- `counts`: stored refcounts by far cluster, from the first one on.
local FAR = 3 << 39
local function far(path, entries, counts)
  local clusters = {}
  for i, entry in ipairs(entries) do clusters[i - 1] = entry end
  local at = forge.write(path, { header = { size = 1 << 40 }, clusters = clusters,
    refcounts = { [20] = 1 } })
  local block = 20 * CLUSTER
  poke.u64(path, at.refcount_table + FAR // CLUSTER // 32768 * 8, block)
  for i, count in pairs(counts) do poke.u16(path, block + (i - 1) * 2, count) end
  poke.truncate(path, FAR + 64 * CLUSTER)
  return at
end

describe("The census of a sparse file of more than a terabyte", function()
  local dir
  lazy_setup(function() dir = tmp.dir() end)
  lazy_teardown(function() tmp.remove(dir) end)

  local function entry(index, flags) return FAR + index * CLUSTER | (flags or COPIED) end

  local cases = {
    { "is sound when it is", { entry(0), entry(1), entry(2), entry(5) }, { 1, 1, 1, 0, 0, 1 } },
    { "finds counts too low and too high", { entry(0), entry(1), entry(2), entry(5) }, { 1, 0, 3, 0, 2, 1, 0, 7 } },
    { "counts references that overlap in part", { entry(0, 0), entry(1, 0), entry(1, 0), entry(0, 0), entry(4) },
      { 2, 2, 0, 0, 1 } },
    { "finds COPIED lost and COPIED too many", { entry(0, 0), entry(1), entry(1), entry(2) }, { 1, 2, 1 } },
    { "counts runs that are broken in the guest's order", { entry(3), entry(2), entry(1), entry(0) }, { 1, 1, 1, 1 } },
    { "finds what no block counts", { entry(0), entry(1), (5 << 38) | COPIED }, { 1, 1 } },
  }
  for number, case in ipairs(cases) do
    it(case[1], function()
      local path = ("%s/far%d.qcow2"):format(dir, number)
      far(path, case[2], case[3])
      local theirs, ours = both(path)
      assert.are.same(theirs, ours)
    end)
  end

  it("finds structures of two kinds on one far cluster", function()
    local path = dir .. "/overlap.qcow2"
    local at = far(path, { entry(0), entry(1) }, { 1, 1, 2 })
    poke.u64(path, at.l1 + 8, FAR + 2 * CLUSTER)
    poke.u64(path, at.l2[0] + 16, FAR + 2 * CLUSTER)
    local img <close> = assert(qcow2.open(path))
    local report = assert(img:check())
    assert.are.same({ overlap = 1 }, report.found)
    assert.are.same({ FAR + 2 * CLUSTER, CLUSTER }, { report.findings[1].host_offset, report.findings[1].host_length })
  end)

  it("stays sound when qemu-img allocates all metadata", function()
    local path = dir .. "/metadata.qcow2"
    qemu.create(path, { size = "1152G", preallocation = "metadata", cluster_size = "2M" })
    local theirs, ours = both(path)
    assert.are.same(theirs, ours)
  end)
end)

-- Peak memory and time of our check of an image, in a process of its own: KiB, seconds.
local function cost(path)
  local script = ([[
    local qcow2 = require "qcow2"
    local img = assert(qcow2.open(%q, { damaged = true }))
    local report = assert(img:check())
    for line in io.lines("/proc/self/status") do
      local peak = line:match("^VmHWM:%%s*(%%d+)")
      if peak then print(peak, os.clock(), report.corruptions, report.leaks) end
    end]]):format(path)
  local build = sh.build()
  local result = sh.check({ os.getenv("Q2_LUA") or "lua5.4", "-e", script }, {
    env = { LUA_PATH = sh.root() .. "/lua/?.lua;" .. sh.root() .. "/lua/?/init.lua;;",
      LUA_CPATH = build .. "/lib/lua/5.4/?.so;;" },
  })
  local peak, seconds, corruptions, leaks = result.stdout:match("(%d+)%s+([%d.]+)%s+(%d+)%s+(%d+)")
  -- Under a sanitizer neither figure says anything.
  if cc.is_sanitized() then peak, seconds = 0, 0 end
  return tonumber(peak), tonumber(seconds), tonumber(corruptions), tonumber(leaks)
end

describe("The cost of a check is bounded by what the file really holds:", function()
  local dir
  lazy_setup(function() dir = tmp.dir() end)
  lazy_teardown(function() tmp.remove(dir) end)

  it("a terabyte of clusters one behind the other", function()
    local path = dir .. "/terabyte.qcow2"
    assert(qcow2.create(path, { size = "1T", preallocation = "metadata" }))
    local peak, seconds, corruptions, leaks = cost(path)
    os.remove(path)
    assert.are.same({ 0, 0 }, { corruptions, leaks })
    assert.is_true(seconds < 2, "seconds: " .. seconds)
    -- A sanitizer's own memory comes on top.
    assert.is_true(peak < 32 << 10, "KiB: " .. peak)
  end)

  it("60,000 snapshots that share one L1 table", function()
    local path = dir .. "/shared.qcow2"
    local clusters = {}
    for i = 0, 511 do clusters[i] = { data = "x", copied = false } end
    local at = forge.write(path, { header = { cluster_bits = 9, size = 32 << 20, refcount_order = 5 },
      clusters = clusters, refcount_table_clusters = 64 })
    local entry = string.pack(">i8I4I2I2I4I4i8I4I4i8i8", at.l1, 1024, 1, 0, 0, 0, 0, 0, 16, 0, 32 << 20) .. "1"
    entry = entry .. ("\0"):rep(-#entry % 8)
    local start = poke.length(path) + 511 & ~511
    poke.bytes(path, start, entry:rep(60000))
    poke.field(path, "snapshots_offset", start)
    poke.field(path, "nb_snapshots", 60000)
    local peak, seconds, corruptions = cost(path)
    assert.is_true(corruptions > 0)
    assert.is_true(seconds < 2, "seconds: " .. seconds)
    assert.is_true(peak < 100 << 10, "KiB: " .. peak)
  end)

  it("snapshots whose large L1 tables lie one cluster apart", function()
    local path = dir .. "/staggered.qcow2"
    local list = {}
    for i = 1, 2000 do list[i] = { clusters = {}, id = tostring(i), name = "", l1_size = 1 << 22 } end
    local at = forge.write(path, { header = { cluster_bits = 9 }, snapshots = list, refcount_table_clusters = 8 })
    poke.truncate(path, at.length + (40 << 20))
    local _, seconds = cost(path)
    assert.is_true(seconds < 2, "seconds: " .. seconds)
  end)

  it("a refcount table full of blocks that lie in a hole", function()
    local path = dir .. "/holes.qcow2"
    local at = forge.write(path, { header = { cluster_bits = 21 }, refcount_table_clusters = 4 })
    local words = {}
    for i = 1, 1 << 20 do words[i] = string.pack(">I8", i + 100 << 21) end
    poke.bytes(path, at.refcount_table + 8, table.concat(words, "", 2))
    poke.truncate(path, 1 << 43)
    local peak, seconds = cost(path)
    assert.is_true(seconds < 4, "seconds: " .. seconds)
    assert.is_true(peak < 160 << 10, "KiB: " .. peak)
  end)

  it("a refcount table that names one block again and again", function()
    local path = dir .. "/alias.qcow2"
    local at = forge.write(path, { refcount_table_clusters = 64 })
    poke.bytes(path, at.refcount_table, string.pack(">I8", at.refcount_blocks[1]):rep(1 << 19))
    poke.truncate(path, 1 << 43)
    local peak, seconds, corruptions = cost(path)
    assert.is_true(corruptions >= (1 << 19) - 1)
    assert.is_true(seconds < 4, "seconds: " .. seconds)
    assert.is_true(peak < 160 << 10, "KiB: " .. peak)
  end)

  it("L2 tables whose entries are scattered over an exabyte", function()
    local path = dir .. "/scattered.qcow2"
    local rng = random.new("scattered")
    local at = forge.write(path, { header = { size = 1 << 38 }, l1_size = 512 })
    local first = poke.length(path) + CLUSTER - 1 & ~(CLUSTER - 1)
    local l1, bytes = {}, {}
    for i = 0, 31 do
      l1[i + 1] = string.pack(">I8", COPIED | first + i * CLUSTER)
      for _ = 1, 8192 do bytes[#bytes + 1] = string.pack(">i8", COPIED | rng:int(1 << 24, 1 << 38) << 16) end
    end
    poke.bytes(path, at.l1, table.concat(l1))
    poke.bytes(path, first, table.concat(bytes))
    poke.truncate(path, 1 << 42)
    local peak, seconds, corruptions = cost(path)
    assert.is_true(corruptions > 0)
    assert.is_true(seconds < 4, "seconds: " .. seconds)
    assert.is_true(peak < 200 << 10, "KiB: " .. peak)
  end)
end)

describe("A check in steps", function()
  it("says how far it is and can be left at any moment", function()
    local path = tmp.path("steps.qcow2")
    qemu.create(path, { size = "1T", preallocation = "metadata", cluster_size = "2M" })
    local store <close> = assert(core.store_file(path, {}))
    local img = assert(core.image_open(store, "qcow2"))
    local job = assert(core.check(img, {}))
    local done, total = job:step()
    assert.is_true(done <= total)
    img:close()
    job:close()
    assert.has_error(function() job:step() end)
  end)
end)
