-- SPDX-License-Identifier: MIT
-- The power goes anywhere in random sequences of operations. Another Q2_SEED plays other ones.

local crash = require "spec.support.crash"
local scenarios = require "spec.support.scenarios"

local SEQUENCES = crash.long and 15 or 1

for _, flavour in ipairs(scenarios.flavours()) do
  describe(("Random operations in an image of the kind '%s'"):format(flavour.name), function()
    for n = 1, SEQUENCES do
      it(("leave nothing corrupt and no sector wrong when the power goes, sequence %d"):format(n), function()
        local name = ("%d / %s"):format(n, flavour.name)
        local scenario = scenarios.combine(flavour, { run = scenarios.random_run(name, 25) })
        assert.is_true(crash.play(name, scenario) > 10)
      end)
    end
  end)
end
