-- SPDX-License-Identifier: MIT
-- Hostile images that are written to: SAFETY rule 4, and no refusal leaves an image worse than it was.
local hostile = require "spec.support.hostile"
local poke = require "spec.support.poke"
local sh = require "spec.support.sh"

local CLUSTER = 4096

-- What everybody can see of an image.
local function seen(path)
  local found = {}
  for _, words in ipairs { { "snapshot", "-l", path }, { "map", "--output=json", path }, { "check", path } } do
    found[#found + 1] = sh.qcow2(words).stdout
  end
  return table.concat(found, "\n")
end

-- Runs a verb that has to be refused with `text`, changing nothing that can be seen.
local function refused(path, words, text)
  local before = seen(path)
  local result = sh.qcow2(words)
  assert.equal(1, result.code, result.stdout .. result.stderr)
  assert.is_truthy(result.stderr:find(text, 1, true), result.stderr)
  assert.equal(before, seen(path))
end

local function description(more)
  local d = { header = { cluster_bits = 12, size = 64 * CLUSTER }, clusters = { [0] = { data = "now" } },
    snapshots = { { id = "1", name = "then", clusters = { [0] = { data = "before" } } } },
    bitmaps = { { name = "b", granularity_bits = 9, entries = { [0] = "\255\1" } } } }
  for key, value in pairs(more or {}) do d[key] = value end
  return d
end

describe("What lives with a reference count of 0 is not handed out:", function()
  local _, at = hostile.image(description())
  for what, offset in pairs { ["L1 table"] = at.l1, ["L2 table"] = at.l2[0], ["Snapshot table"] = at.snapshot_table,
    ["Reference count table"] = at.refcount_table, ["Bitmap directory"] = at.bitmap_directory,
    ["Bitmap table"] = at.bitmaps[1].table } do
    it(what:lower(), function()
      local path = hostile.image(description({ refcounts = { [offset // CLUSTER] = 0 } }))
      refused(path, { "snapshot", "-c", "new", path }, what .. (" at offset 0x%x has a reference count of 0"):format(
        offset))
    end)
  end

  for what, offset in pairs { ["the disk's data"] = at.data[0], ["a snapshot's data"] =
    poke.get_u64(hostile.image(description()), at.snapshots[1].l2[0]) & 0x00fffffffffffe00 } do
    it(what, function()
      local path = hostile.image(description({ refcounts = { [offset // CLUSTER] = 0 } }))
      refused(path, { "snapshot", "-c", "new", path }, ("Guest data in host range 0x%x"):format(offset))
    end)
  end

  it("a bitmap's bits", function()
    local path, layout = hostile.image(description())
    local bits = poke.get_u64(path, layout.bitmaps[1].table)
    path = hostile.image(description({ refcounts = { [bits // CLUSTER] = 0 } }))
    refused(path, { "bitmap", "--add", path, "new" }, ("Bitmap data at offset 0x%x has a reference count of 0"):format(
      bits))
  end)
end)

describe("A snapshot", function()
  it("whose data lies on metadata is not deleted: that would be free then", function()
    local path, layout = hostile.image(description())
    path = hostile.image(description({ snapshots = { { id = "1", name = "then",
      clusters = { [0] = layout.refcount_table } } } }))
    refused(path, { "snapshot", "-d", "then", path }, "where metadata lies")
  end)

  it("whose L1 table lies on the snapshot table stays when it cannot be deleted", function()
    local path, layout = hostile.image(description())
    path = hostile.image(description({ snapshots = { { id = "1", name = "then",
      l1_offset = layout.snapshot_table, l1_size = 1 } } }))
    refused(path, { "snapshot", "-d", "then", path }, "")
  end)
end)


describe("An L2 table of the disk and of a snapshot, counted once,", function()
  it("is written for neither", function()
    local _, layout = hostile.image(description())
    local path = hostile.image(description({ l1 = { [0] = 1 << 63 | layout.snapshots[1].l2[0] },
      refcounts = { [layout.snapshots[1].l2[0] // CLUSTER] = 1 } }))
    refused(path, { "bitmap", "--add", path, "new" }, "is other metadata too, with a reference count of 1")
  end)
end)

describe("A disk", function()
  it("whose last cluster lies on metadata is not made smaller: its size stays", function()
    local _, layout = hostile.image(description())
    local path = hostile.image(description({ snapshots = {}, bitmaps = {},
      clusters = { [63] = layout.refcount_table } }))
    refused(path, { "resize", "--shrink", path, "-4096" }, "where metadata lies")
  end)
end)
