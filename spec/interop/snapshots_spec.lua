-- SPDX-License-Identifier: MIT
-- Internal snapshots that qemu-img took, read with ours.

local judge = require "spec.support.judge"
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local reading = require "spec.support.reading"
local sh = require "spec.support.sh"

local words = { describe = describe, it = it, lazy_setup = lazy_setup, lazy_teardown = lazy_teardown }

local function truth_of(image, id)
  return qemu.read_all(image.path, image.dir .. "/snapshot.raw", { snapshot = "snapshot.id=" .. id })
end

describe("An image with", function()
  reading.describe("snapshots", words, function(_, get)
    it("reads every snapshot as QEMU reads it", function()
      local image = get()
      local img <close> = assert(qcow2.open(image.path))
      assert.are.equal(#image.snapshots, #img.snapshots)
      for i, s in ipairs(img.snapshots) do
        local old <close> = assert(img:snapshot(s.id))
        reading.none(judge.reads(old, truth_of(image, s.id):sub(1, s.size), s.name))
        reading.none(judge.layer(old, image.path, i))
      end
    end)

    it("opens a snapshot by name", function()
      local image = get()
      local name = image.snapshots[1]
      local old <close> = assert(qcow2.open(image.path, { snapshot = name }))
      local id = qcow2.open(image.path).snapshots[1].id
      reading.none(judge.reads(old, truth_of(image, id):sub(1, old.size), name))
      local none, _, kind = qcow2.open(image.path, { snapshot = "no such snapshot" })
      assert.is_nil(none)
      assert.are.equal("missing", kind)
    end)

    it("converts a snapshot with -l as qemu-img does, with the size of the disk then", function()
      local image = get()
      local img <close> = assert(qcow2.open(image.path))
      local sizes = {}
      for _, s in ipairs(img.snapshots) do sizes[s.id], sizes["snapshot.name=" .. s.name] = s.size, s.size end
      for _, id in ipairs { "1", "snapshot.name=" .. image.snapshots[#image.snapshots] } do
        local theirs = sh.run({ "qemu-img", "convert", "-l", id, "-O", "raw", image.path, image.dir .. "/theirs" })
        local ours = sh.qcow2({ "convert", "-l", id, "-O", "raw", image.path, image.dir .. "/ours" })
        assert.are.equal(theirs.code, ours.code)
        if theirs.code == 0 then
          -- QEMU gives every snapshot the size of the active disk.
          local truth = sh.slurp(image.dir .. "/theirs")
          local cut = truth:sub(1, sizes[id])
          assert.is_truthy(truth:find("^\0*$", #cut + 1))
          reading.none { judge.bytes(sh.slurp(image.dir .. "/ours"), cut, id) }
        end
      end
    end)
  end)
end)
