-- SPDX-License-Identifier: MIT
-- The power goes at every moment of every operation: no survivor is corrupt, each holds what was promised.

local crash = require "spec.support.crash"
local scenarios = require "spec.support.scenarios"

for _, flavour in ipairs(scenarios.flavours()) do
  describe(("A power cut, in an image of the kind '%s', during"):format(flavour.name), function()
    for _, name in ipairs(scenarios.names()) do
      local scenario = scenarios.combine(flavour, scenarios.operations[name])
      if scenario then
        it(name .. " leaves nothing corrupt, and the old or the new contents", function()
          assert.is_true(crash.play(name .. " / " .. flavour.name, scenario) > 0)
        end)
      end
    end
  end)
end

describe("A power cut during", function()
  it("the growth of the reference count table leaves nothing corrupt", function()
    assert.is_true(crash.play("refcount table growth", scenarios.full_refcount_table) > 0)
  end)

  it("changes of a raw disk leaves every sector old or new", function()
    assert.is_true(crash.play("raw disk", scenarios.raw_disk) > 0)
  end)

  for _, case in ipairs(scenarios.commits()) do
    it(("a commit of %s changes nothing that it shows, and no sector of the base wrongly"):format(case.name), function()
      assert.is_true(crash.play_commit(case.name, case) > 0)
    end)
  end

  for _, case in ipairs(scenarios.creations()) do
    it(("the making of %s leaves no image or a whole one"):format(case.name), function()
      assert.is_true(crash.play_create(case.name, case) > 0)
    end)
  end
end)
