-- SPDX-License-Identifier: MIT
-- Every call to the disk fails once, or from then on: the operation says so, nothing is corrupt, contents are old or
-- new, and the error is not forgotten (invariant 7).

local faults = require "spec.support.faults"
local scenarios = require "spec.support.scenarios"

for _, flavour in ipairs(scenarios.flavours()) do
  describe(("A failing disk, under an image of the kind '%s', during"):format(flavour.name), function()
    for _, name in ipairs(scenarios.names()) do
      local scenario = scenarios.combine(flavour, scenarios.operations[name])
      if scenario then
        it(name .. " is reported, corrupts nothing and is not forgotten", function()
          assert.is_true(faults.play(name .. " / " .. flavour.name, scenario) > 0)
        end)
      end
    end

    it("random operations is reported, corrupts nothing and is not forgotten", function()
      local scenario = scenarios.combine(flavour, { run = scenarios.random_run(flavour.name, 25) })
      assert.is_true(faults.play("random / " .. flavour.name, scenario) > 0)
    end)
  end)
end

describe("A failing disk during", function()
  it("the growth of the reference count table is reported and corrupts nothing", function()
    assert.is_true(faults.play("refcount table growth", scenarios.full_refcount_table) > 0)
  end)

  it("changes of a raw disk is reported and not forgotten", function()
    assert.is_true(faults.play("raw disk", scenarios.raw_disk) > 0)
  end)

  for _, case in ipairs(scenarios.creations()) do
    it(("the making of %s is reported, and leaves no image or a whole one"):format(case.name), function()
      assert.is_true(faults.play_create(case.name, case) > 0)
    end)
  end
end)
