-- SPDX-License-Identifier: MIT
-- Header extensions: of several of one kind a setter leaves exactly one; those of strangers survive every verb.
local forge = require("spec.support.forge")
local poke = require("spec.support.poke")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local BACKING_FORMAT <const>, DATA_FILE <const> = 0xe2792aca, 0x44415441

local function of_type(path, kind)
  local img <close> = assert(qcow2.open(path, { data_file = false, backing = false, damaged = true }))
  local list = {}
  for _, e in ipairs(img.extensions) do
    if e.type == kind then list[#list + 1] = e.data end
  end
  return list
end

describe("Header extensions of one kind that an image has twice", function()
  local dir

  before_each(function()
    dir = tmp.dir()
    sh.spit(dir .. "/base", ("b"):rep(1 << 20))
    assert(qcow2.create(dir .. "/new", { size = "1M" }))
  end)

  local function twice(kind, first, second, more)
    local description = { extensions = { { type = kind, data = first }, { type = kind, data = second } } }
    for key, value in pairs(more or {}) do description[key] = value end
    forge.write(dir .. "/image", description)
  end

  local function run(...)
    local result = sh.qcow2({ ... }, { cwd = dir })
    assert.equal(0, result.code, result.stderr)
  end

  it("are read as QEMU reads them: the last one counts", function()
    twice(BACKING_FORMAT, "qcow2", "raw", { backing_file = "base" })
    local img <close> = assert(qcow2.open(dir .. "/image"))
    assert.equal("raw", img.backing_format)
    assert.equal("raw", qemu.info(dir .. "/image")["backing-filename-format"])
  end)

  it("are one after rebase -u and amend of the format", function()
    for _, words in ipairs({ { "rebase", "-u", "-b", "new", "-F", "qcow2", "image" },
      { "amend", "-o", "backing_file=new,backing_fmt=qcow2", "image" } }) do
      twice(BACKING_FORMAT, "raw", "raw", { backing_file = "base" })
      run(table.unpack(words))
      assert.same({ "qcow2" }, of_type(dir .. "/image", BACKING_FORMAT))
      assert.equal("qcow2", qemu.info(dir .. "/image")["backing-filename-format"])
      assert.equal("new", qemu.info(dir .. "/image")["backing-filename"])
    end
    run("rebase", "-u", "-b", "", "image")
    assert.same({}, of_type(dir .. "/image", BACKING_FORMAT))
  end)

  it("are one after amend of the data file's name, none when it is empty", function()
    local external = { header = { incompatible_features = 4 } }
    twice(DATA_FILE, "one", "two", external)
    run("amend", "-o", "data_file=three", "image")
    assert.same({ "three" }, of_type(dir .. "/image", DATA_FILE))
    run("amend", "-o", "data_file=", "image")
    assert.same({}, of_type(dir .. "/image", DATA_FILE))
    local img, message, kind = qcow2.open(dir .. "/image", { mode = "rw" })
    assert.is_nil(img)
    assert.equal("missing", kind, message)
    sh.spit(dir .. "/three", "")
    img = assert(qcow2.open(dir .. "/image", { mode = "rw", data_file = dir .. "/three" }))
    assert(img:write(0, "through the name that is given"))
    assert(img:close())
  end)
end)

describe("Header extensions of strangers", function()
  local strangers = {
    { type = 0x76617465, data = "thirteen byte" }, { type = 0x434c4233, data = ("c"):rep(64) },
    { type = 0x12345678, data = "" }, { type = 0x76617465, data = "the same type again" },
  }
  local dir, path

  before_each(function()
    dir = tmp.dir()
    path = dir .. "/image"
    sh.spit(dir .. "/base", ("b"):rep(1 << 20))
    forge.write(path, { extensions = strangers, clusters = { [0] = { data = "a" }, [3] = { data = "b" } } })
    -- The same in an overlay.
    forge.write(dir .. "/over", { extensions = strangers, backing_file = "base", backing_format = "raw",
      clusters = { [1] = { data = "o" } } })
  end)

  local function survive(name)
    local img <close> = assert(qcow2.open(dir .. "/" .. name, { data_file = false, damaged = true }))
    local found = {}
    for _, e in ipairs(img.extensions) do
      if e.type == 0x76617465 or e.type == 0x434c4233 or e.type == 0x12345678 then
        found[#found + 1] = { type = e.type, data = e.data }
      end
    end
    assert.same(strangers, found)
  end

  local verbs = {
    { "image", "bitmap --add image b" },
    { "image", "bitmap --add image b", "bitmap --remove image b" },
    { "image", "snapshot -c s image", "snapshot -a s image", "snapshot -d s image" },
    { "image", "resize image 2M", "resize --shrink image 1M" },
    { "image", "amend -o refcount_bits=64 image", "amend -o lazy_refcounts=on image" },
    { "image", "amend -o compat=0.10 image", "amend -o compat=1.1 image" },
    { "image", "externalize image data", "internalize image" },
    { "image", "check -r all image" },
    { "over", "rebase -u -b elsewhere -F raw over", "rebase -u -b base -F raw over" },
    { "over", "rebase -b  over" },
    { "over", "commit over" },
    { "over", "amend -o backing_file=base,backing_fmt=raw over" },
  }
  for _, verb in ipairs(verbs) do
    it("survive " .. table.concat(verb, "; ", 2), function()
      for i = 2, #verb do
        local words = {}
        for word in (verb[i] .. " "):gmatch("([^ ]*) ") do words[#words + 1] = word end
        local result = sh.qcow2(words, { cwd = dir })
        assert.equal(0, result.code, verb[i] .. ": " .. result.stderr)
        survive(verb[1])
      end
      assert.is_true(qemu.sound(dir .. "/" .. verb[1]))
    end)
  end

  it("survive a repair that switches the header", function()
    -- The disk's L2 table is counted once too often.
    local img = assert(qcow2.open(path))
    local header = img.header
    img:close()
    local block = poke.get_u64(path, header.refcount_table_offset)
    poke.u16(path, block + 2 * 4, 9)
    assert.equal(0, sh.qcow2({ "check", "-r", "all", "image" }, { cwd = dir }).code)
    survive("image")
  end)

  it("are kept by refusing what has no room beside them, and nothing changes", function()
    local full = { extensions = { { type = 0x434c4233, data = ("f"):rep(330) } }, header = { cluster_bits = 9 } }
    forge.write(path, full)
    local before = sh.slurp(path)
    local img = assert(qcow2.open(path, { mode = "rw" }))
    local done, _, kind = img:set_backing(("n"):rep(300), "raw")
    assert.is_nil(done)
    assert.equal("nospace", kind)
    img:close()
    assert.is_true(sh.slurp(path) == before)
  end)
end)
