-- SPDX-License-Identifier: MIT
-- Power cuts while the guest's data moves out into a data file or back in: at every instant the same disk, and a raw
-- data file that is the disk as soon as the image says so.
local amendments = require("spec.support.amendments")
local core = require("qcow2.core")
local crash = require("spec.support.crash")

local function joined(s)
  local inner = assert(core.store_memory(0))
  s.stores.data = assert(inner:power(s.stores.image))
  return s.stores.data
end

describe("A power cut while data moves", function()
  local judge, ask = crash.judge, crash.ask_qemu
  local states

  setup(function()
    -- The data file counts only where the image has one.
    crash.judge = function(image, data, ...)
      local external = amendments.is_external(image)
      states[external] = true
      return judge(image, external and data or nil, ...)
    end
    crash.ask_qemu = function(image, data, ...)
      return ask(image, amendments.is_external(image) and data or nil, ...)
    end
  end)

  teardown(function()
    crash.judge, crash.ask_qemu = judge, ask
  end)

  for name, scenario in pairs(amendments.moves(joined)) do
    it(name, function()
      states = {}
      crash.play("datafile " .. name, scenario, { cuts = math.huge })
      assert.is_true(states[true] and states[false])
    end)
  end
end)
