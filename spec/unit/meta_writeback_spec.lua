-- SPDX-License-Identifier: MIT
-- The writeback (csrc/meta/writeback.c) alone: nothing on disk before its time, everything after, and nothing twice.
-- The order in between is held by spec/crash, which cuts at every write.
local probe = require "qcow2_probe_meta"

local C <const> = 4096
local it_
before_each(function() it_ = probe.image { cluster_size = C, size = 64 << 20 } end)
after_each(function() it_:close() end)

local function write(guest, count)
  local place = it_:prepare(guest, count * C, true)
  it_:write(place.host, ("d"):rep(count * C))
  assert.is_true(it_:commit(place))
  return place.host
end

local function l1(index)
  local at = string.unpack(">I8", it_:read(40, 8))
  return string.unpack(">I8", it_:read(at + 8 * index, 8))
end

describe("the writeback", function()
  it("leaves L1 and the tables alone until it is asked", function()
    local before = it_:state().changes
    write(0, 1)
    assert.equal(0, l1(0))
    assert.equal(1, it_:state().l1_words)
    assert.equal(before + 1, it_:state().changes) -- the data
    assert.is_true(it_:writeback())
    assert.equal(0, it_:state().l1_words)
    assert.equal(0, it_:state().dirty)
    local table_at = l1(0) & ~(1 << 63)
    assert.equal((it_:entry(0)), (string.unpack(">I8", it_:read(table_at, 8))))
  end)

  it("writes nothing when nothing changed", function()
    write(0, 3)
    it_:writeback()
    local changes = it_:state().changes
    assert.is_true(it_:writeback())
    assert.equal(changes, it_:state().changes)
  end)

  it("lowers counts and frees the space only behind the unlinking", function()
    local host = write(0, 2)
    it_:writeback()
    it_:set(0, 2 * C, "unallocated")
    assert.equal(1, it_:count(host // C))
    assert.equal("ddd", it_:read(host, 3))
    it_:writeback()
    assert.equal(0, it_:count(host // C))
    assert.equal("\0\0\0", it_:read(host, 3)) -- given back to the host
    assert.equal(0, it_:state().pending_free)
  end)

  it("keeps a table that was made and dropped again off the disk", function()
    write(0, 1)
    it_:drop_tables(0, 1)
    it_:writeback()
    assert.equal(0, l1(0))
  end)

  it("takes down in one go what a thousand changes left", function()
    for i = 0, 999 do write((i * 7919 % 16000) * C, 1) end
    it_:writeback()
    local state = it_:state()
    assert.same({ 0, 0, 0 }, { state.dirty, state.l1_words, state.pending_free })
  end)
end)
