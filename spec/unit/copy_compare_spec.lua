-- SPDX-License-Identifier: MIT
-- Comparisons through the core (csrc/copy/compare.c) and the library (lua/qcow2/compare.lua).
local core = require "qcow2.core"
local forge = require "spec.support.forge"
local qcow2 = require "qcow2"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local SECTOR, MIB = 512, 1 << 20

local function memory_image(bytes)
  return assert(core.image_open(assert(core.store_memory(bytes)), "raw"))
end

-- gives: the difference and its offset, or nil and the failure.
local function compare(a, b, options)
  local job <close> = assert(core.compare(a, b, options or {}))
  repeat
    local done, total, more = job:step()
    if not done then return nil, total, more end
  until not more
  return job:difference()
end

local function changed(bytes, at)
  return bytes:sub(1, at) .. string.char(bytes:byte(at + 1) ~ 1) .. bytes:sub(at + 2)
end

describe("A comparison of two disks", function()
  local disk, length

  lazy_setup(function()
    disk = random.new("compare"):bytes(MIB):rep(5) .. ("\0"):rep(MIB) .. ("end"):rep(SECTOR)
    length = #disk
  end)

  it("finds the first sector that differs, wherever it is, with any number of threads", function()
    local a <close> = memory_image(disk)
    local rng = random.new("differences")
    local places = { 0, length - 1, 2 * MIB, 2 * MIB - 1, 5 * MIB + 4096 }
    for _ = 1, 20 do places[#places + 1] = rng:int(0, length - 1) end
    for i, at in ipairs(places) do
      local b <close> = memory_image(changed(disk, at))
      local second <close> = memory_image(changed(disk, at):sub(1, -2) .. "?")
      for _, other in ipairs({ b, second }) do
        assert.same({ "content", at // SECTOR * SECTOR }, { compare(a, other, { threads = i % 4 + 1 }) })
        assert.same({ "content", at // SECTOR * SECTOR }, { compare(other, a, { threads = i % 4 + 1 }) })
      end
    end
    local again <close> = memory_image(disk)
    assert.same({ "same" }, { compare(a, again) })
  end)

  it("of different size wants zeros behind the shorter one, and strictly equal sizes", function()
    local a <close> = memory_image(disk)
    local zeros <close> = memory_image(disk .. ("\0"):rep(MIB))
    local tail <close> = memory_image(disk .. ("\0"):rep(MIB) .. "x")
    assert.same({ "same" }, { compare(a, zeros) })
    assert.same({ "same" }, { compare(zeros, a) })
    assert.same({ "content", length + MIB }, { compare(a, tail) })
    assert.same({ "content", length + MIB }, { compare(tail, a) })
    assert.same({ "size" }, { compare(a, zeros, { strict = true }) })
  end)

  it("tells a difference before a failure behind it, and a failure before a difference behind it", function()
    local path = tmp.path("image.qcow2")
    local cluster = ("d"):rep(65536)
    local clusters = {}
    for i = 0, 99 do clusters[i] = { data = cluster } end
    clusters[60] = { compressed = "\xff\xff" }
    forge.write(path, { header = { size = 100 << 16 }, clusters = clusters })
    for threads = 1, 4 do
      local image <close> = assert(core.image_open(assert(core.store_file(path)), "qcow2"))
      local before <close> = memory_image(changed(cluster:rep(100), 59 << 16))
      assert.same({ "content", 59 << 16 }, { compare(image, before, { threads = threads }) })
      local behind <close> = memory_image(changed(cluster:rep(100), 99 << 16))
      local verdict, message, kind = compare(behind, image, { threads = threads })
      assert.is_nil(verdict)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find(path, 1, true))
    end
  end)

  it("gives no verdict before it has one", function()
    local a <close> = memory_image("a")
    local b <close> = memory_image("b")
    local job <close> = assert(core.compare(a, b, {}))
    assert.same({ "same" }, { job:difference() })
    assert.equal(0, job:lost())
    repeat local _, _, more = assert(job:step()) until not more
    assert.same({ "content", 0 }, { job:difference() })
  end)
end)

describe("qcow2.compare", function()
  local dir, a, b

  lazy_setup(function()
    dir = tmp.dir()
    a, b = dir .. "/a.raw", dir .. "/b.qcow2"
    sh.spit(a, ("d"):rep(65536) .. ("\0"):rep(65536))
    forge.write(b, { header = { size = 2 << 16 }, clusters = { [0] = { data = ("d"):rep(65536) } } })
  end)

  it("opens what is given by name and leaves open what is given open", function()
    assert.same({ same = true }, qcow2.compare(a, b))
    local image <close> = assert(qcow2.open(b))
    assert.same({ same = true }, qcow2.compare(a, image))
    assert.equal("dd", image:read(0, 2))
    assert.same({ same = false, reason = "allocation", offset = 0 }, qcow2.compare(image, a, { strict = true }))
  end)

  it("reports how far it is", function()
    local last
    assert(qcow2.compare(a, b, { progress = function(done, total) last = { done, total } end }))
    assert.same({ 2 << 16, 2 << 16 }, last)
    assert.has_error(function() qcow2.compare(a, b, { progress = function() error("enough", 0) end }) end, "enough")
  end)

  it("answers what the world does, and closes what it opened", function()
    local result, message, kind = qcow2.compare(a, dir .. "/none")
    assert.is_nil(result)
    assert.equal("missing", kind)
    assert.matches("none", message)
    local writer <close> = assert(qcow2.open(a, { mode = "rw", format = "raw" }))
    assert.is_truthy(writer)
  end)

  it("raises for what the manual forbids", function()
    assert.error_matches(function() qcow2.compare(1, b) end, "a must be a path or an open image, not number")
    assert.error_matches(function() qcow2.compare(a, nil) end, "b must be a path or an open image, not nil")
    assert.error_matches(function() qcow2.compare(a, b, { strickt = true }) end, "unknown option 'strickt'")
    assert.error_matches(function() qcow2.compare(a, b, { threads = 0 }) end, "threads must be at least 1")
  end)
end)
