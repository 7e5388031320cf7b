-- SPDX-License-Identifier: MIT
-- Reading and listing: any range of a disk of every kind of cluster gives what a byte array says.
local decoder = require "spec.support.decoder"
local forge = require "spec.support.forge"
local qcow2 = require "qcow2"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

-- A disk of `count` clusters with random contents. gives: the forge's clusters and the disk's bytes over `base`.
local function random_disk(rng, bits, count, base, kinds)
  local size, clusters, out = 1 << bits, {}, {}
  for i = 0, count - 1 do
    local kind, below = rng:pick(kinds), base:sub(i * size + 1, (i + 1) * size)
    local bytes = rng:bytes(rng:int(1, size))
    local full = bytes .. ("\0"):rep(size - #bytes)
    if kind == "none" then
      out[#out + 1] = below .. ("\0"):rep(size - #below)
    elseif kind == "zero" then
      clusters[i] = "zero"
      out[#out + 1] = ("\0"):rep(size)
    elseif kind == "kept" then
      clusters[i] = { data = bytes, zero = true }
      out[#out + 1] = ("\0"):rep(size)
    elseif kind == "deflate" then
      clusters[i] = { compressed = forge.deflate(full), slack = rng:int(0, 20) }
      out[#out + 1] = full
    elseif kind == "sub" then
      local alloc = rng:int(0, 0xffffffff)
      local zero = rng:int(0, 0xffffffff) & ~alloc
      clusters[i] = { data = full, alloc = alloc, zero = zero }
      local sub = size // 32
      below = below .. ("\0"):rep(size - #below)
      for s = 0, 31 do
        local from = zero >> s & 1 == 1 and ("\0"):rep(size) or alloc >> s & 1 == 1 and full or below
        out[#out + 1] = from:sub(s * sub + 1, (s + 1) * sub)
      end
    else
      clusters[i] = { data = bytes }
      out[#out + 1] = full
    end
  end
  return clusters, table.concat(out)
end

local function expect_reads(img, disk, rng)
  assert.equal(#disk, img.size)
  assert.is_true(disk == img:read(0, #disk))
  for _ = 1, 60 do
    local offset = rng:int(0, #disk)
    local length = rng:int(0, math.min(#disk - offset, rng:chance(50) and 3000 or #disk))
    local bytes = assert(img:read(offset, length))
    assert.is_true(disk:sub(offset + 1, offset + length) == bytes, ("%d bytes at %d"):format(length, offset))
  end
end

-- Extents tile every range, and what they say is true of the bytes.
local function expect_extents(img, disk, rng)
  for _ = 1, 12 do
    local start = rng:int(0, #disk)
    local length = rng:int(0, #disk - start)
    local at = start
    for e in img:extents({ start = start, length = length }) do
      assert.equal(at, e.offset)
      assert.is_true(e.length > 0)
      if e.kind == "zero" or e.kind == "unallocated" then
        assert.is_nil(disk:sub(e.offset + 1, e.offset + e.length):find("[^\0]"))
      elseif e.kind == "data" then
        local file <close> = assert(io.open(e.file, "rb"))
        file:seek("set", e.host_offset)
        local bytes = file:read(e.length) or ""
        bytes = bytes .. ("\0"):rep(e.length - #bytes)
        assert.is_true(bytes == disk:sub(e.offset + 1, e.offset + e.length))
      end
      at = at + e.length
    end
    assert.equal(start + length, at)
  end
end

local cases = {
  { "clusters of 512 bytes", 9, 300, { "data", "data", "zero", "kept", "none", "deflate" } },
  { "clusters of 4 KiB", 12, 60, { "data", "zero", "kept", "none", "deflate", "deflate" } },
  { "clusters of 64 KiB", 16, 12, { "data", "zero", "kept", "none", "deflate" } },
  { "extended L2 entries", 14, 40, { "data", "sub", "sub", "sub", "none" }, true },
}

describe("Reading a disk", function()
  for _, case in ipairs(cases) do
    local title, bits, count, kinds, extended = table.unpack(case)
    for seed = 1, 3 do
      it(("with %s, seed %d"):format(title, seed), function()
        local rng = random.new(title .. seed)
        local clusters, disk = random_disk(rng, bits, count, "", kinds)
        local path = tmp.path("image.qcow2")
        local cut = rng:int(0, (1 << bits) - 1) -- the disk may end inside its last cluster
        forge.write(path, { header = { cluster_bits = bits, size = #disk - cut }, extended_l2 = extended,
          clusters = clusters })
        disk = disk:sub(1, #disk - cut)
        local img <close> = assert(qcow2.open(path))
        expect_reads(img, disk, rng)
        expect_extents(img, disk, rng)
        if not title:find("extended") then
          local decoded <close> = decoder.open(path)
          local ours, theirs = {}, {}
          for e in img:extents({ layer = true, holes = false }) do ours[#ours + 1] = e.offset .. e.kind end
          for _, e in ipairs(decoded:map()) do theirs[#theirs + 1] = e.offset .. e.kind end
          assert.same(theirs, ours)
        end
      end)

      it(("with %s over shorter backing files, seed %d"):format(title, seed), function()
        local rng = random.new("chain " .. title .. seed)
        local dir = tmp.dir()
        local base = rng:bytes(rng:int(1, count << bits))
        sh.spit(dir .. "/base.raw", base)
        base = base .. ("\0"):rep(-#base % 512)
        local middle, middle_disk = random_disk(rng, bits, rng:int(1, count), base, kinds)
        forge.write(dir .. "/middle.qcow2", { header = { cluster_bits = bits, size = #middle_disk },
          extended_l2 = extended, clusters = middle, backing_file = "base.raw", backing_format = "raw" })
        local clusters, disk = random_disk(rng, bits, count, middle_disk, kinds)
        forge.write(dir .. "/top.qcow2", { header = { cluster_bits = bits, size = #disk }, extended_l2 = extended,
          clusters = clusters, backing_file = "middle.qcow2", backing_format = "qcow2" })
        local img <close> = assert(qcow2.open(dir .. "/top.qcow2"))
        expect_reads(img, disk, rng)
        expect_extents(img, disk, rng)
      end)
    end
  end

  it("of no bytes gives the empty string, and nothing more", function()
    local path = tmp.path()
    forge.write(path, { header = { size = 0 } })
    local img <close> = assert(qcow2.open(path))
    assert.equal("", img:read(0, 0))
    assert.equal("range", (select(3, img:read(0, 1))))
    assert.is_nil(img:extents()())
    assert.equal("range", (select(3, img:explain(0))))
  end)

  it("past its end is refused, whatever the numbers", function()
    local path = tmp.path()
    forge.write(path, { header = { size = 1000 } })
    local img <close> = assert(qcow2.open(path))
    assert.equal(("\0"):rep(1000), img:read(0, 1000))
    assert.equal("", img:read(1000, 0))
    for _, range in ipairs { { 0, 1001 }, { 1000, 1 }, { 1001, 0 }, { math.maxinteger, 1 }, { 1, math.maxinteger },
      { math.maxinteger, math.maxinteger }, { 0, 1 << 40 } } do
      local bytes, message, kind = img:read(range[1], range[2])
      assert.is_nil(bytes)
      assert.equal("range", kind, message)
    end
  end)
end)

describe("Runs", function()
  it("go on across L2 tables, as long as they are of one kind in one place", function()
    local path = tmp.path()
    local clusters = {}
    for i = 0, 199 do clusters[i] = { host = 64 * 512 + i * 512 } end -- three L2 tables of 64 entries
    forge.write(path, { header = { cluster_bits = 9, size = 300 * 512 }, clusters = clusters })
    local img <close> = assert(qcow2.open(path))
    local list = {}
    for e in img:extents({ holes = false }) do list[#list + 1] = { e.offset, e.length, e.kind, e.host_offset } end
    assert.same({ { 0, 200 * 512, "data", 64 * 512 }, { 200 * 512, 100 * 512, "unallocated" } }, list)
    local e = img:extents({ start = 100 * 512 + 7, holes = false })()
    assert.same({ 100 * 512 + 7, 100 * 512 - 7, "data", 164 * 512 + 7 },
      { e.offset, e.length, e.kind, e.host_offset })
  end)

  it("are the same after any other question in between", function()
    local rng = random.new("memory")
    local clusters, disk = random_disk(rng, 9, 400, "", { "data", "zero", "none", "kept" })
    local path = tmp.path()
    forge.write(path, { header = { cluster_bits = 9, size = #disk }, clusters = clusters })
    local img <close> = assert(qcow2.open(path))
    for _ = 1, 300 do
      local start = rng:int(0, #disk - 1)
      local fresh <close> = assert(qcow2.open(path))
      local length = rng:int(1, #disk - start)
      local options = { start = start, length = length, holes = false }
      assert.same(fresh:extents(options)(), img:extents(options)())
    end
  end)
end)
