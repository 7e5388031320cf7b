-- SPDX-License-Identifier: MIT
-- Copies into raw targets through the core: csrc/copy/copy_job.c, sink_raw.c, source.c, reader.c, pool.c.
local core = require "qcow2.core"
local forge = require "spec.support.forge"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local EIO, ENOSPC = 5, 28
local SECTOR = 512
local MIB = 1 << 20

local function memory_image(bytes)
  return assert(core.image_open(assert(core.store_memory(bytes)), "raw"))
end

local function contents(store)
  return assert(store:read(0, assert(store:length())))
end

local function job_of(images, target, options)
  local all = { sparse_size = 4096 }
  for key, value in pairs(options or {}) do all[key] = value end
  return core.copy(images, target, all)
end

-- Runs a job to its end. gives: true, or the failure.
local function finish(job)
  local more = true
  while more do
    local done, total, last, errno = job:step()
    if not done then return nil, total, last, errno end
    more = last
  end
  return true
end

local function copy(images, target, options)
  local job <close> = assert(job_of(images, target, options))
  return finish(job)
end

-- A disk with runs of all kinds: noise, zeros in it, text that compresses.
local function mixed(rng, length)
  local parts, at = {}, 0
  while at < length do
    local n = math.min(rng:pick({ SECTOR, 4096, 65536, 200 * SECTOR }), length - at)
    parts[#parts + 1] = rng:pick({ ("\0"):rep(n), rng:bytes(n), ("text"):rep(n // 4) })
    at = at + n
  end
  return table.concat(parts)
end

local function spent(path)
  return tonumber(sh.check({ "stat", "-c", "%b", path }).stdout) * 512
end

describe("A copy into a raw target", function()
  local dir, disk, raw

  lazy_setup(function()
    dir = tmp.dir()
    raw = dir .. "/disk.raw"
    disk = mixed(random.new("raw copies"), 5 * MIB + 3 * SECTOR)
    sh.spit(raw, disk)
  end)

  for name, options in pairs({
    ["a plain image"] = {},
    ["clusters of 512 bytes"] = { cluster_size = 512 },
    ["clusters of 2 MiB"] = { cluster_size = "2M" },
    ["extended L2 entries"] = { extended_l2 = true },
    ["deflate"] = { compressed = true },
    ["deflate in clusters of 2 MiB"] = { compressed = true, cluster_size = "2M" },
    ["zstd in clusters of 4 KiB"] = { compressed = true, cluster_size = 4096, compression_type = "zstd" },
  }) do
    it("has the disk's bytes whatever the number of threads: " .. name, function()
      local path = tmp.path("image.qcow2")
      local words = { "qemu-img", "convert", "-O", "qcow2" }
      local rest = {}
      for key, value in pairs(options) do rest[key] = key ~= "compressed" and value or nil end
      if options.compressed then words[#words + 1] = "-c" end
      if next(rest) then
        words[#words + 1] = "-o"
        words[#words + 1] = qemu.option_list(rest)
      end
      words[#words + 1] = raw
      words[#words + 1] = path
      sh.check(words)
      for _, threads in ipairs({ 1, 2, 7 }) do
        local image <close> = assert(core.image_open(assert(core.store_file(path)), "qcow2"))
        local target <close> = assert(core.store_memory(0))
        assert(copy({ image }, target, { threads = threads }))
        assert.is_true(contents(target) == disk)
        -- Behind a disk that ends between clusters, every cluster is wanted in two parts.
        local odd <close> = memory_image(("x"):rep(700))
        local both <close> = assert(core.store_memory(0))
        assert(copy({ odd, image, odd }, both, { threads = threads }))
        local small = ("x"):rep(700) .. ("\0"):rep(324)
        assert.is_true(contents(both) == small .. disk .. small)
      end
    end)
  end

  it("of several disks that end amid sectors begins each at a sector", function()
    local a <close> = memory_image("a")
    local b <close> = memory_image(("b"):rep(513))
    local none <close> = memory_image("")
    local target <close> = assert(core.store_memory(0))
    assert(copy({ a, none, b }, target))
    assert.equal("a" .. ("\0"):rep(511) .. ("b"):rep(513) .. ("\0"):rep(511), contents(target))
  end)

  it("leaves out zeros from sparse_size on, and takes all the space with 0", function()
    local noise = random.new("sparse"):bytes(4096)
    local image <close> = memory_image(noise .. ("\0"):rep(8192) .. noise .. ("\0"):rep(65536) .. noise)
    local function space(sparse_size)
      local path = tmp.path("target")
      local target <close> = assert(core.store_file(path, { create = true }))
      assert(copy({ image }, target, { sparse_size = sparse_size }))
      assert.is_true(sh.slurp(path) == assert(image:read(0, image:disk_bytes())))
      return spent(path)
    end
    assert.equal(3 * 4096, space(4096))
    assert.equal(3 * 4096, space(512))
    assert.equal(5 * 4096, space(65536))
    assert.equal(5 * 4096 + 65536, space(1 << 17))
    assert.equal(5 * 4096 + 65536, space(0))
  end)

  it("is empty where the disk is, in no time, however large the disk", function()
    local path = tmp.path("image.qcow2")
    qemu.create(path, { size = "8T" })
    local image <close> = assert(core.image_open(assert(core.store_file(path)), "qcow2"))
    local target <close> = assert(core.store_file(path .. ".raw", { create = true }))
    assert(copy({ image }, target))
    assert.equal(8 << 40, target:length())
    assert.is_true(spent(path .. ".raw") <= 8192)
  end)

  it("answers nospace when the host cannot have so long a file, and moves nothing", function()
    local path = tmp.path("image.qcow2")
    qemu.create(path, { size = "1M" })
    local image <close> = assert(core.image_open(assert(core.store_file(path)), "qcow2"))
    local target <close> = assert(assert(core.store_memory(0)):fault("s", 2, 27, true)) -- EFBIG
    local job, message, kind = job_of({ image }, target)
    assert.is_nil(job)
    assert.equal("nospace", kind)
    assert.matches("resize", message)
  end)

  describe("that exists", function()
    it("receives zeros too, and keeps what it has behind the copy", function()
      local image <close> = memory_image(disk)
      for _, sparse_size in ipairs({ 0, 512, 4096, MIB }) do
        local target <close> = assert(core.store_memory(("o"):rep(#disk + 1000)))
        assert(copy({ image }, target, { target_exists = true, sparse_size = sparse_size }))
        assert.is_true(contents(target) == disk .. ("o"):rep(1000))
      end
    end)

    it("and is zero is only written where the disk is not", function()
      local image <close> = memory_image(("\0"):rep(65536) .. ("d"):rep(4096) .. ("\0"):rep(65536))
      local inner <close> = assert(core.store_memory(135168))
      local target <close> = assert(inner:power())
      assert(copy({ image }, target, { target_exists = true, target_is_zero = true }))
      assert.equal(1, target:power_count())
      local kind, offset, length = target:power_op(0)
      assert.same({ "w", 65536, 4096 }, { kind, offset, length })
    end)

    it("and is too small is refused before a byte of it changes", function()
      local image <close> = memory_image(disk)
      local target <close> = assert(core.store_memory(("o"):rep(#disk - SECTOR)))
      local job, message, kind = job_of({ image }, target, { target_exists = true })
      assert.is_nil(job)
      assert.equal("range", kind)
      assert.matches("^output file is smaller than input file: 'memory' has %d+ bytes, %d+ are needed$", message)
      assert.equal(("o"):rep(#disk - SECTOR), contents(target))
    end)

    it("is grown to whole sectors", function()
      local image <close> = memory_image(("d"):rep(1000))
      local target <close> = assert(core.store_memory(("o"):rep(1000)))
      assert(copy({ image }, target, { target_exists = true }))
      assert.equal(("d"):rep(1000) .. ("\0"):rep(24), contents(target))
    end)
  end)

  it("that is read at the same time is refused, as a layer below and as a data file too", function()
    local base = tmp.path("base.raw")
    sh.spit(base, ("b"):rep(65536))
    forge.write(base .. ".qcow2", { header = { size = 65536 }, backing_file = "base.raw", backing_format = "raw" })
    forge.write(base .. ".data.qcow2", { header = { size = 65536 }, external_data = true, data_file = "base.raw" })
    local function open(path, format)
      return assert(core.image_open(assert(core.store_file(path, { unlocked = true })), format))
    end
    local store <close> = assert(core.store_file(base, { write = true, unlocked = true }))
    local plain <close> = open(base, "raw")
    local overlay <close> = open(base .. ".qcow2", "qcow2")
    assert(overlay:attach_backing(plain))
    local beside <close> = open(base .. ".data.qcow2", "qcow2")
    assert(beside:attach_data(assert(core.store_file(base, { unlocked = true }))))
    for _, image in ipairs({ plain, overlay, beside }) do
      local job, message, kind = job_of({ image }, store)
      assert.is_nil(job)
      assert.equal("conflict", kind)
      assert.is_truthy(message:find(base, 1, true))
    end
    assert.equal(("b"):rep(65536), sh.slurp(base))
  end)

  it("counts up to the whole disk, and may be given up at any moment", function()
    local image <close> = memory_image(disk)
    local target <close> = assert(core.store_memory(0))
    local job <close> = assert(job_of({ image }, target, { threads = 2 }))
    local before = 0
    repeat
      local done, total, more = assert(job:step())
      assert.is_true(done >= before and done <= total)
      assert.equal(#disk, total)
      before = done
    until not more
    assert.equal(#disk, before)
    assert.same({ #disk, #disk, false }, { job:step() })
    for steps = 0, 1 do
      local half = assert(job_of({ image }, assert(core.store_memory(0)), { threads = 3 }))
      for _ = 1, steps do assert(half:step()) end
      half:close()
      assert.has_error(function() half:step() end, "attempt to use a closed job")
    end
  end)

  it("outlives the handles of its sources and its target", function()
    local store = assert(core.store_memory(disk))
    local image = assert(core.image_open(store, "raw"))
    local path = tmp.path("target")
    local target = assert(core.store_file(path, { create = true }))
    local job <close> = assert(job_of({ image }, target))
    store:close()
    image:close()
    target:close()
    assert(finish(job))
    assert.is_true(sh.slurp(path) == disk)
  end)

  it("refuses a sparse size that is no multiple of a sector", function()
    local image <close> = memory_image("x")
    local target <close> = assert(core.store_memory(0))
    local job, _, kind = job_of({ image }, target, { sparse_size = 1000 })
    assert.is_nil(job)
    assert.equal("range", kind)
  end)
end)

describe("A copy whose calls fail", function()
  local disk

  lazy_setup(function()
    disk = random.new("faults"):bytes(MIB):rep(6)
  end)

  it("names the first byte that could not be read, on every run, and goes on saying so", function()
    for round = 1, 20 do
      local store <close> = assert(assert(core.store_memory(disk)):fault("r", 1, EIO, true))
      local image <close> = assert(core.image_open(store, "raw"))
      local job <close> = assert(job_of({ image }, assert(core.store_memory(0)), { threads = round % 5 + 1 }))
      for _ = 1, 2 do
        local ok, message, kind, errno = finish(job)
        assert.is_nil(ok)
        assert.matches("^error while reading at byte 0: Could not read 'memory' at offset 0: Input/output error$",
          message)
        assert.same({ "io", EIO }, { kind, errno })
      end
    end
  end)

  it("loses no failing call: reading, writing, resizing, flushing", function()
    local function attempt(kinds, nth, threads)
      local store <close> = assert(core.store_memory(disk))
      local inner <close> = assert(core.store_memory(0))
      local source <close> = kinds == "r" and assert(store:fault("r", nth, EIO, false)) or nil
      local target <close> = kinds ~= "r" and assert(inner:fault(kinds, nth, ENOSPC, false)) or nil
      local image <close> = assert(core.image_open(source or store, "raw"))
      local job, message, kind = job_of({ image }, target or inner, { threads = threads, sync = true })
      if not job then return nil, message, kind end
      local running <close> = job
      local ok
      ok, message, kind = finish(running)
      if ok then assert.is_true(contents(inner) == disk) end
      return ok, message, kind
    end
    for kinds, expected in pairs({ r = "io", w = "nospace", s = "nospace", f = "nospace" }) do
      for threads = 1, 3 do
        local nth = 0
        repeat
          nth = nth + 1
          local ok, message, kind = attempt(kinds, nth, threads)
          if not ok then
            assert.equal(expected, kind, message)
            assert.matches("Could not", message)
          end
        until ok
        -- Two resizes, one flush; reads and writes by the piece.
        assert.equal(({ r = 13, w = 13, s = 3, f = 2 })[kinds], nth)
      end
    end
  end)

  it("says which compressed cluster is broken, and keeps what lies before", function()
    local path = tmp.path("image.qcow2")
    local good = forge.deflate(("g"):rep(65536))
    local clusters = {}
    for i = 0, 63 do clusters[i] = { compressed = good } end
    clusters[40], clusters[50] = { compressed = "\xff\xff" }, { compressed = "\xff\xff" }
    forge.write(path, { header = { size = 64 << 16 }, clusters = clusters })
    for threads = 1, 4 do
      local image <close> = assert(core.image_open(assert(core.store_file(path)), "qcow2"))
      local target <close> = assert(core.store_memory(0))
      local ok, message, kind = copy({ image }, target, { threads = threads })
      assert.is_nil(ok)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find(("error while reading at byte %d: Compressed cluster at offset"):format(40 << 16),
        1, true), message)
      assert.is_truthy(message:find(path, 1, true))
    end
  end)

  it("tells of a broken table only after what lies before it", function()
    local path = tmp.path("image.qcow2")
    forge.write(path, { header = { size = 64 << 16 },
      clusters = { [3] = { compressed = "\xff\xff" }, [9] = { host = 0x10200 } } })
    local function attempt()
      local image <close> = assert(core.image_open(assert(core.store_file(path)), "qcow2"))
      return copy({ image }, assert(core.store_memory(0)))
    end
    local _, message, kind = attempt()
    assert.matches("^error while reading at byte 196608: ", message)
    assert.equal("corrupt", kind)
    forge.write(path, { header = { size = 64 << 16 }, clusters = { [9] = { host = 0x10200 } } })
    _, message, kind = attempt()
    assert.is_truthy(message:find(path, 1, true))
    assert.matches("guest offset 0x90000", message)
    assert.equal("corrupt", kind)
  end)
end)

describe("Salvage", function()
  it("makes zeros of broken clusters and of broken tables, and counts them", function()
    local path = tmp.path("image.qcow2")
    forge.write(path, { header = { size = 8 << 16 }, clusters = {
      [0] = { data = ("a"):rep(65536) }, [2] = { compressed = "\xff\xff" },
      [3] = { compressed = forge.deflate(("c"):rep(65536)) }, [5] = { host = 0x10200 }, [7] = { data = "end" } } })
    local expected = ("a"):rep(65536) .. ("\0"):rep(2 << 16) .. ("c"):rep(65536) .. ("\0"):rep(3 << 16) .. "end"
      .. ("\0"):rep(65533)
    for _, exists in ipairs({ false, true }) do
      local image <close> = assert(core.image_open(assert(core.store_file(path)), "qcow2"))
      local target <close> = assert(core.store_memory(("o"):rep(exists and 8 << 16 or 0)))
      local job <close> = assert(job_of({ image }, target, { salvage = true, target_exists = exists }))
      assert(finish(job))
      assert.is_true(contents(target) == expected)
      assert.equal(2 << 16, job:lost())
    end
  end)

  it("reads again by sectors, and gives up only those that fail again", function()
    local disk = random.new("salvage"):bytes(MIB)
    local function attempt(nth, sticky)
      local store <close> = assert(assert(core.store_memory(disk)):fault("r", nth, EIO, sticky))
      local image <close> = assert(core.image_open(store, "raw"))
      local target <close> = assert(core.store_memory(0))
      local job <close> = assert(job_of({ image }, target, { salvage = true, threads = 1 }))
      assert(finish(job))
      return job:lost(), contents(target)
    end
    local lost, bytes = attempt(2, false)
    assert.equal(0, lost)
    assert.is_true(bytes == disk)
    -- The second piece fails, then its sectors from the fourth on.
    lost, bytes = attempt(2, true)
    assert.equal(MIB // 2, lost)
    assert.is_true(bytes == disk:sub(1, MIB // 2) .. ("\0"):rep(MIB // 2))
  end)

  it("does not hide a target that fails", function()
    local image <close> = memory_image(("x"):rep(MIB))
    local target <close> = assert(assert(core.store_memory(0)):fault("w", 1, EIO, true))
    local ok, _, kind = copy({ image }, target, { salvage = true })
    assert.is_nil(ok)
    assert.equal("io", kind)
  end)
end)
