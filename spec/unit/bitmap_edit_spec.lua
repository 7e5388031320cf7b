-- SPDX-License-Identifier: MIT
-- Changing bitmaps: what is refused, and that a refusal changes not one byte.
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("Changing bitmaps", function()
  local path, img

  before_each(function()
    path = tmp.path()
    img = made(path, { size = "1M", cluster_size = 4096 })
    assert(img:bitmap_add("one", { granularity = 4096 }))
    assert(img:flush())
  end)

  after_each(function()
    img:close()
  end)

  local function refused(kind, method, ...)
    local before = sh.slurp(path)
    local done, message, word = img[method](img, ...)
    assert.is_nil(done)
    assert.equal(kind, word)
    assert.is_string(message)
    assert.is_true(before == sh.slurp(path))
  end

  it("refuses a name that is there, is empty or is too long", function()
    refused("exists", "bitmap_add", "one")
    refused("range", "bitmap_add", "")
    refused("range", "bitmap_add", ("n"):rep(1024))
  end)

  it("refuses granularities that the format does not know", function()
    refused("range", "bitmap_add", "two", { granularity = 256 })
    refused("range", "bitmap_add", "two", { granularity = 1000 })
    refused("range", "bitmap_add", "two", { granularity = 1 << 32 })
  end)

  it("refuses more bits than QEMU opens, also by a larger disk", function()
    local other <close> = made(tmp.path(), { size = "2T", cluster_size = "2M" })
    assert(other:bitmap_add("most", { granularity = 512 }))
    for _, size in ipairs({ (2 << 40) + 8192, 3 << 40 }) do
      local done, message, kind = other:resize(size)
      assert.is_nil(done)
      assert.equal("range", kind)
      assert.truthy(message:find("A bitmap of granularity 512 is too large", 1, true))
    end
    assert.equal(2 << 40, other.size)
    assert(other:bitmap_remove("most"))
    assert(other:resize("3T"))
    local done, _, kind = other:bitmap_add("more", { granularity = 512 })
    assert.is_nil(done)
    assert.equal("range", kind)
  end)

  it("refuses a bitmap that is not there, whatever is to be done with it", function()
    for _, method in ipairs({ "bitmap_remove", "bitmap_enable", "bitmap_disable", "bitmap_clear" }) do
      refused("missing", method, "two")
    end
    refused("missing", "bitmap_set", "two", 0, 512)
    refused("missing", "bitmap_merge", "one", "two")
  end)

  it("refuses ranges outside the disk and disks of another size", function()
    refused("range", "bitmap_set", "one", 1 << 20, 1)
    refused("range", "bitmap_set", "one", 0, (1 << 20) + 1)
    local other <close> = made(tmp.path(), { size = "2M" })
    assert(other:bitmap_add("b"))
    refused("conflict", "bitmap_merge", "one", "b", { from = other })
  end)

  it("does not mark other bitmaps in use while one is changed", function()
    assert(img:close())
    img = assert(qcow2.open(path, { mode = "rw" }))
    local at = img.bitmaps[1].offset
    assert(img:bitmap_add("two"))
    assert(img:flush())
    -- The entry of "one" before the directory was replaced: its place still holds the old bytes.
    assert.equal(2, (string.unpack(">I4", sh.slurp(path), at + 13)))
  end)

  it("takes bits that writes have set along when a bitmap is changed", function()
    assert(img:write(8192, ("x"):rep(4096)))
    assert(img:bitmap_set("one", 0, 1))
    local list = {}
    for offset, length in img:bitmap("one"):extents() do list[#list + 1] = { offset, length } end
    assert.same({ { 0, 4096 }, { 8192, 4096 } }, list)
  end)

  it("makes none for a disk of 0 bytes, and no such disk of one that has some", function()
    refused("range", "resize", 0, { shrink = true })
    local empty <close> = made(tmp.path(), { size = 0 })
    local done, message, kind = empty:bitmap_add("b")
    assert.is_nil(done)
    assert.equal("range", kind)
    assert.truthy(message:find("0 bytes", 1, true), message)
    assert(empty:resize("1M"))
    assert(empty:bitmap_add("b"))
  end)

  it("lets a bitmap follow writes that was added after others", function()
    local other <close> = made(tmp.path(), { size = "1M" })
    assert(other:write(0, "x"))
    assert(other:bitmap_add("late", { granularity = 4096 }))
    assert(other:write(8192, "x"))
    assert(other:bitmap_add("later", { granularity = 4096 }))
    local list = {}
    for offset, length in other:bitmap("late"):extents() do list[#list + 1] = { offset, length } end
    assert.same({ { 8192, 4096 } }, list)
  end)

  it("works on the tables alone when the data file is not to be opened", function()
    local other = tmp.path()
    assert(qcow2.create(other, { size = "1M", data_file = "data" }))
    os.remove((other:gsub("image$", "data")))
    local without <close> = assert(qcow2.open(other, { mode = "rw", data_file = false }))
    assert(without:bitmap_add("b"))
    local done, _, kind = without:write(0, "x")
    assert.is_nil(done)
    assert.equal("missing", kind)
    done, _, kind = without:zero(0, 65536)
    assert.is_nil(done)
    assert.equal("missing", kind)
    assert(without:flush())
  end)
end)
