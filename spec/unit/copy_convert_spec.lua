-- SPDX-License-Identifier: MIT
-- qcow2.convert into raw files: what may be a target, and what becomes of it (lua/qcow2/convert.lua, job.lua).
local core = require "qcow2.core"
local forge = require "spec.support.forge"
local qcow2 = require "qcow2"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local dir, good, broken, disk

local function exists(path)
  local file = io.open(path)
  return file ~= nil and file:close()
end

lazy_setup(function()
  dir = tmp.dir()
  good, broken = dir .. "/good.qcow2", dir .. "/broken.qcow2"
  local clusters = { [0] = { data = ("d"):rep(65536) }, [3] = { compressed = forge.deflate(("c"):rep(65536)) } }
  forge.write(good, { header = { size = 4 << 16 }, clusters = clusters })
  clusters[3] = { compressed = "\xff\xff" }
  forge.write(broken, { header = { size = 4 << 16 }, clusters = clusters })
  disk = ("d"):rep(65536) .. ("\0"):rep(2 << 16) .. ("c"):rep(65536)
end)

describe("qcow2.convert", function()
  for _, format in ipairs { "qcow2", "raw" } do
    it("opens a new target once, and has it locked until the end: " .. format, function()
      local path, opened, store_file = tmp.path("locked." .. format), {}, core.store_file
      core.store_file = function(name, flags)
        local store, message, kind, errno = store_file(name, flags)
        if store and name == path and flags.write ~= false and not flags.force_share then
          opened[#opened + 1] = name
        end
        return store, message, kind, errno
      end
      local ok, job = pcall(qcow2.convert, good, path, { format = format })
      core.store_file = store_file
      assert(ok, job)
      assert.same({ path }, opened)
      for _ = 1, 2 do
        assert.same({ "locked" }, { select(3, store_file(path, { write = true })) })
        assert(job:steps()())
        if job.done then break end
      end
      assert(job:run())
      assert(store_file(path, { write = true })):close()
    end)
  end

  it("makes a new file, step by step or at once", function()
    local path = tmp.path("new.raw")
    local job = assert(qcow2.convert(good, path))
    assert.is_false(job.done)
    local last
    for done, total in job:steps() do last = { done, total } end
    assert.same({ 4 << 16, 4 << 16 }, last)
    assert.is_true(job.done)
    assert.equal(0, job.lost_bytes)
    assert.equal("qcow2.job (done)", tostring(job))
    assert.is_true(sh.slurp(path) == disk)
    assert.is_true(job:run())
    job:cancel()
    assert.is_true(sh.slurp(path) == disk)

    path = tmp.path("new.raw")
    local image <close> = assert(qcow2.open(good))
    assert(assert(qcow2.convert({ image, good }, path, { threads = 3, sync = true })):run())
    assert.is_true(sh.slurp(path) == disk .. disk)
    assert.equal("d", image:read(0, 1))
  end)

  it("takes the target's format from its name or from an option when none is named", function()
    local cases = { { "a.qcow2", {}, "qcow2" }, { "b", { compress = true }, "qcow2" }, { "c", {}, "raw" },
      { "d.qcow2", { format = "raw" }, "raw" } }
    for _, case in ipairs(cases) do
      local target = tmp.dir("formats") .. "/" .. case[1]
      assert(assert(qcow2.convert(good, target, case[2])):run())
      assert.equal(case[3], qcow2.probe(target), case[1])
    end
  end)

  it("attaches what the sources name, or says why not before it makes anything", function()
    local overlay = dir .. "/overlay.qcow2"
    forge.write(overlay, { header = { size = 4 << 16 }, backing_file = "good.qcow2", backing_format = "qcow2" })
    local path = tmp.path("new.raw")
    assert(assert(qcow2.convert(overlay, path)):run())
    assert.is_true(sh.slurp(path) == disk)
    path = tmp.path("new.raw")
    local job, _, kind = qcow2.convert(overlay, path, { source = { references = "none" } })
    assert.is_nil(job)
    assert.equal("refused", kind)
    assert.is_false(exists(path))
  end)

  it("refuses a target that is there, unless it may overwrite it", function()
    local path = tmp.path("old.raw")
    sh.spit(path, ("o"):rep(1 << 20))
    local job, _, kind = qcow2.convert(good, path)
    assert.is_nil(job)
    assert.equal("exists", kind)
    assert.equal(1 << 20, #sh.slurp(path))
    assert(assert(qcow2.convert(good, path, { overwrite = true })):run())
    assert.is_true(sh.slurp(path) == disk)
    sh.spit(path, ("o"):rep(1 << 20))
    assert(assert(qcow2.convert(good, path, { target_exists = true })):run())
    assert.is_true(sh.slurp(path) == disk .. ("o"):rep((1 << 20) - #disk))
  end)

  it("removes what it made when it fails, and answers again what went wrong", function()
    local path = tmp.path("new.raw")
    local job = assert(qcow2.convert(broken, path))
    for _ = 1, 2 do
      local ok, message, kind, errno = job:run()
      assert.is_nil(ok)
      assert.matches("^error while reading at byte 196608: ", message)
      assert.same({ "corrupt" }, { kind, errno })
    end
    assert.error_matches(function() for _ in job:steps() do end end, "^error while reading at byte 196608: ")
    assert.equal("qcow2.job (failed)", tostring(job))
    assert.is_false(job.done)
    assert.is_false(exists(path))
  end)

  it("leaves an overwritten file empty, and one to write into in place, when it fails", function()
    local path = tmp.path("old.raw")
    sh.spit(path, ("o"):rep(1 << 20))
    assert.is_nil((assert(qcow2.convert(broken, path, { overwrite = true })):run()))
    assert.equal("", sh.slurp(path))
    sh.spit(path, ("o"):rep(1 << 20))
    assert.is_nil((assert(qcow2.convert(broken, path, { target_exists = true })):run()))
    assert.equal(1 << 20, #sh.slurp(path))
  end)

  it("does not touch a file that it was to overwrite when it never began", function()
    local path = tmp.path("old.raw")
    sh.spit(path, ("o"):rep(1 << 20))
    local source = { format = "raw", force_share = true }
    local job, _, kind = qcow2.convert(path, path, { overwrite = true, source = source })
    assert.is_nil(job)
    assert.equal("conflict", kind)
    assert.equal(1 << 20, #sh.slurp(path))
    job, _, kind = qcow2.convert(good, tmp.dir() .. "/none", { target_exists = true })
    assert.is_nil(job)
    assert.equal("missing", kind)
  end)

  it("removes what it made when it is cancelled, left by a block, or forgotten", function()
    local paths = { tmp.path("cancelled.raw"), tmp.path("left.raw"), tmp.path("forgotten.raw") }
    local job = assert(qcow2.convert(good, paths[1]))
    assert.is_true(exists(paths[1]))
    job:cancel()
    job:cancel()
    assert.error_matches(function() job:run() end, "cancelled job")
    assert.equal("qcow2.job (cancelled)", tostring(job))
    do
      local left <close> = assert(qcow2.convert(good, paths[2]))
      left:steps()()
    end
    assert(qcow2.convert(good, paths[3]))
    collectgarbage()
    collectgarbage()
    assert.is_false(exists(paths[1]))
    assert.is_false(exists(paths[3]))
  end)

  it("removes nothing else that has taken the target's name meanwhile", function()
    local path = tmp.path("new.raw")
    local job = assert(qcow2.convert(good, path))
    os.rename(path, path .. ".moved")
    sh.spit(path, "precious")
    job:cancel()
    assert.equal("precious", sh.slurp(path))
  end)

  it("lets go of its files at the end", function()
    local path = tmp.path("new.raw")
    assert(assert(qcow2.convert(good, path)):run())
    for _, name in ipairs({ path, good }) do
      local writer <close> = assert(core.store_file(name, { write = true }))
      assert.is_truthy(writer)
    end
  end)

  it("salvages, and says how much was lost", function()
    local path = tmp.path("new.raw")
    local job = assert(qcow2.convert(broken, path, { salvage = true }))
    assert(job:run())
    assert.equal(65536, job.lost_bytes)
    assert.is_true(sh.slurp(path) == ("d"):rep(65536) .. ("\0"):rep(3 << 16))
  end)

  it("raises for what the manual forbids", function()
    local path = tmp.path("new.raw")
    for message, call in pairs({
      ["unknown option 'sparce_size'"] = { good, path, { sparce_size = 1 } },
      ["sparse_size must be a multiple of 512"] = { good, path, { sparse_size = 1000 } },
      ["sparse_size: Invalid size"] = { good, path, { sparse_size = "many" } },
      ["threads must be at least 1"] = { good, path, { threads = 0 } },
      ["exclude one another"] = { good, path, { target_exists = true, overwrite = true } },
      ["needs 'target_exists'"] = { good, path, { target_is_zero = true } },
      ["there is no source"] = { {}, path },
      ["a source must be a path or an open image, not number"] = { { good, 7 }, path },
      ["target must be a path, not nil"] = { good },
    }) do
      assert.error_matches(function() qcow2.convert(call[1], call[2], call[3]) end, message)
    end
    local closed = assert(qcow2.open(good))
    closed:close()
    assert.error_matches(function() qcow2.convert(closed, path) end, "closed image")
    assert.is_false(exists(path))
  end)
end)
