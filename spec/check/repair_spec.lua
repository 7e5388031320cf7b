-- SPDX-License-Identifier: MIT
-- One damage a spec: repaired without a loss, then with what has to be asked for; sound by ours and by qemu-img, and
-- everything that could be read before reads the same.

local damages = require "spec.support.damages"
local forge = require "spec.support.forge"
local mending = require "spec.support.mending"
local poke = require "spec.support.poke"
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local CLUSTER, L1, L2, DATA, COPIED = damages.CLUSTER, damages.L1, damages.L2, damages.DATA, damages.COPIED
local two, refcount_at = damages.two, damages.refcount_at

-- What "all" leaves, and what is left even when it is asked for (the second is {} when nothing is said).
local left = {
  ["an L1 table behind the end of the file"] = { { "l1-outside", "leak" }, { "l1-outside", "leak" } },
  ["an encryption header behind the end of the file"] = { { "crypto-outside" }, { "crypto-outside" } },
  ["an encrypted image without an encryption header"] = { { "crypto-outside" }, { "crypto-outside" } },
  ["an L1 entry between two clusters"] = { { "l2-unaligned", "leak" } },
  ["an L1 entry behind the end of the file"] = { { "l2-outside", "leak" } },
  ["an L2 entry between two clusters"] = { { "data-unaligned" } },
  ["compressed sectors that lie behind the file"] = { { "compressed-outside" } },
  ["a compressed cluster beside a data file"] = { { "compressed-data-file" } },
  ["an entry for another place in the data file"] = { { "data-file-offset" } },
  ["an entry between two clusters of the data file"] = { { "data-unaligned" } },
  ["an emptied overlay whose data file still has data"] = { { "data-file-stale" }, { "data-file-stale" } },
  ["a discard of guest cluster 0 that was cut off before its punch"] = { { "data-file-stale" }, { "data-file-stale" } },
  ["an encryption header's extension of another length"] = { { "crypto-pointer" }, { "crypto-pointer" } },
  ["two bitmaps of one name"] = { { "bitmap-same-name" } },
  ["a short data file"] = { { "data-file-short" }, { "data-file-short" } },
  ["a long data file"] = { { "data-file-long" }, { "data-file-long" } },
  ["a raw data file that goes on behind the disk's end"] = { { "data-file-long" }, { "data-file-long" } },
  ["a data file that is gone"] = { { "data-file-unseen" }, { "data-file-unseen" } },
  ["a snapshot whose L1 table lies between two clusters"] = { { "snapshot-l1-unaligned", "leak" } },
  ["a snapshot whose L1 table lies behind the end of the file"] = { { "l1-outside", "leak" } },
  ["a snapshot with too many L1 entries"] = { { "snapshot-l1-size", "leak" } },
  ["a snapshot beside a data file"] = { { "snapshot-data-file" }, { "snapshot-data-file" } },
  ["a bitmap with extra data"] = { { "bitmap-extra" } },
  ["a bitmap in use"] = { { "bitmap-in-use" } },
}

-- What the guest reads there is what was lost: the repair brings it back.
local BROUGHT_BACK = "COPIED lost for guest cluster 0 of a raw data file"

local function words(list)
  table.sort(list)
  return table.concat(list, " ")
end

local function found_words(report)
  local list = {}
  for kind in pairs(report.found) do list[#list + 1] = kind end
  return words(list)
end

local function contents(path)
  local img <close> = assert(qcow2.open(path, { damaged = true }))
  return mending.contents(img)
end

local function repair(path, want)
  local img <close> = assert(qcow2.open(path, { damaged = true, mode = "rw" }))
  return assert(img:repair(want))
end

-- Two notes are of images that qemu-img does not open.
local function is_sound(report)
  return report.corruptions == 0 and not report.found["data-file-unseen"] and not report.found["bitmap-extra"]
end

-- What qemu-img says of an image that has nothing but notes.
local function ask_qemu(path)
  local judged = qemu.img({ "check", "-f", "qcow2", path }, { cwd = path:match("^(.*)/") })
  assert.are.equal(0, judged.code, judged.stdout .. judged.stderr)
end

describe("A repair of", function()
  local dir
  lazy_setup(function() dir = tmp.dir() end)
  lazy_teardown(function() tmp.remove(dir) end)

  for number, damage in ipairs(damages.list) do
    local title, recipe, found = table.unpack(damage, 1, 3)
    local kept, kept_asked = table.unpack(left[title] or {}, 1, 2)
    it(title, function()
      local path = ("%s/%d.qcow2"):format(dir, number)
      recipe(path)
      local before = contents(path)
      local report = repair(path, { all = true })
      assert.are.equal(words(kept or {}), found_words(report))
      if title ~= BROUGHT_BACK then assert.is_nil(mending.lost(before, contents(path))) end
      if is_sound(report) then ask_qemu(path) end

      local bytes = sh.slurp(path)
      assert.are.equal(words(kept or {}), found_words(repair(path, { all = true })))
      assert.is_true(bytes == sh.slurp(path), "a second repair changes the image")

      local kinds = {}
      for kind in pairs(found) do
        if qcow2.problems[kind].repairable then kinds[#kinds + 1] = kind end
      end
      report = repair(path, { all = true, kinds = kinds })
      assert.are.equal(words(kept_asked or {}), found_words(report))
      if is_sound(report) then ask_qemu(path) end
    end)
  end

  describe("random damage", function()
    local many = os.getenv("Q2_LONG") and 2000 or 60

    -- May this be left? Guest data that overlaps the header from between two clusters stays, as that does.
    local function may_stay(report, kind, asked)
      local problem, found = qcow2.problems[kind], report.found
      if kind == "leak" then return report.incomplete end
      if problem.severity ~= "corruption" or not problem.repairable then return true end
      if kind == "l1-outside" or problem.on_request and not asked then return true end
      return not asked and found["data-unaligned"] and (kind == "overlap" or kind == "data-outside")
    end

    local kinds = {}
    for _, problem in ipairs(qcow2.problems) do
      if problem.repairable then kinds[#kinds + 1] = problem.kind end
    end

    it("loses nothing that could be read, and leaves nothing that can be repaired", function()
      local judged = 0
      for seed = 1, many do
        local rng = random.new("damage " .. seed)
        local path = dir .. "/random.qcow2"
        local bytes = mending.harmed(rng, path)
        local before = mending.contents_of(bytes)
        for _, want in ipairs { { all = true }, { all = true, kinds = kinds } } do
          local repaired, message, report = mending.repair(bytes, nil, nil, want)
          local about = ("seed %d, %s: "):format(seed, want.kinds and "kinds" or "all")
          if not repaired then
            assert.is_truthy(report == "conflict" and message:find("There is no room for new tables", 1, true),
              about .. message)
          else
            judged = judged + 1
            if not want.kinds then
              assert.is_nil(mending.lost(before, mending.contents_of(repaired)), about)
            end
            for kind in pairs(report.found) do
              assert.is_true(may_stay(report, kind, want.kinds) and true, about .. kind .. " is left")
            end
            if report.corruptions == 0 then
              sh.spit(path, repaired)
              ask_qemu(path)
            end
          end
        end
      end
      assert.is_true(judged > many)
    end)
  end)
end)

describe("A repair", function()
  local dir, path
  setup(function() dir = tmp.dir() end)
  teardown(function() tmp.remove(dir) end)
  before_each(function() path = dir .. "/image.qcow2" end)

  local function damage(recipe)
    os.remove(path)
    recipe(path)
    return path
  end

  it("of leaks alone lowers counts and gives the space back", function()
    damage(function() two(path, { length = 40 * CLUSTER }) end)
    poke.bytes(path, 20 * CLUSTER, ("x"):rep(10 * CLUSTER))
    for cluster = 20, 29 do poke.u16(path, refcount_at(cluster), 1) end
    poke.u16(path, refcount_at(6), 0)
    local img <close> = assert(qcow2.open(path, { damaged = true, mode = "rw" }))
    local spent = img.disk_size
    local report = assert(img:repair({ leaks = true }))
    assert.are.same({ 10, 0 }, { report.leaks_fixed, report.corruptions_fixed })
    assert.are.same({ ["refcount-low"] = 1, ["copied-data"] = 1 }, report.found)
    assert.is_true(img.disk_size <= spent - 9 * CLUSTER)
  end)

  it("of leaks alone is refused when a table cannot be followed: they may be none", function()
    damage(two)
    poke.u64(path, L1, COPIED | 1 << 30)
    local bytes = sh.slurp(path)
    local img <close> = assert(qcow2.open(path, { damaged = true, mode = "rw" }))
    local report, message, kind = img:repair({ leaks = true })
    assert.are.same({ nil, "conflict" }, { report, kind })
    assert.is_truthy(message:find("cannot be followed", 1, true))
    assert.is_true(bytes == sh.slurp(path))
  end)

  it("of leaks alone writes nothing in a place that something else claims too", function()
    -- The second L2 table is the refcount table, so the refcount block is what the guest has there.
    local at = forge.write(damage(function() end), { header = { cluster_bits = 9, size = 100 * 512 },
      clusters = { [0] = { data = "a" } }, length = 20 * 512, l1 = { [1] = 512 } })
    assert.are.same({ 512, 1024 }, { at.refcount_table, at.refcount_blocks[1] })
    for cluster = 10, 14 do poke.u16(path, 1024 + cluster * 2, 1) end
    -- Ours reads no such table, qemu-img does.
    local before = qemu.read_all(path, dir .. "/scratch.raw")
    assert.are.equal(1, before:byte(64 * 512 + 2 * 10 + 2))
    repair(path, { leaks = true })
    -- What a table that moved away has left behind is one more.
    assert.are.equal(0, repair(path, { leaks = true }).leaks)
    assert.is_true(before == qemu.read_all(path, dir .. "/scratch.raw"))
  end)

  it("does not let the file grow over the place of a lost table", function()
    damage(function() two(path, { refcount_table = { [1] = 1 << 30 } }) end)
    poke.u64(path, L1, COPIED | 7 * CLUSTER)
    local img <close> = assert(qcow2.open(path, { damaged = true, mode = "rw" }))
    local _, message, kind = img:repair({ all = true })
    assert.are.equal("conflict", kind)
    assert.is_truthy(message:find("must not grow over the place", 1, true))
    assert.are.same({}, assert(img:repair({ all = true, kinds = { "l2-outside" } })).found)
  end)

  it("relinks entries of a data file when it is asked to", function()
    forge.write(damage(function() end), { data_file = "image.data", data_bytes = dir .. "/image.data",
      clusters = { [0] = { data = ("a"):rep(CLUSTER) }, [1] = { data = ("b"):rep(CLUSTER) } } })
    poke.truncate(dir .. "/image.data", 1 << 20)
    local img <close> = assert(qcow2.open(path))
    local at = img.l1[0].offset
    img:close()
    poke.u64(path, at + 8, COPIED)
    assert.are.same({ ["data-file-offset"] = 1 }, repair(path, { all = true }).found)
    assert.are.same({}, repair(path, { kinds = { "data-file-offset" } }).found)
    local again <close> = assert(qcow2.open(path))
    assert.is_true(again:read(CLUSTER, CLUSTER) == ("b"):rep(CLUSTER))
  end)

  it("relinks both halves of an L2 table that two parts of a data file shared, at once", function()
    local at = forge.write(damage(function() end), { header = { cluster_bits = 9, size = 128 * 512 },
      data_file = "image.data", data_bytes = dir .. "/image.data",
      clusters = { [0] = { data = ("a"):rep(512) }, [1] = { data = ("b"):rep(512) },
        [65] = { data = ("c"):rep(512) } } })
    poke.truncate(dir .. "/image.data", 128 * 512)
    poke.u64(path, at.l1 + 8, COPIED | at.l2[0])
    assert.are.same({}, repair(path, { all = true, kinds = { "data-file-offset" } }).found)
    local img <close> = assert(qcow2.open(path))
    assert.is_true(img:read(512, 512) == ("b"):rep(512) and img:read(65 * 512, 512) == ("c"):rep(512))
  end)

  it("gives what several claim a place of its own, so that a write to one leaves the others alone", function()
    damage(function() two(path, { l2 = { [0] = { [2] = COPIED | L1, [3] = COPIED | L2 } } }) end)
    local before = contents(path)
    assert.are.same({}, repair(path, { all = true }).found)
    assert.is_nil(mending.lost(before, contents(path)))
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:write(2 * CLUSTER, ("n"):rep(CLUSTER)))
    assert(img:write(3 * CLUSTER, ("m"):rep(CLUSTER)))
    assert(img:close())
    local after = contents(path)
    assert.is_true(after["0"] == before["0"] and after[tostring(CLUSTER)] == before[tostring(CLUSTER)])
    assert.is_true(after[tostring(2 * CLUSTER)] == ("n"):rep(CLUSTER))
    ask_qemu(path)
  end)

  it("shows zeros, not the backing file, where data lay behind the end of the file", function()
    for _, version in ipairs { 2, 3 } do
      sh.spit(dir .. "/base.raw", ("B"):rep(1 << 20))
      damage(function()
        two(path, { backing_file = "base.raw", backing_format = "raw", header = { version = version },
          l2 = { [0] = { [4] = COPIED | 1 << 30, [5] = COPIED | 1 << 31 } } })
      end)
      local before = contents(path)
      assert.is_true(before[tostring(4 * CLUSTER)] == ("\0"):rep(CLUSTER))
      assert.are.same({}, repair(path, { all = true }).found)
      assert.is_nil(mending.lost(before, contents(path)))
      ask_qemu(path)
    end
  end)

  it("gives a snapshot without a disk size that of the disk, and a table that reaches so far", function()
    damage(function()
      forge.write(path, { header = { cluster_bits = 9, size = 100 * 512 }, clusters = { [0] = { data = "a" } },
        snapshots = { { extra = ("\0"):rep(8), l1_size = 1, clusters = { [3] = { data = "s" } } } } })
    end)
    local before = contents(path)
    assert.are.same({}, repair(path, { all = true }).found)
    assert.is_nil(mending.lost(before, contents(path)))
    local img <close> = assert(qcow2.open(path))
    assert.are.same({ 100 * 512, 2 }, { img.snapshots[1].size, img.snapshots[1].l1_entries })
    ask_qemu(path)
  end)

  it("makes counts wider when they are too narrow", function()
    damage(function()
      two(path, { header = { refcount_order = 0 }, clusters = { [0] = { data = "a" }, [1] = { host = DATA },
        [2] = { host = DATA }, [3] = { host = DATA } } })
    end)
    assert.are.same({}, repair(path, { all = true }).found)
    local img <close> = assert(qcow2.open(path))
    assert.are.equal(4, img.refcount_bits)
    assert.are.equal(4, img:refcount(DATA // CLUSTER))
  end)

  it("tells what it repaired", function()
    damage(function() two(path, { refcounts = { [6] = 0 } }) end)
    poke.flip(path, L2, COPIED)
    local report = repair(path, { all = true })
    local list = {}
    for i, finding in ipairs(report.repaired) do list[i] = finding.kind end
    assert.are.same({ "refcount-low", "copied-data" }, list)
    assert.are.same({ 0, 2 }, { report.leaks_fixed, report.corruptions_fixed })
  end)

  it("of an image that is being written to goes on with it", function()
    damage(function() two(path, { length = 10 * CLUSTER }) end)
    poke.u16(path, refcount_at(8), 1)
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:write(2 * CLUSTER, "written before"))
    assert.are.equal(1, assert(img:repair({ leaks = true })).leaks_fixed)
    assert(img:write(3 * CLUSTER, "written behind"))
    assert.are.equal("written before", img:read(2 * CLUSTER, 14))
    assert(img:close())
    assert.are.same({}, repair(path, { all = true }).found)
    ask_qemu(path)
  end)

  it("needs the image open for writing and something to do", function()
    damage(two)
    local img <close> = assert(qcow2.open(path))
    local _, _, kind = img:repair({ all = true })
    assert.are.equal("readonly", kind)
    assert.has_error(function() img:repair({}) end, "what to repair is missing: leaks, all or kinds")
    assert.has_error(function() img:repair({ kinds = { "lek" } }) end)
    assert.has_error(function() img:repair({ kinds = { "crypto-outside" } }) end)
    assert.has_error(function() img:repair({ everything = true }) end)
    local _, _, locked = qcow2.open(path, { damaged = true, mode = "rw" })
    assert.are.equal("locked", locked)
  end)

  it("leaves nothing to write to in an image opened for it alone", function()
    damage(two)
    local img <close> = assert(qcow2.open(path, { damaged = true, mode = "rw" }))
    local _, _, kind = img:write(0, "x")
    assert.are.equal("readonly", kind)
  end)

  describe("comes before the first write to an image that was not closed", function()
    it("and puts its counts right", function()
      damage(function() two(path, { header = { incompatible_features = 1, compatible_features = 1 },
        refcounts = { [4] = 0, [5] = 0, [6] = 0 } }) end)
      local img <close> = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:write(2 * CLUSTER, ("c"):rep(CLUSTER)))
      assert(img:close())
      local after = contents(path)
      assert.is_true(after["0"] == ("a"):rep(CLUSTER) and after[tostring(2 * CLUSTER)] == ("c"):rep(CLUSTER))
      ask_qemu(path)
    end)

    it("after qemu was killed with lazy counts", function()
      os.remove(path)
      qemu.create(path, { size = "8M", lazy_refcounts = true })
      sh.run({ "qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 2M", "-c", "flush", "-c", "sigraise 9", path })
      local img <close> = assert(qcow2.open(path))
      assert.is_true(img.dirty)
      img:close()
      local again <close> = assert(qcow2.open(path, { mode = "rw" }))
      assert.is_false(again.dirty)
      assert.is_true(again:read(1 << 20, 2 << 20) == ("\7"):rep(2 << 20))
      again:close()
      ask_qemu(path)
    end)

    it("and says so when that cannot be done", function()
      damage(function() two(path, { header = { incompatible_features = 1 } }) end)
      poke.u64(path, L1, COPIED | L2 + 512)
      local img, message, kind = qcow2.open(path, { mode = "rw" })
      assert.are.same({ nil, "corrupt" }, { img, kind })
      assert.is_truthy(message:find("was not closed and cannot be made sound", 1, true))
    end)

    it("but not when it is marked corrupt too", function()
      damage(function() two(path, { header = { incompatible_features = 3 } }) end)
      local bytes = sh.slurp(path)
      local _, _, kind = qcow2.open(path, { mode = "rw" })
      assert.are.equal("corrupt", kind)
      assert.is_true(bytes == sh.slurp(path))
    end)
  end)
end)
