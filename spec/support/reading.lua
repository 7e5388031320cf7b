-- SPDX-License-Identifier: MIT
-- The specs that every fixture gets: described, mapped and read as QEMU does, decoded as the decoder does.
-- To be called inside a spec file, which has busted's words in its environment.

local assert = require "luassert"
local decoder = require "spec.support.decoder"
local fixtures = require "spec.support.fixtures"
local judge = require "spec.support.judge"
local tmp = require "spec.support.tmp"

local reading = {}

--- One difference a line; passes when there is none.
function reading.none(differences)
  assert.are.equal("", table.concat(differences, "\n"))
end

--- Describes every recipe of a group. words: busted's functions of the spec file; more(recipe, get):
-- adds specs of the topic, `get()` gives the image and the truth (all bytes of the disk by QEMU).
function reading.describe(group, words, more)
  local describe, it, lazy_setup, lazy_teardown = words.describe, words.it, words.lazy_setup, words.lazy_teardown
  local qcow2 = require "qcow2"
  for _, recipe in ipairs(fixtures.of(group)) do
    describe(recipe:title(), function()
      local dir, image, truth

      lazy_setup(function()
        dir = tmp.dir()
        image = recipe:make(dir)
        truth = judge.truth(image.whole and { dir = dir, qemu = image.whole.path } or image):sub(1, image.size)
      end)

      lazy_teardown(function() tmp.remove(dir) end)

      it("is a sound image to the decoder", function()
        local decoded <close> = decoder.open(image.path)
        reading.none(decoded:problems())
      end)

      if group ~= "odd" then
        it("is described as qemu-img describes it", function() reading.none(judge.info(image)) end)

        it("is mapped as qemu-img maps it", function()
          reading.none(judge.map(image, recipe.data_file))
        end)
      end

      it("reads as QEMU reads it, whole and in pieces", function()
        local img <close> = assert(qcow2.open(image.path, image.open))
        reading.none(judge.reads(img, truth, recipe.name))
      end)

      it("is converted to raw with the bytes of qemu-img's", function()
        -- A disk becomes whole sectors; the rest of the last one is zeros.
        reading.none(judge.convert(image, truth .. ("\0"):rep(-#truth % 512)))
      end)

      it("has the tables that the decoder finds", function()
        local img <close> = assert(qcow2.open(image.path, image.open))
        reading.none(judge.tables(img, image.path))
        reading.none(judge.layer(img, image.path))
      end)

      if more then more(recipe, function() return image, truth end) end
    end)
  end
end

return reading
