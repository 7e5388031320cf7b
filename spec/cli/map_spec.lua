-- SPDX-License-Identifier: MIT
-- `map`: qemu-img's table and JSON, where `compressed` came with version 8.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function map(dir, ...)
  local result = sh.qcow2({ "map", ... }, { cwd = dir })
  assert.equal("", result.stderr)
  assert.equal(0, result.code)
  return result.stdout
end

local function theirs(dir, ...)
  return sh.check({ "qemu-img", "map", ... }, { cwd = dir }).stdout
end

local function without_compressed(json)
  return (json:gsub(', "compressed": %l+', ""))
end

describe("map", function()
  local dir

  lazy_setup(function()
    dir = tmp.dir()
    qemu.create(dir .. "/base.qcow2", { size = "4M" })
    qemu.io(dir .. "/base.qcow2", { "write -P 1 0 64k", "write -P 2 1M 256k", "write -z 2M 64k" })
    qemu.create(dir .. "/top.qcow2", { backing_file = "base.qcow2", backing_fmt = "qcow2", size = "6M" })
    qemu.io(dir .. "/top.qcow2", { "write -P 3 64k 64k", "write -z 1M 64k", "write -P 4 5M 64k" })
    sh.check({ "qemu-img", "create", "-q", "-f", "raw", dir .. "/disk.raw", "2M" })
    qemu.io(dir .. "/disk.raw", { "write -P 5 64k 64k" }, { format = "raw" })
    qemu.create(dir .. "/over-raw.qcow2", { backing_file = "disk.raw", backing_fmt = "raw" })
    qemu.create(dir .. "/preallocated.qcow2", { size = "2M", preallocation = "metadata" })
    qemu.create(dir .. "/sub.qcow2", { size = "2M", extended_l2 = true })
    qemu.io(dir .. "/sub.qcow2", { "write -P 1 4k 2k", "write -z 8k 4k", "write -P 2 100k 300k" })
    qemu.create(dir .. "/empty.qcow2", { size = "0" })
    qemu.create(dir .. "/packed.qcow2", { size = "1M" })
    qemu.io(dir .. "/packed.qcow2", { "write -P 7 64k 64k", "write -c -P 1 256k 64k" })
  end)

  for _, name in ipairs({ "base.qcow2", "top.qcow2", "over-raw.qcow2", "preallocated.qcow2", "empty.qcow2" }) do
    it(("lists %s as qemu-img does, as JSON"):format(name), function()
      assert.equal(theirs(dir, "--output=json", name), without_compressed(map(dir, "--output=json", name)))
    end)

    it(("lists %s as qemu-img does, to people"):format(name), function()
      assert.equal(theirs(dir, name), map(dir, name))
    end)
  end

  it("lists subclusters as qemu-img does, without a place for those that nothing is in", function()
    local function plain(text)
      local list = {}
      for _, entry in ipairs(qemu.decode(text)) do
        entry.compressed = nil
        entry.offset = entry.present and entry.offset or nil
        local last = list[#list]
        if last and not last.present and not entry.present and last.depth == entry.depth then
          last.length = last.length + entry.length
        else
          list[#list + 1] = entry
        end
      end
      return list
    end
    assert.same(plain(theirs(dir, "--output=json", "sub.qcow2")), plain(map(dir, "--output=json", "sub.qcow2")))
    assert.equal(theirs(dir, "sub.qcow2"), map(dir, "sub.qcow2"))
  end)

  it("lists a raw file's holes", function()
    assert.equal(theirs(dir, "--output=json", "-f", "raw", "disk.raw"),
      without_compressed(map(dir, "--output=json", "-f", "raw", "disk.raw")))
    assert.equal(theirs(dir, "-f", "raw", "disk.raw"), map(dir, "-f", "raw", "disk.raw"))
  end)

  for _, window in ipairs({ { "-s", "64k" }, { "--start-offset=1M", "--max-length=96k" }, { "-l", "100k" },
    { "-s", "3M", "-l", "10G" }, { "-s", "6M" }, { "-s", "20M" }, { "-s", "1", "-l", "5" } }) do
    it(("lists a part: %s"):format(table.concat(window, " ")), function()
      local json = { "--output=json", table.unpack(window) }
      json[#json + 1], window[#window + 1] = "top.qcow2", "top.qcow2"
      assert.equal(theirs(dir, table.unpack(json)), without_compressed(map(dir, table.unpack(json))))
      assert.equal(theirs(dir, table.unpack(window)), map(dir, table.unpack(window)))
    end)
  end

  it("says which clusters are compressed, as qemu-img 10 does", function()
    assert.equal([=[
[{ "start": 0, "length": 65536, "depth": 0, "present": false, "zero": true, "data": false, "compressed": false},
{ "start": 65536, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, ]=]
.. [=["offset": 327680},
{ "start": 131072, "length": 131072, "depth": 0, "present": false, "zero": true, "data": false, "compressed": false},
{ "start": 262144, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": true},
{ "start": 327680, "length": 720896, "depth": 0, "present": false, "zero": true, "data": false, "compressed": false}]
]=], map(dir, "--output=json", "packed.qcow2"))
  end)

  it("cannot show compressed clusters to people, and says so where qemu-img does", function()
    local ours = sh.qcow2({ "map", "packed.qcow2" }, { cwd = dir })
    local judge = qemu.img({ "map", "packed.qcow2" }, { cwd = dir })
    assert.equal(judge.code, ours.code)
    assert.equal(judge.stdout, ours.stdout)
    assert.equal("qcow2: File contains external, encrypted or compressed clusters.\n", ours.stderr)
  end)

  it("is silent about 64 TiB with nothing in them", function()
    qemu.create(dir .. "/huge.qcow2", { size = "64T", cluster_size = "2M" })
    assert.equal(theirs(dir, "huge.qcow2"), map(dir, "huge.qcow2"))
  end)

  it("lists what needs no missing backing file, and prints nothing where it is needed", function()
    qemu.create(dir .. "/lost.qcow2", { size = "1M" })
    qemu.create(dir .. "/orphan.qcow2", { backing_file = "lost.qcow2", backing_fmt = "qcow2" })
    qemu.io(dir .. "/orphan.qcow2", { "write -P 3 0 64k" })
    local before = theirs(dir, "-l", "64k", "orphan.qcow2")
    os.remove(dir .. "/lost.qcow2")
    assert.equal(before, map(dir, "-l", "64k", "orphan.qcow2"))
    for _, output in ipairs({ "human", "json" }) do
      local result = sh.qcow2({ "map", "--output=" .. output, "orphan.qcow2" }, { cwd = dir })
      assert.equal(1, result.code)
      assert.equal("", result.stdout)
      assert.equal("qcow2: Could not open 'orphan.qcow2': Could not open 'lost.qcow2': "
        .. "No such file or directory\n", result.stderr)
    end
  end)

  it("says what is wrong with a table, and not where in the program that was seen", function()
    sh.check({ "cp", dir .. "/base.qcow2", dir .. "/broken.qcow2" })
    local file <close> = assert(io.open(dir .. "/broken.qcow2", "r+b"))
    file:seek("set", 3 << 16)
    file:write(string.pack(">I8", 1 << 63 | 1 << 40))
    file:flush()
    local result = sh.qcow2({ "map", "broken.qcow2" }, { cwd = dir })
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("^qcow2: Could not read file metadata: broken%.qcow2: L1 entry 0: "))
  end)

  for _, case in ipairs({
    { { "-s", "x", "top.qcow2" }, "Invalid start offset specified: 'x'." },
    { { "-l", "1q", "top.qcow2" }, "Invalid max length specified: '1q'." },
    { {}, "Expecting one image file name\nTry 'qcow2 map --help' for more info" },
    { { "nosuch" }, "Could not open 'nosuch': No such file or directory" },
  }) do
    it(("refuses `map %s`"):format(table.concat(case[1], " ")), function()
      local result = sh.qcow2({ "map", table.unpack(case[1]) }, { cwd = dir })
      assert.equal("qcow2: " .. case[2] .. "\n", result.stderr)
      assert.equal("", result.stdout)
      assert.equal(1, result.code)
    end)
  end
end)
