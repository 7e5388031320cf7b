-- SPDX-License-Identifier: MIT
-- Finding zeros: csrc/data/zero.c. The probe puts each string right before a page that may not be read.

local probe = require "qcow2_probe"
local random = require "spec.support.random"

local function poke(bytes, at, byte) return bytes:sub(1, at - 1) .. byte .. bytes:sub(at + 1) end

describe("the zero test", function()
  it("is true for zeros of every length", function()
    for length = 0, 600 do assert.is_true(probe.zero_test(("\0"):rep(length))) end
    assert.is_true(probe.zero_test(("\0"):rep(2 << 20)))
  end)

  it("sees one byte wherever it is", function()
    for length = 1, 400 do
      local zeros = ("\0"):rep(length)
      for at = 1, length do
        if probe.zero_test(poke(zeros, at, "\x80")) then error(("byte %d of %d is overlooked"):format(at, length)) end
      end
    end
  end)

  it("sees every bit of a byte", function()
    for bit = 0, 7 do assert.is_false(probe.zero_test(poke(("\0"):rep(4096), 3000, string.char(1 << bit)))) end
  end)

  it("sees one byte anywhere in a large cluster", function()
    local rng, zeros = random.new("zero"), ("\0"):rep(2 << 20)
    for _ = 1, 50 do
      local at = rng:int(1, #zeros)
      assert.is_false(probe.zero_test(poke(zeros, at, "\1")), "at " .. at)
    end
  end)
end)

describe("the zero run", function()
  -- The same by the definition, unit by unit.
  local function by_definition(bytes, unit)
    local first, run
    for at = 1, #bytes, unit do
      local zero = not bytes:sub(at, at + unit - 1):find "[^\0]"
      if first == nil then first = zero end
      if zero ~= first then return run, first end
      run = math.min(at + unit - 1, #bytes)
    end
    return run, first
  end

  it("covers the whole buffer when it is of one kind", function()
    assert.same({ 65536, true }, { probe.zero_run(("\0"):rep(65536), 4096) })
    assert.same({ 65536, false }, { probe.zero_run(("\1"):rep(65536), 4096) })
    assert.same({ 100, true }, { probe.zero_run(("\0"):rep(100), 4096) })
    assert.same({ 5000, true }, { probe.zero_run(("\0"):rep(5000), 4096) })
    assert.same({ 1, false }, { probe.zero_run("x", 1) })
  end)

  it("ends at the first unit of the other kind", function()
    local zero, data = ("\0"):rep(512), ("\0"):rep(300) .. "x" .. ("\0"):rep(211)
    assert.same({ 1024, true }, { probe.zero_run(zero .. zero .. data .. zero, 512) })
    assert.same({ 1024, false }, { probe.zero_run(data .. data .. zero .. data, 512) })
    assert.same({ 512, true }, { probe.zero_run(zero .. "x", 512) })
    assert.same({ 512, false }, { probe.zero_run(data .. "\0", 512) })
  end)

  it("agrees with its definition on buffers at random", function()
    local rng = random.new("runs")
    for _ = 1, 2000 do
      local unit, parts = rng:pick { 1, 7, 16, 64, 100, 512 }, {}
      local density = rng:pick { 5, 50, 95 }
      for i = 1, rng:int(1, 12) do
        parts[i] = rng:chance(density) and ("\0"):rep(rng:int(1, 600)) or rng:bytes(rng:int(1, 200))
      end
      local bytes = table.concat(parts)
      assert.same({ by_definition(bytes, unit) }, { probe.zero_run(bytes, unit) })
    end
  end)
end)
