-- SPDX-License-Identifier: MIT
-- The judges judged: the plain Lua decoder agrees with qemu-img, and what the forge makes is sound until told
-- otherwise. None of our code runs here.

local decoder = require "spec.support.decoder"
local fixtures = require "spec.support.fixtures"
local forge = require "spec.support.forge"
local poke = require "spec.support.poke"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local K64 = 65536

local function noise(length) return random.new("oracle"):bytes(length) end

-- The decoder's map in the words of `qemu-img map`, for an image without a backing file.
local function as_qemu_says(image)
  local list = {}
  for _, e in ipairs(image:map(nil, true)) do
    local said = { start = e.offset, length = e.length, present = e.kind ~= "unallocated",
      zero = e.kind == "zero" or e.kind == "unallocated",
      data = e.kind == "data" or e.kind == "compressed", offset = e.kind ~= "compressed" and e.host_offset or nil }
    local last = list[#list]
    if last and last.present == said.present and last.zero == said.zero and last.data == said.data
      and (last.offset and last.offset + last.length) == said.offset
    then
      last.length = last.length + said.length
    else
      list[#list + 1] = said
    end
  end
  return list
end

describe("The decoder", function()
  local dir
  setup(function() dir = tmp.dir() end)
  teardown(function() tmp.remove(dir) end)

  for _, name in ipairs { "cluster_size=512,compat=1.1,compression_type=zstd", "cluster_size=4096,compat=0.10",
    "cluster_size=65536,compat=1.1,compression_type=zlib,extended_l2=on" }
  do
    it("maps as qemu-img does an image with " .. name, function()
      for _, recipe in ipairs(fixtures.of("options")) do
        if recipe.name:find(name, 1, true) == 1 and recipe.name:find("preallocation=off", 1, true) then
          local image = recipe:make(dir)
          local decoded <close> = decoder.open(image.path)
          local theirs = qemu.map(image.path)
          for _, e in ipairs(theirs) do e.depth = nil end
          assert.are.same(theirs, as_qemu_says(decoded))
          assert.are.same({}, decoded:problems())
          return
        end
      end
      error("no recipe has such options")
    end)
  end

  it("complains where qemu-img check complains", function()
    local path = dir .. "/damaged"
    local at = forge.write(path, { clusters = { [0] = { data = "a" }, [1] = { data = "b" } } })
    poke.u16(path, at.refcount_blocks[1] + 2 * (at.data[0] // K64), 2) -- a leak
    poke.flip(path, at.l2[0] + 8, 1 << 63) -- COPIED lost
    local decoded <close> = decoder.open(path)
    local report, code = qemu.check(path)
    assert.are.equal(2, code)
    assert.are.equal(1, report.leaks)
    -- QEMU finds COPIED wrong in both entries: the first has now a count of two.
    assert.are.equal(2, report.corruptions)
    assert.are.equal(3, #decoded:problems())
  end)
end)

describe("The forge", function()
  local dir
  setup(function() dir = tmp.dir() end)
  teardown(function() tmp.remove(dir) end)

  local function sound(name, description)
    local path = dir .. "/" .. name
    local at = forge.write(path, description)
    local fine, text = qemu.sound(path)
    assert(fine, text)
    local decoded <close> = decoder.open(path)
    assert.are.same({}, decoded:problems())
    return path, at
  end

  it("makes a sound empty image of no description", function()
    assert.are.equal(1 << 20, qemu.info((sound("empty")))["virtual-size"])
  end)

  it("makes plain, zero and compressed clusters", function()
    local path = sound("kinds", { clusters = { [0] = { data = "hello" }, [3] = "zero",
      [5] = { compressed = forge.deflate(noise(K64)) },
      [6] = { compressed = forge.deflate(("x"):rep(K64)), slack = 77 }, [15] = { data = "z", zero = true } } })
    local bytes = qemu.read_all(path, dir .. "/raw")
    assert.are.equal("hello\0", bytes:sub(1, 6))
    assert.is_true(bytes:sub(5 * K64 + 1, 6 * K64) == noise(K64))
    assert.is_true(bytes:sub(6 * K64 + 1, 7 * K64) == ("x"):rep(K64))
    assert.is_true(bytes:sub(15 * K64 + 1) == ("\0"):rep(K64))
  end)

  it("makes zstd streams", function()
    local path = sound("zstd", { header = { cluster_bits = 12, compression_type = 1 },
      clusters = { [0] = { compressed = forge.zstd(noise(4096)) },
        [1] = { compressed = forge.zstd(("q"):rep(4096)) } } })
    local bytes = qemu.read_all(path, dir .. "/raw")
    assert.is_true(bytes:sub(1, 8192) == noise(4096) .. ("q"):rep(4096))
  end)

  for order = 0, 6 do
    it(("makes counts of %d bits"):format(1 << order), function()
      sound("counts", { header = { cluster_bits = 9, refcount_order = order, size = 100000 },
        clusters = { [0] = { data = "a" }, [63] = { data = "b" }, [64] = { data = "c" }, [100] = "zero" } })
    end)
  end

  it("makes subclusters", function()
    local path = sound("sub", { extended_l2 = true, clusters = {
      [0] = { data = ("a"):rep(K64), alloc = 0xff, zero = 0xff00 }, [1] = "zero", [2] = { data = "x" } } })
    local bytes = qemu.read_all(path, dir .. "/raw")
    assert.is_true(bytes:sub(1, K64) == ("a"):rep(K64 // 4) .. ("\0"):rep(K64 * 3 // 4))
  end)

  it("makes snapshots in version 2 that share tables or have their own", function()
    local path = sound("snapshots", { header = { version = 2, cluster_bits = 12 }, clusters = { [0] = { data = "a" } },
      snapshots = { { name = "x" }, { name = "y", clusters = { [4] = { data = "q" } } } } })
    assert.are.equal("a", qemu.read_all(path, dir .. "/raw", { snapshot = "snapshot.name=x" }):sub(1, 1))
    assert.are.equal("q", qemu.read_all(path, dir .. "/raw", { snapshot = "snapshot.name=y" }):sub(16385, 16385))
  end)

  it("makes bitmaps", function()
    local path = sound("bitmaps", { bitmaps = { { name = "b", flags = 2, entries = { [0] = "\1\2\3" } },
      { name = "c", granularity_bits = 12, entries = { [0] = "ones" } } } })
    assert.are.same({ { name = "b", granularity = K64, flags = { "auto" } },
      { name = "c", granularity = 4096, flags = {} } }, qemu.info(path)["format-specific"].data.bitmaps)
    local decoded <close> = decoder.open(path)
    assert.are.same({ { offset = 0, length = K64 }, { offset = 9 * K64, length = K64 } },
      decoded:bitmap_ranges(decoded.bitmaps.b))
  end)

  it("makes external data files", function()
    local path = sound("external", { data_file = "external.data", data_bytes = dir .. "/external.data",
      clusters = { [0] = { data = "first" }, [7] = { data = "seven" }, [8] = "zero" } })
    poke.truncate(dir .. "/external.data", 1 << 20)
    local bytes = qemu.read_all(path, dir .. "/raw")
    assert.are.equal("first", bytes:sub(1, 5))
    assert.are.equal("seven", bytes:sub(7 * K64 + 1, 7 * K64 + 5))
  end)

  it("writes any header field as it is told", function()
    local path = dir .. "/fields"
    forge.write(path, { header = { cluster_bits = 31, l1_table_offset = -1, nb_snapshots = 0xffffffff } })
    assert.are.equal(31, poke.get_u32(path, 20))
    assert.are.equal(-1, poke.get_u64(path, 40))
    assert.are.equal(0xffffffff, poke.get_u32(path, 60))
    assert.are_not.equal(0, sh.run({ "qemu-img", "info", "-f", "qcow2", path }).code)
  end)
end)
