-- SPDX-License-Identifier: MIT
-- A disk that fails while an image is made: the failure is told, and nothing that looks like an image is left.
local core = require("qcow2.core")

local EIO, ENOSPC = 5, 28
local MAGIC = "QFI\xfb"
local KINDS = "rwfps"
local OLD = "QFI\xfb old"

local CASES = {
  { size = 1 << 20 },
  { size = 1 << 20, cluster_size = 512, preallocation = "metadata" },
  { size = 300 << 10, cluster_size = 4096, preallocation = "falloc" },
  { size = 300 << 10, cluster_size = 4096, preallocation = "full" },
  { size = 1 << 20, data_file = "d", data_file_raw = true, preallocation = "full" },
  { size = 1 << 20, data_file = "d", keep_data_file = true },
}

local function title(case)
  local words = {}
  for name, value in pairs(case) do
    words[#words + 1] = name .. "=" .. tostring(value)
  end
  table.sort(words)
  return table.concat(words, " ")
end

local function data_store(case)
  return case.data_file and assert(core.store_memory(case.keep_data_file and ("k"):rep(case.size) or "old data"))
end

-- What the store begins with: "old", "new" or nothing that looks like an image.
local function image_in(store)
  if assert(store:read(0, 4)) ~= MAGIC then
    return nil
  end
  return assert(store:read(0, #OLD)) == OLD and "old" or "new"
end

describe("a failing disk while an image is made", function()
  for _, case in ipairs(CASES) do
    for _, failure in ipairs({ { EIO, "io" }, { ENOSPC, "nospace" } }) do
      for _, sticky in ipairs({ false, true }) do
        it(("is reported at every call, errno %d%s: %s"):format(failure[1], sticky and " for good" or "",
          title(case)), function()
          local nth = 0
          local calls
          repeat
            nth = nth + 1
            local inner <close> = assert(core.store_memory(OLD))
            local fault <close> = assert(inner:fault(KINDS, nth, failure[1], sticky))
            local data <close> = data_store(case)
            local ok, message, kind, errno = core.create(fault, data, case)
            calls = fault:fault_calls()
            local found = image_in(inner)
            if calls >= nth then
              assert.is_nil(ok)
              assert.equal(failure[2], kind)
              assert.equal(failure[1], errno)
              assert.is_string(message)
              -- The first call takes the old image away. A new one whose last flush failed is taken away too, but
              -- not from a disk that takes no more writes.
              assert.equal(nth == 1, found == "old")
              assert.is_true(found ~= "new" or (sticky and calls == nth + 1))
            else
              assert.is_true(ok)
              assert.equal("new", found)
            end
          until calls < nth
          assert.is_true(nth > 6)
        end)
      end
    end
  end

  it("in the data file leaves no image either, and what is kept unchanged", function()
    for _, case in ipairs({ CASES[5], CASES[6], { size = 1 << 20, data_file = "d" } }) do
      local nth = 0
      local calls
      repeat
        nth = nth + 1
        local image <close> = assert(core.store_memory(0))
        local inner <close> = data_store(case)
        local data <close> = assert(inner:fault(KINDS, nth, EIO, false))
        local ok, _, kind = core.create(image, data, case)
        calls = data:fault_calls()
        if calls >= nth then
          assert.is_nil(ok)
          assert.equal("io", kind)
          assert.is_nil(image_in(image))
        else
          assert.is_true(ok)
        end
        if case.keep_data_file then
          assert.is_true(assert(inner:read(0, case.size)) == ("k"):rep(case.size))
        end
      until calls < nth
    end
  end)

  it("is reported for raw disks too", function()
    for _, mode in ipairs({ "off", "falloc", "full" }) do
      local nth = 0
      local calls
      repeat
        nth = nth + 1
        local inner <close> = assert(core.store_memory("old"))
        local fault <close> = assert(inner:fault(KINDS, nth, ENOSPC, false))
        local ok, _, kind = core.create_raw(fault, 100 << 10, mode, false)
        calls = fault:fault_calls()
        assert.equal(calls < nth or nil, ok)
        assert.equal(calls >= nth and "nospace" or nil, kind)
      until calls < nth
    end
  end)
end)
