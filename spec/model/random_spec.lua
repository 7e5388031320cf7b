-- SPDX-License-Identifier: MIT
-- Random sequences of operations against a string, over all options of images. Q2_SEED shifts them all; to see one
-- again set Q2_MODEL to the seed that its failure names.

local model = require "spec.support.model"

local again = os.getenv("Q2_MODEL")
-- The long ones are half here, half in more_spec.lua, so that two processors share them.
local GROUPS, LONG_GROUPS = 10, 10

local function play(first, last, thorough)
  for n = first, last do
    model.play(again or n, { steps = 60, thorough = thorough })
  end
end

describe("An image", function()
  for group = 1, GROUPS do
    it(("holds what was written through random operations, group %d of %d"):format(group, GROUPS), function()
      play(group * 4 - 3, group * 4, false)
    end)
  end

  for group = 1, LONG_GROUPS do
    it(("holds what was written through 100 sequences of random operations, group %d #long"):format(group), function()
      play(group * 100 + 1, group * 100 + 100, true)
    end)
  end
end)
