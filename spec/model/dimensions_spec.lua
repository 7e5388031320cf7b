-- SPDX-License-Identifier: MIT
-- Random operations of every kind, many in a session, over the dimensions of spec/support/dimensions.lua. A failure
-- names its seed; Q2_MODEL=seed plays one seed alone.

local dimensions = require "spec.support.dimensions"

local again = os.getenv("Q2_MODEL")

describe("An image of any shape", function()
  for group = 1, 8 do
    it(("holds its disk, snapshots and bitmaps through random sessions, group %d"):format(group), function()
      for n = group * 5 - 4, group * 5 do dimensions.run(again or n, 100) end
    end)
  end

  for group = 1, 10 do
    local name = "holds them through 10,000 operations, judged by qemu-img at each reopening, group %d #long"
    it(name:format(group), function()
      for n = 1, 40 do dimensions.run(again or group * 1000 + n, 250, true) end
    end)
  end
end)
