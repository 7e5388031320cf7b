-- SPDX-License-Identifier: MIT
-- `commit`: qemu-img's grammar, words and exit codes. What becomes of the disks is interop's.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("commit", function()
  local dir

  before_each(function()
    dir = tmp.dir()
    qemu.create(dir .. "/base", { size = "1M" })
    qemu.create(dir .. "/mid", { backing_file = "base", backing_fmt = "qcow2" })
    qemu.create(dir .. "/top", { backing_file = "mid", backing_fmt = "qcow2" })
    qemu.io(dir .. "/mid", { "write -P 1 0 128k" })
    qemu.io(dir .. "/top", { "write -P 2 64k 128k" })
  end)

  for _, words in ipairs({
    { "top" },
    { "-q", "top" },
    { "-d", "top" },
    { "-b", "base", "top" },
    { "-b", "./base", "top" },
    { "-b", "nosuch", "top" },
    { "-b", "top", "top" },
    { "-t", "none", "top" },
    { "-t", "bad", "top" },
    { "-r", "100M", "top" },
    { "-r", "bad", "top" },
    { "-f", "qcow2", "top" },
    { "--image-opts", "driver=qcow2,file.filename=top" },
    { "base" },
    { "-f", "raw", "top" },
    {},
    { "top", "mid" },
    { "-x", "top" },
  }) do
    it(("does and says what qemu-img does: %s"):format(table.concat(words, " ")), function()
      local twin = tmp.dir()
      sh.check(("cp %s/* %s"):format(dir, twin))
      local theirs = qemu.img({ "commit", table.unpack(words) }, { cwd = twin })
      local ours = sh.qcow2({ "commit", table.unpack(words) }, { cwd = dir })
      assert.equal(theirs.stdout, ours.stdout)
      assert.equal(qemu.plain(theirs.stderr), qemu.plain(ours.stderr))
      assert.equal(theirs.code, ours.code)
      for _, name in ipairs({ "/base", "/mid", "/top" }) do
        assert.is_true(qemu.compare(twin .. name, dir .. name))
        assert.is_true(qemu.sound(dir .. name))
      end
    end)
  end

  it("counts with -p", function()
    local result = sh.qcow2({ "commit", "-p", "top" }, { cwd = dir })
    assert.equal(0, result.code)
    assert.truthy(result.stdout:find("^    %(0%.00/100%%%)\r"))
    assert.truthy(result.stdout:find("    %(100%.00/100%%%)\r\nImage committed%.\n$"))
  end)

  it("is no faster than the rate allows", function()
    qemu.create(dir .. "/large", { size = "6M" })
    qemu.create(dir .. "/over", { backing_file = "large", backing_fmt = "qcow2" })
    qemu.io(dir .. "/over", { "write -P 7 0 6M" })
    local function now()
      return tonumber(sh.check({ "date", "+%s.%N" }).stdout)
    end
    local before = now()
    assert.equal(0, sh.qcow2({ "commit", "-r", "3M", "over" }, { cwd = dir }).code)
    -- The last piece of 2 MiB is sent when the two before it have had their time.
    assert.is_true(now() - before >= 1.3)
    qemu.io(dir .. "/large", { "read -P 7 0 6M" })
  end)

  it("leaves an image alone that somebody writes to, and says who is in the way", function()
    local before = sh.slurp(dir .. "/mid")
    local _ <close> = qemu.holds(dir .. "/mid", "qcow2")
    local result = sh.qcow2({ "commit", "top" }, { cwd = dir })
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("mid", 1, true))
    assert.is_true(before == sh.slurp(dir .. "/mid"))
  end)
end)
