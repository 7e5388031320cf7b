-- SPDX-License-Identifier: MIT
-- The core's creation of images onto any store: layout, limits, refusals.
local core = require("qcow2.core")
local decoder = require("spec.support.decoder")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function bytes_of(store)
  return assert(store:read(0, assert(store:length())))
end

local function made(options, data)
  local store <close> = assert(core.store_memory(0))
  assert(core.create(store, data, options))
  return bytes_of(store)
end

local function decoded(bytes)
  local path = tmp.path()
  sh.spit(path, bytes)
  return assert(decoder.open(path))
end

describe("core.create", function()
  it("lays out header, refcount table, refcount block and L1 table, each from the next cluster", function()
    for bits = 9, 21 do
      local image <close> = decoded(made({ size = 1 << 20, cluster_size = 1 << bits }))
      local cluster = 1 << bits
      assert.equal(cluster, image.header.refcount_table_offset)
      assert.equal(1, image.header.refcount_table_clusters)
      assert.equal(3 * cluster, image.header.l1_table_offset)
      assert.equal(112, image.header.header_length)
      for n = 0, 3 do
        assert.equal(1, image:refcount(n))
      end
      assert.same({}, image:problems())
    end
  end)

  it("names every feature bit of the specification, when clusters are over 4 KiB and the version is 3", function()
    local names = { "dirty bit", "corrupt bit", "external data file", "compression type", "extended L2 entries",
      "lazy refcounts", "bitmaps", "raw external data" }
    local image <close> = decoded(made({ size = 0, cluster_size = 8192 }))
    local at = image.extensions.feature_name_table.data
    assert.equal(48 * #names, #at)
    for i, name in ipairs(names) do
      assert.equal(name, (at:sub(48 * i - 45, 48 * i):gsub("%z+$", "")))
    end
    for _, options in ipairs({ { size = 0, cluster_size = 4096 }, { size = 0, version = 2 } }) do
      local other <close> = decoded(made(options))
      assert.is_nil(other.extensions.feature_name_table)
    end
  end)

  it("puts the extensions in order and the backing name behind their end", function()
    local data <close> = assert(core.store_memory(0))
    local image <close> = decoded(made({ size = 512, backing_file = "base", backing_format = "raw", data_file = "d" },
      data))
    local words = {}
    for i, extension in ipairs(image.extensions) do
      words[i] = extension.name
    end
    assert.same({ "backing_format", "data_file", "feature_name_table" }, words)
    local last = image.extensions[3]
    assert.equal(last.offset + last.length + 8, image.header.backing_file_offset)
    assert.equal("base", image:pread(image.header.backing_file_offset, 4))
  end)

  it("counts every cluster once, in every width, when all is allocated", function()
    for order = 0, 6 do
      local image <close> = decoded(made({ size = 3 << 20, cluster_size = 512, refcount_bits = 1 << order,
        preallocation = "metadata" }))
      assert.equal(order, image.header.refcount_order)
      assert.same({}, image:problems())
      local clusters = image.length // 512
      assert.equal(1, image:refcount(clusters - 1))
      assert.equal(0, image:refcount(clusters))
      local map = image:map()
      assert.equal(1, #map)
      assert.equal("data", map[1].kind)
      assert.equal(3 << 20, map[1].length)
      assert.equal(image.length - (3 << 20), map[1].host_offset)
    end
  end)

  it("writes extended entries whose subclusters are not allocated, but for a data file that is the disk", function()
    local plain <close> = decoded(made({ size = 1 << 20, extended_l2 = true, preallocation = "metadata" }))
    assert.same({}, plain:problems())
    for _, options in ipairs({ { data_file_raw = true }, { keep_data_file = true, keep_holes = true },
      { keep_data_file = true } }) do
      local kept = options.keep_data_file and ("k"):rep(1 << 20) or 0
      local data <close> = assert(core.store_memory(kept))
      options.size, options.extended_l2, options.data_file = 1 << 20, true, "d"
      local image <close> = decoded(made(options, data))
      assert.same({}, image:problems())
      local map = image:map()
      assert.equal(1, #map)
      assert.equal("data", map[1].kind)
      assert.equal(0, map[1].host_offset)
    end
    assert.equal("unallocated", plain:map()[1].kind)
  end)

  it("makes holes of a kept data file zeros of the table, cluster by cluster or subcluster by subcluster", function()
    for _, case in ipairs({ { 65536, false, 65536 }, { 65536, true, 2048 }, { 512, false, 512 } }) do
      local cluster, extended, unit = table.unpack(case)
      local path = tmp.path("d")
      sh.check({ "truncate", "-s", tostring(1 << 20), path })
      local file <close> = assert(io.open(path, "r+b"))
      file:seek("set", 300000)
      file:write("data")
      file:flush()
      local data <close> = assert(core.store_file(path))
      local image <close> = decoded(made({ size = 1 << 20, cluster_size = cluster, extended_l2 = extended,
        data_file = "d", keep_data_file = true }, data))
      assert.same({}, image:problems())
      local position = 0
      for _, run in ipairs(image:map()) do
        assert.equal(position, run.offset)
        position = position + run.length
        if run.kind == "data" then
          assert.equal(run.offset, run.host_offset)
          assert.is_true(run.offset <= 300000 and run.offset + run.length >= 300004)
          assert.equal(0, run.offset % unit)
        else
          assert.equal("zero", run.kind)
        end
      end
      assert.equal(1 << 20, position)
    end
  end)

  it("rounds the size up to sectors", function()
    for _, case in ipairs({ { 0, 0 }, { 1, 512 }, { 512, 512 }, { 1000, 1024 } }) do
      local image <close> = decoded(made({ size = case[1] }))
      assert.equal(case[2], image.header.size)
    end
  end)

  it("leaves nothing of what the store held", function()
    local store <close> = assert(core.store_memory(("old"):rep(1 << 20)))
    assert(core.create(store, nil, { size = 1 << 20 }))
    assert.is_true(made({ size = 1 << 20 }) == bytes_of(store))
  end)

  for _, case in ipairs({
    { { size = 1, version = 1 }, "range" },
    { { size = 1, version = 4 }, "range" },
    { { size = 1, cluster_size = 256 }, "range" },
    { { size = 1, cluster_size = 4 << 20 }, "range" },
    { { size = 1, cluster_size = 1000 }, "range" },
    { { size = 1, cluster_size = 1 << 40 }, "range" },
    { { size = 1, refcount_bits = 0 }, "range" },
    { { size = 1, refcount_bits = 128 }, "range" },
    { { size = 1, refcount_bits = 12 }, "range" },
    { { size = math.maxinteger }, "range" },
    { { size = 1 << 40, cluster_size = 512 }, "range" },
    { { size = 1 << 55 }, "range" },
    { { size = 1 << 61, cluster_size = 2 << 20, preallocation = "metadata" }, "range" },
    { { size = 1, version = 2, extended_l2 = true }, "conflict" },
    { { size = 1, version = 2, lazy_refcounts = true }, "conflict" },
    { { size = 1, version = 2, refcount_bits = 8 }, "conflict" },
    { { size = 1, version = 2, compression_type = "zstd" }, "conflict" },
    { { size = 1, version = 2, data_file = "d" }, "conflict" },
    { { size = 1, extended_l2 = true, cluster_size = 8192 }, "conflict" },
    { { size = 1, backing_file = "b", preallocation = "metadata" }, "conflict" },
    { { size = 1, data_file_raw = true }, "conflict" },
    { { size = 1, data_file = "d", data_file_raw = true, backing_file = "b" }, "conflict" },
    { { size = 1, keep_data_file = true }, "conflict" },
    { { size = 1, data_file = "d", keep_data_file = true, preallocation = "falloc" }, "conflict" },
    { { size = 1, backing_format = "raw" }, "conflict" },
    { { size = 1, backing_file = "b", backing_format = ("f"):rep(16) }, "range" },
    { { size = 1, backing_file = "" }, "range" },
    { { size = 1, backing_file = "a\0b" }, "range" },
    { { size = 1, data_file = "" }, "range" },
    { { size = 1, data_file = ("d"):rep(1024) }, "range" },
    { { size = 1, cluster_size = 512, backing_file = ("b"):rep(393) }, "range" },
  }) do
    local words = {}
    for name, value in pairs(case[1]) do
      words[#words + 1] = ("%s=%s"):format(name, (tostring(value):sub(1, 20):gsub("%z", "\\0")))
    end
    table.sort(words)
    it(("refuses %s and leaves the store alone"):format(table.concat(words, " ")), function()
      local store <close> = assert(core.store_memory("precious"))
      local data <close> = case[1].data_file and assert(core.store_memory("precious"))
      for _, result in ipairs({ table.pack(core.create_check(case[1])), table.pack(core.create(store, data, case[1])) })
      do
        assert.is_nil(result[1])
        assert.equal(case[2], result[3])
      end
      assert.equal("precious", bytes_of(store))
      assert.equal("precious", not data and "precious" or bytes_of(data))
    end)
  end

  it("takes names up to the last byte of the header cluster", function()
    local image <close> = decoded(made({ size = 512, cluster_size = 512, backing_file = ("b"):rep(392) }))
    assert.equal(512, image.header.backing_file_offset + image.header.backing_file_size)
    assert.same({}, image:problems())
  end)

  it("refuses a data file that is not there, not named, or the image itself", function()
    local store <close> = assert(core.store_memory(0))
    local data <close> = assert(core.store_memory(0))
    for _, call in ipairs({ { nil, { size = 1, data_file = "d" } }, { data, { size = 1 } },
      { store, { size = 1, data_file = "d" } } }) do
      local ok, _, kind = core.create(store, call[1], call[2])
      assert.is_nil(ok)
      assert.equal("conflict", kind)
    end
    local path = tmp.path()
    sh.spit(path, "")
    local one <close> = assert(core.store_file(path, { write = true, unlocked = true }))
    local two <close> = assert(core.store_file(path, { write = true, unlocked = true }))
    local ok, _, kind = core.create(one, two, { size = 1, data_file = "d" })
    assert.is_nil(ok)
    assert.equal("conflict", kind)
  end)

  it("refuses a kept data file that does not fit, without a change", function()
    for _, case in ipairs({ { 4096, 8192 }, { 1000, 1000 }, { 8192, 4096, true } }) do
      local store <close> = assert(core.store_memory("precious"))
      local data <close> = assert(core.store_memory(("k"):rep(case[2])))
      local ok, _, kind = core.create(store, data,
        { size = case[1], data_file = "d", keep_data_file = true, data_file_raw = case[3] })
      assert.is_nil(ok)
      assert.equal("conflict", kind)
      assert.equal("precious", bytes_of(store))
    end
  end)

  it("needs a store that is open for writing", function()
    local path = tmp.path()
    sh.spit(path, "precious")
    local store <close> = assert(core.store_file(path))
    local ok, _, kind = core.create(store, nil, { size = 1 })
    assert.is_nil(ok)
    assert.equal("readonly", kind)
    assert.equal("precious", sh.slurp(path))
  end)
end)

describe("core.create_raw", function()
  it("makes zeros of the wanted length", function()
    for _, mode in ipairs({ "off", "falloc", "full" }) do
      for _, size in ipairs({ 0, 512, 5 << 20 }) do
        local store <close> = assert(core.store_memory(("old"):rep(1 << 20)))
        assert(core.create_raw(store, size, mode, false))
        assert.is_true(("\0"):rep(size) == bytes_of(store))
      end
    end
  end)

  it("knows no metadata to preallocate", function()
    local store <close> = assert(core.store_memory("precious"))
    local ok, _, kind = core.create_raw(store, 512, "metadata", false)
    assert.is_nil(ok)
    assert.equal("conflict", kind)
    assert.equal("precious", bytes_of(store))
  end)
end)
