-- SPDX-License-Identifier: MIT
-- Stores that tell what a power cut could leave: csrc/store/power.c.

local store = require "qcow2_probe_store"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local function power_over(content)
  local inner = assert(store.memory(content))
  return assert(store.power(inner)), inner
end

-- What a replay leaves, as one string.
local function after(power, ...)
  local s <close> = assert(power:replay(...))
  return s:read(0, s:length())
end

local function no_replay(power, pattern, ...)
  local ok, message, kind = power:replay(...)
  assert.is_nil(ok)
  assert.equal("range", kind)
  assert.matches(pattern, message)
end

describe("a power store", function()
  it("passes everything on and records what changes", function()
    local p <close>, inner = power_over("0123456789")
    assert(p:write(2, "ab"))
    assert(p:flush())
    assert(p:punch(4, 2))
    assert(p:resize(8))
    assert.equal("ab", p:read(2, 2))
    assert.equal("01ab\0\00067", inner:read(0, 8))
    assert.equal(8, p:length())
    assert.equal(8, inner:length())
    assert.same({ "w 2 2", "f 0 0", "p 4 2", "r 0 8" }, p:ops())
    assert.equal("p", p:op(2))
    local ok, message, kind = p:op(4)
    assert.is_nil(ok)
    assert.equal("range", kind)
    assert.equal("There is no operation 4 in the record", message)
  end)

  it("replays any prefix, beginning with what was there", function()
    local p <close> = power_over("0123456789")
    assert(p:write(2, "ab"))
    assert(p:punch(0, 1))
    assert(p:resize(4))
    assert(p:write(6, "z"))
    assert.equal("0123456789", after(p, 0))
    assert.equal("01ab456789", after(p, 1))
    assert.equal("\0001ab456789", after(p, 2))
    assert.equal("\0001ab", after(p, 3))
    assert.equal("\0001ab\0\0z", after(p, 4))
    assert.equal("\0001ab\0\0z", p:read(0, p:length()))
    no_replay(p, "The record has 4 operations, not 5", 5)
  end)

  it("drops any unflushed operations, and no flushed ones", function()
    local p <close> = power_over("......")
    assert(p:write(0, "A"))
    assert(p:write(1, "B"))
    assert(p:flush())
    assert(p:write(1, "C"))
    assert(p:write(2, "D"))
    assert(p:punch(0, 1))
    assert(p:resize(3))
    assert.equal("AB....", after(p, 3, "000"))
    assert.equal("......", after(p, 2, "00"))
    assert.equal("A.....", after(p, 2, "10"))
    assert.equal(".B....", after(p, 2, "01"))
    assert.equal("AB....", after(p, 7, "0000000"))
    assert.equal("ABD...", after(p, 7, "0000100"))
    assert.equal("\0C....", after(p, 7, "0001010"))
    assert.equal("\0CD", after(p, 7, "0001111"))
    assert.equal("\0CD", after(p, 7))
    assert.equal("ABD", after(p, 7, "0000101"))
  end)

  it("lets every subset of unflushed writes survive, and nothing else", function()
    local p <close> = power_over("....")
    for i, letter in ipairs { "a", "b", "c", "d" } do assert(p:write(i - 1, letter)) end
    local seen, count = {}, 0
    for bits = 0, 15 do
      local keep, expected = "", ""
      for i = 0, 3 do
        local on = bits >> i & 1 == 1
        keep = keep .. (on and "1" or "0")
        expected = expected .. (on and ("abcd"):sub(i + 1, i + 1) or ".")
      end
      local left = after(p, 4, keep)
      assert.equal(expected, left)
      if not seen[left] then count = count + 1 end
      seen[left] = true
    end
    assert.equal(16, count)
  end)

  it("tears one unflushed write", function()
    local p <close> = power_over(("."):rep(1200))
    assert(p:write(0, ("a"):rep(1024)))
    assert(p:flush())
    assert(p:write(100, ("b"):rep(1024)))
    assert(p:write(0, "c"))
    local dots, a = ("."):rep(176), ("a"):rep(1024)
    assert.is_true(after(p, 4, "0000", 2, 512)
      == a:sub(1, 100) .. ("b"):rep(512) .. a:sub(613) .. dots)
    assert.is_true(after(p, 4, "0001", 2, 0) == "c" .. a:sub(2) .. dots)
    assert.is_true(after(p, 3, nil, 2, 5000) == a:sub(1, 100) .. ("b"):rep(1024) .. dots:sub(101))
    no_replay(p, "Operation 0 cannot be torn", 4, nil, 0, 10) -- flushed
    no_replay(p, "Operation 1 cannot be torn", 4, nil, 1, 10) -- no write
    no_replay(p, "Operation 3 cannot be torn: .* first 3", 3, nil, 3, 0) -- not among them
    assert.equal("a", after(p, 1, nil, 0, 1):sub(1, 1))
  end)

  it("does not grow by writes that were dropped", function()
    local p <close> = power_over("ab")
    assert(p:write(1000, "far"))
    assert(p:write(0, "x"))
    assert.equal("xb", after(p, 2, "01"))
  end)

  it("records no operation that failed below", function()
    local inner <close> = assert(store.memory("abc"))
    local fault <close> = assert(store.fault(inner, "wfps", 1, store.EIO, true))
    local p <close> = assert(store.power(fault))
    for _, call in ipairs { { "write", 0, "x" }, { "flush" }, { "punch", 0, 1 }, { "resize", 1 } } do
      local ok, _, kind = p[call[1]](p, table.unpack(call, 2))
      assert.is_nil(ok)
      assert.equal("io", kind)
    end
    assert.same({}, p:ops())
    assert.equal("abc", after(p, 0))
  end)

  it("begins with a sparse copy of a file, which later changes of the file do not touch", function()
    local path = tmp.path()
    sh.check { "truncate", "-s", "1T", path }
    local file <close> = assert(store.file(path, store.WRITE))
    assert(file:write(1 << 39, "middle"))
    local p <close> = assert(store.power(file))
    assert.equal(path, p:about().name)
    assert.equal(file:about().inode, p:about().inode)
    assert.is_false(p:about().has_descriptor)
    assert(p:write(1 << 39, "MI"))
    local before <close>, later = assert(p:replay(0)), assert(p:replay(1))
    assert.equal("\0middle\0", before:read((1 << 39) - 1, 8))
    assert.equal("\0MIddle\0", later:read((1 << 39) - 1, 8))
    assert.equal("MIddle", file:read(1 << 39, 6))
    assert.equal(1 << 40, later:length())
    assert.same({ "hole", 1 << 39 }, { p:extent(0, 1 << 40) })
    assert.equal(file:allocated(), p:allocated())
  end)

  it("shows allocations and copies as the writes that they are", function()
    local p <close> = power_over("")
    local from <close> = assert(store.memory("abc"))
    assert(p:allocate(0, 10))
    assert(from:copy(0, p, 2, 3))
    assert.same({ "w 0 10", "w 2 3" }, p:ops())
    assert.equal("\0\0abc" .. ("\0"):rep(5), after(p, 2))
  end)

  it("is as read-only as what is below", function()
    local path = tmp.path()
    sh.spit(path, "x")
    local file <close> = assert(store.file(path))
    local p <close> = assert(store.power(file))
    assert.equal("readonly", select(3, p:write(0, "y")))
    assert.same({}, p:ops())
  end)

  it("is what the replay is asked of", function()
    local s <close> = assert(store.memory(""))
    local ok, message, kind = s:replay(0)
    assert.is_nil(ok)
    assert.equal("conflict", kind)
    assert.equal("Not a power store but a memory store", message)
    assert.equal("conflict", select(3, s:op(0)))
    assert.same({}, s:ops())
  end)

  it("keeps the record in the order of the changes when several threads write", function()
    local p <close>, inner = power_over("")
    assert.is_true(p:hammer(200))
    local count = #p:ops()
    assert.is_true(count >= 4 * 200)
    assert.is_true(after(p, count) == inner:read(0, inner:length()))
  end)
end)
