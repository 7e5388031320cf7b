-- SPDX-License-Identifier: MIT
-- Power cuts while bitmaps are changed: no other bitmap vanishes or becomes inconsistent, the one that is changed is
-- the old one or the new one, whole, and the disk never changes.
local crash = require("spec.support.crash")
local decoder = require("spec.support.decoder")
local raw = require("qcow2.image").raw

local CLUSTER = 512

-- name -> "flags granularity ranges" of every bitmap of an image.
local function bitmaps_of(bytes)
  local image <close> = decoder.open("memory", { bytes = bytes })
  local all = {}
  for _, b in ipairs(image.bitmaps) do
    local words = { b.flags, b.granularity_bits }
    for _, range in ipairs(image:bitmap_ranges(b)) do
      words[#words + 1] = ("%d+%d"):format(range.offset, range.length)
    end
    all[b.name] = table.concat(words, " ")
  end
  return all
end

local function index_of(img, name)
  for i = 0, raw.bitmap_count(img) - 1 do
    if raw.bitmap_entry(img, i).name == name then return i end
  end
  error("no bitmap " .. name)
end

local operations = {
  ["adding one"] = function(img) return raw.bitmap_add(img, "new", 512, true) end,
  ["removing one"] = function(img) return raw.bitmap_remove(img, index_of(img, "work")) end,
  ["enabling one"] = function(img) return raw.bitmap_enable(img, index_of(img, "work"), true) end,
  ["setting a range"] = function(img) return raw.bitmap_change(img, index_of(img, "work"), 5000, 9000, true) end,
  ["clearing one"] = function(img) return raw.bitmap_change(img, index_of(img, "work"), 0, 40960, false) end,
  ["merging one"] = function(img)
    return raw.bitmap_merge(img, index_of(img, "work"), img, index_of(img, "keep"))
  end,
}

describe("A power cut while bitmaps are changed:", function()
  local judge = crash.judge

  teardown(function()
    crash.judge = judge
  end)

  for name, operation in pairs(operations) do
    for _, create in ipairs({ { size = 40960 }, { size = 40960, lazy_refcounts = true },
      { size = 40960, refcount_bits = 64 } }) do
      local flavour = create.lazy_refcounts and "lazy counts" or create.refcount_bits and "64-bit counts" or "standard"
      it(("%s, %s"):format(name, flavour), function()
        create.cluster_size = CLUSTER
        local before, after
        local scenario = {
          create = create,
          prepare = function(s)
            s:write(0, ("a"):rep(3000))
            assert(raw.bitmap_add(s.img, "keep", 4096, true))
            assert(raw.bitmap_add(s.img, "work", 512, false))
            assert(raw.bitmap_add(s.img, "last", 1024, false))
            s:write(8192, ("b"):rep(3000))
            assert(raw.bitmap_change(s.img, 1, 1024, 512, true))
            assert(raw.bitmap_change(s.img, 2, 0, 40960, true))
          end,
          run = function(s)
            before = before or bitmaps_of(s.stores.image:read(0, s.stores.image:length()))
            assert(operation(s.img))
            s:mark("bitmap", true, true)
          end,
        }
        local known = { [true] = 0, [false] = 0 }
        local survivors = {}
        crash.judge = function(image, data, marks, parts, whole)
          local list, got, dirty = judge(image, data, marks, parts, whole)
          if #list == 0 then survivors[#survivors + 1] = image end
          return list, got, dirty
        end
        crash.play(name .. flavour, scenario, { cuts = math.huge })
        after = bitmaps_of(survivors[#survivors])
        assert.is_not.same(before, after)
        for _, bytes in ipairs(survivors) do
          local now = bitmaps_of(bytes)
          local is_new = pcall(assert.same, after, now)
          if not is_new then assert.same(before, now) end
          known[is_new] = known[is_new] + 1
        end
        assert.is_true(known[true] > 0 and known[false] > 0)
      end)
    end
  end
end)
