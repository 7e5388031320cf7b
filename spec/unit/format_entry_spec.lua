-- SPDX-License-Identifier: MIT
-- L2 entries of every kind, and reference counts of every width.
local decoder = require "spec.support.decoder"
local forge = require "spec.support.forge"
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local raw = require("qcow2.image").raw
local tmp = require "spec.support.tmp"

local COPIED, COMPRESSED = 1 << 63, 1 << 62

local function opened(description)
  local path = tmp.path("image.qcow2")
  local at = forge.write(path, description)
  return assert(qcow2.open(path)), path, at
end

local function check(img, word, bitmap, expected)
  local e = raw.l2_decode(img, word, bitmap or 0)
  for key, value in pairs(expected) do
    assert.equal(value, e[key], ("0x%x: %s"):format(word, key))
  end
  for _, key in ipairs { "host_offset", "host_length" } do assert.equal(expected[key], e[key], key) end
end

describe("A standard L2 entry", function()
  it("of each kind is decoded", function()
    local img <close> = opened({})
    check(img, 0, 0, { kind = "unallocated", copied = false, reserved = 0 })
    check(img, 1, 0, { kind = "zero", copied = false, zero = 1 })
    check(img, 0x50000, 0, { kind = "data", host_offset = 0x50000, copied = false, allocated = 1 })
    check(img, 0x50000 | COPIED, 0, { kind = "data", host_offset = 0x50000, copied = true })
    check(img, 0x50001 | COPIED, 0, { kind = "zero", host_offset = 0x50000, copied = true })
    check(img, COPIED, 0, { kind = "unallocated", copied = true })
    check(img, 0x00ffffffffff0000, 0, { kind = "data", host_offset = 0x00ffffffffff0000 })
    check(img, 0x3f000000000501fe, 0, { kind = "data", host_offset = 0x50000, reserved = 0x3f000000000001fe })
  end)

  it("at offset 0 with bit 63 is data in an external data file alone", function()
    local img <close> = opened({ external_data = true })
    check(img, COPIED, 0, { kind = "data", host_offset = 0, copied = true })
    check(img, COPIED | 1, 0, { kind = "zero", host_offset = 0, copied = true })
    check(img, 0, 0, { kind = "unallocated" })
    check(img, COMPRESSED, 0, { kind = "invalid", host_offset = 0, host_length = 512 })
  end)

  it("with the zero flag is invalid in version 2", function()
    local img <close> = opened({ header = { version = 2 } })
    check(img, 1, 0, { kind = "invalid" })
    check(img, 0x50000, 0, { kind = "data", host_offset = 0x50000 })
  end)

  it("of a compressed cluster splits offset and sectors by the cluster size", function()
    for bits = 9, 21 do
      local img <close> = opened({ header = { cluster_bits = bits, size = 4096 } })
      local shift = 62 - (bits - 8)
      for _, sectors in ipairs { 0, 1, (1 << (bits - 8)) - 1 } do
        for _, offset in ipairs { 0x1000, 0x12345, (1 << shift) - 1, 511 } do
          check(img, COMPRESSED | sectors << shift | offset, 0, { kind = "compressed", host_offset = offset,
            host_length = (sectors + 1) * 512 - offset % 512, reserved = 0 })
        end
      end
    end
  end)
end)

describe("An extended L2 entry", function()
  it("of each kind is decoded", function()
    local img <close> = opened({ extended_l2 = true })
    local all = 0xffffffff
    check(img, 0, 0, { kind = "unallocated" })
    check(img, 0, all << 32, { kind = "zero", zero = all, allocated = 0 })
    check(img, 0x50000, all, { kind = "data", host_offset = 0x50000, allocated = all, zero = 0 })
    check(img, 0x50000, 0, { kind = "unallocated", host_offset = 0x50000 })
    check(img, 0x50000, all << 32, { kind = "zero", host_offset = 0x50000 })
    check(img, 0x50000, 1, { kind = "mixed", host_offset = 0x50000 })
    check(img, 0, 1 << 63, { kind = "mixed" })
    check(img, 0x50000, 1 | 1 << 32, { kind = "invalid", host_offset = 0x50000 })
    check(img, 0, 1, { kind = "invalid" })
    check(img, 0x50001, all, { kind = "data", host_offset = 0x50000, reserved = 1 })
    check(img, COMPRESSED | 0x50000, 0, { kind = "compressed", host_offset = 0x50000, host_length = 512 })
  end)

  it("maps each subcluster by its own two bits", function()
    local rng = random.new("subclusters")
    for _ = 1, 20 do
      local alloc = rng:int(0, 0xffffffff)
      local zero = rng:int(0, 0xffffffff) & ~alloc
      local img <close> = opened({ extended_l2 = true, clusters = { [0] = { data = ("d"):rep(65536), alloc = alloc,
        zero = zero } } })
      for sub = 0, 31 do
        local expected = zero >> sub & 1 == 1 and "zero" or alloc >> sub & 1 == 1 and "data" or "unallocated"
        local extent = img:extents({ start = sub * 2048, length = 2048, holes = false })()
        assert.equal(expected, extent.kind)
        local bytes = expected == "data" and ("d"):rep(2048) or ("\0"):rep(2048)
        assert.equal(bytes, img:read(sub * 2048, 2048))
      end
    end
  end)
end)

describe("Reference counts", function()
  for order = 0, 6 do
    local bits = 1 << order
    local largest = bits == 64 and -1 or (1 << bits) - 1

    it(("of %d bits are read like the decoder reads them"):format(bits), function()
      local rng = random.new("refcounts " .. order)
      local counts = {}
      for cluster = 0, 3999 do
        local kind = rng:int(1, 4)
        local small = math.min(largest & math.maxinteger, 1 << 62)
        counts[cluster] = kind == 1 and 0 or kind == 2 and largest or rng:int(0, small)
      end
      local img <close>, path = opened({ header = { cluster_bits = 9, size = 4096, refcount_order = order },
        refcounts = counts, clusters = { [7] = { data = "x" } }, refcount_table_clusters = 4, size = 1 << 21 })
      local decoded <close> = decoder.open(path)
      local blocks = 0
      for cluster = 0, 4100 do
        local count = assert(img:refcount(cluster))
        assert.equal(decoded:refcount(cluster), count, cluster)
        if count ~= 0 then blocks = blocks + 1 end
      end
      assert.is_true(blocks > 10)
      assert.equal(0, img:refcount(1 << 50))
    end)

    it(("of %d bits by qemu-img are read"):format(bits), function()
      local path = tmp.path("image.qcow2")
      qemu.create(path, { size = "4M", refcount_bits = bits, cluster_size = 4096 })
      qemu.io(path, { "write 0 100k", "write 1M 64k" })
      local img <close> = assert(qcow2.open(path))
      assert.equal(bits, img.refcount_bits)
      local decoded <close> = decoder.open(path)
      local counts = decoded:references()
      for cluster = 0, decoded:host_clusters(counts) do
        assert.equal(counts[cluster] or 0, img:refcount(cluster), cluster)
      end
    end)
  end
end)
