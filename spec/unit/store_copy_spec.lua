-- SPDX-License-Identifier: MIT
-- Copying between stores: csrc/store/copy.c.

local store = require "qcow2_probe_store"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local M = 1 << 20

local bytes = {}
for i = 1, 3 * M // 8 do bytes[i] = ("%07d\n"):format(i) end
bytes = table.concat(bytes)

local function file_with(content)
  local path = tmp.path()
  sh.spit(path, content)
  return assert(store.file(path, store.WRITE))
end

local makers = { file = file_with, memory = function(content) return assert(store.memory(content)) end }

describe("copying between stores", function()
  after_each(function() store.host {} end)

  for from_kind, make_from in pairs(makers) do
    for to_kind, make_to in pairs(makers) do
      it(("moves bytes from a %s to a %s"):format(from_kind, to_kind), function()
        local from <close>, to = make_from(bytes), make_to("0123456789")
        assert(from:copy(5, to, 7, 2 * M + 1))
        assert.equal(2 * M + 8, to:length())
        assert.is_true(to:read(0, 2 * M + 8) == "0123456" .. bytes:sub(6, 5 + 2 * M + 1))
      end)

      it(("leaves zeros for what is past the end, from a %s to a %s"):format(from_kind, to_kind), function()
        local from <close>, to = make_from("abcdef"), make_to(("x"):rep(100))
        assert(from:copy(4, to, 10, 50))
        assert.equal(("x"):rep(10) .. "ef" .. ("\0"):rep(48) .. ("x"):rep(40), to:read(0, 100))
        assert.equal(100, to:length())
        assert(from:copy(1000, to, 90, 40))
        assert.equal(130, to:length())
        assert.equal("x" .. ("\0"):rep(40), to:read(89, 41))
        assert(from:copy(0, to, 200, 0))
        assert.equal(130, to:length())
      end)
    end
  end

  it("leaves it to the kernel between two files", function()
    local from <close>, to = file_with(bytes), file_with("")
    store.host {}
    assert(from:copy(0, to, 0, 3 * M))
    assert.equal(1, store.host_calls())
    assert.is_true(bytes == to:read(0, 3 * M))
  end)

  it("goes on where the kernel stops short or is interrupted", function()
    local from <close>, to = file_with(bytes), file_with("")
    store.host { short_io = 100000, interrupts = 3 }
    assert(from:copy(0, to, 0, 3 * M))
    store.host {}
    assert.is_true(bytes == to:read(0, 3 * M))
  end)

  it("goes through a buffer where the kernel will not", function()
    for _, errno in ipairs { store.EXDEV, store.EINVAL, store.EOPNOTSUPP, store.EIO } do
      local from <close>, to = file_with(bytes), file_with("")
      store.host { copy_file_range = errno }
      assert(from:copy(3, to, 1, 3 * M))
      assert.is_true("\0" .. bytes:sub(4) .. "\0\0\0" == to:read(0, 3 * M + 1))
      assert.equal(3 * M + 1, to:length())
    end
  end)

  it("copies within one store", function()
    local s <close> = file_with(bytes)
    assert(s:copy(0, s, 3 * M, M))
    assert.is_true(bytes .. bytes:sub(1, M) == s:read(0, 4 * M))
  end)

  it("says at which end and where it failed", function()
    local from <close>, to = assert(store.memory(bytes)), assert(store.memory(""))
    local bad_from <close> = assert(store.fault(from, "r", 2, store.EIO, false))
    local ok, message, kind, _, offset = bad_from:copy(0, to, 0, 3 * M)
    assert.is_nil(ok)
    assert.equal("io", kind)
    assert.equal("Could not read 'memory' at offset 1048576: Input/output error", message)
    assert.equal(M, offset)
    local bad_to <close> = assert(store.fault(to, "w", 3, store.ENOSPC, false))
    ok, message, kind, _, offset = from:copy(0, bad_to, 512, 3 * M)
    assert.is_nil(ok)
    assert.equal("nospace", kind)
    assert.matches("Could not write", message)
    assert.equal(2 * M + 512, offset)
  end)

  it("refuses read-only targets and ranges past the largest offset before anything moves", function()
    local path = tmp.path()
    sh.spit(path, "same")
    local from <close>, to = assert(store.memory("abcd")), assert(store.file(path))
    assert.equal("readonly", select(3, from:copy(0, to, 0, 4)))
    assert.equal("range", select(3, from:copy(math.maxinteger, to, 0, 4)))
    assert.equal("range", select(3, from:copy(0, to, math.maxinteger, 4)))
    assert.equal("same", sh.slurp(path))
  end)
end)
