-- SPDX-License-Identifier: MIT
-- Copies into qcow2 images: what is written where, in which order, and what failures and power cuts leave
-- (csrc/copy/copy_image.c, through the core).
local core = require("qcow2.core")
local decoder = require("spec.support.decoder")
local random = require("spec.support.random")
local raw = require("qcow2.image").raw

local KIB, MIB = 1 << 10, 1 << 20
local EIO = 5

local function bytes_of(store)
  return store:read(0, store:length())
end

-- Data, zeros and noise.
local function contents(length, seed)
  local r, parts, at = random.new(seed), {}, 0
  while at < length do
    local piece = math.min(r:pick({ 512, 4096, 65536, 200000 }), length - at)
    local kind = r:int(1, 4)
    parts[#parts + 1] = kind == 1 and r:bytes(piece) or kind == 2 and ("\0"):rep(piece)
      or ("%d lines of text "):format(at):rep(piece):sub(1, piece)
    at = at + piece
  end
  return table.concat(parts)
end

local function source_of(bytes)
  return assert(core.image_open(assert(core.store_memory(bytes)), "raw"))
end

-- A new image in `store`, ready to be copied into: one that was finished already, or (hidden) that the copy finishes.
local function new_image(store, options, data)
  if options.hidden then
    return assert(core.create_open(store, data, options))
  end
  assert(core.create(store, data, options))
  local image = assert(core.image_open(store, "qcow2"))
  if data then
    assert(raw.attach_data(image, data))
  end
  assert(raw.begin(image))
  return image
end

-- Runs a job to its end. gives: true, or nil, message, kind, errno.
local function run(images, target, options)
  options.sparse_size = options.sparse_size or 4096
  local job <close>, message, kind, errno = core.copy(images, target, options)
  if not job then
    return nil, message, kind, errno
  end
  repeat
    local done, total, more
    done, total, more, errno = job:step()
    if not done then
      return nil, total, more, errno
    end
  until not more
  return true
end

local function disk_of(bytes)
  local image <close> = assert(core.image_open(assert(core.store_memory(bytes)), "qcow2"))
  return raw.read(image, 0, raw.disk_bytes(image))
end

-- Copies into a new image in memory. gives: the file's bytes.
local function copied(disk, options, creation)
  creation.size, creation.hidden = #disk, true
  local store = assert(core.store_memory(""))
  local image <close> = new_image(store, creation)
  assert(run({ source_of(disk) }, image, options))
  return bytes_of(store)
end

local WAYS = {
  { {}, {} }, { { compress = true }, {} }, { { compress = true }, { compression_type = "zstd" } },
  { { compress = true }, { cluster_size = 4096, refcount_bits = 1 } }, { {}, { cluster_size = 512 } },
  { {}, { extended_l2 = true } }, { {}, { preallocation = "metadata" } }, { { sparse_size = 0 }, {} },
  { {}, { lazy_refcounts = true } }, { {}, { cluster_size = 2 * MIB } },
}

describe("A copy into a new image", function()
  local disk = contents(6 * MIB + 3 * 512, 5)

  for i, way in ipairs(WAYS) do
    it("makes the same file with any number of threads, clean: way " .. i, function()
      local first
      for _, threads in ipairs({ 1, 2, 3, 8, 2 }) do
        way[1].threads = threads
        local bytes = copied(disk, way[1], way[2])
        first = first or bytes
        assert.is_true(bytes == first)
      end
      assert.is_true(disk_of(first) == disk)
      local image = decoder.open("memory", { bytes = first })
      local counts = image:references()
      for cluster = 0, (#first + image.cluster_size - 1) // image.cluster_size - 1 do
        assert.equal(counts[cluster] or 0, image:refcount(cluster))
      end
      assert.equal(0, image.header.incompatible_features & 1)
    end)
  end

  it("takes no space for subclusters and clusters that are zeros", function()
    -- Two KiB of data at the start of every other cluster of 64 KiB.
    local cluster = ("x"):rep(2048) .. ("\0"):rep(126 * KIB)
    local holes = cluster:rep(8)
    local bytes = copied(holes, {}, { extended_l2 = true })
    assert.is_true(disk_of(bytes) == holes)
    local data = 0
    for _, found in ipairs(decoder.open("memory", { bytes = bytes }):map()) do
      if found.kind == "data" then
        assert.equal(2048, found.length)
        data = data + 1
      else
        assert.equal("unallocated", found.kind)
      end
    end
    assert.equal(8, data)
    -- A zero run below the size that was asked for takes its space.
    local full = decoder.open("memory", { bytes = copied(holes, { sparse_size = 256 * KIB }, { extended_l2 = true }) })
    assert.equal("data", full:map()[1].kind)
    assert.equal(16 * 64 * KIB, full:map()[1].length)
    -- Small clusters between data: as streams each counts for itself.
    local small = (("x"):rep(512) .. ("\0"):rep(512)):rep(64)
    local streams = decoder.open("memory",
      { bytes = copied(small, { compress = true }, { cluster_size = 512 }) })
    assert.equal(128, #streams:map())
  end)

  it("writes no long zeros into what reads as zeros anyway", function()
    local cluster = ("x"):rep(4096) .. ("\0"):rep(60 * KIB)
    local holes = cluster:rep(16)
    local data = assert(core.store_memory("")):power()
    local image <close> = new_image(assert(core.store_memory("")), { size = #holes, data_file = "d",
      data_file_raw = true, hidden = true }, data)
    local before = data:power_count()
    assert(run({ source_of(holes) }, image, {}))
    local written = 0
    for n = before, data:power_count() - 1 do
      local kind, _, length = data:power_op(n)
      written = written + (kind == "w" and length or 0)
    end
    assert.equal(16 * 4096, written)
    assert.is_true(data:read(0, #holes) == holes)
  end)

  it("uses the places that were preallocated", function()
    for _, extended in ipairs({ false, true }) do
      local options = { extended_l2 = extended, preallocation = "metadata", size = #disk }
      local store = assert(core.store_memory(""))
      new_image(store, options):close()
      local length = store:length()
      local image <close> = assert(core.image_open(store, "qcow2"))
      assert(raw.begin(image))
      assert(run({ source_of(disk) }, image, { target_exists = true, target_is_zero = true }))
      assert(raw.finish(image))
      assert.equal(length, store:length())
      assert.is_true(disk_of(bytes_of(store)) == disk)
    end
  end)

  it("looks like no image until all else is written, and flushes before it does", function()
    local power = assert(core.store_memory("")):power()
    local image <close> = new_image(power, { size = #disk, hidden = true })
    assert(run({ source_of(disk) }, image, { sync = true, threads = 2 }))
    local count = power:power_count()
    for n = 0, count do
      local left <close> = assert(power:power_replay(n))
      local whole = left:length() > 4 and left:read(0, 4) == "QFI\xfb"
      if whole then
        assert.is_true(disk_of(bytes_of(left)) == disk)
      end
      -- Nothing unflushed is kept but what shows it.
      local keep = ("\0"):rep(n)
      local lost <close> = assert(power:power_replay(n, keep))
      if lost:length() > 4 and lost:read(0, 4) == "QFI\xfb" then
        assert.is_true(disk_of(bytes_of(lost)) == disk)
      end
      assert.is_true(n < count or whole)
    end
  end)

  it("flushes nothing when it need not", function()
    for _, way in ipairs({ {}, { compress = true } }) do
      local power = assert(core.store_memory("")):power()
      local image <close> = new_image(power, { size = #disk, hidden = true, lazy_refcounts = true })
      assert(run({ source_of(disk) }, image, way))
      for n = 0, power:power_count() - 1 do
        assert.not_equal("f", (power:power_op(n)))
      end
    end
  end)

  it("writes each stretch of data once, and in large pieces", function()
    local power = assert(core.store_memory("")):power()
    local data = ("data"):rep(8 * MIB // 4)
    local image <close> = new_image(power, { size = #data, hidden = true })
    local before = power:power_count()
    assert(run({ source_of(data) }, image, { threads = 2 }))
    local written = 0
    for n = before, power:power_count() - 1 do
      local _, _, length = power:power_op(n)
      written = written + length
    end
    assert.is_true(written < #data + 300 * KIB)
    assert.is_true(power:power_count() - before < 30)
  end)

  it("answers with the first failure of any call, and stays hidden", function()
    local small = contents(700 * KIB, 9)
    for _, way in ipairs({ { {}, {} }, { { compress = true }, { cluster_size = 4096 } },
      { {}, { preallocation = "metadata", cluster_size = 4096 } }, { { sync = true }, {} } }) do
      local failed, nth = 0, 0
      repeat
        nth = nth + 1
        local memory = assert(core.store_memory(""))
        way[1].threads, way[2].size = 2, #small
        local fault = assert(memory:fault("wfps", nth, EIO, false))
        local image, message, kind, errno = core.create_open(fault, nil, way[2])
        local fine
        if image then
          fine, message, kind, errno = run({ source_of(small) }, image, way[1])
        end
        local calls = fault:fault_calls()
        if image then
          raw.close(image)
        end
        if not fine then
          failed = failed + 1
          assert.same({ "io", EIO }, { kind, errno })
          assert.matches("Input/output error", message)
          -- The last of all calls may be a flush, after the magic.
          if not way[1].sync then
            assert.not_equal("QFI\xfb", memory:read(0, 4))
          end
        end
      until calls < nth
      assert.is_true(failed >= 3)
    end
  end)

  it("names the place of a read that failed, and of a write", function()
    local memory = assert(core.store_memory(("x"):rep(4 * MIB)))
    local image = new_image(assert(core.store_memory("")), { size = 4 * MIB, hidden = true })
    local broken = assert(core.image_open(assert(memory:fault("r", 1, EIO, true)), "raw"))
    local fine, message = run({ broken }, image, {})
    assert.is_nil(fine)
    assert.matches("error while reading at byte 0: ", message)
    raw.close(image)
    local store = assert(core.store_memory(""))
    assert(core.create(store, nil, { size = 4 * MIB }))
    image = assert(core.image_open(assert(store:fault("w", 2, EIO, true)), "qcow2"))
    assert(raw.begin(image))
    fine, message = run({ source_of(("x"):rep(4 * MIB)) }, image, { threads = 1 })
    assert.is_nil(fine)
    assert.matches("error while writing at byte %d+: ", message)
    raw.close(image)
  end)

  it("salvages what can be read", function()
    local half = ("x"):rep(MIB)
    local memory = assert(core.store_memory(half .. half))
    local broken = assert(core.image_open(assert(memory:fault("r", 1, EIO, false)), "raw"))
    local store = assert(core.store_memory(""))
    local image <close> = new_image(store, { size = 2 * MIB, hidden = true })
    local job <close> = assert(core.copy({ broken }, image, { sparse_size = 4096, salvage = true, threads = 1 }))
    repeat
      local _, _, more = assert(job:step())
    until not more
    assert.equal(0, job:lost()) -- the second try of each sector worked
    assert.is_true(disk_of(bytes_of(store)) == half .. half)
  end)

  it("copies a part of a disk", function()
    for _, part in ipairs({ { 0, 512 }, { 1000, 70000 }, { 65536, MIB }, { 6 * MIB, 1536 }, { 4097, 3 * MIB + 1 } }) do
      local want = disk:sub(part[1] + 1, part[1] + part[2])
      want = want .. ("\0"):rep(-#want % 512)
      local store = assert(core.store_memory(""))
      local image <close> = new_image(store, { size = #want, hidden = true })
      assert(run({ source_of(disk) }, image, { start = part[1], length = part[2] }))
      assert.is_true(disk_of(bytes_of(store)) == want)
    end
    local image <close> = new_image(assert(core.store_memory("")), { size = 8 * MIB, hidden = true })
    local job, _, kind = core.copy({ source_of(disk) }, image, { sparse_size = 0, start = 6 * MIB, length = 2000 })
    assert.same({ nil, "range" }, { job, kind })
  end)

  it("refuses targets that are too small, raw, not writable, or read", function()
    local store = assert(core.store_memory(""))
    local image = new_image(store, { size = MIB })
    local options = { sparse_size = 4096 }
    local function refused(kind, sources, target, o)
      local job, _, what = core.copy(sources, target, o)
      assert.same({ nil, kind }, { job, what })
    end
    refused("range", { source_of(disk) }, image, options)
    refused("conflict", { image }, image, options)
    local flat <close> = source_of(disk)
    assert(raw.begin(flat))
    refused("conflict", { source_of("") }, flat, options)
    raw.close(image)
    refused("readonly", { source_of("") }, assert(core.image_open(store, "qcow2")), options)
    local data = assert(core.store_memory(""))
    local external = new_image(assert(core.store_memory("")), { size = MIB, data_file = "d" }, data)
    refused("conflict", { source_of("") }, external, { sparse_size = 4096, compress = true })
  end)
end)

describe("A copy into an image that holds something", function()
  it("leaves every sector old or new at every write, and snapshots as they were", function()
    for _, way in ipairs({ {}, { compress = true }, { sparse_size = 0 } }) do
      local old, new = contents(400 * KIB, 3), contents(300 * KIB, 4)
      local memory = assert(core.store_memory(""))
      local first = new_image(memory, { size = #old, cluster_size = 4096 })
      assert(raw.write(first, 0, old))
      assert(raw.snapshot_create(first, "before", 0, 0))
      assert(raw.finish(first))
      raw.close(first)
      local power = memory:power()
      local image = assert(core.image_open(power, "qcow2"))
      assert(raw.begin(image))
      way.target_exists, way.threads = true, 2
      assert(run({ source_of(new) }, image, way))
      assert(raw.finish(image))
      raw.close(image)
      local count = power:power_count()
      for n = 0, count, math.max(1, count // 60) do
        local left <close> = assert(power:power_replay(n))
        local survivor <close> = assert(core.image_open(left, "qcow2"))
        local got = assert(raw.read(survivor, 0, #old))
        for at = 1, #old, 512 do
          local sector = got:sub(at, at + 511)
          assert.is_true(sector == old:sub(at, at + 511) or (at <= #new and sector == new:sub(at, at + 511)))
        end
        local view <close> = assert(raw.open_snapshot(survivor, 0))
        assert.is_true(raw.read(view, 0, #old) == old)
      end
      assert.is_true(disk_of(bytes_of(power)) == new .. old:sub(#new + 1))
    end
  end)
end)
