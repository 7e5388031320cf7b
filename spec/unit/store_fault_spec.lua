-- SPDX-License-Identifier: MIT
-- Stores whose calls fail on demand: csrc/store/fault.c.

local store = require "qcow2_probe_store"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local calls = {
  { letter = "r", verb = "read", run = function(s) return s:read(1, 2) end },
  { letter = "w", verb = "write", run = function(s) return s:write(1, "xy") end },
  { letter = "f", verb = "flush", run = function(s) return s:flush() end },
  { letter = "p", verb = "discard", run = function(s) return s:punch(1, 2) end },
  { letter = "s", verb = "resize", run = function(s) return s:resize(20) end },
}

local function fault_over(content, ...)
  local inner = assert(store.memory(content))
  return assert(store.fault(inner, ...)), inner
end

describe("a fault store", function()
  for _, call in ipairs(calls) do
    it(("fails the chosen %s, once"):format(call.verb), function()
      local f <close>, inner = fault_over("0123456789", call.letter, 3, store.EIO, false)
      assert(call.run(f))
      assert(call.run(f))
      inner:resize(10)
      inner:write(0, "0123456789")
      local ok, message, kind, errno = call.run(f)
      assert.is_nil(ok)
      assert.equal("io", kind)
      assert.equal(store.EIO, errno)
      assert.matches("^Could not " .. call.verb .. " 'memory'.*: Input/output error$", message)
      assert.equal("0123456789", inner:read(0, inner:length()))
      assert(call.run(f))
      assert.equal(4, f:calls())
    end)

    it(("goes on failing the %s when it is sticky"):format(call.verb), function()
      local f <close> = fault_over("0123456789", call.letter, 2, store.ENOSPC, true)
      assert(call.run(f))
      for _ = 1, 3 do assert.equal("nospace", select(3, call.run(f))) end
      assert.equal(4, f:calls())
    end)

    it(("leaves the %s alone when other kinds are chosen"):format(call.verb), function()
      local f <close> = fault_over("0123456789", (("rwfps"):gsub(call.letter, "")), 1, store.EIO, true)
      assert(call.run(f))
      assert.equal(0, f:calls())
    end)
  end

  it("counts over all chosen kinds together, and only counts with number 0", function()
    local f <close>, inner = fault_over("0123456789", "rw", 0, store.EIO, true)
    for _, call in ipairs(calls) do assert(call.run(f)) end
    assert(f:write(0, "")) -- nothing moves, nothing counts
    assert.equal(2, f:calls())
    local both <close> = assert(store.fault(inner, "wf", 2, store.EIO, false))
    assert(both:write(0, "a"))
    assert.equal("io", select(3, both:flush()))
    assert(both:write(0, "a"))
  end)

  it("says what the store below says, and names the file in its errors", function()
    local path = tmp.path("disk")
    sh.spit(path, "0123456789")
    local file <close> = assert(store.file(path, store.WRITE))
    local f <close> = assert(store.fault(file, "r", 1, store.EIO, false))
    local about = file:about()
    about.has_descriptor = false
    assert.same(about, f:about())
    assert.equal(("Could not read '%s' at offset 7: Input/output error"):format(path), select(2, f:read(7, 1)))
    assert.equal("7", f:read(7, 1))
    assert.equal(10, f:length())
    assert.equal(file:allocated(), f:allocated())
    assert.same({ "data", 10 }, { f:extent(0, 100) })
  end)

  it("lets no call past it: allocations and copies are writes", function()
    local f <close> = fault_over("", "w", 1, store.ENOSPC, true)
    local from <close> = assert(store.memory("abc"))
    assert.equal("nospace", select(3, f:allocate(0, 10)))
    assert.equal("nospace", select(3, from:copy(0, f, 0, 3)))
    assert.equal(2, f:calls())
  end)

  it("keeps the store below alive", function()
    local f <close>, inner = fault_over("abc", "r", 0, store.EIO, false)
    inner:close()
    assert.equal("abc", f:read(0, 3))
  end)

  it("refuses kinds that it does not know, and an errno that is none", function()
    local inner <close> = assert(store.memory(""))
    for _, bad in ipairs { { "", store.EIO }, { "x", store.EIO }, { "rwfpsr", store.EIO }, { "r", 0 } } do
      local ok, message, kind = store.fault(inner, bad[1], 1, bad[2], false)
      assert.is_nil(ok)
      assert.equal("conflict", kind)
      assert.matches("needs an errno", message)
    end
    assert.equal(0, inner:calls())
  end)
end)
