-- SPDX-License-Identifier: MIT
-- Power cuts while an image is amended: at every instant the same disk and the same snapshots, in a sound image that
-- is the old one or the new one.
local amendments = require("spec.support.amendments")
local crash = require("spec.support.crash")

describe("A power cut while an image is amended:", function()
  for name, scenario in pairs(amendments.amend()) do
    it(name, function()
      assert.is_true(crash.play("amend " .. name, scenario, { cuts = math.huge }) > 1)
    end)
  end
end)
