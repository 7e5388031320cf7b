-- SPDX-License-Identifier: MIT
-- SAFETY rule 15: places that an image gave up and uses again in the same session: tables that moved, cached slices of
-- what lay there, directories that are not the image's own.
local made = require("spec.support.made")
local poke = require("spec.support.poke")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local tmp = require("spec.support.tmp")

-- Opens the image anew and compares it with what it must show; qemu-img has to find nothing.
local function holds(path, expected, options)
  local img <close> = assert(qcow2.open(path, options))
  assert.is_true(img:read(0, #expected) == expected)
  assert.same({}, { img:check().findings[1] })
  assert.equal(0, qemu.img({ "check", path }).code)
end

describe("A refcount table that moves under lazy reference counts", function()
  local SIZE <const> = 8 << 20

  -- Random sectors, written so that the table of 512-byte clusters grows again and again.
  local function grown(options)
    local path = tmp.path()
    options.size, options.cluster_size, options.lazy_refcounts = SIZE, 512, true
    local img = made(path, options)
    local contents = random.new(7):bytes(SIZE)
    local table_at, moves = img.header.refcount_table_offset, 0
    for at = 0, SIZE - 1, 8192 do
      assert(img:write(at, contents:sub(at + 1, at + 8192)))
      if img.header.refcount_table_offset ~= table_at then
        table_at, moves = img.header.refcount_table_offset, moves + 1
      end
    end
    return img, path, contents, moves
  end

  it("loses no sector that is written where the old table lay", function()
    local img, path, contents, moves = grown({ refcount_bits = 64 })
    assert.is_true(moves >= 2)
    local cut = SIZE // 2
    assert(img:discard(0, cut))
    assert(img:flush())
    local again = random.new(8):bytes(cut)
    assert(img:write(0, again))
    assert(img:close())
    holds(path, again .. contents:sub(cut + 1))
  end)

  it("loses none after the image was emptied by a commit", function()
    local base = tmp.path("base")
    assert(qcow2.create(base, { size = SIZE, cluster_size = 65536 }))
    local img, path, contents = grown({ backing_file = base, backing_fmt = "qcow2", refcount_bits = 64 })
    assert(assert(qcow2.commit(img, { references = "any" })):run())
    local again = random.new(9):bytes(SIZE // 2)
    assert(img:write(0, again))
    assert(img:close())
    holds(path, again .. contents:sub(#again + 1), { references = "any" })
  end)

  it("loses none after whole-image changes in the same session", function()
    local img, path, contents = grown({ refcount_bits = 16 })
    assert(img:snapshot_create("s"))
    assert(img:write(0, contents:sub(1, SIZE // 4):reverse()))
    assert(img:amend({ refcount_bits = 64 }))
    assert(img:discard(0, SIZE // 4))
    assert(img:snapshot_delete("s"))
    assert(img:write(0, contents:sub(1, SIZE // 2)))
    assert(img:close())
    holds(path, contents)
  end)
end)

describe("A cluster that is handed out again", function()
  local function dirty(img, name)
    local list = {}
    for offset, length in img:bitmap(name):extents() do
      list[#list + 1] = ("%d+%d"):format(offset, length)
    end
    return table.concat(list, " ")
  end

  it("is not read from what the cache had of the table that lay there", function()
    for bits = 9, 16 do
      local path = tmp.path()
      local img = made(path, { size = "64M", cluster_size = 1 << bits })
      assert(img:bitmap_add("a", { granularity = 512 }))
      assert(img:bitmap_add("b", { granularity = 512 }))
      for number = 1, 3 do
        assert(img:snapshot_create("s" .. number))
        assert(img:bitmap_clear("b"))
        assert(img:bitmap_set("a", 0, 48 << 20))
        assert(img:bitmap_merge("b", "a"))
        assert.equal(("0+%d"):format(48 << 20), dirty(img, "a"))
        assert.equal(("0+%d"):format(48 << 20), dirty(img, "b"))
      end
      assert(img:close())
      img = assert(qcow2.open(path))
      assert.equal(("0+%d"):format(48 << 20), dirty(img, "a"))
      assert.equal(("0+%d"):format(48 << 20), dirty(img, "b"))
      assert(img:close())
    end
  end)

  it("is not read from old slices after any whole-image change", function()
    local changes = {
      function(img) assert(img:snapshot_create("s")) end,
      function(img) assert(img:snapshot_create("s")) assert(img:snapshot_apply("s")) end,
      function(img) assert(img:snapshot_create("s")) assert(img:snapshot_delete("s")) end,
      function(img) assert(img:amend({ refcount_bits = 32 })) end,
      function(img) assert(img:resize("80M")) assert(img:resize("64M", { shrink = true })) end,
      function(img) assert(img:discard(0, 64 << 20)) end,
      function(img) assert(img:repair({ all = true })) end,
    }
    for number, change in ipairs(changes) do
      local path = tmp.path()
      local img = made(path, { size = "64M", cluster_size = 4096 })
      local seed = random.new(number)
      assert(img:write(0, seed:bytes(1 << 20)))
      assert(img:bitmap_add("a", { granularity = 512 }))
      assert(img:bitmap_add("b", { granularity = 512 }))
      for _ = 1, 3 do
        change(img)
        pcall(img.snapshot_delete, img, "s")
        local from = seed:int(0, 1000) * 4096
        local length = seed:int(1, 10000) * 4096
        assert(img:bitmap_clear("a"))
        assert(img:bitmap_clear("b"))
        assert(img:bitmap_set("a", from, length))
        assert(img:bitmap_merge("b", "a"))
        assert.equal(("%d+%d"):format(from, length), dirty(img, "b"), "change " .. number)
      end
      assert(img:close())
      assert.equal(0, qemu.img({ "check", path }).code)
    end
  end)
end)

describe("A bitmaps extension that the autoclear bit no longer vouches for", function()
  -- qemu-img's exit code: what the stale directory held is counted and named by nobody.
  local LEAKS_ONLY <const> = 3
  local path, img, contents

  -- A directory, and then another program that wrote without knowing bitmaps: the bit is off, and the clusters of the
  -- old directory belong to somebody else by now.
  before_each(function()
    path = tmp.path()
    img = made(path, { size = "4M" })
    contents = random.new(11):bytes(1 << 20)
    assert(img:write(0, contents))
    assert(img:bitmap_add("old"))
    assert(img:close())
    img = assert(qcow2.open(path))
    local extension
    for _, e in ipairs(img.extensions) do
      if e.type == 0x23852875 then extension = e end
    end
    local guest
    for e in img:extents() do
      guest = guest or e.host_offset
    end
    assert(img:close())
    poke.u64(path, 88, 0)
    -- The extension names a guest cluster as its directory.
    poke.u64(path, extension.offset + 16, guest)
    img = assert(qcow2.open(path, { mode = "rw" }))
  end)

  after_each(function() img:close() end)

  it("names no clusters that a new bitmap could free", function()
    assert(img:bitmap_add("new"))
    assert(img:write(2 << 20, random.new(12):bytes(1 << 20)))
    assert.is_true(img:read(0, 1 << 20) == contents)
    assert(img:close())
    assert.equal(LEAKS_ONLY, qemu.img({ "check", path }).code)
    img = assert(qcow2.open(path))
    assert.is_true(img:read(0, 1 << 20) == contents)
    assert.equal(1, #img.bitmaps)
    assert.equal("new", img.bitmaps[1].name)
  end)

  it("survives changes that do not ask for bitmaps, and names nothing then either", function()
    assert(img:resize("8M"))
    assert(img:snapshot_create("s"))
    assert(img:snapshot_delete("s"))
    assert.is_true(img:read(0, 1 << 20) == contents)
    assert(img:close())
    assert.equal(LEAKS_ONLY, qemu.img({ "check", path }).code)
    img = assert(qcow2.open(path))
    assert.equal(0, #img.bitmaps)
  end)
end)
