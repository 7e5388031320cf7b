-- SPDX-License-Identifier: MIT
-- Power cuts while the guest's data moves out into a data file or back in: at every instant the same disk, and a raw
-- data file that is the disk as soon as the image says so.
local core = require("qcow2.core")
local crash = require("spec.support.crash")

local EXTERNAL = 4

local function fill(s)
  local step = s.cluster_size
  s:write(0, ("a"):rep(3 * step))
  s:write(5 * step + 100, ("b"):rep(step))
  s:zero(step, step)
  s:write(#s.disk - 700, ("c"):rep(700))
end

local function steps(task)
  local _ <close> = task
  repeat
    local _, message, more = assert(task:step())
    assert(type(message) == "number", message)
  until not more
end

local function outward(raw)
  return function(s)
    local inner = assert(core.store_memory(0))
    s.stores.data = assert(inner:power(s.stores.image))
    steps(assert(core.copy({ s.img }, s.stores.data, { sparse_size = 512, sync = true })))
    assert(core.externalize(s.img, s.stores.data, "data", raw))
    s:mark("externalize", true, true)
  end
end

local function inward(s)
  steps(assert(core.internalize(s.img)))
  s:mark("internalize", true, true)
end

local cases = {
  ["out"] = { run = outward(false) },
  ["out, raw"] = { run = outward(true) },
  ["out, compressed clusters"] = { run = outward(false), compressed = true },
  ["out, extended L2"] = { run = outward(false), create = { extended_l2 = true, cluster_size = 16384,
    size = 16384 * 9 + 512 } },
  ["out, lazy counts"] = { run = outward(true), create = { lazy_refcounts = true } },
  ["in"] = { run = inward, data = true },
  ["in, raw"] = { run = inward, data = true, create = { data_file_raw = true } },
  ["in, extended L2"] = { run = inward, data = true, create = { extended_l2 = true, cluster_size = 16384,
    size = 16384 * 9 + 512 } },
}

describe("A power cut while data moves", function()
  local judge, ask = crash.judge, crash.ask_qemu
  local states

  local function is_external(image)
    return string.unpack(">I8", image, 73) & EXTERNAL ~= 0
  end

  setup(function()
    crash.judge = function(image, data, ...)
      local external = is_external(image)
      states[external] = true
      return judge(image, external and data or nil, ...)
    end
    crash.ask_qemu = function(image, data, ...)
      return ask(image, is_external(image) and data or nil, ...)
    end
  end)

  teardown(function()
    crash.judge, crash.ask_qemu = judge, ask
  end)

  for name, case in pairs(cases) do
    it(name, function()
      states = {}
      local create = { size = 512 * 40 + 512, cluster_size = 512 }
      for key, value in pairs(case.create or {}) do create[key] = value end
      crash.play("datafile " .. name, { create = create, data = case.data, run = case.run, prepare = function(s)
        fill(s)
        if case.compressed then s:write_compressed(8 * s.cluster_size, ("d"):rep(s.cluster_size)) end
      end }, { cuts = math.huge })
      assert.is_true(states[true] and states[false])
    end)
  end
end)
