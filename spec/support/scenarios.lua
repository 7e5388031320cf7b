-- SPDX-License-Identifier: MIT
-- What power cuts and failing calls are tried on: every operation that writes, over every kind of cluster, in
-- every flavour of image. Each is small, so that all of its survivors can be looked at.

local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local session = require "spec.support.session"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local scenarios = {}

local function fill(letter, length)
  return letter:rep(length)
end

-- A backing file in which every sector is another one.
local function patterned(length, first)
  local out = {}
  for i = 0, length // 512 - 1 do out[#out + 1] = string.char(first + i % 60):rep(512) end
  return table.concat(out)
end

scenarios.patterned = patterned

-- An enabled bitmap and a disabled one, by qemu-img.
local function add_bitmaps(bytes)
  local path = tmp.path()
  sh.spit(path, bytes)
  qemu.bitmap(path, "follows", "--add", "-g", "512")
  qemu.bitmap(path, "stands", "--add", "--disable", "-g", "4096")
  return sh.slurp(path)
end

--- Flavours of images: parts of session.make without contents. `step` is a good unit for offsets: a cluster.
function scenarios.flavours()
  local function of(name, step, create, more)
    local flavour = { name = name, step = step, create = create }
    create.size = create.size or 40 * step + 512
    create.cluster_size = create.cluster_size or step
    for key, value in pairs(more or {}) do flavour[key] = value end
    return flavour
  end
  return {
    of("standard", 1024, {}),
    of("64-bit counts", 512, { refcount_bits = 64, size = 512 * 200 }),
    of("4-bit counts", 512, { refcount_bits = 4 }),
    of("version 2", 512, { version = 2 }),
    of("version 2, backing file", 512, { version = 2 }, { backing = patterned(512 * 30, 65) }),
    of("large clusters", 65536, { size = 65536 * 6 + 512 }),
    of("extended L2", 16384, { extended_l2 = true, size = 16384 * 8 + 512 }),
    of("extended L2, backing file", 16384, { extended_l2 = true, size = 16384 * 8 + 512 },
      { backing = patterned(16384 * 6 + 1024, 65) }),
    of("backing file", 1024, {}, { backing = patterned(1024 * 30 + 512, 65),
      backings = { another = patterned(1024 * 20, 75) .. patterned(1024 * 30, 85) } }),
    of("lazy counts", 512, { lazy_refcounts = true }),
    of("preallocated", 1024, { preallocation = "metadata" }),
    of("bitmaps", 1024, {}, { after = add_bitmaps, bitmaps = { follows = true, stands = false } }),
    of("data file", 512, {}, { data = true }),
    of("data file, backing file", 1024, {}, { data = true, backing = patterned(1024 * 30, 65) }),
    of("data file, extended L2", 16384, { extended_l2 = true, size = 16384 * 8 }, { data = true }),
    of("raw data file", 512, { data_file_raw = true }, { data = true }),
    of("raw data file, lazy counts", 1024, { data_file_raw = true, lazy_refcounts = true }, { data = true }),
  }
end

-- What stands in an image before: data, a gap, more data; clusters 20-23 kept zeros, 24-25 plain zeros.
local function prepare(s)
  local step = s.parts.step
  local top = #s.disk // step
  s:write(0, fill("a", 2 * step))
  s:write(3 * step + 100, fill("b", step))
  if top > 12 then
    s:write(8 * step, fill("c", 6 * step))
    s:zero(12 * step, 2 * step)
    s:zero(10 * step, step, true)
  end
end

local cut = session.cut

local function plain(s)
  return not s.parts.data
end

local function tracking(s)
  return s.parts.bitmaps
end

local function can_differ(s)
  return s.parts.data and not s.parts.backing and not s.parts.create.data_file_raw
end

-- Bytes in the data file where the disk has zeros, and none where its last bytes are.
local function differ(s)
  local step = s.parts.step
  s:zero(0, 2 * step)
  s:zero(#s.disk - 2 * step, 2 * step)
  s:flush()
  assert(s.stores.data:write(100, fill("s", step)))
  assert(s.stores.data:write(5 * step, fill("t", step)))
  assert(s.stores.data:resize(#s.disk - step))
end

--- Operations: name -> { when = which flavours, prepare = more of it, run = the operation, whole }.
local operations = {
  ["a write into fresh clusters"] = { run = function(s)
    s:write(5 * s.parts.step - 700, fill("n", s.parts.step + 900))
  end },
  ["a write over its own clusters"] = { run = function(s)
    s:write(300, fill("n", s.parts.step))
  end },
  ["many small writes"] = { run = function(s)
    for i = 0, 30 do
      if i * 997 + 300 <= #s.disk then s:write(i * 997, fill(string.char(97 + i % 26), 300)) end
      if i == 15 then s:flush() end
    end
  end },
  ["a write to a cluster kept for zeros"] = {
    prepare = function(s) s:zero(0, s.parts.step) end,
    run = function(s) s:write(512, fill("n", 512)) end,
  },
  ["a write over clusters shared with a snapshot"] = { when = plain,
    prepare = function(s) s:snapshot_create("one") end,
    run = function(s)
      s:write(100, fill("n", s.parts.step))
      s:write(2 * s.parts.step, fill("m", 10))
    end },
  ["a write over compressed clusters"] = { when = plain,
    prepare = function(s)
      for i = 0, 3 do s:write_compressed(i * s.parts.step, fill(string.char(112 + i), s.parts.step)) end
    end,
    run = function(s)
      s:write(s.parts.step - 200, fill("n", 300))
      s:flush()
      s:write(2 * s.parts.step, fill("m", 2 * s.parts.step))
    end },
  ["compressed writes"] = { when = plain, run = function(s)
    for i = 0, 4 do s:write_compressed(i * s.parts.step, fill(string.char(112 + i), s.parts.step)) end
    s:flush()
    for i = 4, 1, -1 do s:write_compressed(i * s.parts.step, fill(string.char(80 + i) .. "x", s.parts.step // 2)) end
  end },
  ["zeros over whole clusters and parts"] = { run = function(s)
    s:zero(100, 3 * s.parts.step)
  end },
  ["zeros that give space back"] = { run = function(s)
    s:zero(0, 4 * s.parts.step, true)
  end },
  ["zeros over clusters shared with a snapshot"] = { when = plain,
    prepare = function(s) s:snapshot_create("one") end,
    run = function(s)
      s:zero(0, s.parts.step)
      s:zero(3 * s.parts.step, s.parts.step + 600, true)
    end },
  ["a discard"] = { run = function(s)
    s:discard(0, 3 * s.parts.step + 10)
  end },
  ["a discard and new data in its place"] = { run = function(s)
    local step = s.parts.step
    s:discard(0, 2 * step)
    s:flush()
    s:write(4 * step, fill("n", 2 * step))
    s:write(0, fill("m", 100))
    s:discard(4 * step, step)
    s:write(5 * step, fill("o", 300))
    s:write(4 * step, fill("p", 300))
  end },
  ["a resize to a larger disk"] = { whole = true,
    run = function(s) s:resize(#s.disk + 20 * s.parts.step + 512) end },
  ["a resize beyond the L1 table"] = { whole = true,
    when = function(s) return s.parts.step == 512 end,
    run = function(s) s:resize(((s.parts.step // 8) ^ 2 * s.parts.step // 1 | 0) + 700 * 512) end },
  ["a resize to a smaller disk"] = { whole = true,
    run = function(s) s:resize(2 * s.parts.step + 512, true) end },
  ["a larger disk over what a smaller one left"] = { whole = true,
    prepare = function(s) s:resize(s.parts.step + 512, true) end,
    run = function(s) s:resize(20 * s.parts.step) end },
  ["writes that need new blocks of counts"] = {
    when = function(s) return s.parts.create.refcount_bits == 64 end,
    run = function(s)
      s:write(20 * 512, fill("n", 90 * 512))
      for i = 190, 110, -1 do s:write(i * 512, fill("o", 300)) end
    end },
  ["a smaller and again a larger disk"] = { run = function(s)
    s:resize(512, true)
    s:resize(9 * s.parts.step)
    s:write(2 * s.parts.step, fill("n", 100))
  end },
  ["a resize with metadata preallocated"] = { whole = true,
    when = function(s) return not s.parts.backing end,
    run = function(s) s:grow(#s.disk + 10 * s.parts.step, "metadata") end },
  ["a resize with everything preallocated"] = { whole = true,
    when = function(s) return not s.parts.backing end,
    prepare = function(s) s:resize(#s.disk - 5 * s.parts.step, true) end,
    run = function(s) s:grow(#s.disk + 10 * s.parts.step, "full") end },
  ["naming another backing file"] = {
    when = function(s) return s.parts.backing end,
    run = function(s) s:set_backing("backing elsewhere", "raw") end },
  ["copying onto an image with data"] = { run = function(s)
    local step = s.parts.step
    s:convert(cut(fill("n", 2 * step) .. fill("\0", 3 * step) .. patterned(4 * step, 70), #s.disk))
  end },
  ["rebasing onto another file"] = {
    when = function(s) return s.parts.backings end,
    run = function(s) s:rebase("another") end },
  ["rebasing onto nothing"] = {
    when = function(s) return s.parts.backings end,
    run = function(s) s:rebase(nil) end },
  ["amending the width of counts"] = {
    when = function(s) return s.parts.create.version ~= 2 end,
    run = function(s) s:amend({ refcount_bits = s.parts.create.refcount_bits == 64 and 16 or 32 }) end },
  ["amending the version"] = {
    when = function(s) return s.parts.create.version == 2 end,
    run = function(s) s:amend({ version = 3 }) end },
  ["amending lazy counts"] = {
    when = function(s) return s.parts.create.version ~= 2 end,
    run = function(s)
      s:write(0, fill("n", 700))
      s:amend({ lazy_refcounts = not s.parts.create.lazy_refcounts })
      s:write(s.parts.step, fill("m", 700))
    end },
  ["amending a data file to be raw"] = {
    when = function(s) return s.parts.data and not s.parts.backing and not s.parts.create.data_file_raw end,
    run = function(s) s:amend({ data_file_raw = true }) end },
  ["making the data file what the disk shows"] = { when = can_differ, prepare = differ,
    run = function(s) s:resync("data") end },
  ["making the disk what the data file shows"] = { when = can_differ, prepare = differ,
    run = function(s) s:resync("metadata") end },
  ["adding bitmaps"] = { when = tracking, run = function(s)
    s:bitmap_add("new", 1024, true)
    s:write(100, fill("n", 3000))
    s:bitmap_add("newer", 512, false)
  end },
  ["removing bitmaps"] = { when = tracking, run = function(s)
    s:write(100, fill("n", 3000))
    s:bitmap_remove("follows")
    s:write(100, fill("m", 300))
    s:bitmap_remove("stands")
  end },
  ["changing bitmaps"] = { when = tracking, run = function(s)
    s:write(100, fill("n", 3000))
    s:bitmap_enable("stands", true)
    s:write(10000, fill("n", 1000))
    s:bitmap_change("follows", 0, #s.disk, false)
    s:bitmap_merge("follows", "stands")
    s:bitmap_enable("follows", false)
    s:write(20000, fill("n", 1000))
  end },
  ["resizing what bitmaps follow"] = { when = tracking, run = function(s)
    local size = #s.disk
    s:write(size - 3000, fill("n", 3000))
    s:resize(size + 20 * s.parts.step)
    s:write(size + 700, fill("m", 3000))
    s:resize(5 * s.parts.step + 512, true)
    s:resize(size)
  end },
  ["taking a snapshot"] = { when = plain, run = function(s) s:snapshot_create("new") end },
  ["taking a second snapshot"] = { when = plain,
    prepare = function(s)
      s:snapshot_create("one")
      s:write(0, fill("z", 700))
    end,
    run = function(s) s:snapshot_create("two") end },
  ["applying a snapshot"] = { when = plain, whole = true,
    prepare = function(s)
      s:snapshot_create("one")
      s:write(0, fill("z", 700))
      s:zero(3 * s.parts.step, s.parts.step)
    end,
    run = function(s) s:snapshot_apply("one") end },
  ["deleting a snapshot"] = { when = plain,
    prepare = function(s)
      s:snapshot_create("one")
      s:write(0, fill("z", 700))
      s:snapshot_create("two")
      s:write(s.parts.step, fill("y", 700))
    end,
    run = function(s) s:snapshot_delete("one") end },
  ["deleting the only snapshot, then writing"] = { when = plain,
    prepare = function(s)
      s:snapshot_create("one")
      s:write(0, fill("z", 700))
    end,
    run = function(s)
      s:snapshot_delete("one")
      s:write(0, fill("n", 3 * s.parts.step))
    end },
  ["renaming a snapshot"] = { when = plain,
    prepare = function(s)
      s:snapshot_create("one")
      s:snapshot_create("two")
    end,
    run = function(s) s:snapshot_rename("one", "a longer name") end },
}

scenarios.operations = operations

--- The names of the operations, always in the same order.
function scenarios.names()
  local names = {}
  for name in pairs(operations) do names[#names + 1] = name end
  table.sort(names)
  return names
end

--- The refcount table is full but for a few clusters.
scenarios.full_refcount_table = {
  step = 512,
  create = { size = 2300 * 1024, cluster_size = 512, refcount_bits = 64 },
  prepare = function(s)
    local piece = ("p"):rep(150 * 1024)
    for i = 0, 11 do s:write(i * #piece, piece) end
    s:write(12 * #piece, ("q"):rep(80 * 1024))
  end,
  run = function(s)
    s:write(1900 * 1024, ("n"):rep(200 * 1024))
    s:flush()
    s:write(2200 * 1024 + 100, ("o"):rep(2000))
  end,
}

--- Raw disks: writes go straight to the file.
scenarios.raw_disk = {
  raw = true,
  step = 512,
  disk = patterned(16384, 65),
  run = function(s)
    s:write(300, fill("n", 1500))
    s:flush()
    s:zero(4000, 3000)
    s:discard(512, 512)
    s:resize(20480)
    s:flush()
    s:resize(8192, true)
  end,
}

local function pick_name(rng, map)
  local names = {}
  for name in pairs(map) do names[#names + 1] = name end
  table.sort(names)
  return #names > 0 and rng:pick(names)
end

--- Random operations, as many as `count`; `snapshots` allowed or not.
function scenarios.random_run(seed, count)
  return function(s)
    local rng = random.new(seed)
    local step = s.parts.step
    for n = 1, count do
      local offset = rng:int(0, #s.disk - 1)
      local length = math.min(#s.disk - offset, rng:int(1, rng:chance(40) and 3 * step or 700))
      if rng:chance(30) then
        offset = offset // step * step
        length = math.min(#s.disk - offset, rng:int(1, 3) * step)
      end
      local letter = string.char(rng:int(97, 122))
      local what = rng:int(1, 100)
      if what <= 45 then
        s:write(offset, fill(letter, length))
      elseif what <= 60 then
        s:zero(offset, length, rng:chance(50))
      elseif what <= 70 then
        s:discard(offset, length)
      elseif what <= 77 and not s.parts.data then
        offset = offset // step * step
        s:write_compressed(offset, fill(letter, math.min(step, #s.disk - offset)))
      elseif what <= 83 then
        s:flush()
      elseif what <= 87 and not (s.parts.create.version == 2 and next(s.snapshots)) then
        s:resize(rng:int(1, 50 * step // 512) * 512, true)
      elseif what <= 93 and not s.parts.data then
        local name = pick_name(rng, s.snapshots)
        local which = rng:int(1, 5)
        if which <= 2 or not name then
          s:snapshot_create(("s%d"):format(n))
        elseif which == 3 then
          -- Bitmaps are as long as the disk, and stay so.
          if not s.parts.bitmaps or #s.snapshots[name] == #s.disk then s:snapshot_apply(name) end
        elseif which == 4 then
          s:snapshot_delete(name)
        else
          s:snapshot_rename(name, ("r%d"):format(n))
        end
      elseif s.parts.bitmaps then
        local name = pick_name(rng, s.bitmaps)
        local which = rng:int(1, 5)
        if which == 1 or not name then
          s:bitmap_add(("b%d"):format(n), 512 << rng:int(0, 4), rng:chance(70))
        elseif which == 2 then
          s:bitmap_remove(name)
        elseif which == 3 then
          s:bitmap_enable(name, rng:chance(50))
        elseif which == 4 then
          s:bitmap_change(name, 0, #s.disk, false)
        else
          s:bitmap_merge(name, pick_name(rng, s.bitmaps))
        end
      end
    end
  end
end

--- Ways to make an image: cases of crash.play_create and faults.play_create.
function scenarios.creations()
  local disk = patterned(100352, 65)
  local function case(name, create, more)
    local made = { name = name, create = create }
    create.size = 100352
    for key, value in pairs(more or {}) do made[key] = value end
    return made
  end
  return {
    case("a plain image", { cluster_size = 1024 }),
    case("an image with its metadata preallocated", { cluster_size = 512, preallocation = "metadata" }),
    case("an image fully preallocated", { preallocation = "full" }),
    case("a version 2 image", { version = 2, cluster_size = 512 }),
    case("an image with lazy counts and extended L2",
      { cluster_size = 16384, lazy_refcounts = true, extended_l2 = true }),
    case("an image with a backing file", { cluster_size = 1024, backing_file = "backing", backing_format = "raw" },
      { backing = disk:sub(1, 50176) }),
    case("an image with a data file", { cluster_size = 1024, data_file = "data" }, { data = "" }),
    case("an image with a raw data file",
      { cluster_size = 1024, data_file = "data", data_file_raw = true }, { data = "" }),
    case("an image around a disk that stays raw",
      { cluster_size = 1024, data_file = "data", data_file_raw = true, keep_data_file = true }, { data = disk }),
    case("an image around a disk, with extended L2",
      { cluster_size = 16384, extended_l2 = true, data_file = "data", keep_data_file = true }, { data = disk }),
    case("an image over an old one", { cluster_size = 1024 }, { old = ("QFI\xfb\0\0\0\3"):rep(1000) }),
  }
end

--- Commits: cases of crash.play_commit.
function scenarios.commits()
  local function case(name, create, keep)
    local step = create.cluster_size
    create.size = 30 * step
    return {
      name = name,
      create = create,
      keep = keep,
      base = function(s)
        s:write(0, patterned(10 * step, 65))
        s:zero(2 * step, step)
      end,
      overlay = function(img)
        assert(img:write(step // 2, fill("n", 3 * step)))
        assert(img:write(15 * step + 100, fill("m", 3 * step)))
        assert(img:zero(5 * step, 2 * step))
      end,
    }
  end
  return {
    case("an overlay", { cluster_size = 1024 }),
    case("an overlay that is kept", { cluster_size = 512 }, true),
    case("an overlay with lazy counts", { cluster_size = 512, lazy_refcounts = true }),
    case("an overlay with extended L2", { cluster_size = 16384, extended_l2 = true }),
    case("a version 2 overlay", { cluster_size = 512, version = 2 }),
  }
end

local function copy(map)
  local out = {}
  for key, value in pairs(map) do out[key] = value end
  return out
end

--- One flavour with the usual contents and `operation` on top. gives: a scenario, or nil when they do not go
-- together.
function scenarios.combine(flavour, operation)
  local scenario = copy(flavour)
  scenario.create = copy(flavour.create)
  if operation.when and not operation.when({ parts = flavour, snapshots = {} }) then return nil end
  scenario.prepare = function(s)
    prepare(s)
    if operation.prepare then operation.prepare(s) end
  end
  scenario.run, scenario.whole = operation.run, operation.whole
  return scenario
end

return scenarios
