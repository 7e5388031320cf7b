-- SPDX-License-Identifier: MIT
-- SAFETY rule 5: every allocation and every read of the store fails once, and the failure is a clean one.
local cc = require "spec.support.cc"
local core = require "qcow2.core"
local forge = require "spec.support.forge"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local function everything(cluster_bits, more)
  local cluster, count = 1 << cluster_bits, cluster_bits == 9 and 100 or 20
  local description = {
    header = { cluster_bits = cluster_bits, size = count << cluster_bits },
    backing_file = "base.raw", backing_format = "raw",
    clusters = { [0] = { data = "first" }, [1] = "zero", [3] = { compressed = forge.deflate(("c"):rep(cluster)) },
      [count - 2] = { data = "far" } },
    snapshots = { { name = "shared" }, { name = "own", clusters = { [4] = { data = "old" } } } },
    bitmaps = { { name = "b", granularity_bits = 9, entries = { [0] = "\1\2\3" } }, { name = "c" } },
  }
  for key, value in pairs(more or {}) do description[key] = value end
  return description
end

local images = {
  { "with clusters of 512 bytes", everything(9) },
  { "with clusters of 64 KiB", everything(16) },
  { "with extended L2 entries", everything(14, { extended_l2 = true }) },
  { "with zstd", everything(12, { header = { cluster_bits = 12, size = 20 << 12, compression_type = 1 },
    clusters = { [0] = { data = "a" }, [2] = { compressed = forge.zstd(("z"):rep(4096)) } } }) },
}

local function make(description)
  local dir = tmp.dir()
  local path = dir .. "/image.qcow2"
  forge.write(path, description)
  sh.spit(dir .. "/base.raw", ("base"):rep((description.header.size - 1000) // 4))
  return path, dir .. "/base.raw"
end

describe("When memory runs out", function()
  for _, case in ipairs(images) do
    it("an image " .. case[1] .. " answers cleanly at every allocation, and goes on afterwards", function()
      local program = cc.program("alloc_faults",
        { "malloc", "calloc", "realloc", "posix_memalign", "strdup", "free" })
      local path, base = make(case[2])
      local result = sh.run({ program, path, base })
      assert.equal(0, result.code, result.stderr)
      local allocations, failures = result.stdout:match("^(%d+) allocations, (%d+) failures\n$")
      assert.is_true(tonumber(allocations) > 15, result.stdout)
      -- Some need no memory to go on: a cache that cannot grow.
      assert.is_true(tonumber(failures) > tonumber(allocations) / 2, result.stdout)
    end)
  end
end)

-- Everything that reads, each as a function of an open core image.
local readers = {
  read = function(image) return image:read(0, image:disk_bytes()) end,
  pieces = function(image)
    local out = {}
    for at = 0, image:disk_bytes() - 1, 5000 do
      local bytes, message, kind, errno = image:read(at, math.min(5000, image:disk_bytes() - at))
      if not bytes then return nil, message, kind, errno end
      out[#out + 1] = bytes
    end
    return table.concat(out)
  end,
  extents = function(image)
    local out, at = {}, 0
    while at < image:disk_bytes() do
      local batch, message, kind, errno = image:extent_batch(at, image:disk_bytes() - at, 1, false, true)
      if not batch then return nil, message, kind, errno end
      -- A run may end early where the table behind it could not be read: what follows says the same kind.
      if not out[#out] or not out[#out]:find(batch[1].kind, 1, true) then
        out[#out + 1] = ("%d %s"):format(batch[1].offset, batch[1].kind)
      end
      at = at + batch[1].length
    end
    return table.concat(out, "\n")
  end,
  l1 = function(image) return image:l1_entry(0) end,
  l2 = function(image) return image:l2_entry(0, 3) end,
  refcount = function(image) return image:refcount(2) end,
  refcount_table = function(image) return image:reftable_entry(0) end,
  preallocated = function(image)
    local preallocated, message, kind, errno = image:is_preallocated()
    if preallocated == nil then return nil, message, kind, errno end
    return tostring(preallocated)
  end,
  snapshots = function(image)
    local out = {}
    local count, message, kind, errno = image:snapshot_count()
    if not count then return nil, message, kind, errno end
    for i = 0, count - 1 do
      local view
      view, message, kind, errno = image:open_snapshot(i)
      if not view then return nil, message, kind, errno end
      out[i + 1], message, kind, errno = view:read(0, view:disk_bytes())
      if not out[i + 1] then return nil, message, kind, errno end
    end
    return table.concat(out)
  end,
  bitmaps = function(image)
    local dirty, length, kind, errno = image:bitmap_extent(0, 0, image:disk_bytes())
    if dirty == nil then return nil, length, kind, errno end
    return tostring(dirty) .. length
  end,
}

local function open(path, base, nth)
  local file = assert(core.store_file(path))
  local store = assert(file:fault("r", nth, 5))
  file:close()
  local image, message, kind, errno = core.image_open(store)
  if not image then return nil, message, kind, errno, store end
  local base_store = assert(core.store_file(base))
  local backing = assert(core.image_open(base_store, "raw"))
  assert(image:attach_backing(backing))
  backing:close()
  base_store:close()
  return image, store
end

describe("When a read of the image file fails", function()
  for _, case in ipairs(images) do
    for name, reader in pairs(readers) do
      it(("an image %s gives an \"io\" error, once, from each call: %s"):format(case[1], name), function()
        local path, base = make(case[2])
        local whole <close> = assert(open(path, base, 0))
        local expected = assert(reader(whole))
        local failures, nth = 0, 0
        repeat
          nth = nth + 1
          local image, store, kind, errno = open(path, base, nth)
          local failed = false
          if not image then
            local message = store
            failed, store = true, select(5, open(path, base, nth))
            assert.equal("io", kind, message)
            assert.equal(5, errno)
          else
            local result, message
            result, message, kind, errno = reader(image)
            if result == nil then
              failed = true
              assert.equal("io", kind, message)
              assert.equal(5, errno)
              assert.is_truthy(message:find("Input/output error", 1, true), message)
              assert.is_truthy(message:find("image.qcow2", 1, true), message)
              assert.equal(expected, reader(image)) -- the fault is over
            else
              assert.equal(expected, result)
            end
            image:close()
          end
          local reached = store:fault_calls() >= nth
          failures = failures + (failed and 1 or 0)
          store:close()
        until not reached
        assert.is_true(failures > 0)
      end)
    end
  end
end)

describe("When a read of the backing file or the data file fails", function()
  it("the message names that file", function()
    local dir = tmp.dir()
    forge.write(dir .. "/image.qcow2", { backing_file = "base.raw", data_file = "data.raw",
      clusters = { [0] = { data = "x" } } })
    sh.spit(dir .. "/base.raw", ("b"):rep(1 << 20))
    sh.spit(dir .. "/data.raw", ("d"):rep(1 << 20))
    local function faulty(name)
      local file <close> = assert(core.store_file(dir .. "/" .. name))
      return assert(file:fault("r", 1, 5, true))
    end
    local file <close> = assert(core.store_file(dir .. "/image.qcow2"))
    local image <close> = assert(core.image_open(file))
    assert(image:attach_data(faulty("data.raw")))
    assert(image:attach_backing(assert(core.image_open(faulty("base.raw"), "raw"))))
    for offset, name in pairs { [0] = "data.raw", [65536] = "base.raw" } do
      local bytes, message, kind, errno = image:read(offset, 512)
      assert.is_nil(bytes)
      assert.equal("io", kind)
      assert.equal(5, errno)
      assert.is_truthy(message:find(name, 1, true), message)
    end
  end)
end)
