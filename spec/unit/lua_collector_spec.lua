-- SPDX-License-Identifier: MIT
-- The whole reading API under a collector that runs as often as it can: no handle, string or table is used after
-- it was let go, and nothing is kept that was let go.
local forge = require "spec.support.forge"
local qcow2 = require "qcow2"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local CLUSTER = 4096

local function make()
  local dir = tmp.dir()
  local path = dir .. "/image.qcow2"
  forge.write(path, { header = { cluster_bits = 12, size = 40 * CLUSTER },
    clusters = { [0] = { data = "first" }, [1] = "zero", [3] = { compressed = forge.deflate(("c"):rep(CLUSTER)) } },
    backing_file = "base.raw", backing_format = "raw", feature_names = { { 0, 0, "dirty bit" } },
    snapshots = { { id = "1", name = "own", clusters = { [0] = { data = "old" } } } },
    bitmaps = { { name = "b", granularity_bits = 12, entries = { [0] = "\5" } } } })
  sh.spit(dir .. "/base.raw", ("b"):rep(40 * CLUSTER))
  return path
end

-- Everything once; gives what it saw as one string.
local function tour(path)
  local seen = {}
  local function note(...)
    for i = 1, select("#", ...) do seen[#seen + 1] = tostring((select(i, ...))) end
  end
  local img <close> = assert(qcow2.open(path))
  note(img)
  for name, value in pairs(img) do note(name, value) end
  note(img:read(0, 5), img:read(3 * CLUSTER + 5, 20), img:read(10 * CLUSTER, 40000))
  for e in img:extents() do note(e.offset, e.length, e.kind, e.file) end
  for e in img:extents({ layer = true }) do note(e.offset, e.kind) end
  for i, entry in pairs(img.l1) do note(i, entry, entry.l2 and entry.l2[0]) end
  note(img.refcount_table[0].raw, img:refcount(0))
  for _, s in ipairs(img.snapshots) do note(s.name, s.size) end
  local view = assert(img:snapshot("own"))
  note(view, view:read(0, 10), view:explain(0))
  for offset, length in img:bitmap("b"):extents() do note(offset, length) end
  for _, x in ipairs(img.extensions) do note(x.name, x.data) end
  for _, f in ipairs(img.feature_names) do note(f.name) end
  for _, link in ipairs(img:chain()) do note(link.path, link.image:read(0, 3)) end
  note(img:explain(10 * CLUSTER))
  note(pcall(function() return img.nothing end))
  note(qcow2.open(path, { snapshot = "nobody" }))
  note(qcow2.open(path .. ".missing"))
  note(qcow2.probe(path))
  local over <close> = assert(qcow2.open(path, { backing = assert(qcow2.open(path:gsub("image.qcow2", "base.raw"),
    { format = "raw" })) }))
  note(over:read(20 * CLUSTER, 5))
  return table.concat(seen, "\n")
end

describe("Under a furious collector", function()
  local path, expected

  setup(function()
    path = make()
    expected = tour(path)
  end)

  after_each(function()
    debug.sethook()
    collectgarbage("restart")
    collectgarbage("incremental", 200, 100)
  end)

  it("that is generational, the API gives the same", function()
    collectgarbage("generational", 1, 1)
    for _ = 1, 8 do assert.equal(expected, tour(path)) end
  end)

  it("that never pauses, the API gives the same", function()
    collectgarbage("incremental", 1, 10000)
    for _ = 1, 8 do assert.equal(expected, tour(path)) end
  end)

  it("that runs every few instructions, the API gives the same", function()
    debug.sethook(function() collectgarbage() end, "", 7)
    local got = tour(path)
    debug.sethook()
    assert.equal(expected, got)
  end)

  it("that runs at every call, the API gives the same", function()
    debug.sethook(function() collectgarbage("step", 0) end, "cr")
    local got = tour(path)
    debug.sethook()
    assert.equal(expected, got)
  end)

  it("that is stopped, closing still lets go of the files", function()
    collectgarbage("stop")
    local lfs = require "lfs"
    local function descriptors()
      local count = 0
      for name in lfs.dir("/proc/self/fd") do count = count + (name:find("%d") and 1 or 0) end
      return count
    end
    for _ = 1, 3 do
      local img = assert(qcow2.open(path))
      img:close()
    end
    local before = descriptors()
    for _ = 1, 50 do
      local img = assert(qcow2.open(path))
      assert(img:read(10 * CLUSTER, 5))
      assert(img:explain(10 * CLUSTER))
      for _ in img:extents() do end -- luacheck: ignore
      img:close()
      local view = assert(qcow2.open(path, { snapshot = "own" }))
      view:close()
      assert.is_nil((qcow2.open(path, { snapshot = "nobody" })))
    end
    assert.equal(before, descriptors())
  end)

  it("memory does not grow from tour to tour", function()
    for _ = 1, 5 do tour(path) end
    collectgarbage()
    collectgarbage()
    local before = collectgarbage("count")
    for _ = 1, 100 do tour(path) end
    collectgarbage()
    collectgarbage()
    assert.is_true(collectgarbage("count") < before + 64, collectgarbage("count") - before)
  end)
end)
