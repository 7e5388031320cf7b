-- SPDX-License-Identifier: MIT
-- Amended images, judged by QEMU and the decoder: sound, the same disk and the same snapshots as before.
local decoder = require("spec.support.decoder")
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

-- What the disk and every snapshot hold, as QEMU reads them.
local function contents(path, snapshots)
  local all = { qemu.read_all(path, path .. ".raw") }
  for i, name in ipairs(snapshots or {}) do
    all[i + 1] = qemu.read_all(path, path .. ".raw", { snapshot = name })
  end
  return all
end

local function same(before, after)
  for i, bytes in ipairs(before) do
    assert.is_true(bytes == after[i], i == 1 and "the disk has changed" or "snapshot " .. i - 1 .. " has changed")
  end
end

local function amend(path, options)
  local img <close> = assert(qcow2.open(path, { mode = "rw" }))
  assert(img:amend(options))
  assert(img:close())
end

-- Sound for QEMU, for ours and for the decoder.
local function sound(path)
  local fine, text = qemu.sound(path)
  assert.is_true(fine, text)
  local image <close> = decoder.open(path)
  assert.same({}, image:problems())
end

local function sized(path, more)
  local o = { size = "3M" }
  for key, value in pairs(more or {}) do o[key] = value end
  qemu.create(path, o)
end

-- Data, compressed clusters, zeros with and without a place, by writes of ours and theirs, and two snapshots.
local function fill(path, plain)
  local second = plain and "write -P 2 512k 64k" or "write -c -P 2 512k 64k"
  qemu.io(path, { "write -P 1 0 300k", second, "write -z 640k 128k", "write -P 3 1M 128k",
    "write -z 1M 64k" })
  qemu.snapshot(path, "-c", "one")
  qemu.io(path, { "write -P 4 64k 64k", "write -z 0 64k", "write -z -u 128k 64k", "write -P 5 2M 64k",
    "write -z 2M 64k" })
  qemu.snapshot(path, "-c", "two")
  qemu.io(path, { "write -z 192k 64k", "write -P 6 1M 10k" })
end

describe("Amending", function()
  for _, bits in ipairs({ 2, 4, 8, 32, 64 }) do
    it(("gives counts %d bits, and back"):format(bits), function()
      local path = tmp.path()
      sized(path, { cluster_size = 4096 })
      fill(path, bits < 8) -- compressed clusters share one, which is counted for each
      local before = contents(path, { "one", "two" })
      amend(path, { refcount_bits = bits })
      sound(path)
      assert.equal(bits, qemu.info(path)["format-specific"].data["refcount-bits"])
      same(before, contents(path, { "one", "two" }))
      qemu.io(path, { "write -P 9 2500k 100k" })
      sound(path)
      amend(path, { refcount_bits = 16 })
      sound(path)
      qemu.snapshot(path, "-d", "one")
      sound(path)
    end)
  end

  it("refuses a width that a count does not fit, and changes nothing", function()
    local path = tmp.path()
    sized(path)
    fill(path)
    local before = sh.slurp(path)
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    local done, message, kind = img:amend({ refcount_bits = 1, lazy_refcounts = true })
    assert.is_nil(done)
    assert.equal("range", kind)
    assert.truthy(message:find("Cannot decrease refcount entry width to 1 bits: Cluster at offset", 1, true))
    assert(img:close())
    assert.is_true(before == sh.slurp(path))
  end)

  it("changes widths of images with many refcount blocks", function()
    local path = tmp.path()
    sized(path, { cluster_size = 512, size = "4M" })
    qemu.io(path, { "write -P 1 0 4M" })
    local before = contents(path)
    for _, bits in ipairs({ 1, 64, 2, 32, 16, 4 }) do
      amend(path, { refcount_bits = bits })
      sound(path)
    end
    same(before, contents(path))
  end)

  for _, backed in ipairs({ false, true }) do
    local of = backed and " over a backing file" or ""
    it("turns version 3 into version 2 and back, zeros, snapshots and all" .. of, function()
      local path = tmp.path()
      if backed then
        qemu.create(path .. ".base", { size = "3M" })
        qemu.io(path .. ".base", { "write -P 77 0 3M" })
      end
      sized(path, backed and { cluster_size = 4096, backing_file = "image.base", backing_fmt = "qcow2" }
        or { cluster_size = 4096 })
      fill(path)
      local before = contents(path, { "one", "two" })
      amend(path, { compat = "0.10" })
      sound(path)
      assert.equal("0.10", qemu.info(path)["format-specific"].data.compat)
      same(before, contents(path, { "one", "two" }))
      qemu.io(path, { "write -P 9 2M 4k" })
      qemu.io(path, { "write -P 5 2M 4k", "read -P 5 2M 4k" })
      local changed = contents(path, { "one", "two" })
      amend(path, { compat = "1.1", lazy_refcounts = true, refcount_bits = 8 })
      sound(path)
      same(changed, contents(path, { "one", "two" }))
      for _, name in ipairs({ "two", "one" }) do
        qemu.snapshot(path, "-a", name)
        sound(path)
        qemu.snapshot(path, "-d", name)
        sound(path)
      end
    end)
  end

  it("drops places kept under zeros of a snapshot, with COPIED following in the disk", function()
    local path = tmp.path()
    do
      local img <close> = made(path, { size = "1M", cluster_size = 4096 })
      assert(img:write(0, ("a"):rep(65536)))
      assert(img:snapshot_create("data"))
      assert(img:zero(0, 32768))
      assert(img:snapshot_create("zeros"))
      assert(img:snapshot_apply("data"))
      assert(img:snapshot_delete("data"))
    end
    local before = contents(path, { "zeros" })
    amend(path, { compat = "v2" })
    sound(path)
    same(before, contents(path, { "zeros" }))
  end)

  it("keeps long names of backing files when the header changes its length", function()
    local path = tmp.path()
    local name = ("n"):rep(200)
    qemu.create(path .. ".base", { size = "1M" })
    os.rename(path .. ".base", path:match("^(.*)/") .. "/" .. name)
    local long = ("./"):rep(400) .. name
    qemu.create(path, { backing_file = long, backing_fmt = "qcow2" })
    for _, compat in ipairs({ "0.10", "1.1", "0.10" }) do
      amend(path, { compat = compat })
      assert.equal(long, qemu.info(path)["backing-filename"])
      assert.equal("qcow2", qemu.info(path)["backing-filename-format"])
      sound(path)
    end
  end)

  it("refuses a name that leaves no room in the header cluster", function()
    local path = tmp.path()
    qemu.create(path, { size = "1M", cluster_size = 512 })
    local before = sh.slurp(path)
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    local done, _, kind = img:amend({ backing_file = ("n"):rep(420), backing_fmt = "qcow2", refcount_bits = 8 })
    assert.is_nil(done)
    assert.equal("nospace", kind)
    assert(img:close())
    assert.is_true(before == sh.slurp(path))
  end)

  it("gives snapshots of version 2 what version 3 wants of them", function()
    local path = tmp.path()
    qemu.create(path, { size = "1M", compat = "0.10" })
    qemu.io(path, { "write -P 1 0 64k" })
    qemu.snapshot(path, "-c", "s")
    do -- as old programs wrote them: without extra data
      local image <close> = decoder.open(path)
      local at = image.header.snapshots_offset
      local bytes = sh.slurp(path)
      local extra = string.unpack(">I4", bytes, at + 37)
      assert.is_true(extra > 0)
      local entry = bytes:sub(at + 1, at + 36) .. "\0\0\0\0" .. bytes:sub(at + 41 + extra, at + 41 + extra + 15)
      sh.spit(path, bytes:sub(1, at) .. entry .. ("\0"):rep(extra) .. bytes:sub(at + #entry + extra + 1))
    end
    assert.is_true(qemu.sound(path))
    amend(path, { compat = "1.1" })
    sound(path)
    local img <close> = assert(qcow2.open(path))
    assert.equal(16, #img.snapshots[1].extra_data)
    assert.equal(1 << 20, img.snapshots[1].disk_size or img.snapshots[1].size)
    assert.equal("s", img.snapshots[1].name)
  end)

  for _, extended in ipairs({ false, true }) do
    it("makes a raw data file: " .. (extended and "extended L2" or "plain"), function()
      local path = tmp.path()
      local data = path:gsub("image$", "data")
      qemu.create(path, { size = 3 << 20 | 512, data_file = "data", extended_l2 = extended })
      qemu.io(path, { "write -P 7 0 300k", "write -P 8 1M 200k", "write -z 1M 100k", "discard 64k 64k",
        "write -z 2000k 10k", "write -P 9 2001k 3k" })
      -- Stale bytes where the guest reads zeros.
      local file <close> = assert(io.open(data, "r+b"))
      file:seek("set", 2500 << 10)
      file:write(("stale"):rep(1000))
      file:close()
      local before = contents(path)
      amend(path, { data_file_raw = true })
      sound(path)
      same(before, contents(path))
      assert.is_true(before[1] == sh.slurp(data):sub(1, #before[1]))
      amend(path, { data_file_raw = false })
      assert.is_falsy(qemu.info(path)["format-specific"].data["data-file-raw"])
      sound(path)
    end)
  end

  it("lets no raw data file and backing file come together", function()
    local path = tmp.path()
    qemu.create(path .. ".base", { size = "1M" })
    qemu.create(path, { data_file = "data", backing_file = "image.base", backing_fmt = "qcow2" })
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    local done, _, kind = img:amend({ data_file_raw = true })
    assert.is_nil(done)
    assert.equal("conflict", kind)
    assert(img:amend({ data_file_raw = true, backing_file = false }))
    done, _, kind = img:amend({ backing_file = "image.base", backing_fmt = "qcow2" })
    assert.is_nil(done)
    assert.equal("conflict", kind)
    assert(img:amend({ backing_file = "image.base", backing_fmt = "qcow2", data_file_raw = false }))
    assert(img:close())
    sound(path)
  end)

  it("writes and reads on after every change, in one handle", function()
    local path = tmp.path()
    local img <close> = made(path, { size = "2M", cluster_size = 4096 })
    for i, o in ipairs({ { refcount_bits = 64 }, { lazy_refcounts = true }, { refcount_bits = 16 },
      { lazy_refcounts = false }, { compat = "0.10" }, { compat = "1.1" }, { refcount_bits = 1 },
      { size = "3M" }, { lazy_refcounts = true } }) do
      assert(img:write(i * 10000, string.char(64 + i):rep(9000)))
      assert(img:zero(i * 10000 + 500, 300))
      assert(img:amend(o))
      assert.equal(string.char(64 + i):rep(100), img:read(i * 10000, 100))
    end
    assert(img:write(2500000, "end"))
    assert(img:close())
    sound(path)
    qemu.io(path, { "read -P 65 10000 500", "read -P 0 10500 300", "read -P 73 98000 900" })
  end)
end)
