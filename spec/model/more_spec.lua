-- SPDX-License-Identifier: MIT
-- The second half of the long random sequences of random_spec.lua.

local model = require "spec.support.model"

local again = os.getenv("Q2_MODEL")

describe("An image", function()
  for group = 11, 20 do
    it(("holds what was written through 100 sequences of random operations, group %d #long"):format(group), function()
      for n = group * 100 + 1, group * 100 + 100 do
        model.play(again or n, { steps = 60, thorough = true })
      end
    end)
  end
end)
