-- SPDX-License-Identifier: MIT
-- Stores in memory: csrc/store/memory.c.

local store = require "qcow2_probe_store"

local K, T = 1024, 1 << 40
local CHUNK = 64 * K

local function memory(content) return assert(store.memory(content)) end

describe("a store in memory", function()
  it("begins with the bytes that it is given, or with zeros", function()
    local a <close>, b = memory("hello\0world"), memory(100)
    assert.equal("hello\0world\0\0", a:read(0, 13))
    assert.equal(11, a:length())
    assert.equal(("\0"):rep(100), b:read(0, 100))
    assert.equal(100, b:length())
    assert.equal(0, b:allocated())
    assert.equal(0, memory(""):length())
  end)

  it("has no file behind it", function()
    assert.same({ name = "memory", writable = true, is_device = false, has_descriptor = false },
      memory(0):about())
  end)

  it("grows where it is written, even terabytes away, for the cost of the bytes", function()
    local s <close> = memory(64 * T)
    assert(s:write(0, "first"))
    assert(s:write(63 * T - 3, "second"))
    assert(s:write(math.maxinteger - 4, "last"))
    assert.equal(math.maxinteger, s:length())
    assert.equal("first\0", s:read(0, 6))
    assert.equal("\0second\0", s:read(63 * T - 4, 8))
    assert.equal("last", s:read(math.maxinteger - 4, 4))
    assert.equal(4 * CHUNK, s:allocated())
    assert.same({ "data", CHUNK }, { s:extent(0, T) })
    assert.same({ "hole", 63 * T - 2 * CHUNK }, { s:extent(CHUNK, 64 * T) })
    assert.same({ "data", 2 * CHUNK }, { s:extent(63 * T - CHUNK, T) })
    assert.same({ "data", CHUNK - 1 }, { s:extent(math.maxinteger - CHUNK + 1, CHUNK) })
  end)

  it("tells data from holes exactly, bounded by the limit and the end", function()
    local s <close> = memory(10 * CHUNK)
    assert(s:write(3 * CHUNK + 5, "x"))
    assert(s:write(4 * CHUNK, "y"))
    assert(s:write(9 * CHUNK, "z"))
    assert(s:resize(9 * CHUNK + 100))
    assert.same({ "hole", 3 * CHUNK }, { s:extent(0, 10 * CHUNK) })
    assert.same({ "hole", 7 }, { s:extent(0, 7) })
    assert.same({ "hole", CHUNK }, { s:extent(2 * CHUNK, 2 * CHUNK) })
    assert.same({ "data", 2 * CHUNK }, { s:extent(3 * CHUNK, 10 * CHUNK) })
    assert.same({ "data", 1 }, { s:extent(4 * CHUNK, 1) })
    assert.same({ "data", CHUNK + 1 }, { s:extent(4 * CHUNK - 1, CHUNK + 1) })
    assert.same({ "hole", 4 * CHUNK }, { s:extent(5 * CHUNK, T) })
    assert.same({ "data", 100 }, { s:extent(9 * CHUNK, T) })
    assert.same({ "hole", T }, { s:extent(9 * CHUNK + 100, T) })
  end)

  it("punches to zeros, frees whole chunks, and keeps its length", function()
    local bytes = ("abcdefgh"):rep(CHUNK) -- eight chunks
    for _, range in ipairs { { 10, 20 }, { 0, CHUNK }, { 5, CHUNK }, { CHUNK - 1, 2 }, { CHUNK, 3 * CHUNK + 1 },
      { 2 * CHUNK + 7, 4 * CHUNK }, { 7 * CHUNK + 1, T }, { 0, 1 }, { 0, 8 * CHUNK }, { 9 * CHUNK, 5 } } do
      local s <close> = memory(bytes)
      local from, to = range[1], math.min(range[1] + range[2], #bytes)
      assert(s:punch(range[1], range[2]))
      local expected = from < to and bytes:sub(1, from) .. ("\0"):rep(to - from) .. bytes:sub(to + 1) or bytes
      assert.is_true(expected == s:read(0, #bytes))
      assert.equal(#bytes, s:length())
      local whole = math.max(0, to // CHUNK - (from + CHUNK - 1) // CHUNK)
      assert.equal(8 - whole, s:allocated() // CHUNK)
    end
  end)

  it("shows zeros where it was cut and grows again", function()
    local s <close> = memory(("x"):rep(3 * CHUNK))
    assert(s:resize(CHUNK + 100))
    assert(s:resize(3 * CHUNK))
    assert.is_true(s:read(0, 3 * CHUNK) == ("x"):rep(CHUNK + 100) .. ("\0"):rep(2 * CHUNK - 100))
    assert.equal(2 * CHUNK, s:allocated())
    assert(s:resize(0))
    assert.equal(0, s:allocated())
    assert(s:write(100, "y"))
    assert.equal(("\0"):rep(100) .. "y", s:read(0, 101))
  end)

  it("allocates by writing zeros into its holes only", function()
    local s <close> = memory(CHUNK)
    assert(s:write(2 * CHUNK, ("x"):rep(10)))
    assert(s:allocate(100, 4 * CHUNK))
    assert.equal(4 * CHUNK + 100, s:length())
    assert.equal(5 * CHUNK, s:allocated())
    assert.equal("\0" .. ("x"):rep(10) .. "\0", s:read(2 * CHUNK - 1, 12))
  end)

  it("holds what a plain string would after any mix of changes", function()
    local seed = os.time()
    math.randomseed(seed)
    local size = 5 * CHUNK
    local s, model = memory(0), ""
    for step = 1, 400 do
      local offset, length = math.random(0, size), math.random(1, 2 * CHUNK)
      if math.random(2) == 1 then offset = offset // CHUNK * CHUNK end
      local what = math.random(4)
      if what <= 2 then
        local bytes = string.char(math.random(255)):rep(length)
        assert(s:write(offset, bytes))
        model = model .. ("\0"):rep(offset - #model)
        model = model:sub(1, offset) .. bytes .. model:sub(offset + length + 1)
      elseif what == 3 then
        assert(s:punch(offset, length))
        length = math.min(length, #model - offset)
        if length > 0 then
          model = model:sub(1, offset) .. ("\0"):rep(length) .. model:sub(offset + length + 1)
        end
      else
        assert(s:resize(offset))
        model = model:sub(1, offset) .. ("\0"):rep(offset - #model)
      end
      assert.equal(#model, s:length())
      local where = ("seed %d, step %d"):format(seed, step)
      assert.is_true(model .. "\0\0" == s:read(0, #model + 2), where)
      local at = 0
      while at < #model do
        local kind, run = s:extent(at, #model - at)
        assert.is_true(kind == "data" or not model:find("[^\0]", at + 1)
          or model:find("[^\0]", at + 1) > at + run, where)
        at = at + run
      end
    end
  end)

  it("refuses lengths that no file could have", function()
    local ok, message, kind = store.memory(-1)
    assert.is_nil(ok)
    assert.equal("range", kind)
    assert.matches("past the largest file offset", message)
  end)

  it("serves several threads, each finding what it wrote", function()
    assert.is_true(memory(0):hammer(5000))
  end)
end)
