-- SPDX-License-Identifier: MIT
-- `adopt`: an image around a raw disk, of which not one byte is written.
local lfs = require("lfs")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("adopt", function()
  local dir, disk

  local function adopt(...)
    return sh.qcow2({ "adopt", ... }, { cwd = dir })
  end

  lazy_setup(function()
    dir = tmp.dir()
    disk = dir .. "/disk.raw"
    -- 3 MiB and a bit: data, a hole, data that ends inside a cluster, a hole up to the end.
    sh.check({ "truncate", "-s", tostring((3 << 20) + 1536), disk })
    qemu.io(disk, { "write -P 1 0 100k", "write -P 2 1M 70000", "write -P 3 2M 512" }, { format = "raw" })
    sh.check({ "chmod", "444", disk })
  end)

  lazy_teardown(function() tmp.remove(dir) end)

  before_each(function() os.remove(dir .. "/side") end)

  local function stamp()
    local a = lfs.attributes(disk)
    return ("%d %d %d %d"):format(a.size, a.blocks, a.modification, a.change)
  end

  for _, options in ipairs({ "", "raw=on", "raw=off", "raw=off,holes=data", "raw=off,extended_l2=on",
    "raw=off,holes=data,extended_l2=on", "raw=on,extended_l2=on", "raw=off,cluster_size=512",
    "raw=off,cluster_size=2M", "raw=on,refcount_bits=1,lazy_refcounts=on,compression_type=zstd,cluster_size=4k" }) do
    it(("makes the disk an image's contents with -o '%s'"):format(options), function()
      local bytes, before = sh.slurp(disk), stamp()
      local words = { "-q", "disk.raw", "side" }
      if options ~= "" then
        table.insert(words, 1, "-o")
        table.insert(words, 2, options)
      end
      local result = adopt(table.unpack(words))
      assert.equal("", result.stderr)
      assert.equal("", result.stdout)
      assert.equal(0, result.code)
      assert.equal(before, stamp())
      assert.is_true(qemu.sound(dir .. "/side"))
      local info = qemu.info(dir .. "/side")
      assert.equal(#bytes, info["virtual-size"])
      assert.equal("disk.raw", info["format-specific"].data["data-file"])
      assert.equal(not options:find("raw=off", 1, true), info["format-specific"].data["data-file-raw"])
      assert.is_true(bytes == qemu.read_all(dir .. "/side", dir .. "/scratch"))
      local image <close> = assert(qcow2.open(dir .. "/side"))
      assert.is_true(bytes == assert(image:read(0, #bytes)))
    end)
  end

  it("notes the holes as zeros when the disk need not stay raw", function()
    assert.equal(0, adopt("-q", "-o", "raw=off", "disk.raw", "side").code)
    local zeros = 0
    for _, e in ipairs(qemu.map(dir .. "/side")) do
      if e.zero and not e.data then
        zeros = zeros + e.length
      end
    end
    -- Clusters 0-1, 16-17 and 32 have data.
    assert.equal((3 << 20) + 1536 - 5 * 65536, zeros)
    assert.equal(0, adopt("-q", "-o", "raw=off,holes=data,overwrite=on", "disk.raw", "side").code)
    for _, e in ipairs(qemu.map(dir .. "/side")) do
      assert.is_true(e.data)
    end
  end)

  it("lets QEMU write to it, as to any raw disk", function()
    sh.check({ "cp", disk, dir .. "/copy.raw" })
    sh.check({ "chmod", "644", dir .. "/copy.raw" })
    assert.equal(0, adopt("-q", "copy.raw", "side").code)
    qemu.io(dir .. "/side", { "write -P 9 500k 64k", "write -z 0 64k" })
    assert.is_true(qemu.sound(dir .. "/side"))
    qemu.io(dir .. "/copy.raw", { "read -P 9 500k 64k", "read -P 0 0 64k" }, { format = "raw" })
  end)

  it("says what it makes", function()
    local result = adopt("disk.raw", "side")
    assert.equal("Formatting 'side', fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib size=3147264 "
      .. "data_file=disk.raw data_file_raw=on keep_data_file=on lazy_refcounts=off refcount_bits=16\n", result.stdout)
  end)

  it("names the disk by where it lies seen from the image", function()
    lfs.mkdir(dir .. "/sub")
    sh.check({ "cp", disk, dir .. "/sub/d,1" })
    assert.equal("", adopt("-q", "sub/d,1", "side").stderr)
    assert.equal("sub/d,1", qemu.info(dir .. "/side")["format-specific"].data["data-file"])
    assert.equal("", adopt("-q", "disk.raw", "sub/side").stderr)
    local name = qemu.info(dir .. "/sub/side")["format-specific"].data["data-file"]
    assert.equal("/disk.raw", name:match("^/.*(/disk%.raw)$"))
    os.remove(dir .. "/sub/side")
  end)

  for _, case in ipairs({
    { { "disk.raw" }, "Expecting a raw disk and the name of an image\nTry 'qcow2 adopt --help' for more info" },
    { { "none.raw", "side" }, "side: Could not open 'none.raw': No such file or directory" },
    { { "disk.raw", "disk.raw" }, "disk.raw: 'disk.raw' exists; the option overwrite would discard what it holds" },
    { { "-o", "overwrite=on", "disk.raw", "disk.raw" }, "disk.raw: 'disk.raw' cannot be its own data file" },
    { { "-o", "data_file=x", "disk.raw", "side" }, "side: Invalid parameter 'data_file'" },
    { { "-o", "preallocation=full", "disk.raw", "side" }, "side: Invalid parameter 'preallocation'" },
    { { "-o", "holes=x", "disk.raw", "side" }, "side: Parameter 'holes' does not accept value 'x'" },
    { { "-o", "raw=x", "disk.raw", "side" }, "side: Parameter 'data_file_raw' expects 'on' or 'off'" },
    { { "-o", "compat=0.10", "disk.raw", "side" }, "side: External data files are only supported with compatibility "
      .. "level 1.1 and above (use version=v3 or greater)" },
    { { "-o", "size=1M", "disk.raw", "side" }, "side: The data file has 3147264 bytes and does not fit a disk of "
      .. "1048576 bytes: its end would be out of reach" },
    { { "odd.raw", "side" }, "side: The data file has 1000 bytes and does not fit a disk of 1000 bytes: a disk is a "
      .. "whole number of 512-byte sectors" },
  }) do
    it(("refuses `adopt %s`"):format(table.concat(case[1], " ")), function()
      sh.spit(dir .. "/odd.raw", ("x"):rep(1000))
      local before = stamp()
      local result = adopt("-q", table.unpack(case[1]))
      assert.equal("qcow2: " .. case[2] .. "\n", result.stderr)
      assert.equal(1, result.code)
      assert.is_nil(lfs.attributes(dir .. "/side"))
      assert.equal(before, stamp())
    end)
  end

  it("leaves an existing image alone unless told", function()
    sh.spit(dir .. "/side", "precious")
    assert.equal("qcow2: side: 'side' exists; the option overwrite would discard what it holds\n",
      adopt("-q", "disk.raw", "side").stderr)
    assert.equal("precious", sh.slurp(dir .. "/side"))
    assert.equal(0, adopt("-q", "-o", "overwrite=on", "disk.raw", "side").code)
  end)

  it("does not adopt a disk that a virtual machine writes to", function()
    sh.check({ "cp", disk, dir .. "/busy.raw" })
    sh.check({ "chmod", "644", dir .. "/busy.raw" })
    local _ <close> = qemu.holds(dir .. "/busy.raw", "raw", { "write -P 9 0 512", "flush" })
    local result = adopt("-q", "busy.raw", "side")
    assert.equal(1, result.code)
    assert.is_nil(lfs.attributes(dir .. "/side"))
    assert.truthy(result.stderr:find("lock", 1, true), result.stderr)
  end)

  it("lists its options", function()
    local text = adopt("-o", "help").stdout
    for _, name in ipairs({ "raw=", "holes=", "overwrite=", "cluster_size=", "extended_l2=", "refcount_bits=" }) do
      assert.truthy(text:find("\n  " .. name, 1, true), name)
    end
    assert.is_nil(text:find("data_file", 1, true))
  end)
end)
