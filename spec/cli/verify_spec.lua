-- SPDX-License-Identifier: MIT
-- `verify`: every way in which a data file can differ from the disk is found, told, and mended on request.
local dkjson = require("dkjson")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local CLUSTER, SIZE = 65536, 20 * 65536 + 512
local COPIED, ZERO = 1 << 63, 1

-- A raw data file full of a pattern.
local function make(dir, options)
  local o = { size = SIZE, data_file = "data", data_file_raw = true }
  for key, value in pairs(options or {}) do o[key] = value end
  if o.data_file_raw == false then o.data_file_raw = nil end
  qemu.create(dir .. "/image", o)
  qemu.io(dir .. "/image", { ("write -P 7 0 %d"):format(SIZE) })
  -- qemu-img rounds the file up to a cluster.
  os.execute(("truncate -s %d %s/data"):format(SIZE, dir))
end

local function poke(path, offset, bytes)
  local file <close> = assert(io.open(path, "r+b"))
  file:seek("set", offset)
  file:write(bytes)
end

-- Sets the entry of a guest cluster, with extended L2 entries its subclusters' bits too.
local function set_entry(dir, cluster, word, bitmap)
  local at
  do
    local img <close> = assert(qcow2.open(dir .. "/image", { data_file = false }))
    at = img.l1[0].l2[cluster].file_offset
  end
  poke(dir .. "/image", at, string.pack(">i8", word) .. (bitmap and string.pack(">i8", bitmap) or ""))
end

local function verify(dir, ...)
  local ours = sh.qcow2({ "verify", "--output=json", ... }, { cwd = dir })
  assert.equal("", ours.stderr)
  local report = dkjson.decode(ours.stdout)
  local list = {}
  for i, d in ipairs(report.divergences) do list[i] = ("%s %d+%d"):format(d.cause, d.offset, d.length) end
  return list, ours.code, report
end

local function host(cluster)
  return cluster * CLUSTER | COPIED
end

local damages = {
  ["a zero flag over bytes"] = { word = host(3) | ZERO, finds = "zero 196608+65536", data = true, metadata = true },
  ["a zero flag without a place over bytes"] = { word = ZERO, finds = "zero 196608+65536", data = true,
    metadata = true },
  ["a discarded cluster over bytes"] = { word = 0, finds = "unallocated 196608+65536", data = true, metadata = true },
  ["a wrong offset"] = { word = host(5), finds = "wrong-offset 196608+65536", metadata = true },
  ["COPIED lost"] = { word = 3 * CLUSTER, finds = "not-copied 196608+65536", data = true, metadata = true },
  ["COPIED lost on cluster 0"] = { cluster = 0, word = 0, finds = "copied-lost 0+65536", data = true,
    metadata = true },
  ["a compressed cluster"] = { word = 1 << 62 | 0x50000, finds = "compressed 196608+65536", metadata = true },
}

describe("verify", function()
  it("says that the data file is the disk when it is", function()
    local dir = tmp.dir()
    make(dir)
    local ours = sh.qcow2({ "verify", "image" }, { cwd = dir })
    assert.equal("The data file is the disk.\n", ours.stdout)
    assert.equal(0, ours.code)
    local list, code, report = verify(dir, "image")
    assert.same({}, list)
    assert.equal(0, code)
    assert.is_true(report.raw and report.same)
    assert.equal("", sh.qcow2({ "verify", "-q", "image" }, { cwd = dir }).stdout)
  end)

  for name, damage in pairs(damages) do
    it("finds " .. name, function()
      local dir = tmp.dir()
      make(dir)
      set_entry(dir, damage.cluster or 3, damage.word)
      local before = sh.slurp(dir .. "/image")
      local list, code, report = verify(dir, "image")
      assert.same({ damage.finds }, list)
      assert.equal(2, code)
      assert.is_false(report.same)
      assert.is_true(before == sh.slurp(dir .. "/image"))
    end)

    for _, way in ipairs({ "data", "metadata" }) do
      it(("%s %s towards the %s"):format(damage[way] and "mends" or "cannot mend", name, way), function()
        local dir = tmp.dir()
        make(dir)
        set_entry(dir, damage.cluster or 3, damage.word)
        local file = sh.slurp(dir .. "/data")
        local list, code, report = verify(dir, "--to-" .. way, "image")
        assert.same({ damage.finds }, list)
        assert.equal(damage[way] and 0 or 2, code)
        assert.equal(damage[way] and 1 or 0, report.mended)
        if way == "metadata" then assert.is_true(file == sh.slurp(dir .. "/data")) end
        if damage[way] then
          assert.same({}, (verify(dir, "image")))
          assert.is_true(sh.slurp(dir .. "/data") == qemu.read_all(dir .. "/image", dir .. "/scratch"))
        end
      end)
    end
  end

  local function disk(dir)
    local img <close> = assert(qcow2.open(dir .. "/image"))
    return assert(img:read(0, img.size))
  end

  for name, case in pairs({
    ["an entry with a zero flag"] = { word = 3 * CLUSTER | ZERO,
      finds = { "not-copied 196608+65536", "zero 196608+65536" } },
    ["subclusters of which some are data"] = { extended_l2 = true,
      word = 3 * CLUSTER, bitmap = 1 << 63 | 1,
      finds = { "not-copied 196608+65536", "unallocated 198656+61440", "zero 260096+2048" } },
  }) do
    it("gives COPIED back to " .. name .. " and shows the same disk as before", function()
      local dir = tmp.dir()
      make(dir, { data_file_raw = false, extended_l2 = case.extended_l2 })
      set_entry(dir, 3, case.word, case.bitmap)
      local before = disk(dir)
      local list, code = verify(dir, "--to-data", "image")
      assert.same(case.finds, list)
      assert.equal(0, code)
      assert.is_true(before == disk(dir))
      assert.is_true(before == sh.slurp(dir .. "/data"))
      assert.same({}, (verify(dir, "image")))
    end)
  end

  it("finds a data file that is too short, and gives it its length", function()
    for _, way in ipairs({ "--to-data", "--to-metadata" }) do
      local dir = tmp.dir()
      make(dir)
      os.execute(("truncate -s %d %s/data"):format(17 * CLUSTER + 100, dir))
      local list, code = verify(dir, "image")
      assert.same({ ("short %d+%d"):format(17 * CLUSTER + 100, SIZE - 17 * CLUSTER - 100) }, list)
      assert.equal(2, code)
      assert.equal(0, select(2, verify(dir, way, "image")))
      assert.equal(SIZE, #sh.slurp(dir .. "/data"))
      assert.same({}, (verify(dir, "image")))
    end
  end)

  it("finds that a raw file goes on behind the disk's end, and cuts it", function()
    local dir = tmp.dir()
    make(dir)
    os.execute(("truncate -s %d %s/data"):format(SIZE + CLUSTER, dir))
    assert.same({ ("tail %d+%d"):format(SIZE, CLUSTER) }, (verify(dir, "image")))
    assert.equal(2, select(2, verify(dir, "--to-metadata", "image")))
    assert.equal(0, select(2, verify(dir, "--to-data", "image")))
    assert.same({}, (verify(dir, "image")))
    assert.equal(SIZE, #sh.slurp(dir .. "/data"))
  end)

  it("finds bytes behind the disk's end, but takes zeros there for nothing in a file that is not raw", function()
    local dir = tmp.dir()
    make(dir, { data_file_raw = false })
    os.execute(("truncate -s %d %s/data"):format(SIZE + CLUSTER, dir))
    assert.same({}, (verify(dir, "image")))
    poke(dir .. "/data", SIZE + 1024, ("s"):rep(512))
    assert.same({ ("tail %d+512"):format(SIZE + 1024) }, (verify(dir, "image")))
    assert.equal(2, select(2, verify(dir, "--to-metadata", "image")))
    assert.equal(0, select(2, verify(dir, "--to-data", "image")))
    assert.same({}, (verify(dir, "image")))
    assert.equal(SIZE + CLUSTER, #sh.slurp(dir .. "/data"))
  end)

  it("tells of the very sectors that differ, and of ranges once", function()
    local dir = tmp.dir()
    make(dir, { data_file_raw = false })
    qemu.io(dir .. "/image", { "write -z 256k 256k" })
    poke(dir .. "/data", 256 << 10, ("\0"):rep(256 << 10))
    poke(dir .. "/data", 300 << 10, ("s"):rep(700))
    poke(dir .. "/data", 384 << 10, ("s"):rep(65536 + 512))
    local list, code, report = verify(dir, "image")
    assert.same({ "zero 307200+1024", "zero 393216+66048" }, list)
    assert.equal(2, code)
    assert.is_false(report.raw)
    local text = sh.qcow2({ "verify", "image" }, { cwd = dir }).stdout
    assert.truthy(text:find("0x4b000+0x400 zero: the tables say zeros", 1, true))
    assert.truthy(text:find("2 differences. The image does not promise a raw data file.", 1, true))
  end)

  it("looks into subclusters", function()
    local dir = tmp.dir()
    make(dir, { data_file_raw = false, extended_l2 = true })
    qemu.io(dir .. "/image", { "write -z 68k 2k" })
    poke(dir .. "/data", 68 << 10, ("s"):rep(2048))
    assert.same({ "zero 69632+2048" }, (verify(dir, "image")))
    assert.equal(0, select(2, verify(dir, "--to-metadata", "image")))
    assert.is_true(sh.slurp(dir .. "/data") == qemu.read_all(dir .. "/image", dir .. "/scratch"))
    assert.is_true(qemu.sound(dir .. "/image"))
  end)

  it("marks in bitmaps what the guest reads anew", function()
    local dir = tmp.dir()
    make(dir, { data_file_raw = false })
    qemu.io(dir .. "/image", { "write -z 128k 64k" })
    poke(dir .. "/data", 128 << 10, ("s"):rep(65536))
    qemu.bitmap(dir .. "/image", "b", "--add", "-g", "64k")
    verify(dir, "--to-metadata", "image")
    local img <close> = assert(qcow2.open(dir .. "/image"))
    local list = {}
    for offset, length in img:bitmap("b"):extents() do list[#list + 1] = { offset, length } end
    assert.same({ { 131072, 65536 } }, list)
  end)

  it("knows that a backing file is not the data file, and does not hide it", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/base", { size = SIZE })
    qemu.create(dir .. "/image", { backing_file = "base", backing_fmt = "qcow2", data_file = "data" })
    assert.same({ ("backing 0+%d"):format(SIZE) }, (verify(dir, "image")))
    local ours = sh.qcow2({ "verify", "--to-metadata", "image" }, { cwd = dir })
    assert.equal(1, ours.code)
    assert.truthy(ours.stderr:find("backing file", 1, true))
  end)

  it("takes no time over a huge disk with nothing in it", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/image", { size = "1T", data_file = "data" })
    for _, way in ipairs({ "-q", "--to-metadata", "--to-data" }) do
      local ours = sh.qcow2({ "verify", way, "image" }, { cwd = dir, timeout = 10 })
      assert.equal(0, ours.code)
    end
  end)

  it("refuses what has no data file, what misses it, and both directions at once", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/plain", { size = "1M" })
    local function refused(part, ...)
      local ours = sh.qcow2({ "verify", ... }, { cwd = dir })
      assert.equal(1, ours.code)
      assert.truthy(ours.stderr:find(part, 1, true), ours.stderr)
    end
    refused("no external data file", "plain")
    refused("exclude one another", "--to-data", "--to-metadata", "plain")
    refused("Expecting one image file name")
    make(dir)
    os.remove(dir .. "/data")
    refused("No such file or directory", "image")
  end)
end)
