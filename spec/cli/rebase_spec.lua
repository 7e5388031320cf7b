-- SPDX-License-Identifier: MIT
-- `rebase`: qemu-img's grammar, words and exit codes. What becomes of the disks is interop's.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("rebase", function()
  local dir

  before_each(function()
    dir = tmp.dir()
    qemu.create(dir .. "/base", { size = "1M" })
    qemu.io(dir .. "/base", { "write -P 3 0 512k" })
    qemu.create(dir .. "/mid", { backing_file = "base", backing_fmt = "qcow2" })
    qemu.create(dir .. "/top", { backing_file = "mid", backing_fmt = "qcow2" })
    qemu.io(dir .. "/mid", { "write -P 1 0 128k" })
    qemu.io(dir .. "/top", { "write -P 2 64k 128k" })
    sh.spit(dir .. "/r.raw", ("x"):rep(1 << 20))
  end)

  for _, words in ipairs({
    { "-b", "base", "-F", "qcow2", "top" },
    { "-b", "base", "--backing-format", "qcow2", "top", only_ours = true },
    { "-b", "base", "-B", "qcow2", "top", only_ours = true },
    { "-b", "", "top" },
    { "-q", "-b", "", "top" },
    { "-u", "-b", "base", "-F", "qcow2", "top" },
    { "-u", "-b", "nosuch", "-F", "raw", "top" },
    { "-u", "-b", "", "top" },
    { "-u", "top" },
    { "-b", "r.raw", "-F", "raw", "top" },
    { "-f", "qcow2", "-t", "none", "-T", "none", "-b", "r.raw", "-F", "raw", "top" },
    { "--image-opts", "-b", "base", "-F", "qcow2", "driver=qcow2,file.filename=top" },
    { "-b", "base", "top" },
    { "-u", "-b", "base", "top" },
    { "-b", "base", "-F", "bad", "top" },
    { "-b", "nosuch", "-F", "qcow2", "top" },
    { "-t", "bad", "-b", "", "top" },
    { "-T", "bad", "-b", "", "top" },
    { "-f", "raw", "-u", "-b", "base", "-F", "qcow2", "r.raw" },
    { "top" },
    { "-b", "base" },
    { "-b", "base", "-F", "qcow2", "top", "mid" },
    { "-x", "top" },
  }) do
    it(("does and says what qemu-img does: %s"):format(table.concat(words, " ")), function()
      local twin = tmp.dir()
      sh.check(("cp %s/* %s"):format(dir, twin))
      local ours = sh.qcow2({ "rebase", table.unpack(words) }, { cwd = dir })
      if words.only_ours then
        words = { "-b", "base", "-F", "qcow2", "top" }
      end
      local theirs = qemu.img({ "rebase", table.unpack(words) }, { cwd = twin })
      assert.equal(theirs.stdout, ours.stdout)
      assert.equal(qemu.plain(theirs.stderr), qemu.plain(ours.stderr))
      assert.equal(theirs.code, ours.code)
      local a, b = qemu.info(dir .. "/top"), qemu.info(twin .. "/top")
      assert.equal(b["backing-filename"], a["backing-filename"])
      assert.equal(b["backing-filename-format"], a["backing-filename-format"])
      if a["backing-filename"] ~= "nosuch" then
        assert.is_true(qemu.compare(twin .. "/top", dir .. "/top"))
        assert.is_true(qemu.sound(dir .. "/top"))
      end
    end)
  end

  it("compresses with -c", function()
    assert.equal(0, sh.qcow2({ "rebase", "-c", "-b", "", "top" }, { cwd = dir }).code)
    local compressed = false
    for _, e in ipairs(qemu.map(dir .. "/top")) do
      compressed = compressed or (e.data and e.offset == nil)
    end
    assert.is_true(compressed)
  end)

  it("counts with -p", function()
    local result = sh.qcow2({ "rebase", "-p", "-b", "", "top" }, { cwd = dir })
    assert.truthy(result.stdout:find("^    %(0%.00/100%%%)\r.*    %(100%.00/100%%%)\r\n$"))
  end)

  it("opens neither the old nor the new backing file with -u", function()
    sh.check(("rm %s/mid && mkfifo %s/mid %s/fifo"):format(dir, dir, dir))
    local result = sh.qcow2({ "rebase", "-u", "-b", "fifo", "-F", "raw", "top" }, { cwd = dir, timeout = 5 })
    assert.equal(0, result.code)
  end)

  it("refuses an image as its own backing file, in any disguise", function()
    sh.check(("ln -s top %s/link"):format(dir))
    for _, name in ipairs({ "top", "link", "./top" }) do
      local before = sh.slurp(dir .. "/top")
      local result = sh.qcow2({ "rebase", "-b", name, "-F", "qcow2", "top" }, { cwd = dir })
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("^qcow2: "))
      assert.is_true(before == sh.slurp(dir .. "/top"))
    end
  end)

  it("leaves the image alone when the old backing file is missing", function()
    os.remove(dir .. "/mid")
    local before = sh.slurp(dir .. "/top")
    local result = sh.qcow2({ "rebase", "-b", "base", "-F", "qcow2", "top" }, { cwd = dir })
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("mid", 1, true))
    assert.is_true(before == sh.slurp(dir .. "/top"))
  end)
end)
