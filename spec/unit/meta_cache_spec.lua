-- SPDX-License-Identifier: MIT
-- The table cache (csrc/meta/cache.c) alone: what leaves under pressure, what may not, and what is read late.
local probe = require "qcow2_probe_meta"

local SLICE, MOST <const> = 512, 64

-- 512-byte clusters make slices of 512 bytes; 64 of them fit.
local function image()
  local it = probe.image { cluster_size = SLICE, size = 1 << 20, bound = SLICE * MOST }
  local state = it:state()
  assert.same({ SLICE, MOST }, { state.slice, state.most })
  return it
end

local function at(n) return (1 << 20) + n * SLICE end

local function fill(it, from, to)
  for n = from, to do assert.is_true(it:write(at(n), (n .. (" "):rep(SLICE)):sub(1, SLICE))) end
end

describe("the table cache", function()
  local it_
  before_each(function() it_ = image() end)
  after_each(function() it_:close() end)

  it("holds as many slices as its bound and reads what it lost again", function()
    fill(it_, 1, 3 * MOST)
    for _ = 1, 2 do
      for n = 1, 3 * MOST do assert.equal(n, tonumber(it_:slice(at(n)))) end
    end
    local state = it_:state()
    assert.equal(MOST, state.used)
    assert.equal(0, state.hits)
  end)

  it("keeps what is used again while a scan goes by", function()
    fill(it_, 1, 3 * MOST)
    for n = 2, 2 * MOST do
      it_:slice(at(1))
      it_:slice(at(1))
      it_:slice(at(n))
    end
    assert.is_true(it_:has(at(1)))
    assert.is_false(it_:has(at(3)))
  end)

  it("never lets a changed slice go, grows past its bound for that, and writes each once", function()
    fill(it_, 1, 3 * MOST)
    for n = 1, 2 * MOST do assert.is_true(it_:edit(at(n), ("new %d "):format(n))) end
    for n = 2 * MOST + 1, 3 * MOST do it_:slice(at(n)) end
    local before = it_:state()
    assert.equal(2 * MOST, before.dirty)
    for n = 1, 2 * MOST do
      assert.is_true(it_:has(at(n)))
      assert.equal(n, tonumber(it_:read(at(n), SLICE)), "on disk before the flush")
    end
    assert.is_true(it_:flush())
    for n = 1, 2 * MOST do assert.equal(("new %d "):format(n), it_:read(at(n), #("new %d "):format(n))) end
    local after = it_:state()
    assert.equal(0, after.dirty)
    assert.is_true(it_:flush())
    assert.equal(after.changes, it_:state().changes, "nothing left to write")
  end)

  it("makes a table without reading what the file has there", function()
    fill(it_, 1, 4)
    local misses = it_:state().misses
    assert.is_true(it_:new(at(1), ("x"):rep(4 * SLICE)))
    assert.equal(misses, it_:state().misses)
    assert.equal(("x"):rep(SLICE), it_:slice(at(4)))
    assert.equal(4, it_:state().dirty)
  end)

  it("writes only fresh tables when it is asked for these", function()
    fill(it_, 1, 2)
    it_:edit(at(1), "old")
    it_:new(at(2), ("y"):rep(SLICE))
    assert.is_true(it_:flush(true))
    assert.equal("1  ", it_:read(at(1), 3))
    assert.equal("yyy", it_:read(at(2), 3))
    assert.equal(1, it_:state().dirty)
    it_:edit(at(2), "zzz") -- no longer fresh
    it_:flush(true)
    assert.equal("yyy", it_:read(at(2), 3))
    it_:flush()
    assert.equal("zzz", it_:read(at(2), 3))
  end)

  it("forgets a place that was given up, changed or not, and no other", function()
    fill(it_, 1, 4)
    for n = 1, 4 do it_:edit(at(n), "gone") end
    it_:forget(at(2), 2 * SLICE)
    assert.equal(2, it_:state().dirty)
    it_:flush()
    assert.same({ "gone", "2   ", "3   ", "gone" }, { it_:read(at(1), 4), it_:read(at(2), 4), it_:read(at(3), 4),
      it_:read(at(4), 4) })
    assert.equal(2, tonumber(it_:slice(at(2))))
  end)

  it("reads zeros behind the end of the file", function()
    assert.equal(("\0"):rep(SLICE), it_:slice(at(1 << 20)))
  end)
end)
