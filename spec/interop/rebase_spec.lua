-- SPDX-License-Identifier: MIT
-- Rebases: the disk never changes; what qemu-img makes of the same chain holds the same.
local chains = require("spec.support.chains")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("Rebase", function()
  for _, name in ipairs(chains.names()) do
    describe("of a chain: " .. name .. ":", function()
      local made, flavour, disk

      lazy_setup(function()
        made = tmp.dir()
        flavour = chains.make(made, name)
        disk = qemu.read_all(made .. "/top", made .. "/scratch")
        -- A stranger, shorter than any, with some of the same bytes.
        qemu.create(made .. "/other", { size = 1 << 20, cluster_size = 8192 })
        sh.spit(made .. "/part", disk:sub(1, 300000) .. ("\5"):rep(1 << 19))
        sh.check({ "qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", made .. "/part", made .. "/other" })
      end)

      -- The bytes of a disk that the file itself has.
      local function own(path)
        local bytes = 0
        for _, e in ipairs(qemu.map(path)) do
          bytes = bytes + (e.depth == 0 and e.present ~= false and e.length or 0)
        end
        return bytes
      end

      local function twins(words, compressed)
        local ours, theirs = tmp.dir(), tmp.dir()
        sh.check(("cp %s/* %s && cp %s/* %s"):format(made, ours, made, theirs))
        local result = sh.qcow2({ "rebase", table.unpack(words) }, { cwd = ours })
        assert.equal("", result.stderr)
        assert.equal(0, result.code)
        assert.is_true(qemu.sound(ours .. "/top"))
        assert.is_true(disk == qemu.read_all(ours .. "/top", ours .. "/scratch"))
        for _, layer in ipairs({ "base", "mid", "other" }) do
          assert.is_true(sh.slurp(made .. "/" .. layer) == sh.slurp(ours .. "/" .. layer))
        end
        if not compressed then
          assert.equal(0, qemu.img({ "rebase", table.unpack(words) }, { cwd = theirs }).code)
          local a, b = qemu.info(ours .. "/top"), qemu.info(theirs .. "/top")
          assert.equal(b["backing-filename"], a["backing-filename"])
          assert.equal(b["backing-filename-format"], a["backing-filename-format"])
          -- Not more is copied than needed.
          local mine, qemus = own(ours .. "/top"), own(theirs .. "/top")
          assert.is_true(mine <= qemus + 65536, ("%d of ours, %d of theirs"):format(mine, qemus))
        end
        return ours
      end

      it("onto nothing", function()
        local ours = twins({ "-b", "", "top" })
        assert.is_nil(qemu.info(ours .. "/top")["backing-filename"])
      end)

      it("onto the base of its base", function()
        twins({ "-b", "base", "-F", flavour.base.format or "qcow2", "top" })
      end)

      it("onto a stranger", function()
        twins({ "-b", "other", "-F", "qcow2", "top" })
      end)

      it("from nothing onto a stranger", function()
        local dir = tmp.dir()
        sh.check(("cp %s/* %s"):format(made, dir))
        qemu.rebase(dir .. "/top", { backing = "", unsafe = true })
        local bare = qemu.read_all(dir .. "/top", dir .. "/scratch")
        assert(assert(qcow2.rebase(dir .. "/top", { backing_file = "other", backing_fmt = "qcow2" })):run())
        assert.is_true(qemu.sound(dir .. "/top"))
        assert.is_true(bare == qemu.read_all(dir .. "/top", dir .. "/scratch"))
      end)

      it("onto nothing, compressed", function()
        local ours = twins({ "-c", "-b", "", "top" }, true)
        local img <close> = assert(qcow2.open(ours .. "/top"))
        local compressed = 0
        for e in img:extents() do
          compressed = compressed + (e.kind == "compressed" and 1 or 0)
        end
        assert.is_true(compressed > 0)
      end)
    end)
  end

  it("refuses to change what a snapshot of the image shows", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/base", { size = "2M" })
    qemu.io(dir .. "/base", { "write -P 1 0 1M" })
    qemu.create(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2" })
    qemu.snapshot(dir .. "/top", "-c", "then")
    qemu.io(dir .. "/top", { "write -P 2 0 2M" })
    local top = sh.slurp(dir .. "/top")
    local done, message, kind = assert(qcow2.rebase(dir .. "/top", {})):run()
    assert.is_nil(done)
    assert.equal("conflict", kind)
    assert.truthy(message:find("Internal snapshot number 1", 1, true))
    assert.is_true(top == sh.slurp(dir .. "/top"))
    -- The same bytes in another file are no change.
    sh.check({ "qemu-img", "convert", "-f", "qcow2", "-O", "raw", dir .. "/base", dir .. "/copy" })
    assert(assert(qcow2.rebase(dir .. "/top", { backing_file = "copy", backing_fmt = "raw" })):run())
    assert.equal(("\1"):rep(1 << 20) .. ("\0"):rep(1 << 20),
      qemu.read_all(dir .. "/top", dir .. "/scratch", { snapshot = "then" }))
    assert.is_true(qemu.sound(dir .. "/top"))
  end)

  it("keeps unknown header extensions and long names, one after the other", function()
    local dir = tmp.dir()
    qemu.create(dir .. "/base", { size = "1M" })
    qemu.create(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2" })
    for i = 1, 12 do
      local name = ("./"):rep(i * 40) .. "base"
      local img <close> = assert(qcow2.open(dir .. "/top", { mode = "rw" }))
      assert(img:set_backing(name, i % 2 == 0 and "raw" or "qcow2"))
      assert(img:close())
      local info = qcow2.open(dir .. "/top", { references = "none" })
      assert.equal(name, info.backing_file)
      assert.equal(i % 2 == 0 and "raw" or "qcow2", info.backing_format)
      assert.equal(112, info.header.header_length)
      info:close()
      assert.is_true(qemu.sound(dir .. "/top"))
    end
    local img <close> = assert(qcow2.open(dir .. "/top", { mode = "rw" }))
    assert(img:set_backing(nil))
    assert.is_nil(img.backing_file)
    assert.is_nil(img.backing_format)
    local ok, _, kind = img:set_backing(("x"):rep(1024), "raw")
    assert.is_nil(ok)
    assert.equal("range", kind)
  end)
end)
