-- SPDX-License-Identifier: MIT
-- The map (csrc/meta/map.c) alone: runs across slices and tables, and how clusters hold their places.
local probe = require "qcow2_probe_meta"

local C <const> = 4096
local TABLE <const> = C * C // 8 -- guest bytes of one L2 table

local function image(more)
  local description = { cluster_size = C, size = 4 * TABLE }
  for key, value in pairs(more or {}) do description[key] = value end
  return probe.image(description)
end

-- Gives `count` clusters from `guest` on a place as data. gives: their host offset.
local function data(it_, guest, count)
  local first
  local done = 0
  while done < count do
    local place = assert(it_:prepare(guest + done * C, (count - done) * C, true))
    first = first or place.host
    assert.is_true(it_:commit(place))
    done = done + place.count
  end
  return first
end

describe("the map", function()
  local it_
  after_each(function() it_:close() end)

  it("finds one run across L1 entries without tables, empty tables and the end of a limit", function()
    it_ = image()
    assert.same({ kind = "unallocated", length = 4 * TABLE, copied = false }, it_:find(0, 4 * TABLE))
    data(it_, 2 * TABLE, 1)
    assert.is_true(it_:set(2 * TABLE, 2 * TABLE + C, "unallocated")) -- leaves an empty table
    assert.same({ kind = "unallocated", length = 4 * TABLE - 5, copied = false }, it_:find(5, 4 * TABLE - 5))
    assert.equal(7, it_:find(TABLE - 3, 7).length)
  end)

  it("finds one run of data across tables when the places follow one another", function()
    it_ = image { data = true }
    data(it_, TABLE - 2 * C, 4)
    local run = it_:find(TABLE - 2 * C, 8 * C)
    assert.same({ kind = "data", length = 4 * C, host = TABLE - 2 * C, copied = true }, run)
    assert.equal(TABLE - 1, it_:find(TABLE - 1, 8 * C).host)
  end)

  it("ends a run where the place jumps, the kind changes, COPIED changes", function()
    it_ = image()
    local a = data(it_, 0, 2)
    data(it_, 8 * C, 1)
    data(it_, 2 * C, 1)
    assert.same({ kind = "data", length = 2 * C, host = a, copied = true }, it_:find(0, 16 * C))
    assert.is_true(it_:set(C, 2 * C, "zero"))
    assert.equal(C, it_:find(0, 16 * C).length)
    assert.same({ kind = "zero", length = C, host = a + C, copied = true }, it_:find(C, 16 * C))
  end)

  it("forgets the run that it found last when an entry changes", function()
    it_ = image()
    data(it_, 0, 8)
    assert.equal(8 * C, it_:find(0, 8 * C).length)
    it_:set(3 * C, 4 * C, "unallocated")
    assert.equal(3 * C, it_:find(0, 8 * C).length)
    assert.equal("unallocated", it_:find(3 * C, C).kind)
    it_:drop_tables(0, 1)
    assert.equal("unallocated", it_:find(0, C).kind)
  end)
end)

describe("how clusters hold their places:", function()
  local it_
  after_each(function() it_:close() end)

  it("none, across tables that are not there", function()
    it_ = image()
    assert.same({ count = 3 * TABLE // C, holding = "none", plain = false }, it_:held(1, 3 * TABLE - 1))
    assert.equal(2, it_:held(C - 1, 2).count)
  end)

  it("their own, as long as the places follow one another", function()
    it_ = image()
    local host = data(it_, 0, 3)
    data(it_, 16 * C, 1)
    data(it_, 3 * C, 1)
    assert.same({ count = 3, holding = "own", host = host, plain = true }, it_:held(5, 6 * C))
    assert.same({ count = 2, holding = "own", host = host + C, plain = true }, it_:held(C, 2 * C))
    assert.equal(1, it_:held(3 * C, 6 * C).count)
  end)

  it("zeros that keep their place are not plain", function()
    it_ = image()
    local host = data(it_, 0, 3)
    it_:set(C, 2 * C, "zero")
    assert.equal(1, it_:held(0, 3 * C).count)
    assert.same({ count = 1, holding = "own", host = host + C, plain = false }, it_:held(C, 2 * C))
    it_:set(C, 2 * C, "zero", { free = true })
    assert.same({ count = 1, holding = "none", plain = false }, it_:held(C, 2 * C))
  end)

  it("a stream is shared, whatever COPIED says", function()
    it_ = image()
    local start = it_:alloc(1)
    it_:set(0, C, "compressed", { host = start * C + 7, length = 100 })
    assert.same({ count = 1, holding = "shared", plain = false }, it_:held(0, C))
  end)

  it("with extended L2 only the subclusters asked for have to be data", function()
    it_ = probe.image { cluster_size = 16384, extended_l2 = true, size = 1 << 20 }
    local place = it_:prepare(0, 16384, true)
    place.first = 0x0000fff0
    assert.is_true(it_:commit(place))
    assert.is_true(it_:held(4 * 512, 12 * 512).plain)
    assert.is_false(it_:held(3 * 512 + 511, 2).plain)
    assert.is_false(it_:held(15 * 512, 513).plain)
    assert.is_true(it_:held(15 * 512 + 511, 1).plain)
  end)

  it("with extended L2 a place may have nothing in it", function()
    it_ = probe.image { cluster_size = 16384, extended_l2 = true, size = 1 << 20 }
    local place = it_:prepare(0, 16384, true)
    place.first = 0
    assert.is_true(it_:commit(place))
    assert.equal("unallocated", it_:find(0, 16384).kind)
    assert.same({ count = 1, holding = "own", host = place.host, plain = false }, it_:held(0, 16384))
  end)

  it("a wrong entry fails when it is the first, and ends what comes before it", function()
    it_ = image()
    data(it_, 0, 2)
    it_:writeback()
    local _, _, at = it_:entry(C)
    it_:edit(at // C * C, it_:slice(at // C * C):sub(1, 8) .. ("\x80\0\0\0\0\0\x22\0")) -- not aligned
    assert.equal(1, it_:held(0, 2 * C).count)
    local none, _, kind, offset = it_:held(C, C)
    assert.is_nil(none)
    assert.same({ "corrupt", C }, { kind, offset })
  end)
end)
