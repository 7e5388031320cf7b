-- SPDX-License-Identifier: MIT
-- Power cuts while a disk is copied into a new image that is to be on disk in the end: at every instant there is
-- nothing that looks like an image, or the whole copy; at the end it is there whatever the disk has not written yet.
local core = require("qcow2.core")
local crash = require("spec.support.crash")
local random = require("spec.support.random")
local raw = require("qcow2.image").raw
local scenarios = require("spec.support.scenarios")
local session = require("spec.support.session")

local flavours = {
  ["a plain image"] = { create = { cluster_size = 1024 } },
  ["clusters of 512 bytes and wide counts"] = { create = { cluster_size = 512, refcount_bits = 64 } },
  ["compressed clusters"] = { create = { cluster_size = 4096 }, copy = { compress = true } },
  ["subclusters"] = { create = { cluster_size = 16384, extended_l2 = true } },
  ["lazy counts"] = { create = { cluster_size = 512, lazy_refcounts = true } },
  ["a data file"] = { create = { cluster_size = 1024, data_file = "data" }, data = true },
  ["a raw data file"] = { create = { cluster_size = 1024, data_file = "data", data_file_raw = true }, data = true },
  ["bitmaps"] = { create = { cluster_size = 1024 }, copy = { bitmaps = true }, bitmaps = { one = true } },
  ["an old image in its place"] = { create = { cluster_size = 1024 }, old = ("QFI\xfb\0\0\0\3"):rep(1000) },
}

local DISK = scenarios.patterned(8192, 65) .. ("\0"):rep(16384) .. scenarios.patterned(9216, 75)

local function source_of(flavour)
  if not flavour.bitmaps then return session.raw_image(DISK) end
  local store <close> = assert(core.store_memory(0))
  assert(core.create(store, nil, { size = #DISK, cluster_size = 4096 }))
  local source = assert(core.image_open(store, "qcow2"))
  assert(raw.begin(source))
  for name in pairs(flavour.bitmaps) do assert(raw.bitmap_add(source, name, 512, true)) end
  assert(raw.write(source, 0, DISK))
  assert(raw.finish(source))
  return source
end

-- Copies the disk into these stores, until it is shown.
local function copy(flavour, stores)
  local options, how = { size = #DISK }, { sync = true, sparse_size = 512, threads = 1 }
  for key, value in pairs(flavour.create) do options[key] = value end
  for key, value in pairs(flavour.copy or {}) do how[key] = value end
  local image <close> = assert(core.create_open(stores.image, stores.data, options))
  local source <close> = source_of(flavour)
  assert(session.run_job(core.copy({ source }, image, how)))
  assert(raw.finish(image))
end

describe("A power cut while a disk is copied into", function()
  for name, flavour in pairs(flavours) do
    it(name .. " leaves no half-made image that looks whole", function()
      local stores = { image = assert(core.store_memory(flavour.old or 0)):power() }
      if flavour.data then stores.data = assert(core.store_memory(0)):power(stores.image) end
      copy(flavour, stores)
      for which, store in pairs(stores) do
        assert.equal("f", (store:power_op(store:power_count() - 1)), which .. " has writes that were not waited for")
      end
      local seen, mark = { [true] = 0, [false] = 0 }, { disk = DISK, snapshots = {}, bitmaps = {} }
      for bitmap in pairs(flavour.bitmaps or {}) do mark.bitmaps[bitmap] = ("\0"):rep(#DISK) end
      local judged = crash.cut(name, stores, random.new(name), function(_, image, data, is_end)
        if image == flavour.old then return {}, "nothing" end
        local is_image = image:sub(1, 4) == "QFI\xfb"
        seen[is_image] = seen[is_image] + 1
        if not is_image then return is_end and { "there is no image at the end" } or {}, "copy" end
        return crash.judge(image, data, { mark }, { bitmaps = flavour.bitmaps }, true), "copy"
      end)
      assert.is_true(judged > 5 and seen[true] > 0 and seen[false] > 0)
    end)
  end
end)
