-- SPDX-License-Identifier: MIT
-- Every call to the disk fails once, or from then on, while an image is amended or its data moves out or in: the
-- failure is told, nothing is corrupt, the disk is the same, and the error is not forgotten.
local amendments = require("spec.support.amendments")
local core = require("qcow2.core")
local crash = require("spec.support.crash")
local faults = require("spec.support.faults")

describe("A failing disk while an image is amended:", function()
  for name, scenario in pairs(amendments.amend()) do
    it(name, function()
      assert.is_true(faults.play("amend " .. name, scenario) > 0)
    end)
  end
end)

describe("A failing disk while data moves", function()
  local judge, ask = crash.judge, crash.ask_qemu
  local moved -- where the data went, when the scenario has no data file of its own

  local function data_of(image, data)
    if not amendments.is_external(image) then return nil end
    return data or moved:read(0, moved:length())
  end

  setup(function()
    crash.judge = function(image, data, ...)
      return judge(image, data_of(image, data), ...)
    end
    crash.ask_qemu = function(image, data, ...)
      return ask(image, data_of(image, data), ...)
    end
  end)

  teardown(function()
    crash.judge, crash.ask_qemu = judge, ask
  end)

  for name, scenario in pairs(amendments.moves(function()
    moved = assert(core.store_memory(0))
    return moved
  end)) do
    it(name, function()
      assert.is_true(faults.play("datafile " .. name, scenario) > 0)
    end)
  end
end)
