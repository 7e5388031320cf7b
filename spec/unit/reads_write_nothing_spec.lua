-- SPDX-License-Identifier: MIT
-- What only reads writes and flushes nothing, also in the middle of writing, and tells what was written.
local core = require("qcow2.core")
local raw = require("qcow2.image").raw
local sh = require("spec.support.sh")
local qcow2 = require("qcow2")
local tmp = require("spec.support.tmp")

-- The granules of a bitmap that are set, as "first-end first-end ...".
local function runs(img, index, size)
  local list, at = {}, 0
  while at < size do
    local dirty, length = raw.bitmap_extent(img, index, at, size - at)
    assert(dirty ~= nil, length)
    if dirty then list[#list + 1] = ("%d-%d"):format(at, at + length) end
    at = at + length
  end
  return table.concat(list, " ")
end

describe("An image that is written to", function()
  local SIZE <const> = 64 << 20
  local img, power

  before_each(function()
    local path = tmp.path()
    assert(qcow2.create(path, { size = SIZE, cluster_size = 4096 }))
    do
      local made <close> = assert(qcow2.open(path, { mode = "rw" }))
      assert(made:write(0, ("a"):rep(100000)))
      assert(made:snapshot_create("one"))
      assert(made:bitmap_add("follows", { granularity = 4096 }))
      assert(made:bitmap_add("stands", { granularity = 65536, disabled = true }))
      assert(made:write(8192, "x"))
    end
    local inner <close> = assert(core.store_memory(sh.slurp(path)))
    power = assert(inner:power())
    img = assert(core.image_open(power, "qcow2"))
    assert(raw.begin(img))
    assert(raw.write(img, 1 << 20, ("b"):rep(5000)))
    assert(raw.write(img, 40 << 20, "c"))
    assert(raw.zero(img, 0, 4096, true))
  end)

  after_each(function()
    img:close()
    power:close()
  end)

  it("tells its bitmaps as they are by now, from memory", function()
    local before = power:power_count()
    assert.equal("0-4096 8192-12288 1048576-1056768 41943040-41947136", runs(img, 0, SIZE))
    assert.equal("", runs(img, 1, SIZE))
    assert.equal(before, power:power_count())
    assert(raw.write(img, 50 << 20, "d"))
    assert.equal("0-4096 8192-12288 1048576-1056768 41943040-41947136 52428800-52432896", runs(img, 0, SIZE))
    -- The same is on disk at the end.
    assert(raw.finish(img))
    assert.equal("0-4096 8192-12288 1048576-1056768 41943040-41947136 52428800-52432896", runs(img, 0, SIZE))
    local again <close> = assert(core.image_open(power, "qcow2"))
    assert.equal("0-4096 8192-12288 1048576-1056768 41943040-41947136 52428800-52432896", runs(again, 0, SIZE))
  end)

  it("does not write because somebody reads", function()
    local before = power:power_count()
    local function reads(name, ...)
      local answer, message = raw[name](img, ...)
      assert(answer ~= nil or message == nil, message)
      assert.equal(before, power:power_count(), name)
    end
    reads("read", 0, 200000)
    reads("extent_batch", 0, SIZE, 8, true, false)
    reads("header_fields")
    reads("names")
    reads("extension_list")
    reads("geometry")
    reads("l1_entry", 0)
    reads("l2_entry", 0, 0)
    reads("reftable_entry", 0)
    reads("refcount", 0)
    reads("snapshot_count")
    reads("snapshot_entry", 0)
    reads("bitmap_count")
    reads("bitmap_entry", 0)
    reads("bitmap_extent", 0, 0, SIZE)
    reads("is_preallocated")
    local view <close> = assert(raw.open_snapshot(img, 0))
    assert.equal(("a"):rep(10), raw.read(view, 0, 10))
    assert.equal(before, power:power_count())
  end)
end)
