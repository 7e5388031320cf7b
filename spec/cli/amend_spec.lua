-- SPDX-License-Identifier: MIT
-- `amend`: qemu-img's grammar, words and exit codes.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local FILES = { "image", "old", "narrow", "extended", "outside", "marked", "kept", "over" }

local function make(dir)
  qemu.create(dir .. "/image", { size = "4M" })
  qemu.io(dir .. "/image", { "write -P 7 0 200k", "write -z 1M 200k" })
  qemu.create(dir .. "/old", { size = "4M", compat = "0.10" })
  qemu.io(dir .. "/old", { "write -P 7 0 200k" })
  qemu.create(dir .. "/narrow", { size = "4M", refcount_bits = 8 })
  qemu.create(dir .. "/extended", { size = "4M", extended_l2 = true })
  qemu.create(dir .. "/outside", { size = "4M", data_file = "data" })
  qemu.create(dir .. "/marked", { size = "4M" })
  qemu.bitmap(dir .. "/marked", "b", "--add")
  qemu.create(dir .. "/kept", { size = "4M" })
  qemu.snapshot(dir .. "/kept", "-c", "s")
  qemu.create(dir .. "/over", { backing_file = "image", backing_fmt = "qcow2" })
end

describe("amend", function()
  local made = {}

  lazy_setup(function()
    local dir = tmp.dir()
    make(dir)
    for _, name in ipairs(FILES) do made[name] = sh.slurp(dir .. "/" .. name) end
  end)

  local function copies()
    local dir = tmp.dir()
    for name, bytes in pairs(made) do sh.spit(dir .. "/" .. name, bytes) end
    sh.spit(dir .. "/data", "")
    return dir
  end

  local function info(path)
    local found = qemu.info(path)
    local data = found["format-specific"].data
    return { found["virtual-size"], data.compat, data["lazy-refcounts"], data["refcount-bits"], data["data-file"],
      data["data-file-raw"], data["extended-l2"], found["backing-filename"] }
  end

  for _, words in ipairs({
    { "-o", "compat=0.10", "image" },
    { "-o", "compat=v2", "-f", "qcow2", "image" },
    { "-o", "compat=1.1", "old" },
    { "-o", "compat=1.1,lazy_refcounts=on,refcount_bits=64", "old" },
    { "-o", "compat=1.1", "-o", "refcount_bits=1", "old" },
    { "-o", "compat=0.10,refcount_bits=16", "narrow" },
    { "-o", "lazy_refcounts=on", "image" },
    { "-o", "refcount_bits=64", "image" },
    { "-o", "refcount_bits=0x20", "image" },
    { "-o", "size=6M", "image" },
    { "-o", "data_file=other", "outside" },
    { "-o", "data_file_raw=off", "outside" },
    { "-q", "-t", "none", "-o", "compat=0.10", "image" },
    { "--image-opts", "-o", "refcount_bits=8", "driver=qcow2,file.filename=image" },
    { "-o", "compat=9", "image" },
    { "-o", "refcount_bits=3", "image" },
    { "-o", "lazy_refcounts=maybe", "image" },
    { "-o", "data_file=x", "image" },
    { "-o", "compat=0.10", "narrow" },
    { "-o", "compat=0.10", "extended" },
    { "-o", "compat=0.10", "outside" },
    { "-o", "compat=0.10,refcount_bits=8", "image" },
    { "-o", "compat=0.10,lazy_refcounts=on", "image" },
    { "-o", "lazy_refcounts=on", "old" },
    { "-o", "refcount_bits=8", "old" },
    { "-o", "refcount_bits=1", "kept" },
    { "-o", "bogus=1", "image" },
    { "-o", "cluster_size=4k", "image" },
    { "-o", "encrypt.iter-time=5", "image" },
    { "-o", ",", "image" },
    { "image" },
    { "-o", "compat=1.1" },
    { "-o", "compat=1.1", "image", "old" },
    { "-o", "compat=1.1", "nothing" },
    { "-t", "bad", "-o", "compat=1.1", "image" },
    { "-f", "raw", "-o", "size=1M", "image" },
    { "-f", "raw", "-o", "help" },
    { "-f", "nothing", "-o", "help" },
    { "-o", "help" },
  }) do
    it(("does what qemu-img does, and says so: %s"):format(table.concat(words, " ")), function()
      local a, b = copies(), copies()
      local theirs = qemu.img({ "amend", table.unpack(words) }, { cwd = a })
      local ours = sh.qcow2({ "amend", table.unpack(words) }, { cwd = b })
      assert.equal(theirs.code, ours.code)
      assert.equal(theirs.stdout, ours.stdout)
      -- The same file may be named twice in theirs.
      local said = qemu.plain(theirs.stderr):gsub("(Could not open '[^']*': )%1", "%1")
      assert.equal(said, qemu.plain(ours.stderr))
      if theirs.code ~= 0 then
        for _, name in ipairs(FILES) do assert.is_true(made[name] == sh.slurp(b .. "/" .. name)) end
        return
      end
      local name = words[#words]:match("[%w]+$")
      sh.spit(a .. "/other", "")
      sh.spit(b .. "/other", "")
      assert.same(info(a .. "/" .. name), info(b .. "/" .. name))
      assert.is_true(qemu.sound(b .. "/" .. name))
    end)
  end

  local function refused(part, ...)
    local dir = copies()
    local ours = sh.qcow2({ "amend", ... }, { cwd = dir })
    assert.equal(1, ours.code)
    assert.truthy(ours.stderr:find(part, 1, true), ours.stderr)
    for _, name in ipairs(FILES) do assert.is_true(made[name] == sh.slurp(dir .. "/" .. name)) end
  end

  it("refuses to drop bitmaps, which qemu-img loses", function()
    refused("Cannot downgrade an image with persistent bitmaps", "-o", "compat=0.10", "marked")
  end)

  it("wants --force for a smaller disk", function()
    refused("--force", "-o", "size=1M", "image")
    local dir = copies()
    assert.equal(0, sh.qcow2({ "amend", "--force", "-o", "size=1M", "image" }, { cwd = dir }).code)
    assert.equal(1 << 20, qemu.info(dir .. "/image")["virtual-size"])
    assert.is_true(qemu.sound(dir .. "/image"))
  end)

  it("changes the backing file's stored name and format alone", function()
    local dir = copies()
    local function names()
      local found = qemu.info(dir .. "/over")
      return { found["backing-filename"], found["backing-filename-format"] }
    end
    sh.spit(dir .. "/raw", ("x"):rep(4096))
    local function amend(list)
      local ours = sh.qcow2({ "amend", "-o", list, "over" }, { cwd = dir })
      assert.equal("", ours.stderr)
      assert.equal(0, ours.code)
    end
    amend("backing_file=raw,backing_fmt=raw")
    assert.same({ "raw", "raw" }, names())
    amend("backing_file=image,backing_fmt=qcow2")
    assert.same({ "image", "qcow2" }, names())
    assert.is_true(qemu.compare(dir .. "/image", dir .. "/over"))
    amend("backing_fmt=raw")
    assert.same({ "image", "raw" }, names())
    amend("backing_file=")
    assert.same({}, names())
    refused("Backing file specified without backing format", "-o", "backing_file=raw", "over")
    refused("no backing file", "-o", "backing_fmt=raw", "image")
  end)

  it("works on tables alone when the external data file is missing", function()
    local dir = copies()
    os.remove(dir .. "/data")
    assert.equal(0, sh.qcow2({ "amend", "-o", "refcount_bits=64,data_file=data", "outside" }, { cwd = dir }).code)
    local ours = sh.qcow2({ "amend", "-o", "data_file_raw=on", "outside" }, { cwd = dir })
    assert.equal(1, ours.code)
    assert.truthy(ours.stderr:find("No such file or directory", 1, true))
  end)

  it("makes a raw data file of one that is not, and says how far it is", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/image", { size = 5 << 20, data_file = "data" })
    qemu.io(dir .. "/image", { "write -P 7 0 300k", "write -P 8 1M 200k", "write -z 1M 100k", "discard 64k 64k" })
    local before = qemu.read_all(dir .. "/image", dir .. "/before")
    local ours = sh.qcow2({ "amend", "-p", "-o", "data_file_raw=on", "image" }, { cwd = dir })
    assert.equal("", ours.stderr)
    -- How much is shown in between is the clock's to say.
    assert.truthy(ours.stdout:find("^    %(0%.00/100%%%)\r.*    %(100%.00/100%%%)\r\n$"), ours.stdout)
    assert.is_true(before == sh.slurp(dir .. "/data"))
    assert.is_true(qemu.info(dir .. "/image")["format-specific"].data["data-file-raw"])
    assert.is_true(qemu.sound(dir .. "/image"))
    assert.is_true(before == qemu.read_all(dir .. "/image", dir .. "/after"))
  end)
end)
