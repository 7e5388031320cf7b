-- SPDX-License-Identifier: MIT
-- Files end on a sector, so that devices and programs that move images by sectors see all of them; what a device has
-- lost of an older one that held nothing is no fault.
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("The files that we make", function()
  local dir

  setup(function()
    dir = tmp.dir()
    -- Bytes that become smaller, but not by much.
    local rng = random.new(5)
    local out = {}
    for i = 1, 4000 do out[i] = ("%x"):format(rng:bits()) .. " text " end
    sh.spit(dir .. "/raw", table.concat(out))
  end)

  local function ends_on_sector(name)
    assert.equal(0, #sh.slurp(dir .. "/" .. name) % 512)
    assert.is_true(qemu.sound(dir .. "/" .. name))
  end

  for _, words in ipairs({
    "create -q -f qcow2 NEW 1M", "create -q -f qcow2 -o cluster_size=512 NEW 1000", "create -q -f qcow2 NEW 20G",
    "create -q -f qcow2 -o compat=0.10 NEW 3M",
    "convert -c -O qcow2 -f raw raw NEW", "convert -c -O qcow2 -o cluster_size=4k -f raw raw NEW",
    "convert -O qcow2 -f raw raw NEW", "convert -c -O qcow2 -o cluster_size=512 -f raw raw NEW",
  }) do
    it("end on a sector: " .. words, function()
      os.remove(dir .. "/NEW")
      local list = {}
      for word in words:gmatch("%S+") do list[#list + 1] = word end
      assert.equal(0, sh.qcow2(list, { cwd = dir }).code)
      ends_on_sector("NEW")
    end)
  end

  it("end on a sector after rebase -c and after writes, also compressed ones", function()
    sh.qcow2({ "convert", "-O", "qcow2", "-f", "raw", "raw", "base" }, { cwd = dir })
    assert(qcow2.create(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2" }))
    assert.equal(0, sh.qcow2({ "rebase", "-c", "-b", "", "top" }, { cwd = dir }).code)
    ends_on_sector("top")
    local img = made(dir .. "/written", { size = "1M" })
    assert(img:write_compressed(0, ("text"):rep(16384)))
    assert(img:close())
    ends_on_sector("written")
  end)
end)

describe("An image whose last table a device has lost", function()
  local function cut_off(path, length)
    local bytes = sh.slurp(path)
    sh.spit(path, bytes:sub(1, length))
  end

  it("is an empty disk when it held nothing, which can be written to", function()
    for _, options in ipairs({ {}, { cluster_size = 4096 }, { refcount_bits = 64 } }) do
      local path = tmp.path()
      options.size = "1M"
      assert(qcow2.create(path, options))
      local img = assert(qcow2.open(path))
      local l1 = img.header.l1_table_offset
      assert(img:close())
      cut_off(path, l1)
      img = assert(qcow2.open(path))
      assert.is_true(img:read(0, 1 << 20) == ("\0"):rep(1 << 20))
      assert.equal(0, #img:check().findings)
      assert(img:close())
      assert.equal(0, sh.qcow2({ "check", path }).code)
      assert.equal(0, sh.qcow2({ "convert", "-O", "raw", path, path .. ".raw" }).code)
      img = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:write(0, "written"))
      assert(img:close())
      img = assert(qcow2.open(path))
      assert.equal("written", img:read(0, 7))
      assert(img:close())
      assert.is_true(qemu.sound(path))
    end
  end)

  it("is an error when it held something, or when a part of the table is there", function()
    local path = tmp.path()
    -- The table was moved behind the data when the disk grew.
    local img = made(path, { size = "1M" })
    assert(img:write(0, ("d"):rep(1 << 20)))
    assert(img:resize("1G"))
    local l1 = img.header.l1_table_offset
    assert(img:close())
    cut_off(path, l1)
    local opened, message, kind = qcow2.open(path)
    assert.is_nil(opened)
    assert.equal("corrupt", kind, message)
    path = tmp.path()
    assert(qcow2.create(path, { size = "20G" }))
    img = assert(qcow2.open(path))
    l1 = img.header.l1_table_offset
    assert(img:close())
    cut_off(path, l1 + 8)
    opened, message, kind = qcow2.open(path)
    assert.is_nil(opened)
    assert.equal("corrupt", kind, message)
  end)
end)
