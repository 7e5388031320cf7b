-- SPDX-License-Identifier: MIT
-- Objects of what an image no longer has: views of deleted snapshots, bitmaps that were removed.
local core = require("qcow2.core")
local made = require("spec.support.made")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local raw = require("qcow2.image").raw
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local SIZE <const> = 1 << 20
local ENOSPC <const> = 28

describe("The view of a snapshot", function()
  local path, img, old

  before_each(function()
    path = tmp.path()
    img = made(path, { size = SIZE, cluster_size = 4096 })
    old = random.new(1):bytes(SIZE)
    assert(img:write(0, old))
    assert(img:snapshot_create("one"))
    assert(img:write(0, ("n"):rep(SIZE)))
    assert(img:snapshot_create("two"))
  end)

  after_each(function() img:close() end)

  local function is_missing(view)
    local bytes, message, kind = view:read(0, 4096)
    assert.is_nil(bytes)
    assert.equal("missing", kind)
    assert.truthy(message:find("not there any more", 1, true))
    assert.has_error(function()
      for _ in view:extents() do end
    end)
  end

  it("answers missing once the snapshot is deleted, and others go on", function()
    local one, two = assert(img:snapshot("one")), assert(img:snapshot("two"))
    assert.is_true(one:read(0, SIZE) == old)
    assert(img:snapshot_delete("one"))
    assert(img:write(0, random.new(2):bytes(SIZE)))
    assert(img:snapshot_create("one"))
    is_missing(one)
    assert.is_true(two:read(0, SIZE) == ("n"):rep(SIZE))
    assert(one:close())
    assert(two:close())
    local again <close> = assert(img:snapshot("one"))
    assert.is_true(again:read(0, SIZE) == random.new(2):bytes(SIZE))
  end)

  it("shows what the snapshot has through renames, resizes and whole-image changes", function()
    local one <close> = assert(img:snapshot("one"))
    assert(img:snapshot_rename("one", "eins"))
    assert(img:resize(2 * SIZE))
    assert(img:snapshot_delete("two"))
    assert(img:amend({ refcount_bits = 64 }))
    assert(img:discard(0, SIZE))
    assert(img:write(0, random.new(3):bytes(2 * SIZE)))
    assert.is_true(one:read(0, SIZE) == old)
  end)

  it("outlives the image that it was opened from", function()
    local one <close> = assert(img:snapshot("one"))
    assert(img:close())
    assert.is_true(one:read(0, SIZE) == old)
  end)

  it("is let go of in any order", function()
    local views = {}
    for i = 1, 5 do views[i] = assert(img:snapshot(i % 2 == 0 and "one" or "two")) end
    for _, i in ipairs({ 3, 5, 1 }) do assert(views[i]:close()) end
    assert(img:snapshot_delete("one"))
    is_missing(views[2])
    is_missing(views[4])
    assert(img:close())
    assert(views[2]:close())
    assert(views[4]:close())
  end)
end)

describe("A bitmap object", function()
  local path, img

  before_each(function()
    path = tmp.path()
    img = made(path, { size = SIZE, cluster_size = 4096 })
    for number, name in ipairs({ "a", "b", "c" }) do
      assert(img:bitmap_add(name, { granularity = 512 }))
      assert(img:bitmap_set(name, number * 8192, 512))
    end
  end)

  after_each(function() img:close() end)

  local function dirty(bitmap)
    local list = {}
    for offset, length in bitmap:extents() do list[#list + 1] = ("%d+%d"):format(offset, length) end
    return table.concat(list, " ")
  end

  it("lists its own bits when one before it goes", function()
    local c = assert(img:bitmap("c"))
    assert.equal("24576+512", dirty(c))
    assert(img:bitmap_remove("a"))
    assert.equal("24576+512", dirty(c))
    assert(img:bitmap_add("d"))
    assert(img:bitmap_disable("b"))
    assert(img:resize(2 * SIZE))
    assert.equal("24576+512", dirty(c))
  end)

  it("is missing once it is removed, also when another of its name comes", function()
    local b = assert(img:bitmap("b"))
    assert(img:bitmap_remove("b"))
    assert(img:bitmap_add("b", { granularity = 512 }))
    local done, message = pcall(dirty, b)
    assert.is_false(done)
    assert.truthy(tostring(message):find("not there any more", 1, true))
    assert.equal("", dirty(assert(img:bitmap("b"))))
  end)

  it("is missing in the middle of a walk, too", function()
    local b = assert(img:bitmap("b"))
    assert(img:bitmap_set("b", SIZE // 2, 512))
    local walk = b:extents()
    assert.equal(16384, (walk()))
    assert(img:bitmap_remove("b"))
    assert.has_error(walk)
  end)
end)

describe("A bitmap change that fails", function()
  -- Every write fails once for want of space. An image that goes on afterwards has nothing that nobody refers to.
  it("leaves no counted clusters behind", function()
    local path = tmp.path()
    local img = made(path, { size = 64 * SIZE, cluster_size = 512 })
    assert(img:bitmap_add("a", { granularity = 512 }))
    assert(img:bitmap_set("a", 0, 8 * SIZE))
    assert(img:close())
    local bytes = sh.slurp(path)
    local changes = {
      function(image) return raw.bitmap_change(image, 0, 4 * SIZE, 30 * SIZE, true) end,
      function(image) return raw.bitmap_add(image, "b", 512, true) end,
      function(image) return raw.bitmap_remove(image, 0) end,
    }
    local went_on = 0
    for number, change in ipairs(changes) do
      local nth, done = 0
      repeat
        nth = nth + 1
        local store = assert(core.store_memory(bytes))
        local image = assert(core.image_open(assert(store:fault("w", nth, ENOSPC, false)), "qcow2"))
        assert(raw.begin(image))
        local message, kind
        done, message, kind = change(image)
        assert.is_true(done or kind == "nospace", message)
        local finished = raw.finish(image)
        raw.close(image)
        if finished and not done then
          went_on = went_on + 1
          sh.spit(path, store:read(0, store:length()))
          assert.equal(0, qemu.img({ "check", path }).code, ("change %d, write %d"):format(number, nth))
        end
      until done
    end
    assert.is_true(went_on >= 5, went_on)
  end)
end)
