-- SPDX-License-Identifier: MIT
-- qcow2.create, qcow2.adopt and qcow2.measure as scripts call them.
local lfs = require("lfs")
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("qcow2.create", function()
  local dir

  before_each(function() dir = tmp.dir() end)
  after_each(function() tmp.remove(dir) end)

  local function refused(kind, path, options)
    local img, message, got = qcow2.create(path, options)
    assert.is_nil(img)
    assert.is_string(message)
    assert.equal(kind, got)
    return message
  end

  it("gives the image, open for reading and writing", function()
    local img <close> = made(dir .. "/x", { size = "20G", cluster_size = "128K", extended_l2 = true,
      refcount_bits = 8, lazy_refcounts = true, compression_type = "zstd" })
    assert.equal("rw", img.mode)
    assert.equal("qcow2", img.format)
    assert.equal(20 << 30, img.size)
    assert.equal(131072, img.cluster_size)
    assert.equal(4096, img.subcluster_size)
    assert.equal(8, img.refcount_bits)
    assert.is_true(img.extended_l2)
    assert.is_true(img.lazy_refcounts)
    assert.equal("zstd", img.compression_type)
    assert.equal(("\0"):rep(4096), img:read(0, 4096))
  end)

  it("makes raw disks", function()
    local img <close> = made(dir .. "/x", { format = "raw", size = 1000 })
    assert.equal("raw", img.format)
    assert.equal(1024, lfs.attributes(dir .. "/x", "size"))
    local message = refused("conflict", dir .. "/y", { format = "raw", size = 1, cluster_size = 512 })
    assert.equal("Option 'cluster_size' is not supported for file format 'raw'", message)
  end)

  it("does not overwrite unless told", function()
    for _, old in ipairs({ "precious", "" }) do
      sh.spit(dir .. "/x", old)
      refused("exists", dir .. "/x", { size = 512 })
      refused("exists", dir .. "/x", { size = 512, format = "raw" })
      assert.equal(old, sh.slurp(dir .. "/x"))
    end
    local img <close> = made(dir .. "/x", { size = 512, overwrite = true })
    assert.equal(512, img.size)
  end)

  it("takes the size of the backing file, and reads through to it", function()
    sh.spit(dir .. "/base", ("b"):rep(3000))
    local img <close> = made(dir .. "/x", { backing_file = "base", backing_fmt = "raw" })
    assert.equal(3072, img.size)
    assert.equal("base", img.backing_file)
    assert.equal("raw", img.backing_format)
    assert.equal(("b"):rep(3000), img:read(0, 3000))
  end)

  it("takes what the caller named, wherever it lies; to open it later is another question", function()
    local far = tmp.dir()
    sh.spit(far .. "/base", ("b"):rep(1024))
    sh.spit(far .. "/data", ("d"):rep(1024))
    local img <close> = made(dir .. "/x", { backing_file = far .. "/base", backing_fmt = "raw" },
      { references = "any" })
    assert.equal(("b"):rep(1024), img:read(0, 1024))
    assert(qcow2.create(dir .. "/y", { data_file = far .. "/data", keep_data_file = true }))
    assert.equal("refused", select(3, qcow2.open(dir .. "/y", { mode = "rw" })))
    local kept <close> = assert(qcow2.open(dir .. "/y", { references = { far } }))
    assert.equal(("d"):rep(1024), kept:read(0, 1024))
  end)

  it("needs the backing file there, of its format, and not to be the image", function()
    sh.spit(dir .. "/base", "")
    refused("missing", dir .. "/x", { backing_file = "none", backing_fmt = "raw" })
    refused("conflict", dir .. "/x", { backing_file = "base" })
    refused("conflict", dir .. "/x", { backing_file = "none", backing_unsafe = true, size = 512 })
    refused("format", dir .. "/x", { backing_file = "base", backing_fmt = "qcow2" })
    refused("conflict", dir .. "/base", { backing_file = dir .. "/./base", backing_fmt = "raw", overwrite = true })
    refused("range", dir .. "/x", { backing_file = "none", backing_fmt = "raw", backing_unsafe = true })
    assert.is_nil(lfs.attributes(dir .. "/x"))
    local img <close> = made(dir .. "/x", { backing_file = "none", backing_fmt = "raw",
      backing_unsafe = true, size = 512 })
    assert.equal("none", img.backing_file)
    assert.equal("missing", select(3, img:read(0, 512)))
  end)

  it("keeps a data file's contents, or refuses to lose them", function()
    sh.spit(dir .. "/d", ("precious"):rep(512))
    refused("exists", dir .. "/x", { size = 4096, data_file = "d" })
    refused("missing", dir .. "/x", { data_file = "none", keep_data_file = true })
    assert.is_nil(lfs.attributes(dir .. "/x"))
    do
      local img <close> = made(dir .. "/x", { data_file = "d", data_file_raw = true,
        keep_data_file = true })
      assert.equal(4096, img.size)
      assert.is_true(img.data_file_raw)
      assert.equal(("precious"):rep(512), img:read(0, 4096))
    end
    assert.equal(("precious"):rep(512), sh.slurp(dir .. "/d"))
    local img <close> = made(dir .. "/x", { size = 1024, data_file = "d", overwrite = true })
    assert.equal(("\0"):rep(1024), img:read(0, 1024))
    assert.equal(1024, lfs.attributes(dir .. "/d", "size"))
  end)

  it("answers that encryption is not there", function()
    refused("unsupported", dir .. "/x", { size = 512, encryption = "luks" })
    assert.is_nil(lfs.attributes(dir .. "/x"))
  end)

  it("raises for what the manual forbids", function()
    for _, call in ipairs({
      { nil, { size = 1 } }, { dir .. "/x", { siez = 1 } }, { dir .. "/x", { size = "1x" } },
      { dir .. "/x", { size = -1 } },
      { dir .. "/x", { size = 1, compat = "9" } }, { dir .. "/x", { size = 1, preallocation = "some" } },
      { dir .. "/x", { size = 1, lazy_refcounts = "on" } }, { dir .. "/x", { size = 1, refcount_bits = -1 } },
      { dir .. "/x", "1M" }, { dir .. "/x", {} },
    }) do
      assert.has_error(function() qcow2.create(call[1], call[2]) end)
    end
    local _, message = pcall(function() qcow2.create(dir .. "/x", { siez = 1 }) end)
    assert.truthy(message:find("create_lua_spec", 1, true), message)
    assert.is_nil(lfs.attributes(dir .. "/x"))
  end)

  it("leaves a file behind a dangling link that it made, and takes back nothing of others", function()
    assert(lfs.link("target", dir .. "/link", true))
    local img <close> = made(dir .. "/link", { size = 512, overwrite = true })
    assert.equal(512, img.size)
    assert.is_table(lfs.attributes(dir .. "/target"))
  end)
end)

describe("qcow2.adopt", function()
  it("makes the image around the disk, raw unless told otherwise", function()
    local dir = tmp.dir()
    sh.spit(dir .. "/disk.raw", ("precious"):rep(512))
    for _, raw in ipairs({ true, false }) do
      assert(qcow2.adopt(dir .. "/disk.raw", dir .. "/side", { data_file_raw = raw, overwrite = true,
        cluster_size = 512 }))
      local img <close> = assert(qcow2.open(dir .. "/side", { mode = "rw" }))
      assert.equal(raw, img.data_file_raw)
      assert.equal("disk.raw", img.data_file)
      assert.equal(("precious"):rep(512), img:read(0, 4096))
    end
    local img, _, kind = qcow2.adopt(dir .. "/disk.raw", dir .. "/side")
    assert.is_nil(img)
    assert.equal("exists", kind)
    img, _, kind = qcow2.adopt(dir .. "/none.raw", dir .. "/new")
    assert.is_nil(img)
    assert.equal("missing", kind)
    assert.has_error(function() qcow2.adopt(dir .. "/disk.raw", dir .. "/new", { data_file = "x" }) end)
    assert.is_nil(lfs.attributes(dir .. "/new"))
  end)
end)

describe("qcow2.measure", function()
  it("measures for a size, a path and an open image", function()
    local dir = tmp.dir()
    assert.same({ required = 393216, fully_allocated = 1074135040 }, qcow2.measure(nil, { size = "1G" }))
    assert.same({ required = 1 << 30, fully_allocated = 1 << 30 }, qcow2.measure(nil, { size = "1G", format = "raw" }))
    local img <close> = made(dir .. "/x", { size = "1G" })
    local expected = { required = 393216, fully_allocated = 1074135040, bitmaps = 0 }
    assert.same(expected, qcow2.measure(img))
    img:close()
    assert.same(expected, qcow2.measure(dir .. "/x"))
    local figures, _, kind = qcow2.measure(dir .. "/none")
    assert.is_nil(figures)
    assert.equal("missing", kind)
    figures, _, kind = qcow2.measure(nil, { size = "1P", cluster_size = 512 })
    assert.is_nil(figures)
    assert.equal("range", kind)
  end)

  it("raises without a source and without a size, and with both", function()
    assert.has_error(function() qcow2.measure(nil, {}) end)
    assert.has_error(function() qcow2.measure("x", { size = 1 }) end)
  end)
end)
