-- SPDX-License-Identifier: MIT
-- Images over backing files, of all shapes and lengths, read with ours.

local judge = require "spec.support.judge"
local qcow2 = require "qcow2"
local random = require "spec.support.random"
local reading = require "spec.support.reading"

local words = { describe = describe, it = it, lazy_setup = lazy_setup, lazy_teardown = lazy_teardown }

describe("A chain:", function()
  reading.describe("chains", words, function(recipe, get)
    it("is listed, layer by layer, by `info --backing-chain` as by qemu-img", function()
      reading.none(judge.info_chain((get())))
    end)

    if not recipe.data_file then -- QEMU does not see the holes of those
      it("is mapped in words as by qemu-img, whole and in part", function()
        local image = get()
        reading.none(judge.map_text(image))
        local rng = random.new(image.name)
        local start = rng:int(0, image.size - 1)
        reading.none(judge.map_text(image, ("--start-offset=%d"):format(start),
          ("--max-length=%d"):format(rng:int(1, image.size - start))))
      end)
    end

    it("names its files in order by img:chain()", function()
      local image = get()
      local img <close> = assert(qcow2.open(image.path, image.open))
      local names = {}
      for i, link in ipairs(img:chain()) do
        assert.is_nil(link.missing)
        names[i] = link.path
      end
      assert.are.same({ image.path, table.unpack(image.chain) }, names)
    end)

    it("shows its own layer, and refuses what lies below, when opened with backing = false", function()
      local image = get()
      local img <close> = assert(qcow2.open(image.path, { backing = false }))
      reading.none(judge.layer(img, image.path))
      for e in img:extents({ layer = true }) do
        assert.are.equal(0, e.depth)
        if e.kind == "unallocated" then
          local bytes, message, kind = img:read(e.offset, 1)
          assert.is_nil(bytes)
          assert.is_string(message)
          assert.are.equal("missing", kind)
          break
        end
      end
    end)
  end)
end)
