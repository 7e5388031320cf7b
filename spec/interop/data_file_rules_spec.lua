-- SPDX-License-Identifier: MIT
-- External data files where QEMU trips: each rule once, from creation to the file's bytes, with QEMU going on where
-- it can.
local poke = require("spec.support.poke")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local KIB <const>, MIB <const> = 1 << 10, 1 << 20

local function zeros(length)
  return ("\0"):rep(length)
end

local function punched(path, offset, length)
  sh.check({ "fallocate", "-p", "-o", tostring(offset), "-l", tostring(length), path })
end

describe("An external data file", function()
  local dir, path, data

  before_each(function()
    dir = tmp.dir()
    path, data = dir .. "/image", dir .. "/data"
  end)

  local function make(options)
    options.size, options.data_file = options.size or "1M", "data"
    assert(qcow2.create(path, options))
    return assert(qcow2.open(path, { mode = "rw" }))
  end

  local function ours(words)
    return sh.qcow2(words, { cwd = dir })
  end

  it("lies where its name leads from the image, not from the current directory", function()
    sh.check({ "mkdir", dir .. "/deep" })
    assert.equal(0, ours({ "create", "-q", "-f", "qcow2", "-o", "data_file=d", "deep/x", "1M" }).code)
    assert.equal(MIB, #sh.slurp(dir .. "/deep/d"))
    local info = qemu.decode(ours({ "info", "--output=json", "deep/x" }).stdout)["format-specific"].data
    assert.equal("d", info["data-file"])
    assert.equal("deep/d", info["data-file-path"])
    os.rename(dir .. "/deep/d", dir .. "/d")
    local result = ours({ "convert", "-O", "raw", "deep/x", "out" })
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("'deep/d': No such file or directory (a file of that name is in the current "
      .. "directory, but names count from the image's directory)", 1, true))
    local img <close> = assert(qcow2.open(dir .. "/deep/x", { data_file = dir .. "/d" }))
    assert.equal(zeros(MIB), assert(img:read(0, MIB)))
  end)

  it("is not touched by adopting it, and QEMU reads and writes what was adopted", function()
    for _, raw in ipairs({ true, false }) do
      local disk = random.new("adopted"):bytes(100 * KIB) .. zeros(200 * KIB) .. ("e"):rep(MIB)
      sh.spit(data, disk)
      punched(data, 128 * KIB, 128 * KIB)
      os.remove(path)
      assert(qcow2.adopt(data, path, { data_file_raw = raw }))
      assert.equal(disk, sh.slurp(data))
      qemu.io(path, { "read -P 101 307200 1M", "write -P 7 64k 200k" })
      assert(qemu.sound(path))
      local img <close> = assert(qcow2.open(path))
      assert.equal(("\7"):rep(200 * KIB), assert(img:read(64 * KIB, 200 * KIB)))
      assert.equal(disk:sub(1, 64 * KIB), sh.slurp(data):sub(1, 64 * KIB))
    end
  end)

  for _, extended in ipairs({ false, true }) do
    for _, size in ipairs({ MIB, 1000448 }) do
      it(("that is raw is the disk after each change: %d bytes%s"):format(size, extended and ", extended L2" or ""),
        function()
          local img = make({ size = size, data_file_raw = true, extended_l2 = extended })
          local disk = zeros(size)
          local function is_disk()
            assert.is_true(sh.slurp(data) == disk)
          end
          local function put(offset, bytes)
            disk = disk:sub(1, offset) .. bytes .. disk:sub(offset + #bytes + 1)
          end
          is_disk()
          assert(img:write(0, ("a"):rep(size)))
          put(0, ("a"):rep(size))
          is_disk()
          for _, change in ipairs({ { "discard", 1000, 200000 }, { "zero", 300000, 70000 },
            { "zero", 400000, 100, { unmap = true } }, { "discard", size - 5000, 5000 } }) do
            assert(img[change[1]](img, table.unpack(change, 2)))
            put(change[2], zeros(change[3]))
            is_disk()
          end
          assert(img:resize(3 * MIB))
          put(size, zeros(3 * MIB - size))
          is_disk()
          assert(img:write(2 * MIB, ("b"):rep(MIB)))
          assert(img:resize(size + 512 * KIB, { shrink = true }))
          disk = disk:sub(1, size + 512 * KIB)
          is_disk()
          assert(img:resize(2 * MIB + 512))
          disk = disk .. zeros(2 * MIB + 512 - #disk)
          is_disk()
          assert(img:close())
          assert(qemu.sound(path))
          -- Every cluster is mapped to its own offset.
          local map = qemu.map(path)
          for _, extent in ipairs(map) do
            if extent.data then assert.equal(extent.start, extent.offset) end
          end
          qemu.io(path, { "write -P 9 512k 64k" })
          put(512 * KIB, ("\9"):rep(64 * KIB))
          assert.equal(disk, sh.slurp(data):sub(1, #disk))
        end)
    end
  end

  it("knows guest cluster 0, whose place is offset 0 with COPIED", function()
    local img = make({ cluster_size = "64K" })
    assert(img:write(0, ("x"):rep(64 * KIB)))
    assert.equal(1 << 63, img.l1[0].l2[0].raw)
    local table_at = img.l1[0].offset
    assert(img:close())
    qemu.io(path, { "read -P 120 0 64k", "write -P 5 512 512" })
    poke.flip(path, table_at, 1 << 63)
    assert(qemu.sound(path)) -- which sees zeros there
    local result = ours({ "check", "image" })
    assert.equal(0, result.code)
    assert.truthy((result.stdout .. result.stderr):find("Guest cluster 0 is not allocated, but the external data file "
      .. "has bytes there", 1, true))
    -- What was discarded, or looks so, does not come back.
    assert.equal(0, ours({ "check", "-r", "all", "image" }).code)
    img = assert(qcow2.open(path))
    assert.is_true(img:read(0, 64 * KIB) == ("\0"):rep(64 * KIB))
    img:close()
  end)

  it("is never written at another offset than the guest's", function()
    local img = make({ cluster_size = "64K" })
    assert(img:write(0, ("x"):rep(256 * KIB)))
    local table_at = img.l1[0].offset
    assert(img:close())
    poke.u64(path, table_at + 8, 1 << 63 | 3 * 64 * KIB)
    local before = sh.slurp(data)
    img = assert(qcow2.open(path, { mode = "rw" }))
    for _, call in ipairs({ { "read", 64 * KIB, 1 }, { "write", 64 * KIB, "y" },
      { "write", 0, ("y"):rep(128 * KIB) } }) do
      local done, message, kind = img[call[1]](img, table.unpack(call, 2))
      assert.is_nil(done)
      assert.equal("corrupt", kind)
      assert.truthy(message:find("differs from the guest offset", 1, true))
    end
    img:close()
    assert.equal(before:sub(64 * KIB + 1), sh.slurp(data):sub(64 * KIB + 1))
    assert.equal(2, ours({ "check", "image" }).code)
  end)

  it("may be shorter than the disk, which info and check tell", function()
    local img = make({})
    assert(img:write(0, ("x"):rep(MIB)))
    assert(img:close())
    sh.check({ "truncate", "-s", "100k", data })
    img = assert(qcow2.open(path))
    assert.equal(100 * KIB, img.data_file_length)
    assert.equal(("x"):rep(100 * KIB) .. zeros(924 * KIB), assert(img:read(0, MIB)))
    img:close()
    assert.truthy(ours({ "info", "image" }).stdout:find("it ends after 102400 bytes; what is missing reads as zeros", 1,
      true))
    local result = ours({ "check", "image" })
    assert.truthy((result.stdout .. result.stderr):find("The external data file is shorter than the disk", 1, true))
    qemu.io(path, { "read -P 120 0 100k", "read -P 0 100k 924k" })
  end)

  it("may be longer than the disk, whose growth shows none of its old bytes", function()
    for _, mode in ipairs({ "off", "metadata", "falloc", "full" }) do
      os.remove(path)
      os.remove(data)
      local img = make({})
      assert(img:close())
      local file <close> = assert(io.open(data, "r+b"))
      file:seek("set", MIB)
      file:write(("old"):rep(MIB))
      file:close()
      assert.truthy(ours({ "check", "image" }).stderr:find("longer than the disk", 1, true))
      img = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:resize(2 * MIB, { preallocation = mode }))
      assert(img:write(MIB + 70000, "new"))
      assert.equal(zeros(MIB + 70000) .. "new" .. zeros(MIB - 70003), assert(img:read(0, 2 * MIB)))
      assert(img:close())
      qemu.io(path, { "read -P 0 1M 64k" })
      assert.equal("ldo", sh.slurp(data):sub(2 * MIB + 1, 2 * MIB + 3)) -- behind the disk nothing was touched
    end
  end)

  it("shows its holes as zeros, which a conversion does not read", function()
    local img = make({ size = "64M", data_file_raw = true })
    assert(img:write(10 * MIB, ("x"):rep(MIB)))
    assert(img:close())
    local map = qemu.decode(ours({ "map", "--output=json", "image" }).stdout)
    local data_bytes = 0
    for _, extent in ipairs(map) do data_bytes = data_bytes + (extent.zero and 0 or extent.length) end
    assert.equal(MIB, data_bytes)
    assert.equal(0, ours({ "convert", "-O", "raw", "image", "out" }).code)
    assert.is_true(sh.slurp(dir .. "/out") == sh.slurp(data))
  end)

  it("has no compressed clusters and no snapshots: refused before anything is made or changed", function()
    local img <close> = make({})
    local before = sh.slurp(path)
    for kind, call in pairs({ conflict = { "write_compressed", 0, zeros(64 * KIB) },
      unsupported = { "snapshot_create", "s" } }) do
      local done, _, word = img[call[1]](img, table.unpack(call, 2))
      assert.is_nil(done)
      assert.equal(kind, word)
    end
    assert.equal(before, sh.slurp(path))
    sh.spit(dir .. "/source", ("s"):rep(MIB))
    assert.equal(1, ours({ "convert", "-c", "-O", "qcow2", "-o", "data_file=new.data", "source", "new" }).code)
    assert.is_nil(io.open(dir .. "/new"))
    assert.is_nil(io.open(dir .. "/new.data"))
  end)

  it("that is raw allows neither encryption nor a backing file, and can be made so later", function()
    sh.spit(dir .. "/base", ("b"):rep(MIB))
    for _, option in ipairs({ "encrypt.format=luks", "backing_file=base,backing_fmt=raw" }) do
      option = "data_file=n,data_file_raw=on," .. option
      assert.equal(1, ours({ "create", "-f", "qcow2", "-o", option, "new", "1M" }).code)
      assert.is_nil(io.open(dir .. "/n"))
    end
    local img = make({})
    assert(img:write(0, ("x"):rep(MIB)))
    assert(img:zero(100 * KIB, 400 * KIB))
    assert(img:close())
    assert.equal(0, ours({ "amend", "-o", "data_file_raw=on", "image" }).code)
    assert.equal(("x"):rep(100 * KIB) .. zeros(400 * KIB) .. ("x"):rep(524 * KIB), sh.slurp(data))
    assert(qemu.sound(path))
    assert.is_true(qemu.info(path)["format-specific"].data["data-file-raw"])
  end)

  it("is counted apart by measure", function()
    local result = ours({ "measure", "-O", "qcow2", "--size", "1G", "-o", "data_file=x", "--output=json" })
    assert.equal("", result.stderr)
    local figures = qemu.decode(result.stdout)
    assert.is_true(figures.required < MIB)
    local total = 0
    for _, value in pairs(figures) do total = math.max(total, value) end
    assert.is_true(total >= 1 << 30)
  end)

  it("may be a block device", function()
    sh.check({ "truncate", "-s", "8M", dir .. "/disk" })
    local device = sh.run({ "losetup", "-f", "--show", dir .. "/disk" })
    if device.code ~= 0 then return pending("no loop devices here") end
    local name = device.stdout:match("%S+")
    finally(function() sh.run({ "losetup", "-d", name }) end)
    assert.equal(0, ours({ "adopt", name, "image" }).code)
    local img = assert(qcow2.open(path, { mode = "rw", data_file = name }))
    assert.equal(8 * MIB, img.size)
    assert(img:write(MIB, ("x"):rep(MIB)))
    assert(img:discard(MIB, 64 * KIB))
    assert(img:close())
    assert.equal(zeros(MIB + 64 * KIB) .. ("x"):rep(MIB - 64 * KIB) .. zeros(6 * MIB), sh.slurp(name))
    assert(qemu.sound(path))
  end)
end)
