-- SPDX-License-Identifier: MIT
-- An image file that ends before its own data: convert says so and how much reads as zeros, or fails when it is to be
-- strict. Files that merely end inside their last cluster are sound.
local made = require("spec.support.made")
local poke = require("spec.support.poke")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("convert of an image that is shorter than its data", function()
  local dir, bytes, length

  setup(function()
    dir = tmp.dir()
    bytes = random.new(2):bytes(4 << 20)
    local img <close> = made(dir .. "/short", { size = #bytes })
    assert(img:write(0, bytes))
    assert(img:close())
    length = #sh.slurp(dir .. "/short")
    poke.truncate(dir .. "/short", length - (2 << 20))
  end)

  for _, words in ipairs({ "-O raw", "-O qcow2", "-c -O qcow2" }) do
    it(("warns, names the range and ends with 0: %s"):format(words), function()
      local result = sh.run(("rm -f out; %s/bin/qcow2 convert %s short out"):format(sh.build(), words), { cwd = dir })
      assert.equal(0, result.code, result.stderr)
      assert.truthy(result.stderr:find("2097152 bytes between 0x200000 and 0x400000", 1, true), result.stderr)
      local img <close> = assert(qcow2.open(dir .. "/out", { format = words:match("%w+$") }))
      assert.is_true(img:read(0, #bytes) == bytes:sub(1, 2 << 20) .. ("\0"):rep(2 << 20))
      assert.equal(0, qemu.img({ "convert", "-O", "raw", "short", "theirs" }, { cwd = dir }).code)
    end)

    it(("fails when it is strict, and leaves nothing: %s"):format(words), function()
      local result = sh.run(("rm -f out; %s/bin/qcow2 convert --strict %s short out"):format(sh.build(), words),
        { cwd = dir })
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("ends before its data", 1, true), result.stderr)
      assert.is_nil(io.open(dir .. "/out"))
    end)
  end

  it("tells the library", function()
    local job <close> = assert(qcow2.convert(dir .. "/short", dir .. "/out2", { format = "raw" }))
    assert(job:run())
    assert.same({ 2 << 20, 2 << 20, 4 << 20 }, { job.missing_bytes, job.missing_from, job.missing_to })
    local strict <close> = assert(qcow2.convert(dir .. "/short", dir .. "/out3", { format = "raw", strict = true }))
    local done, _, kind = strict:run()
    assert.is_nil(done)
    assert.equal("corrupt", kind)
  end)
end)

describe("convert has nothing to warn of", function()
  local dir
  setup(function() dir = tmp.dir() end)

  local images = {
    ["an image of QEMU whose size is no whole cluster"] = function(path)
      qemu.create(path, { size = 1000448 })
      qemu.io(path, { "write -P 3 999936 512" })
    end,
    ["metadata preallocated by QEMU"] = function(path)
      local arguments = { "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "10000384" }
      assert.equal(0, qemu.img(arguments).code)
    end,
    ["one of ours with a sector in its last cluster"] = function(path)
      local img <close> = made(path, { size = "1M" })
      assert(img:write(512, ("x"):rep(512)))
    end,
    ["a compressed one"] = function(path)
      local img <close> = made(path, { size = "1M" })
      assert(img:write_compressed(65536, ("x"):rep(65536)))
    end,
    ["metadata preallocated by us"] = function(path)
      assert(qcow2.create(path, { size = 10000384, preallocation = "metadata" }))
    end,
  }
  for what, make in pairs(images) do
    it("in " .. what, function()
      local path = tmp.path()
      make(path)
      local result = sh.qcow2({ "convert", "--strict", "-O", "raw", path, dir .. "/out" })
      assert.equal("", result.stderr)
      assert.equal(0, result.code)
    end)
  end
end)
