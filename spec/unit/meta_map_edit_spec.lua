-- SPDX-License-Identifier: MIT
-- The one way that tables change (csrc/meta/map_edit.c): places are prepared, named or given back; ranges are set.
local probe = require "qcow2_probe_meta"

local C <const> = 4096
local TABLE <const> = C * C // 8

local function image(more)
  local description = { cluster_size = C, size = 4 * TABLE }
  for key, value in pairs(more or {}) do description[key] = value end
  return probe.image(description)
end

local it_
local function clusters_in_use()
  local count, n = 0, 0
  repeat
    if it_:count(n) > 0 then count = count + 1 end
    n = n + 1
  until n > 4000
  return count
end

local function data(guest, count)
  local place = assert(it_:prepare(guest, count * C, true))
  assert.equal(count, place.count)
  assert.is_true(it_:commit(place))
  return place.host
end

after_each(function() it_:close() end)

describe("prepare", function()
  it("takes one piece for all clusters that the range touches, and names it in no entry", function()
    it_ = image()
    local place = it_:prepare(C - 1, 2 * C, false)
    assert.same({ 0, 3, true, true, false }, { place.guest, place.count, place.taken, place.moves, place.plain })
    assert.is_true(place.virgin)
    assert.equal(0, it_:entry(0))
    for i = 0, 2 do assert.equal(1, it_:count(place.host // C + i)) end
  end)

  it("takes whole clusters only, or nothing, when it is asked for these", function()
    it_ = image()
    assert.equal(2, it_:prepare(0, 3 * C - 1, true).count)
    local before = clusters_in_use()
    local place = it_:prepare(3 * C + 512, 8 * C, true)
    assert.same({ true, 1, false }, { place.composed, place.count, place.taken })
    assert.is_true(it_:prepare(4 * C, C - 512, true).composed)
    assert.equal(before, clusters_in_use())
  end)

  it("names what is there already where it is the disk's own", function()
    it_ = image()
    local host = data(0, 4)
    local place = it_:prepare(C + 5, 3 * C - 5, true)
    assert.same({ C, 3, host + C, true, false, false },
      { place.guest, place.count, place.host, place.plain, place.moves, place.taken })
    it_:abandon(place) -- of what was not taken: nothing
    assert.equal(1, it_:count(host // C + 1))
  end)

  it("ends where plain data ends, so that no entry changes that need not", function()
    it_ = image()
    local host = data(0, 4)
    it_:set(2 * C, 3 * C, "zero")
    assert.equal(2, it_:prepare(0, 4 * C, false).count)
    local zero = it_:prepare(2 * C, 2 * C, false)
    assert.same({ 1, host + 2 * C, false, false }, { zero.count, zero.host, zero.plain, zero.moves })
    assert.is_true(it_:prepare(2 * C, 2 * C, true).composed)
  end)

  it("gives clusters without a place and streams a new one together", function()
    it_ = image()
    local start = it_:alloc(1)
    it_:set(C, 2 * C, "compressed", { host = start * C, length = 100 })
    assert.equal(3, it_:prepare(0, 3 * C, false).count)
  end)

  it("takes nothing of an external data file, where each cluster has its place", function()
    it_ = image { data = true }
    local place = it_:prepare(5 * C, 2 * C, false)
    assert.same({ 5 * C, false, true }, { place.host, place.taken, place.moves })
  end)

  it("gives back first what is still to be given back of the data file", function()
    it_ = image { data = true }
    data(0, 8)
    it_:write(0, ("x"):rep(8 * C), true)
    it_:writeback()
    it_:set(2 * C, 4 * C, "zero", { free = true })
    assert.equal(1, it_:state().pending_punch)
    it_:prepare(0, C, false)
    assert.equal(1, it_:state().pending_punch)
    it_:prepare(3 * C, C, false)
    assert.equal(0, it_:state().pending_punch)
    assert.equal(("\0"):rep(C), it_:read(3 * C, C, true))
  end)

  it("refuses a place where metadata lives", function()
    it_ = image()
    data(0, 1)
    it_:writeback()
    local _, _, at = it_:entry(0)
    local slice = it_:slice(at)
    it_:edit(at, string.pack(">I8", 1 << 63 | at) .. slice:sub(9))
    assert.is_true(it_:live(at // C))
    local none, message, kind, offset = it_:prepare(0, C, false)
    assert.is_nil(none)
    assert.same({ "corrupt", 0 }, { kind, offset })
    assert.matches("where metadata lies", message, 1, true)
    assert.equal("corrupt", (select(3, it_:check_release(0, C))))
  end)
end)

describe("commit", function()
  it("lets entries across tables name the place, with COPIED", function()
    it_ = image()
    local host = data(TABLE - C, 2)
    assert.equal(1 << 63 | host, it_:entry(TABLE - C))
    assert.equal(1 << 63 | host + C, it_:entry(TABLE))
  end)

  it("lets go of what the entries held, after the next writeback and not before", function()
    it_ = image()
    local start = it_:alloc(1)
    it_:set(0, C, "compressed", { host = start * C, length = 100 })
    it_:writeback()
    assert.equal(1, it_:count(start))
    data(0, 1)
    assert.equal(1, it_:count(start))
    assert.equal(1, it_:state().pending_free)
    it_:writeback()
    assert.equal(0, it_:count(start))
  end)

  it("gives the edges the bitmaps that the caller says, one cluster the first", function()
    it_ = probe.image { cluster_size = 16384, extended_l2 = true, size = 1 << 20 }
    local place = it_:prepare(0, 3 * 16384, true)
    place.first, place.last = 1, 2
    it_:commit(place)
    for i, bitmap in ipairs { 1, 0xffffffff, 2 } do
      assert.equal(bitmap, (select(2, it_:entry((i - 1) * 16384))))
    end
    place = it_:prepare(8 * 16384, 16384, true)
    place.first, place.last = 5, 6
    it_:commit(place)
    assert.equal(5, (select(2, it_:entry(8 * 16384))))
  end)
end)

it("abandon gives everything back but the table", function()
  it_ = image()
  it_:prepare(0, C, true)
  local before = clusters_in_use()
  local place = it_:prepare(8 * C, 5 * C, true)
  assert.equal(before + 5, clusters_in_use())
  it_:abandon(place)
  assert.equal(before, clusters_in_use())
  assert.equal(place.host, it_:prepare(8 * C, C, true).host)
end)

describe("set_range", function()
  it("makes no table and changes no slice where nothing changes", function()
    it_ = image()
    local before, dirty = clusters_in_use(), it_:state().dirty
    assert.is_true(it_:set(0, 4 * TABLE, "unallocated"))
    assert.is_true(it_:set(0, 4 * TABLE, "zero"))
    assert.is_true(it_:set(0, 4 * TABLE, "zero", { free = true }))
    assert.same({ before, dirty }, { clusters_in_use(), it_:state().dirty })
    assert.is_true(it_:set(0, 4 * TABLE, "zero", { say = true }))
    assert.equal("zero", it_:find(0, 4 * TABLE).kind)
    it_:writeback()
    dirty = it_:state().dirty
    assert.is_true(it_:set(0, 4 * TABLE, "zero", { say = true }))
    assert.equal(dirty, it_:state().dirty)
  end)

  it("keeps or frees the space under zeros as it is told", function()
    it_ = image()
    local host = data(0, 4)
    it_:set(0, 2 * C, "zero")
    it_:set(2 * C, 4 * C, "zero", { free = true })
    it_:writeback()
    assert.same({ 1, 1, 0, 0 }, { it_:count(host // C), it_:count(host // C + 1), it_:count(host // C + 2),
      it_:count(host // C + 3) })
    assert.equal(1 << 63 | host | 1, it_:entry(0))
    assert.equal(1, it_:entry(2 * C))
    it_:set(0, 2 * C, "zero", { free = true })
    it_:writeback()
    assert.equal(0, it_:count(host // C))
  end)

  it("frees a stream under zeros also where the space was to stay", function()
    it_ = image()
    local start = it_:alloc(2)
    it_:set(0, C, "compressed", { host = start * C + C - 50, length = 100 })
    it_:set(0, C, "zero")
    assert.equal(1, it_:entry(0))
    it_:writeback()
    assert.same({ 0, 0 }, { it_:count(start), it_:count(start + 1) })
  end)

  it("does what it does across many slices and a cache that is full", function()
    it_ = image { bound = 16 * C, size = 64 * TABLE }
    for t = 0, 63 do data(t * TABLE, 1) end
    assert.is_true(it_:set(0, 64 * TABLE, "zero", { say = true, free = true }))
    assert.equal(64 * TABLE, it_:find(0, 64 * TABLE).length)
    assert.is_true(it_:state().dirty <= it_:state().most)
    assert.is_true(it_:writeback())
    assert.equal(64 * TABLE, it_:find(0, 64 * TABLE).length)
  end)

  it("says that data is there, and lets go only of another place", function()
    it_ = image { data = true }
    assert.is_true(it_:set(C, 3 * C, "data", { host = C }))
    assert.same({ kind = "data", length = 2 * C, host = C, copied = true }, it_:find(C, 2 * C))
    assert.equal(0, it_:state().pending_punch)
  end)

  it("gives COPIED back", function()
    it_ = image { data = true }
    data(0, 1)
    it_:writeback()
    local _, _, at = it_:entry(0)
    it_:edit(at, string.pack(">I8", 1))
    it_:set(0, C, "copied")
    assert.equal(1 << 63 | 1, it_:entry(0))
  end)

  it("refuses to let go of live metadata and leaves the entry", function()
    it_ = image()
    data(0, 1)
    it_:writeback()
    local _, _, at = it_:entry(0)
    it_:edit(at, string.pack(">I8", 1 << 63 | at))
    for _, kind in ipairs { "unallocated", "zero" } do
      assert.equal("corrupt", (select(3, it_:set(0, C, kind, { free = true }))))
    end
    assert.equal(1 << 63 | at, it_:entry(0))
    assert.equal("corrupt", (select(3, it_:check_release(0, C))))
    it_:edit(at, string.pack(">I8", 0))
  end)
end)

it("drop_tables frees the tables and all that they name", function()
  it_ = image()
  local before = clusters_in_use()
  data(TABLE - 2 * C, 4)
  data(3 * TABLE, 1)
  it_:writeback()
  assert.is_true(it_:drop_tables(0, 4))
  assert.equal("unallocated", it_:find(0, 4 * TABLE).kind)
  it_:writeback()
  assert.equal(before, clusters_in_use())
end)
