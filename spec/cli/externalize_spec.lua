-- SPDX-License-Identifier: MIT
-- `externalize` and `internalize`: the same disk all along, judged by qemu-img.
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local SIZE = 5 << 20 | 512

local function make(dir, options)
  local o = { size = SIZE }
  for key, value in pairs(options or {}) do o[key] = value end
  qemu.create(dir .. "/image", o)
  qemu.io(dir .. "/image", { "write -P 1 0 300k", "write -z 128k 64k", "write -c -P 2 1M 64k", "write -P 3 2000k 5k",
    "write -P 4 3M 64k", "discard 3M 64k", "write -P 5 5M 512" })
end

local function run(dir, ...)
  local ours = sh.qcow2({ ... }, { cwd = dir })
  assert.equal("", ours.stderr)
  assert.equal(0, ours.code)
  return ours.stdout
end

local function exists(path)
  local file <close> = io.open(path)
  return file ~= nil
end

local flavours = {
  plain = {},
  ["extended L2"] = { extended_l2 = true },
  ["small clusters"] = { cluster_size = 512 },
  ["lazy counts of 64 bits"] = { lazy_refcounts = true, refcount_bits = 64 },
}

describe("externalize and internalize", function()
  for name, options in pairs(flavours) do
    for _, raw in ipairs({ false, true }) do
      it(("keep the disk: %s%s"):format(name, raw and ", raw" or ""), function()
        local dir = tmp.dir()
        make(dir, options)
        local before = qemu.read_all(dir .. "/image", dir .. "/scratch")
        run(dir, "externalize", table.unpack(raw and { "--raw", "image", "data" } or { "image", "data" }))
        assert.is_true(qemu.sound(dir .. "/image"))
        assert.is_true(before == qemu.read_all(dir .. "/image", dir .. "/scratch"))
        local data = qemu.info(dir .. "/image")["format-specific"].data
        assert.equal("data", data["data-file"])
        assert.equal(raw, data["data-file-raw"])
        assert.equal(SIZE, #sh.slurp(dir .. "/data"))
        if raw then assert.is_true(before == sh.slurp(dir .. "/data")) end
        run(dir, "verify", "image")
        qemu.io(dir .. "/image", { "write -P 9 4M 10k" })
        local changed = qemu.read_all(dir .. "/image", dir .. "/scratch")
        local file = sh.slurp(dir .. "/data")
        run(dir, "internalize", "image")
        assert.is_true(file == sh.slurp(dir .. "/data"))
        os.remove(dir .. "/data")
        assert.is_true(qemu.sound(dir .. "/image"))
        assert.is_true(changed == qemu.read_all(dir .. "/image", dir .. "/scratch"))
        assert.is_nil(qemu.info(dir .. "/image")["format-specific"].data["data-file"])
        qemu.snapshot(dir .. "/image", "-c", "s")
        assert.is_true(qemu.sound(dir .. "/image"))
      end)
    end
  end

  it("leave in the backing file what is there", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/base", { size = SIZE })
    qemu.io(dir .. "/base", { "write -P 77 0 5M" })
    make(dir, { backing_file = "base", backing_fmt = "qcow2" })
    local before = qemu.read_all(dir .. "/image", dir .. "/scratch")
    run(dir, "externalize", "image", "data")
    assert.is_true(before == qemu.read_all(dir .. "/image", dir .. "/scratch"))
    assert.equal(("\0"):rep(65536), sh.slurp(dir .. "/data"):sub((640 << 10) + 1, 704 << 10))
    run(dir, "internalize", "image")
    assert.is_true(qemu.sound(dir .. "/image"))
    assert.is_true(before == qemu.read_all(dir .. "/image", dir .. "/scratch"))
  end)

  it("keep bitmaps", function()
    local dir = tmp.dir()
    make(dir)
    qemu.bitmap(dir .. "/image", "b", "--add", "-g", "64k")
    qemu.io(dir .. "/image", { "write -P 6 1M 1k" })
    local function dirty()
      local img <close> = assert(qcow2.open(dir .. "/image"))
      local list = {}
      for offset, length in assert(img:bitmap("b")):extents() do list[#list + 1] = { offset, length } end
      return list
    end
    for _, words in ipairs({ { "externalize", "--raw", "image", "data" }, { "internalize", "image" } }) do
      run(dir, table.unpack(words))
      assert.is_true(qemu.sound(dir .. "/image"))
      assert.same({ { 1 << 20, 65536 } }, dirty())
    end
  end)

  it("make the image file as short as its metadata", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/image", { size = "64M" })
    qemu.io(dir .. "/image", { "write -P 1 0 20M" })
    run(dir, "externalize", "image", "data")
    local image <close> = assert(io.open(dir .. "/image"))
    assert.is_true(image:seek("end") <= 12 * 65536)
  end)

  it("count on with -p", function()
    local dir = tmp.dir()
    make(dir)
    assert.truthy(run(dir, "externalize", "-p", "image", "data"):find("^    %(0.00/100%%%)\r.*%(100.00/100%%%)\r\n$"))
    assert.truthy(run(dir, "internalize", "-p", "image"):find("^    %(0.00/100%%%)\r.*%(100.00/100%%%)\r\n$"))
  end)

  local function refused(dir, part, ...)
    local before = sh.slurp(dir .. "/image")
    local ours = sh.qcow2({ ... }, { cwd = dir })
    assert.equal(1, ours.code)
    assert.truthy(ours.stderr:find(part, 1, true), ours.stderr)
    assert.is_true(before == sh.slurp(dir .. "/image"))
  end

  it("refuse a file that is there, and do not touch it", function()
    local dir = tmp.dir()
    make(dir)
    sh.spit(dir .. "/data", "precious")
    refused(dir, "data", "externalize", "image", "data")
    assert.equal("precious", sh.slurp(dir .. "/data"))
  end)

  it("refuse snapshots, version 2, raw over a backing file, twice the same; and leave no file behind", function()
    local dir = tmp.dir()
    make(dir)
    qemu.snapshot(dir .. "/image", "-c", "s")
    refused(dir, "snapshots", "externalize", "image", "data")
    os.remove(dir .. "/image")
    make(dir, { compat = "0.10" })
    refused(dir, "version 3", "externalize", "image", "data")
    os.remove(dir .. "/image")
    qemu.create(dir .. "/base", { size = "1M" })
    make(dir, { backing_file = "base", backing_fmt = "qcow2" })
    refused(dir, "backing file", "externalize", "--raw", "image", "data")
    assert.is_false(exists(dir .. "/data"))
    refused(dir, "no external data file", "internalize", "image")
    run(dir, "externalize", "image", "data")
    refused(dir, "already", "externalize", "image", "other")
    assert.is_false(exists(dir .. "/other"))
  end)

  it("refuse a data file outside the image's directory, unless it is allowed", function()
    local dir = tmp.dir()
    make(dir)
    os.execute("mkdir " .. dir .. "/sub " .. dir .. "/away && mv " .. dir .. "/image " .. dir .. "/sub/image")
    run(dir, "externalize", "sub/image", "away/data")
    local ours = sh.qcow2({ "internalize", "sub/image" }, { cwd = dir })
    assert.equal(1, ours.code)
    assert.truthy(ours.stderr:find("--allow", 1, true))
    run(dir, "--allow", "away", "internalize", "sub/image")
  end)

  it("want their operands", function()
    for _, words in ipairs({ { "externalize", "image" }, { "internalize" }, { "internalize", "a", "b" } }) do
      local ours = sh.qcow2(words)
      assert.equal(1, ours.code)
      assert.truthy(ours.stderr:find(("Try 'qcow2 %s --help'"):format(words[1]), 1, true))
    end
  end)
end)
