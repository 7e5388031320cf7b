-- SPDX-License-Identifier: MIT
-- The allocator (csrc/meta/alloc.c) alone: free places, counts of every width, room for counts, and what is given back.
local probe = require "qcow2_probe_meta"

local C <const> = 512
local it_
after_each(function() it_:close() end)

describe("the allocator", function()
  it("takes the first free place, exact or what there is of it", function()
    it_ = probe.image { cluster_size = C, size = 1 << 20 }
    local a = it_:alloc(10)
    it_:give_back(a + 2, 3)
    assert.same({ a + 2, 3 }, { it_:alloc(8) })
    it_:give_back(a + 2, 3)
    assert.same({ a + 10, 8 }, { it_:alloc(8, true) })
    assert.same({ a + 2, 3 }, { it_:alloc(3, true) })
  end)

  for bits = 0, 6 do
    it(("counts with %d bits, one more block as often as it needs one, and keeps no cluster twice"):format(1 << bits),
      function()
        it_ = probe.image { cluster_size = C, size = 1 << 20, refcount_bits = 1 << bits }
        local taken, total, blocks = {}, 0, 0
        for _ = 1, 100 do
          local start, got = it_:alloc(37)
          total = total + got
          for n = start, start + got - 1 do
            assert.is_nil(taken[n])
            assert.equal(1, it_:count(n))
            assert.is_false(it_:live(n))
            taken[n] = true
          end
        end
        for n = 0, 5000 do
          if it_:live(n) then
            blocks = blocks + 1
            assert.equal(1, it_:count(n))
            assert.is_nil(taken[n])
          end
        end
        assert.is_true(blocks > total >> 12 - bits, blocks)
      end)
  end

  it("makes the refcount table larger, and gives the old one back", function()
    it_ = probe.image { cluster_size = C, size = 1 << 20, refcount_bits = 64 }
    local entries, old = it_:state().reftable_entries, string.unpack(">I8", it_:read(48, 8))
    for _ = 1, 100 do assert(it_:alloc(100)) end
    assert.is_true(it_:state().reftable_entries > entries)
    assert.is_true(it_:writeback())
    assert.is_true(it_:writeback())
    assert.not_equal(old, string.unpack(">I8", it_:read(48, 8)))
    assert.is_false(it_:live(old // C))
  end)

  it("uses what was released only when the unlinking is on disk", function()
    it_ = probe.image { cluster_size = C, size = 1 << 20 }
    local a = it_:alloc(4)
    it_:writeback()
    it_:release(a, 4)
    assert.equal(1, it_:count(a))
    assert.is_true(it_:alloc(1) > a + 3)
    it_:writeback()
    assert.equal(0, it_:count(a))
    assert.equal(a, (it_:alloc(1)))
  end)

  it("forgets what the cache had of a place that it hands out", function()
    it_ = probe.image { cluster_size = C, size = 1 << 20 }
    local a = it_:alloc(1)
    it_:write(a * C, ("a"):rep(C))
    assert.equal("aaa", it_:slice(a * C):sub(1, 3))
    it_:give_back(a, 1)
    it_:alloc(1)
    it_:write(a * C, ("b"):rep(C))
    assert.equal("bbb", it_:slice(a * C):sub(1, 3))
  end)

  it("refuses to lower a count below zero and changes none then", function()
    it_ = probe.image { cluster_size = C, size = 1 << 20 }
    local a = it_:alloc(2)
    it_:give_back(a + 1, 1)
    assert.equal("corrupt", (select(3, it_:give_back(a, 2))))
    assert.equal(1, it_:count(a))
  end)
end)
