-- SPDX-License-Identifier: MIT
-- Power cuts while an image is made: afterwards there is what was there before, or nothing that looks like an
-- image, or the whole new image.
local core = require("qcow2.core")
local decoder = require("spec.support.decoder")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local MAGIC = "QFI\xfb"
local SUBSETS = 40 -- of the writes that no flush covers, when there are too many for all
local SECTOR = 512

local CASES = {
  { size = 1 << 20 },
  { size = 0 },
  { size = 10 << 20, version = 2 },
  { size = 1 << 20, cluster_size = 512 },
  { size = 1 << 20, cluster_size = 512, refcount_bits = 64, preallocation = "metadata" },
  { size = 1 << 20, preallocation = "metadata", extended_l2 = true, cluster_size = 16384 },
  { size = 300 << 10, preallocation = "falloc", cluster_size = 4096 },
  { size = 300 << 10, preallocation = "full", cluster_size = 4096 },
  { size = 1 << 20, backing_file = ("b"):rep(900), backing_format = "raw" },
  { size = 1 << 20, data_file = "d", data_file_raw = true, compression_type = "zstd" },
  { size = 1 << 20, data_file = "d", keep_data_file = true },
}

local function title(case)
  local words = {}
  for name, value in pairs(case) do
    words[#words + 1] = name .. "=" .. tostring(value):sub(1, 10)
  end
  table.sort(words)
  return table.concat(words, " ")
end

local function bytes_of(store)
  return assert(store:read(0, assert(store:length())))
end

local function data_store(case)
  return case.data_file and assert(core.store_memory(case.keep_data_file and ("k"):rep(case.size) or 0))
end

-- The numbers of the operations that may be lost when the power goes before operation `count` (from 0).
local function open_operations(power, count)
  local first = 0
  for i = 0, count - 1 do
    if power:power_op(i) == "f" then
      first = i + 1
    end
  end
  local list = {}
  for i = first, count - 1 do
    list[#list + 1] = i
  end
  return list
end

local function each_subset(numbers, chance, visit)
  if 1 << #numbers <= SUBSETS then
    for mask = 0, (1 << #numbers) - 1 do
      visit(function(i) return mask >> (i - 1) & 1 == 1 end)
    end
    return
  end
  for _ = 1, SUBSETS do
    local kept = {}
    for i = 1, #numbers do
      kept[i] = chance:chance(50)
    end
    visit(function(i) return kept[i] end)
  end
end

describe("a power cut while an image is made", function()
  local old

  lazy_setup(function()
    local dir = tmp.dir()
    qemu.create(dir .. "/old", { size = "3M", cluster_size = 4096 })
    qemu.io(dir .. "/old", { "write -P 5 0 256k" })
    old = sh.slurp(dir .. "/old")
  end)

  for _, case in ipairs(CASES) do
    for _, overwrites in ipairs({ false, true }) do
      it(("leaves no half-made image: %s%s"):format(title(case), overwrites and ", over an old one" or ""), function()
        local chance = random.new(title(case))
        local before = overwrites and old or ""
        local inner <close> = assert(core.store_memory(overwrites and old or 0))
        local power <close> = assert(inner:power())
        local data <close> = data_store(case)
        assert(core.create(power, data, case))
        local after = bytes_of(power)
        assert.equal(MAGIC, after:sub(1, 4))

        local seen = { old = 0, nothing = 0, new = 0 }
        local function judge(store, where)
          local head = assert(store:read(0, 4))
          if head ~= MAGIC and before:sub(1, 4) == MAGIC then
            seen.nothing = seen.nothing + 1
          else
            local bytes = bytes_of(store)
            if bytes == before then
              seen.old = seen.old + 1
            elseif head ~= MAGIC then
              seen.nothing = seen.nothing + 1
            else
              -- Not assert.equal: that would print megabytes.
              assert(bytes == after, where .. ": looks like an image and is not the whole new one")
              seen.new = seen.new + 1
            end
          end
          store:close()
        end

        local operations = power:power_count()
        for count = 0, operations do
          local open = open_operations(power, count)
          each_subset(open, chance, function(kept)
            local keep = {}
            for i = 1, count do
              keep[i] = "\1"
            end
            for i, number in ipairs(open) do
              keep[number + 1] = kept(i) and "\1" or "\0"
            end
            judge(assert(power:power_replay(count, table.concat(keep))), "cut at " .. count)
          end)
          for _, number in ipairs(open) do
            local kind, _, length = power:power_op(number)
            for torn = SECTOR, kind == "w" and math.min(length, 4 * SECTOR) or 0, SECTOR do
              judge(assert(power:power_replay(count, nil, number, torn)), ("cut at %d, torn"):format(count))
            end
          end
        end
        assert.is_true(seen.nothing > 0)
        assert.is_true(seen.new > 0)
        assert.is_true(seen.old > 0)
      end)
    end

    it("ends with a sound image: " .. title(case), function()
      local store <close> = assert(core.store_memory(0))
      local data <close> = data_store(case)
      assert(core.create(store, data, case))
      local dir = tmp.dir()
      sh.spit(dir .. "/image", bytes_of(store))
      if data then
        sh.spit(dir .. "/d", bytes_of(data))
        assert.is_true((case.keep_data_file and "k" or "\0"):rep(case.size) == bytes_of(data))
      end
      local decoded <close> = decoder.open(dir .. "/image")
      assert.same({}, decoded:problems())
      if not case.backing_file then
        assert.is_true(qemu.sound(dir .. "/image"))
      end
    end)
  end
end)
