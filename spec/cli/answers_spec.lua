-- SPDX-License-Identifier: MIT
-- What is answered to questions that are slightly wrong: sizes, features, loops, names.
local forge = require("spec.support.forge")
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("Sizes and numbers on the command line", function()
  local dir

  setup(function()
    dir = tmp.dir()
    assert(qcow2.create(dir .. "/x", { size = "1M" }))
  end)

  local MUST = "Must be between 0 and 9223372036854775807."
  -- Words; exit code; what is said of it: QEMU 10's words.
  local cases = {
    { { "create", "-q", "-f", "qcow2", "y", "1024.0" }, 0, "" },
    { { "create", "-q", "-f", "qcow2", "y", "--", "-1024" }, 1, "Invalid image size specified. " .. MUST },
    { { "create", "-q", "-f", "qcow2", "y", "1e3" }, 1, "Invalid image size specified: '1e3'." },
    { { "create", "-q", "-f", "qcow2", "y", "1.5" }, 1, "Invalid image size specified: '1.5'." },
    { { "create", "-q", "-f", "qcow2", "y", "20E" }, 1, "Invalid image size specified. " .. MUST },
    { { "create", "-q", "-f", "qcow2", "-o", "size=1024.0", "y" }, 0, "" },
    { { "create", "-q", "-f", "qcow2", "-o", "size=-1024", "y" }, 1,
      "y: Value '-1024' is out of range for parameter 'size'" },
    { { "create", "-q", "-f", "qcow2", "-o", "cluster_size=1024.0", "y", "1M" }, 0, "" },
    { { "create", "-q", "-f", "qcow2", "-o", "cluster_size=-512", "y", "1M" }, 1,
      "y: Value '-512' is out of range for parameter 'cluster_size'" },
    { { "create", "-q", "-f", "qcow2", "-o", "refcount_bits=-1", "y", "1M" }, 1,
      "y: Refcount width must be a power of two and may not exceed 64 bits" },
    { { "create", "-q", "-f", "qcow2", "-o", "refcount_bits=x", "y", "1M" }, 1,
      "y: Parameter 'refcount_bits' expects a number" },
    { { "create", "-q", "-f", "qcow2", "-o", "refcount_bits=99999999999999999999", "y", "1M" }, 1,
      "y: Value '99999999999999999999' is too large for parameter 'refcount_bits'" },
    { { "amend", "-o", "refcount_bits=-1", "x" }, 1,
      "Refcount width must be a power of two and may not exceed 64 bits" },
    { { "amend", "-o", "size=-5", "x" }, 1, "Value '-5' is out of range for parameter 'size'" },
    { { "resize", "-q", "x", "1048576.0" }, 0, "" },
    { { "resize", "-q", "x", "20E" }, 1, "Value '20E' is out of range for parameter 'size'" },
    { { "measure", "-O", "qcow2", "--size", "-5" }, 1, "Invalid image size specified. " .. MUST },
    { { "dd", "if=x", "of=y", "bs=-1" }, 1, "Invalid bs specified. Must be between 1 and 2147483647." },
    { { "dd", "if=x", "of=y", "bs=abc" }, 1, "Invalid bs specified: 'abc'." },
    { { "convert", "-S", "-1", "x", "y" }, 1, "Invalid buffer size for sparse output specified. " .. MUST },
    { { "convert", "-r", "abc", "x", "y" }, 1, "Invalid rate limit specified: 'abc'." },
    { { "commit", "-r", "-1", "x" }, 1, "Invalid rate limit specified. " .. MUST },
    { { "bitmap", "--add", "-g", "-1", "x", "b" }, 1, "Invalid granularity specified. " .. MUST },
    { { "map", "--start-offset=-1", "x" }, 1, "Invalid start offset specified. " .. MUST },
    { { "map", "--max-length=abc", "x" }, 1, "Invalid max length specified: 'abc'." },
  }
  for _, case in ipairs(cases) do
    it(("are read as by QEMU: %s"):format(table.concat(case[1], " ")), function()
      os.remove(dir .. "/y")
      local result = sh.qcow2(case[1], { cwd = dir })
      assert.equal(case[2], result.code, result.stderr)
      assert.equal(case[3] == "" and "" or "qcow2: " .. case[3] .. "\n", result.stderr)
    end)
  end

  it("are the same in the library", function()
    assert.equal(1024, qcow2.size("1024.0"))
    assert.equal(1536, qcow2.size("1.5K"))
    for _, word in ipairs({ "-1024", "1.5", "-1K", "1e3" }) do
      local bytes, message, kind = qcow2.size(word)
      assert.is_nil(bytes)
      assert.equal("range", kind)
      assert.truthy(message:find(word, 1, true))
    end
  end)
end)

describe("An image with features that we do not know", function()
  it("is refused by the names that it gives, the others in hexadecimal", function()
    local path = tmp.path()
    local row = "\0\5" .. "bit five" .. ("\0"):rep(38)
    forge.write(path, { header = { incompatible_features = 1 << 5 | 1 << 6 | 1 << 40 },
      extensions = { { type = 0x6803f857, data = row } } })
    local _, message, kind = qcow2.open(path)
    assert.equal("unsupported", kind)
    assert.truthy(message:find("bit five, Unknown incompatible feature: 10000000040", 1, true), message)
  end)

  it("is refused by name also where the table ends inside it", function()
    local path = tmp.path()
    forge.write(path, { header = { incompatible_features = 1 << 5 },
      extensions = { { type = 0x6803f857, data = "\0\5short" } } })
    local _, message = qcow2.open(path)
    assert.truthy(message:find("feature(s): short", 1, true), message)
  end)
end)

describe("The library", function()
  local path, img

  before_each(function()
    path = tmp.path()
    img = made(path, { size = "1M" })
  end)

  after_each(function() img:close() end)

  it("names what was asked for in a read outside the disk", function()
    local _, message, kind = img:read(0, 1 << 40)
    assert.equal("range", kind)
    assert.truthy(message:find("Read of 1099511627776 bytes at 0", 1, true), message)
    _, message = img:read(5, 1 << 20)
    assert.truthy(message:find("Read of 1048576 bytes at 5", 1, true), message)
  end)

  it("refuses a data file for an image that has none", function()
    assert(img:close())
    for _, format in ipairs({ "qcow2", "raw" }) do
      local opened, message, kind = qcow2.open(path, { format = format, data_file = path .. ".data" })
      assert.is_nil(opened)
      assert.equal("conflict", kind)
      assert.truthy(message:find("no external data file", 1, true))
    end
    img = assert(qcow2.open(path, { data_file = false }))
  end)

  it("raises where nothing says how large an image is to be", function()
    assert.has_error(function() qcow2.create(path .. ".new", {}) end, "size is missing")
    assert.is_nil(io.open(path .. ".new"))
  end)

  it("tells a failing file's name once a message", function()
    local message = select(2, qcow2.open("/nonexistent/image"))
    assert.equal(1, select(2, message:gsub("/nonexistent/image", "")))
  end)

  it("stores when a snapshot was taken to the nanosecond", function()
    local fractions = {}
    for i = 1, 5 do
      assert(img:snapshot_create("s" .. i))
      fractions[img.snapshots[i].date_nsec] = true
      assert.is_true(math.abs(img.snapshots[i].date_sec - os.time()) <= 2)
    end
    assert.truthy(next(fractions, next(fractions)))
  end)
end)

describe("A chain", function()
  it("that is a ring says so", function()
    local dir = tmp.dir()
    for _, pair in ipairs({ { "a", "b" }, { "b", "a" } }) do
      forge.write(dir .. "/" .. pair[1], { backing_file = pair[2], backing_format = "qcow2" })
    end
    local result = sh.qcow2({ "convert", "-O", "raw", "a", "out" }, { cwd = dir })
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("comes back to 'a'", 1, true), result.stderr)
  end)

  it("is read by its top layer alone when its backing file is named empty", function()
    local dir = tmp.dir()
    local base <close> = made(dir .. "/base", { size = "1M" })
    assert(base:write(0, ("b"):rep(65536)))
    assert(base:close())
    local top <close> = made(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2" })
    assert(top:write(65536, ("t"):rep(65536)))
    assert(top:close())
    local node = "driver=qcow2,file.filename=top,backing="
    assert.equal(0, sh.qcow2({ "convert", "-O", "raw", "--image-opts", node, "out" }, { cwd = dir }).code)
    local zeros = ("\0"):rep(65536)
    assert.is_true(sh.slurp(dir .. "/out") == zeros .. ("t"):rep(65536) .. zeros:rep(14))
    assert.equal(0, qemu.img({ "convert", "-O", "raw", "--image-opts", node, "theirs" }, { cwd = dir }).code)
    assert.is_true(sh.slurp(dir .. "/out") == sh.slurp(dir .. "/theirs"))
  end)
end)

describe("A check of many snapshots with very long names", function()
  it("stays within bounds of time and words", function()
    local path = tmp.path()
    local list = {}
    for i = 1, 100 do list[i] = { name = ("n"):rep(65500) .. i, l1_offset = 12345 * 512 + 1 } end
    forge.write(path, { clusters = { [0] = { data = "a" } }, snapshots = list })
    local result = sh.run({ "timeout", "20", sh.build() .. "/bin/qcow2", "check", path })
    assert.is_true(result.code ~= 124)
    assert.is_true(#result.stdout + #result.stderr < 1 << 20, #result.stdout + #result.stderr)
    local img <close> = assert(qcow2.open(path, { damaged = true }))
    assert.truthy(img:check())
  end)
end)
