-- SPDX-License-Identifier: MIT
-- Bitmaps that ours made and changed, judged by QEMU: sound images, the same bitmaps, kept up to date by its writes.
local decoder = require("spec.support.decoder")
local qcow2 = require("qcow2")
local poke = require("spec.support.poke")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function ranges(img, name)
  local list = {}
  for offset, length in assert(img:bitmap(name)):extents() do
    list[#list + 1] = { offset = offset, length = length }
  end
  return list
end

-- The bits of a bitmap as a string, one letter a granule: what a change must make of it.
local function granules(img, name, granularity)
  local out = {}
  for i = 1, (img.size + granularity - 1) // granularity do out[i] = "." end
  for _, r in ipairs(ranges(img, name)) do
    for at = r.offset // granularity, (r.offset + r.length - 1) // granularity do out[at + 1] = "#" end
  end
  return table.concat(out)
end

describe("Bitmaps made by ours", function()
  for _, cluster_size in ipairs({ 512, 65536 }) do
    it(("follow a model through random changes, and QEMU finds them sound: clusters of %d"):format(cluster_size),
      function()
        local path = tmp.path()
        local rng = random.new("bitmap_write" .. cluster_size)
        local size, granularity = 3 << 20, { a = 512, b = 4096, c = 65536 }
        qemu.create(path, { size = size, cluster_size = cluster_size })
        local img = assert(qcow2.open(path, { mode = "rw" }))
        local model = {}
        local function fill(name, offset, length, letter)
          local g = granularity[name]
          if length == 0 then return end
          for at = offset // g, (offset + length - 1) // g do model[name][at] = letter end
        end
        for name, g in pairs(granularity) do
          assert(img:bitmap_add(name, { granularity = g, disabled = name == "c" }))
          model[name] = {}
          for at = 0, (size + g - 1) // g - 1 do model[name][at] = "." end
        end
        local names = { "a", "b", "c" }
        -- New bits are clear, bits behind the end are gone.
        local function resize(wanted)
          assert(img:resize(wanted, { shrink = true }))
          for name, g in pairs(granularity) do
            local old, new = (size + g - 1) // g, (wanted + g - 1) // g
            for at = old, new - 1 do model[name][at] = "." end
            for at = new, old - 1 do model[name][at] = nil end
          end
          size = wanted
        end
        for _ = 1, 80 do
          local name, what = rng:pick(names), rng:int(1, 7)
          local offset = rng:int(0, size - 1)
          local length = rng:int(1, math.min(200000, size - offset))
          if what == 1 then
            assert(img:bitmap_set(name, offset, length))
            fill(name, offset, length, "#")
          elseif what == 2 then
            assert(img:bitmap_clear(name, offset, length))
            fill(name, offset, length, ".")
          elseif what == 3 then
            local from = rng:pick(names)
            if from ~= name then
              assert(img:bitmap_merge(name, from))
              for at, letter in pairs(model[from]) do
                local start = at * granularity[from]
                if letter == "#" then fill(name, start, math.min(granularity[from], size - start), "#") end
              end
            end
          elseif what == 4 then
            assert(img:write(offset, ("w"):rep(length)))
            fill("a", offset, length, "#")
            fill("b", offset, length, "#")
          elseif what == 5 then
            assert(img:flush())
          elseif what == 6 then
            resize(rng:int(1, 12 << 20) // 512 * 512 + 512)
          else
            assert(img:close())
            assert(qemu.sound(path))
            img = assert(qcow2.open(path, { mode = "rw" }))
          end
        end
        assert(img:close())
        assert(qemu.sound(path))
        img = assert(qcow2.open(path))
        local image <close> = decoder.open(path)
        for name, g in pairs(granularity) do
          local expect = {}
          for at = 0, (size + g - 1) // g - 1 do expect[at + 1] = model[name][at] end
          assert.equal(table.concat(expect), granules(img, name, g))
          assert.same(image:bitmap_ranges(image.bitmaps[name]), ranges(img, name))
        end
        img:close()
      end)
  end

  it("are kept up to date by QEMU's writes", function()
    local path = tmp.path()
    qemu.create(path, { size = "4M" })
    do
      local img <close> = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:bitmap_add("b", { granularity = "4K" }))
      assert(img:bitmap_set("b", 0, 1))
    end
    qemu.io(path, { "write 1M 5k" })
    local img <close> = assert(qcow2.open(path))
    assert.same({ { offset = 0, length = 4096 }, { offset = 1 << 20, length = 8192 } }, ranges(img, "b"))
    local info = qemu.info(path)["format-specific"].data.bitmaps
    assert.equal(1, #info)
    assert.equal("b", info[1].name)
    assert.same({ "auto" }, info[1].flags)
  end)

  it("grow and shrink with the disk as QEMU's do", function()
    for _, cluster_size in ipairs({ 512, 65536 }) do
      local ours, theirs = tmp.path(), tmp.path()
      for _, path in ipairs({ ours, theirs }) do
        qemu.create(path, { size = 1000448, cluster_size = cluster_size })
        qemu.bitmap(path, "follows", "--add", "-g", "512")
        qemu.bitmap(path, "stands", "--add", "--disable", "-g", "64k")
        qemu.io(path, { "write 0 64k", "write 900k 70k" })
        qemu.bitmap(path, "stands", "--merge", "follows")
      end
      for _, size in ipairs({ 3 << 20, 950 * 1024, 3 << 20, 100 << 20, 922112, 512, 1 << 20 }) do
        qemu.resize(theirs, tostring(size), "--shrink")
        do
          local img <close> = assert(qcow2.open(ours, { mode = "rw" }))
          assert(img:resize(size, { shrink = true }))
        end
        assert(qemu.sound(ours))
        local a <close> = assert(qcow2.open(ours))
        local b <close> = assert(qcow2.open(theirs))
        for _, name in ipairs({ "follows", "stands" }) do assert.same(ranges(b, name), ranges(a, name)) end
        assert.same(qemu.info(theirs)["format-specific"].data.bitmaps, qemu.info(ours)["format-specific"].data.bitmaps)
      end
    end
  end)

  it("keep the disk from being resized when one of them is inconsistent", function()
    local path = tmp.path()
    qemu.create(path, { size = "1M" })
    qemu.bitmap(path, "sound", "--add")
    qemu.bitmap(path, "left in use", "--add")
    local at
    do
      local img <close> = assert(qcow2.open(path))
      at = img.bitmaps[2].offset
    end
    poke.bytes(path, at + 12, string.pack(">I4", 3))
    local before = sh.slurp(path)
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    for _, size in ipairs({ 2 << 20, 512 }) do
      local done, message, kind = img:resize(size, { shrink = true })
      assert.is_nil(done)
      assert.equal("conflict", kind)
      assert.truthy(message:find("Bitmap 'left in use' is inconsistent", 1, true))
    end
    assert.equal(before, sh.slurp(path))
    assert(img:bitmap_remove("left in use"))
    assert(img:resize(2 << 20))
  end)

  it("keep a snapshot of another size from being applied, also those that follow nothing", function()
    local path = tmp.path()
    qemu.create(path, { size = "1M" })
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:snapshot_create("small"))
    assert(img:resize("64M"))
    assert(img:bitmap_add("b", { disabled = true, granularity = 512 }))
    local done, message, kind = img:snapshot_apply("small")
    assert.is_nil(done)
    assert.equal("conflict", kind)
    assert.truthy(message:find("resize the disk to 1048576 bytes first", 1, true))
    assert(img:resize("1M", { shrink = true }))
    assert(img:snapshot_apply("small"))
    assert(img:close())
    assert(qemu.sound(path))
  end)

  it("leave no cluster behind when all are removed", function()
    local path = tmp.path()
    qemu.create(path, { size = "64M" })
    local img = assert(qcow2.open(path, { mode = "rw" }))
    for i = 1, 20 do
      assert(img:bitmap_add("b" .. i, { granularity = 512 }))
      assert(img:bitmap_set("b" .. i, 0, 64 << 20))
    end
    for i = 1, 20 do assert(img:bitmap_remove("b" .. i)) end
    assert(img:close())
    local _, code = qemu.check(path)
    assert.equal(0, code)
    local image <close> = decoder.open(path)
    assert.same({}, image.bitmaps)
    assert.equal(0, image.header.autoclear_features)
  end)
end)
