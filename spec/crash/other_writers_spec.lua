-- SPDX-License-Identifier: MIT
-- What other programs that write qcow2 got wrong, each by its name: the writes that would show it here too, cut off,
-- failing, or many times over.
local crash = require("spec.support.crash")
local faults = require("spec.support.faults")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local K <const> = 1024

local function sound(path, what)
  local is_sound, report = qemu.sound(path)
  assert.is_true(is_sound, ("%s: %s"):format(what or path, report))
end

describe("A punch of a cluster that was let go of", function()
  local function reuse(s)
    local step = s.parts.step
    for turn = 0, 5 do
      s:discard(turn % 3 * step, 2 * step)
      -- What is free is wanted at once: the clusters come back while their punches may still wait.
      s:write((4 + turn) * step, (string.char(110 + turn)):rep(2 * step))
      if turn % 2 == 1 then s:flush() end
    end
  end

  local function scenario(create, more)
    local made = { step = 1024, create = create, run = reuse }
    made.prepare = function(s) s:write(0, ("a"):rep(6 * 1024)) end
    create.size, create.cluster_size = 40 * 1024, 1024
    for key, value in pairs(more or {}) do made[key] = value end
    return made
  end

  for name, made in pairs({
    ["an image"] = scenario({}),
    ["an image with lazy counts"] = scenario({ lazy_refcounts = true }),
    ["an image with a data file"] = scenario({}, { data = true }),
    ["an image with a raw data file"] = scenario({ data_file_raw = true }, { data = true }),
  }) do
    it("never comes after the cluster has new data: " .. name, function()
      assert.is_true(crash.play("punch and reuse, " .. name, made) > 0)
    end)

    it("fails alone: " .. name, function()
      assert.is_true(faults.play("punch and reuse, " .. name, made) > 0)
    end)
  end
end)

describe("No space for a table that grows", function()
  -- The old table is still the one in force, and everything that it counts or maps is there.
  local growths = {
    ["of counts"] = require("spec.support.scenarios").full_refcount_table,
    ["of L1 entries"] = {
      step = 512, create = { size = 30 * 512, cluster_size = 512 },
      prepare = function(s) s:write(0, ("a"):rep(20 * 512)) end,
      run = function(s)
        for i = 1, 4 do
          s:resize((64 * 64 * 512 // 4) * i)
          s:write(#s.disk - 700, ("n"):rep(700))
        end
      end,
    },
    ["of snapshots"] = {
      step = 512, create = { size = 30 * 512, cluster_size = 512 },
      prepare = function(s) s:write(0, ("a"):rep(20 * 512)) end,
      run = function(s)
        for i = 1, 12 do
          s:snapshot_create(("a name so long that the table needs another cluster soon %d"):format(i))
          s:write(i * 512, ("n"):rep(512))
        end
      end,
    },
  }
  for name, scenario in pairs(growths) do
    it(name .. " gives the old one up only when the new one is in force", function()
      assert.is_true(faults.play("no space for a table " .. name, scenario) > 0)
    end)
  end
end)

describe("A short write", function()
  -- The host takes some bytes of a write and no more: a file size limit cuts each write at one byte after another.
  it("leaves no entry that names what was not written", function()
    local dir = tmp.dir()
    local path = dir .. "/a.qcow2"
    local script = [[
      local qcow2 = require("qcow2")
      local img = assert(qcow2.open(arg[1], { mode = "rw" }))
      local done = 0
      for i = 0, 59 do
        if not img:write(i * 4096 + 100, ("n"):rep(5000)) then break end
        if not img:flush() then break end
        done = i + 1
      end
      io.write(done)
      img:close()]]
    sh.spit(dir .. "/work.lua", script)
    local stops = {}
    for limit = 20, 300, 7 do
      os.remove(path)
      assert(qcow2.create(path, { size = 300 * K, cluster_size = 4 * K }))
      -- In blocks of 1 KiB (dash: 512 bytes), a signal ignored so that the write itself fails.
      local result = sh.run(([[trap '' XFSZ; ulimit -f %d; exec "$LUA" work.lua a.qcow2]]):format(limit), { cwd = dir,
        env = { LUA = os.getenv("Q2_LUA") or "lua5.4", LUA_PATH = sh.root() .. "/lua/?.lua;" .. sh.root()
          .. "/lua/?/init.lua;;", LUA_CPATH = sh.build() .. "/lib/lua/5.4/?.so;;" } })
      assert.equal(0, result.code, result.stderr)
      local done = tonumber(result.stdout)
      stops[done] = true
      local _, code = qemu.check(path)
      assert.is_true(code == 0 or code == 3, ("limit %d: exit %d"):format(limit, code))
      local img <close> = assert(qcow2.open(path))
      for i = 0, done - 1 do
        local want = ("n"):rep(i == done - 1 and 5000 or 4096)
        assert.equal(want, img:read(i * 4096 + 100, #want), ("limit %d, write %d"):format(limit, i))
      end
    end
    local different = 0
    for _ in pairs(stops) do different = different + 1 end
    assert.is_true(different > 5)
  end)
end)

describe("Several workers over one small cache", function()
  it("read what one worker reads", function()
    local dir = tmp.dir()
    local rng = random.new("workers")
    local source = dir .. "/source.qcow2"
    -- 16 MiB in clusters of 512 bytes: 512 L2 tables; compressed, zero and plain ones side by side.
    assert(qcow2.create(source, { size = 16 << 20, cluster_size = 512 }))
    local img = assert(qcow2.open(source, { mode = "rw" }))
    for _ = 1, 1500 do
      local at = rng:int(0, (16 << 20) // 512 - 9) * 512
      local what = rng:int(1, 10)
      if what == 1 then
        assert(img:zero(at, 4096))
      elseif what <= 4 then
        assert(img:write_compressed(at, ("c%d"):format(at):rep(200):sub(1, 512)))
      else
        assert(img:write(at, rng:bytes(rng:int(1, 8) * 512)))
      end
    end
    assert(img:close())
    assert(assert(qcow2.convert(source, dir .. "/one.raw", { format = "raw", threads = 1 })):run())
    for turn = 1, 4 do
      os.remove(dir .. "/many.raw")
      assert(assert(qcow2.convert(source, dir .. "/many.raw", { format = "raw", threads = 16 })):run())
      assert.is_true(sh.slurp(dir .. "/one.raw") == sh.slurp(dir .. "/many.raw"), "turn " .. turn)
    end
    assert.is_true(qemu.compare(source, dir .. "/one.raw", { format_b = "raw" }))
  end)
end)

-- Ten thousand in the long run.
local CYCLES <const> = crash.long and 10000 or 1000

describe("Thousands of cycles", function()
  local function cycles(options, bound, work)
    local path = tmp.path()
    options.size, options.cluster_size = 256 * K, 512
    assert(qcow2.create(path, options))
    local img = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:write(0, ("a"):rep(64 * K)))
    for turn = 1, CYCLES do work(img, turn, turn * 512 % (64 * K)) end
    local longest = #sh.slurp(path)
    assert.is_true(longest <= bound, ("%d bytes before the close"):format(longest))
    assert(img:close())
    sound(path)
  end

  -- Live are 72 KiB of data, their tables, and the counts: the bound is twice that.
  local LIVE <const> = 2 * (72 + 16) * K

  it("of snapshots leave a file no longer than twice what lives in it", function()
    cycles({}, LIVE, function(img, _, at)
      assert(img:snapshot_create("s"))
      assert(img:write(at, ("b"):rep(1024)))
      assert(img:snapshot_delete("s"))
    end)
  end)

  it("of bitmaps, too", function()
    cycles({}, LIVE, function(img, _, at)
      assert(img:bitmap_add("b", { granularity = 512 }))
      assert(img:write(at, ("b"):rep(1024)))
      assert(img:bitmap_remove("b"))
    end)
  end)

  it("of discards and writes with a flush now and then, too", function()
    cycles({ refcount_bits = 1 }, LIVE + 20 * 4 * K, function(img, turn, at)
      assert(img:discard(at, 4096))
      assert(img:write(at, ("b"):rep(4096)))
      if turn % 10 == 0 then assert(img:flush()) end
    end)
  end)

  it("of discards and writes without any flush stay within 16 MiB more", function()
    cycles({ refcount_bits = 1 }, LIVE + (17 << 20), function(img, _, at)
      for i = 0, 9 do
        assert(img:discard((at + i * 512) % (64 * K), 4096))
        assert(img:write((at + i * 512) % (64 * K), ("b"):rep(4096)))
      end
    end)
  end)
end)

describe("COPIED is right after", function()
  local function verbs(path)
    local backing = path .. ".base"
    return {
      { "snapshot_create", function(img) return img:snapshot_create("one") end },
      { "a write over it", function(img) return img:write(3 * K, ("w"):rep(9 * K)) end },
      { "a second snapshot", function(img) return img:snapshot_create("two") end },
      { "snapshot_apply", function(img) return img:snapshot_apply("one") end },
      { "snapshot_delete", function(img) return img:snapshot_delete("one") end },
      { "amend refcount_bits", function(img) return img:amend({ refcount_bits = 32 }) end },
      { "resize", function(img) return img:resize(900 * K) end },
      { "amend lazy_refcounts", function(img) return img:amend({ lazy_refcounts = true }) end },
      { "a write while counts are lazy", function(img) return img:write(400 * K, ("l"):rep(30 * K)) end },
      { "amend refcount_bits back", function(img) return img:amend({ refcount_bits = 8, lazy_refcounts = false }) end },
      { "bitmap_add", function(img) return img:bitmap_add("b", { granularity = 512 }) end },
      { "zero", function(img) return img:zero(0, 300 * K) end },
      { "resize smaller", function(img) return img:resize(200 * K, { shrink = true }) end },
      { "the last snapshot's delete", function(img) return img:snapshot_delete("two") end },
      { "rebase", function(img)
        local job = assert(qcow2.rebase(img, { backing_file = backing, backing_fmt = "raw" }))
        return job:run()
      end },
      { "amend compat", function(img)
        return img:bitmap_remove("b") and img:amend({ compat = "0.10", refcount_bits = 16 })
      end },
      { "snapshot_create in version 2", function(img) return img:snapshot_create("three") end },
      { "snapshot_apply in version 2", function(img) return img:snapshot_apply("three") end },
    }
  end

  for _, options in ipairs({ { cluster_size = 512 }, { cluster_size = 4 * K }, { cluster_size = 64 * K } }) do
    it(("each change of a whole image, clusters of %d"):format(options.cluster_size), function()
      local path = tmp.path()
      sh.spit(path .. ".base", random.new("copied"):bytes(500 * K))
      options.size = 700 * K
      assert(qcow2.create(path, options))
      local img = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:write(0, ("a"):rep(300 * K)))
      assert(img:close())
      for _, verb in ipairs(verbs(path)) do
        img = assert(qcow2.open(path, { mode = "rw" }))
        local done, message = verb[2](img)
        assert(done, ("%s: %s"):format(verb[1], tostring(message)))
        assert(img:close())
        sound(path, verb[1])
        img = assert(qcow2.open(path))
        local report = assert(img:check())
        assert.equal(0, report.corruptions + report.leaks, verb[1])
        img:close()
      end
    end)
  end
end)

describe("An L1 table of several clusters, at create,", function()
  for _, preallocation in ipairs({ "off", "metadata", "falloc", "full" }) do
    it("is counted whole, with preallocation " .. preallocation, function()
      local path = tmp.path()
      local size = preallocation == "off" and 1 << 32 or 64 << 20
      assert(qcow2.create(path, { size = size, cluster_size = 512, preallocation = preallocation }))
      sound(path)
      do
        local img <close> = assert(qcow2.open(path, { mode = "rw" }))
        for _, at in ipairs({ 0, size // 2 - 100, size - 700 }) do assert(img:write(at, ("x"):rep(700))) end
        assert(img:close())
      end
      sound(path)
      qemu.io(path, { "read -P 120 0 700", ("read -P 120 %d 700"):format(size - 700) }, { read_only = true })
    end)
  end
end)

describe("A cluster that compressed data fill to the byte", function()
  it("is followed by the next one, never by its own begin", function()
    local cluster = 4096
    local noise = random.new("to the byte"):bytes(cluster)
    -- Two streams whose lengths together pass 4096 by steps of about one, and a third behind them.
    local aligned = 0
    for length = 1870, 1960 do
      local path = tmp.path()
      assert(qcow2.create(path, { size = 64 * K, cluster_size = cluster }))
      local img = assert(qcow2.open(path, { mode = "rw" }))
      local want = {}
      for i, n in ipairs({ 2050, length, 700, 100 }) do
        want[i] = noise:sub(1, n) .. ("z"):rep(cluster - n)
        assert(img:write_compressed((i - 1) * cluster, want[i]))
      end
      local third
      for e in img:extents({ layer = true }) do
        if e.offset == 2 * cluster then third = e.host_offset end
      end
      assert(img:close())
      img = assert(qcow2.open(path))
      assert.is_true(img:read(0, 4 * cluster) == table.concat(want), "length " .. length)
      img:close()
      if third % cluster == 0 then
        aligned = aligned + 1
        sound(path)
        assert.is_true(qemu.read_all(path, path .. ".raw"):sub(1, 4 * cluster) == table.concat(want), "QEMU")
      end
      os.remove(path)
    end
    assert.is_true(aligned > 0)
  end)
end)

describe("A header extension beside a backing name", function()
  it("is there whole with the new name, or not at all, between any two writes", function()
    local backing = ("b"):rep(20 * K)
    local seen = {}
    for _, cluster in ipairs({ 512, 1024, 4096 }) do
      -- Longer, shorter, longer: the name moves behind the extensions each time. The file below is the same.
      local names, backings = {}, {}
      for i, length in ipairs({ 9, 150, 20, 200, 1 }) do
        names[i] = ("n"):rep(length)
        backings[names[i]] = backing
      end
      local scenario = {
        step = cluster, create = { size = 24 * K, cluster_size = cluster }, backing = backing, backings = backings,
        whole = true,
        run = function(s)
          for _, name in ipairs(names) do s:set_backing(name, "raw") end
        end,
      }
      seen[cluster] = crash.play("extension beside a name, " .. cluster, scenario)
      assert.is_true(seen[cluster] > 5)
    end
  end)
end)
