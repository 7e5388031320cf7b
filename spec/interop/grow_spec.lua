-- SPDX-License-Identifier: MIT
-- Growing and shrinking over whatever lies behind the disk's end: a longer backing file, VM state, the bytes of a
-- larger disk. What is new reads as zeros, for us and for qemu-img, and nothing is leaked.
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local K <const> = 1024

local function zeros(length) return ("\0"):rep(length) end

-- Both read `expected`, and nothing is wrong or leaked.
local function shows(path, expected, what)
  local img <close> = assert(qcow2.open(path))
  local ours = assert(img:read(0, img.size))
  assert.equal(#expected, #ours, what)
  assert.is_true(ours == expected, what)
  img:close()
  local sound, report = qemu.sound(path)
  assert.is_true(sound, what .. ": " .. report)
  assert.is_true(qemu.read_all(path, path .. ".raw") == expected, what)
end

-- Every byte that the host has to have at hand is there: no hole under an allocated cluster.
local function has_no_holes(path)
  local img <close> = assert(qcow2.open(path))
  for e in img:extents({ layer = true, holes = true }) do
    assert.is_nil(e.hole, ("a hole at %d"):format(e.offset))
  end
end

describe("Growing a disk that ends inside a cluster", function()
  local steps = {
    { 2235904, 2293760 }, { 2048000, 2048000 + 16 * K }, { 512, 1024 }, { 65536, 65536 + 512 },
    { 65536 - 512, 65536 + 512 }, { 3 * 65536 + 512, 9 * 65536 + 1024 },
  }
  local shapes = {
    { cluster_size = 65536 }, { cluster_size = 4096 }, { cluster_size = 65536, extended_l2 = true },
    { cluster_size = 512 },
  }
  for _, mode in ipairs({ "off", "metadata", "falloc", "full" }) do
    for _, back in ipairs({ "none", "same", "longer", "between", "shorter" }) do
      it(("shows zeros with preallocation %s, backing file: %s"):format(mode, back), function()
        for turn, step in ipairs(steps) do
          -- Each step with another shape in each mode, all shapes with all steps over the modes.
          for number = (turn + #mode + #back) % #shapes + 1, #shapes, #shapes do
            local shape = shapes[number]
            local old, new = step[1], step[2]
            local what = ("%d to %d, shape %d"):format(old, new, number)
            local dir, contents = tmp.dir(), ""
            local o = { size = old }
            for key, value in pairs(shape) do o[key] = value end
            if back ~= "none" then
              local length = back == "same" and old or back == "longer" and new + 100 * K
                or back == "between" and old + (new - old) // 1024 * 512 + 512 or old // 1024 * 512
              contents = random.new(step[1] + number):bytes(length)
              sh.spit(dir .. "/base", contents)
              o.backing_file, o.backing_fmt = "base", "raw"
            end
            contents = (contents .. zeros(old)):sub(1, old)
            local path = dir .. "/image"
            local img = made(path, o)
            if number % 2 == 0 then
              assert(img:write(old - 512, ("w"):rep(512)))
              contents = contents:sub(1, -513) .. ("w"):rep(512)
            end
            assert(img:resize(new, { preallocation = mode ~= "off" and mode or nil }))
            assert(img:close())
            shows(path, contents .. zeros(new - old), what)
            if mode == "falloc" or mode == "full" then has_no_holes(path) end
          end
        end
      end)
    end
  end
end)

describe("Growing over VM state", function()
  it("shows zeros where a machine's memory lay behind the disk's end", function()
    for _, cluster_size in ipairs({ 512, 4096, 65536 }) do
      local path = tmp.path()
      local size, state = 8 * cluster_size, ("vm"):rep(8 * cluster_size)
      local img = made(path, { size = size, cluster_size = cluster_size })
      local contents = random.new(cluster_size):bytes(size)
      assert(img:write(0, contents))
      assert(img:snapshot_create("s"))
      -- As QEMU stores it: clusters behind the disk's end in the disk's tables, then the snapshot.
      assert(img:resize(size + #state))
      assert(img:write(size, state))
      assert(img:close())
      local header <close> = assert(io.open(path, "r+b"))
      header:seek("set", 24)
      header:write(string.pack(">I8", size))
      header:close()
      img = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:resize(size + #state))
      assert(img:close())
      shows(path, contents .. zeros(#state), "clusters of " .. cluster_size)
    end
  end)
end)

describe("Shrinking", function()
  local cases = {
    ["a plain cluster"] = function(img, size) assert(img:write(0, random.new(1):bytes(size))) end,
    ["a compressed cluster"] = function(img, size)
      for at = 0, size - 1, 65536 do
        assert(img:write_compressed(at, ("c"):rep(math.min(65536, size - at))))
      end
    end,
    ["a cluster that a snapshot shares"] = function(img, size)
      assert(img:write(0, random.new(2):bytes(size)))
      assert(img:snapshot_create("s"))
    end,
    ["a cluster of zeros"] = function(img, size) assert(img:zero(0, size)) end,
  }
  for what, prepare in pairs(cases) do
    for _, extended in ipairs({ false, true }) do
      it(("leaves nothing for a grow by QEMU in %s%s"):format(what, extended and ", extended L2" or ""), function()
        local path = tmp.path()
        local size, small = 4 * 65536, 65536 + 1536
        local img = made(path, { size = size, extended_l2 = extended or nil })
        prepare(img, size)
        local contents = img:read(0, size)
        assert(img:resize(small, { shrink = true }))
        assert(img:close())
        qemu.resize(path, size)
        assert.is_true(qemu.read_all(path, path .. ".raw") == contents:sub(1, small) .. zeros(size - small))
        img = assert(qcow2.open(path))
        if #img.snapshots > 0 then
          local view <close> = assert(img:snapshot("s"))
          assert.is_true(view:read(0, size) == contents)
        end
        assert(img:close())
      end)
    end
  end

  it("gives the file's end and idle refcount blocks back", function()
    for _, cluster_size in ipairs({ 4096, 65536 }) do
      for _, lazy in ipairs({ false, true }) do
        local path = tmp.path()
        local img = made(path, { size = "300M", cluster_size = cluster_size, lazy_refcounts = lazy or nil })
        local piece = random.new(3):bytes(1 << 20)
        for at = 0, 90 do assert(img:write(at << 20, piece)) end
        assert(img:resize("1M", { shrink = true }))
        local length = img.file_length
        assert.is_true(length < (1 << 20) + 16 * cluster_size, length)
        assert(img:close())
        shows(path, piece, "clusters of " .. cluster_size)
        -- What was given back can be had again.
        img = assert(qcow2.open(path, { mode = "rw" }))
        assert(img:resize("200M"))
        for at = 1, 60 do assert(img:write(at << 20, piece)) end
        assert(img:close())
        assert.is_true(qemu.sound(path))
      end
    end
  end)

  it("gives back the tables of a preallocated disk of 100 GiB", function()
    local path = tmp.path()
    local img = made(path, { size = "100G", preallocation = "metadata" })
    assert(img:resize("1M", { shrink = true }))
    -- The clusters that stay lie behind the place of 200 tables, whose space is the host's again.
    assert.is_true(img.file_length < 18 << 20, img.file_length)
    assert.is_true(img.disk_size < 1 << 20, img.disk_size)
    assert(img:close())
    shows(path, zeros(1 << 20), "100 GiB")
  end)

  it("keeps what snapshots and bitmaps hold", function()
    local path = tmp.path()
    local img = made(path, { size = "64M", cluster_size = 4096 })
    local contents = random.new(4):bytes(8 << 20)
    assert(img:write(0, contents))
    assert(img:write(40 << 20, contents))
    assert(img:snapshot_create("s"))
    assert(img:bitmap_add("b"))
    assert(img:write(50 << 20, contents))
    assert(img:resize("1M", { shrink = true }))
    local view <close> = assert(img:snapshot("s"))
    assert.is_true(view:read(40 << 20, 8 << 20) == contents)
    assert(view:close())
    assert.is_nil((img:snapshot_apply("s")))
    assert(img:resize("64M"))
    assert(img:snapshot_apply("s"))
    assert(img:close())
    shows(path, contents .. zeros(32 << 20) .. contents .. zeros(16 << 20), "the snapshot")
    assert.is_true(qemu.sound(path))
  end)
end)
