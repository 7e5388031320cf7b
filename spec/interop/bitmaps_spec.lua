-- SPDX-License-Identifier: MIT
-- Persistent bitmaps that qemu-img made and QEMU kept up to date, read with ours.

local judge = require "spec.support.judge"
local qcow2 = require "qcow2"
local reading = require "spec.support.reading"

local words = { describe = describe, it = it, lazy_setup = lazy_setup, lazy_teardown = lazy_teardown }

describe("An image with", function()
  reading.describe("bitmaps", words, function(_, get)
    it("gives the dirty ranges that the decoder finds", function()
      local image = get()
      local img <close> = assert(qcow2.open(image.path))
      reading.none(judge.bitmaps(img, image.path))
    end)

    it("names its bitmaps in order", function()
      local image = get()
      local img <close> = assert(qcow2.open(image.path))
      local names = {}
      for i, b in ipairs(img.bitmaps) do names[i] = b.name end
      assert.are.same(image.bitmaps, names)
      local none, _, kind = img:bitmap("no such bitmap")
      assert.is_nil(none)
      assert.are.equal("missing", kind)
    end)
  end)
end)
