-- SPDX-License-Identifier: MIT
-- `bitmap`: qemu-img's grammar, words and exit codes; steps in the order of the command line.
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function make(dir)
  qemu.create(dir .. "/image", { size = "4M" })
  qemu.bitmap(dir .. "/image", "there", "--add", "-g", "4k")
  qemu.io(dir .. "/image", { "write 0 8k", "write 1M 70k" })
  qemu.bitmap(dir .. "/image", "still", "--add", "--disable", "-g", "128k")
  qemu.create(dir .. "/old", { size = "1M", compat = "0.10" })
  qemu.create(dir .. "/small", { size = "1M" })
  qemu.bitmap(dir .. "/small", "little", "--add")
  qemu.create(dir .. "/twin", { size = "4M" })
  qemu.bitmap(dir .. "/twin", "other", "--add", "-g", "8k")
  qemu.io(dir .. "/twin", { "write 2M 8k", "write 4190208 4k" })
  sh.spit(dir .. "/disk", ("x"):rep(4096))
end

-- Every bitmap with its dirty bytes, as QEMU's info and our extents show them.
local function bitmaps_of(path)
  local img <close> = assert(qcow2.open(path))
  local list = {}
  for i, b in ipairs(img.bitmaps) do
    local ranges = {}
    for offset, length in assert(img:bitmap(b.name)):extents() do
      ranges[#ranges + 1] = ("%d+%d"):format(offset, length)
    end
    list[i] = ("%s %d %s %s"):format(b.name, b.granularity, b.auto and "auto" or "off", table.concat(ranges, " "))
  end
  return list
end

local FILES = { "image", "old", "small", "twin", "disk" }

describe("bitmap", function()
  local made = {}

  lazy_setup(function()
    local dir = tmp.dir()
    make(dir)
    for _, name in ipairs(FILES) do made[name] = sh.slurp(dir .. "/" .. name) end
  end)

  -- A folder of fresh copies.
  local function copies()
    local dir = tmp.dir()
    for name, bytes in pairs(made) do sh.spit(dir .. "/" .. name, bytes) end
    return dir
  end

  for _, words in ipairs({
    { "--add", "image", "new" },
    { "--add", "-g", "64k", "-f", "qcow2", "image", "new" },
    { "--add", "--disable", "-g", "1M", "image", "new" },
    { "--add", "-g", "0", "image", "new" },
    { "--add", "--merge", "there", "--merge", "still", "image", "new" },
    { "--add", "-g", "512", "--merge", "other", "-b", "twin", "-F", "qcow2", "image", "new" },
    { "--remove", "image", "there" },
    { "--clear", "image", "there" },
    { "--remove", "--add", "image", "there" },
    { "--disable", "--clear", "image", "there" },
    { "--enable", "image", "still" },
    { "--merge", "there", "image", "still" },
    { "--image-opts", "--clear", "driver=qcow2,file.filename=image", "there" },
    { "--add", "--add", "image", "new" },
    { "--add", "--remove", "--enable", "image", "new" },
    { "--add", "image", "there" },
    { "--clear", "image", "missing" },
    { "--enable", "image", "missing" },
    { "--merge", "missing", "image", "there" },
    { "--add", "image", "" },
    { "--add", "-g", "1000", "image", "new" },
    { "--add", "-g", "256", "image", "new" },
    { "--add", "-g", "abc", "image", "new" },
    { "image", "new" },
    { "--add", "image" },
    { "--add", "image", "a", "b" },
    { "-g", "64k", "--enable", "image", "there" },
    { "-F", "qcow2", "--merge", "there", "image", "still" },
    { "-b", "twin", "--clear", "image", "there" },
    { "--merge", "little", "-b", "small", "image", "there" },
    { "--add", "-f", "nothing", "image", "new" },
    { "--image-opts", "-f", "qcow2", "--add", "image", "new" },
    { "--bogus", "image", "new" },
  }) do
    it(("does what qemu-img does, and says so: %s"):format(table.concat(words, " ")), function()
      local a, b = copies(), copies()
      local theirs = qemu.img({ "bitmap", table.unpack(words) }, { cwd = a })
      local ours = sh.qcow2({ "bitmap", table.unpack(words) }, { cwd = b })
      assert.equal(qemu.plain(theirs.stderr), qemu.plain(ours.stderr))
      assert.equal(theirs.stdout, ours.stdout)
      assert.equal(theirs.code, ours.code)
      assert.same(bitmaps_of(a .. "/image"), bitmaps_of(b .. "/image"))
      assert.is_true(qemu.sound(b .. "/image"))
      assert.is_true(qemu.compare(a .. "/image", b .. "/image"))
    end)
  end

  it("refuses version 2, raw disks and names that are too long as qemu-img does", function()
    local dir = copies()
    local function refused(part, ...)
      local theirs = qemu.img({ "bitmap", "--add", ... }, { cwd = dir })
      local ours = sh.qcow2({ "bitmap", "--add", ... }, { cwd = dir })
      assert.equal(1, theirs.code)
      assert.equal(1, ours.code)
      assert.truthy(theirs.stderr:find(part, 1, true))
      assert.truthy(ours.stderr:find(part, 1, true))
    end
    refused("Cannot store dirty bitmaps in qcow2 v2 files", "old", "new")
    refused("Operation not supported", "-f", "raw", "disk", "new")
    refused("Name length exceeds maximum (1023 characters)", "image", ("n"):rep(1024))
    assert.equal(("x"):rep(4096), sh.slurp(dir .. "/disk"))
  end)

  it("can only remove an inconsistent bitmap", function()
    local dir = copies()
    do -- as a writer that died leaves it
      local img <close> = assert(qcow2.open(dir .. "/image"))
      local entry = img.bitmaps[1]
      local file <close> = assert(io.open(dir .. "/image", "r+b"))
      file:seek("set", entry.offset + 12)
      file:write(string.pack(">I4", 3))
    end
    local ours = sh.qcow2({ "bitmap", "--clear", "image", "there" }, { cwd = dir })
    assert.equal(1, ours.code)
    assert.truthy(ours.stderr:find("Bitmap 'there' is inconsistent and cannot be used", 1, true))
    assert.equal(0, sh.qcow2({ "bitmap", "--remove", "image", "there" }, { cwd = dir }).code)
    assert.is_true(qemu.sound(dir .. "/image"))
  end)

  it("works when the external data file is missing, and opens none", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/image", { size = "1M", data_file = "data" })
    os.remove(dir .. "/data")
    local ours = sh.qcow2({ "bitmap", "--add", "image", "new" }, { cwd = dir })
    assert.equal("", ours.stderr)
    assert.equal(0, ours.code)
    assert.same({ "new 65536 auto " }, bitmaps_of(dir .. "/image"))
    assert.is_nil(io.open(dir .. "/data"))
  end)
end)
