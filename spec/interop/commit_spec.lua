-- SPDX-License-Identifier: MIT
-- Twins: qemu-img commits one copy of a chain, ours the other; both hold the same disks afterwards.
local chains = require("spec.support.chains")
local make_image = require("spec.support.made")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function format_of(flavour, layer)
  return flavour[layer].format or "qcow2"
end

local function all(dir, flavour)
  local disks = {}
  for _, layer in ipairs({ "base", "mid", "top" }) do
    disks[layer] = qemu.read_all(dir .. "/" .. layer, dir .. "/scratch", { source_format = format_of(flavour, layer) })
  end
  return disks
end

local function sound(dir, flavour)
  for _, layer in ipairs({ "base", "mid", "top" }) do
    if format_of(flavour, layer) == "qcow2" then
      assert.is_true(qemu.sound(dir .. "/" .. layer))
    end
  end
end

-- What the layer itself holds of the disk, without those below.
local function allocated(path)
  local bytes = 0
  for _, e in ipairs(qemu.map(path)) do
    bytes = bytes + (e.depth == 0 and e.present ~= false and e.length or 0)
  end
  return bytes
end

describe("Commit", function()
  for _, name in ipairs(chains.names()) do
    describe("of a chain: " .. name .. ":", function()
      local made, flavour

      lazy_setup(function()
        made = tmp.dir()
        flavour = chains.make(made, name)
      end)

      local function twins(words)
        local ours, theirs = tmp.dir(), tmp.dir()
        sh.check(("cp %s/* %s && cp %s/* %s"):format(made, ours, made, theirs))
        local before = all(ours, flavour).top
        assert.equal(0, qemu.img({ "commit", table.unpack(words) }, { cwd = theirs }).code)
        local result = sh.qcow2({ "commit", table.unpack(words) }, { cwd = ours })
        assert.equal("", result.stderr)
        assert.equal("Image committed.\n", result.stdout)
        sound(ours, flavour)
        local got, want = all(ours, flavour), all(theirs, flavour)
        assert.is_true(got.top == before)
        for layer, disk in pairs(want) do
          assert.is_true(got[layer] == disk, layer)
        end
        return ours, theirs
      end

      it("top into mid", function()
        local ours, theirs = twins({ "top" })
        assert.equal(0, allocated(ours .. "/top"))
        -- What QEMU cuts off ours cuts off too.
        assert.equal(qemu.info(theirs .. "/mid")["virtual-size"], qemu.info(ours .. "/mid")["virtual-size"])
      end)

      it("top into mid, top kept", function()
        local ours = twins({ "-d", "top" })
        assert.is_true(sh.slurp(made .. "/top") == sh.slurp(ours .. "/top"))
      end)

      it("top and mid into base", function()
        local ours = twins({ "-b", "base", "top" })
        for _, layer in ipairs({ "mid", "top" }) do
          assert.is_true(sh.slurp(made .. "/" .. layer) == sh.slurp(ours .. "/" .. layer))
        end
      end)
    end)
  end

  it("into an image with snapshots and back leaves the snapshots alone", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/base", { size = "2M" })
    qemu.io(dir .. "/base", { "write -P 1 0 1M" })
    qemu.snapshot(dir .. "/base", "-c", "then")
    qemu.create(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2" })
    qemu.io(dir .. "/top", { "write -P 2 500k 1M", "write -z 0 100k" })
    local disk = qemu.read_all(dir .. "/top", dir .. "/scratch")
    local job = assert(qcow2.commit(dir .. "/top"))
    assert(job:run())
    assert.is_true(qemu.sound(dir .. "/base"))
    assert.is_true(qemu.sound(dir .. "/top"))
    assert.is_true(disk == qemu.read_all(dir .. "/base", dir .. "/scratch"))
    assert.equal(("\1"):rep(1 << 20) .. ("\0"):rep(1 << 20),
      qemu.read_all(dir .. "/base", dir .. "/scratch", { snapshot = "then" }))
  end)

  it("refuses to change what a snapshot of the image shows, before a byte is written", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/base", { size = "2M" })
    qemu.io(dir .. "/base", { "write -P 1 0 1M" })
    qemu.create(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2" })
    qemu.io(dir .. "/top", { "write -P 2 0 64k" })
    qemu.snapshot(dir .. "/top", "-c", "then")
    local base, top = sh.slurp(dir .. "/base"), sh.slurp(dir .. "/top")
    -- All that the disk has the snapshot has too.
    assert(assert(qcow2.commit(dir .. "/top", { keep = true })):run())
    assert.is_true(top == sh.slurp(dir .. "/top"))
    sh.spit(dir .. "/base", base)
    qemu.io(dir .. "/top", { "write -P 3 512k 64k" })
    top = sh.slurp(dir .. "/top")
    local done, message, kind = assert(qcow2.commit(dir .. "/top")):run()
    assert.is_nil(done)
    assert.equal("conflict", kind)
    assert.truthy(message:find("Internal snapshot number 1", 1, true))
    assert.is_true(base == sh.slurp(dir .. "/base"))
    assert.is_true(top == sh.slurp(dir .. "/top"))
  end)

  it("moves data files' contents, into data files too", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/base", { size = "2M", data_file = "base.raw" })
    qemu.io(dir .. "/base", { "write -P 1 0 1M" })
    qemu.create(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2", data_file = "top.raw", size = "3M" })
    qemu.io(dir .. "/top", { "write -P 2 500k 1M", "write -z 0 128k", "write -P 3 2500k 100k" })
    local disk = qemu.read_all(dir .. "/top", dir .. "/scratch")
    assert(assert(qcow2.commit(dir .. "/top")):run())
    assert.is_true(qemu.sound(dir .. "/base"))
    assert.is_true(qemu.sound(dir .. "/top"))
    assert.is_true(disk == qemu.read_all(dir .. "/base", dir .. "/scratch"))
    assert.is_true(disk == qemu.read_all(dir .. "/top", dir .. "/scratch"))
    assert.equal(0, allocated(dir .. "/top"))
  end)

  it("follows no base that was only guessed to be raw", function()
    local dir = tmp.dir()
    sh.spit(dir .. "/base", ("x"):rep(65536))
    qemu.create(dir .. "/top", { backing_file = "base", backing_fmt = "raw" })
    qemu.io(dir .. "/top", { "write -P 1 0 4k" })
    do
      local img <close> = assert(qcow2.open(dir .. "/top", { mode = "rw" }))
      assert(require("qcow2.image").raw.set_backing(img, "base", nil))
    end
    local job, message = qcow2.commit(dir .. "/top")
    assert.is_nil(job)
    assert.truthy(message:find("taken for raw by probing", 1, true))
    assert.equal(("x"):rep(65536), sh.slurp(dir .. "/base"))
  end)

  it("opens no base outside the allowed directories", function()
    local dir, other = tmp.dir(), tmp.dir()
    qemu.create(other .. "/base", { size = "1M" })
    qemu.create(dir .. "/top", { backing_file = other .. "/base", backing_fmt = "qcow2" })
    local job, _, kind = qcow2.commit(dir .. "/top")
    assert.is_nil(job)
    assert.equal("refused", kind)
    assert(assert(qcow2.commit(dir .. "/top", { references = { other } })):run())
  end)

  it("leaves an overlay that was large writable: no old table is taken for one that is", function()
    local dir, between = tmp.dir(), 512 << 30 -- bytes of the disk that an L2 table covers
    assert(qcow2.create(dir .. "/base", { size = "6T", cluster_size = "2M" }))
    do
      local img <close> = make_image(dir .. "/top", { size = "6T", cluster_size = "2M", backing_file = "base",
        backing_fmt = "qcow2" })
      -- The snapshot leaves room at the file's begin, where the emptied overlay has its tables.
      assert(img:snapshot_create("x"))
      assert(img:snapshot_delete("x"))
      for number = 0, 9 do
        assert(img:write(number * between, ("\xff"):rep(4096)))
      end
    end
    local img <close> = assert(qcow2.open(dir .. "/top", { mode = "rw" }))
    assert(assert(qcow2.commit(img)):run())
    assert(img:write(between // 2, "again"))
    assert(img:close())
    assert.is_true(qemu.sound(dir .. "/top"))
  end)
end)
