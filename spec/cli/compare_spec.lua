-- SPDX-License-Identifier: MIT
-- `compare`: qemu-img's verdicts, words and exit codes.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("compare", function()
  local dir

  lazy_setup(function()
    dir = tmp.dir()
    qemu.create(dir .. "/a.qcow2", { size = "4M" })
    qemu.io(dir .. "/a.qcow2", { "write -P 1 0 300k", "write -P 2 1M 70k" })
    qemu.convert(dir .. "/a.qcow2", dir .. "/same.raw")
    qemu.convert(dir .. "/a.qcow2", dir .. "/packed.qcow2", { format = "qcow2", compress = true })
    qemu.create(dir .. "/different.qcow2", { size = "4M" })
    qemu.io(dir .. "/different.qcow2", { "write -P 1 0 300k", "write -P 2 1M 70k", "write -P 3 1100001 1" })
    qemu.create(dir .. "/longer.qcow2", { size = "6M" })
    qemu.io(dir .. "/longer.qcow2", { "write -P 1 0 300k", "write -P 2 1M 70k" })
    qemu.create(dir .. "/longer-data.qcow2", { size = "6M" })
    qemu.io(dir .. "/longer-data.qcow2", { "write -P 1 0 300k", "write -P 2 1M 70k", "write -P 9 5M 1k" })
    qemu.create(dir .. "/zeros.qcow2", { size = "4M" })
    qemu.io(dir .. "/zeros.qcow2", { "write -P 1 0 300k", "write -P 2 1M 70k", "write -z 2M 64k" })
    qemu.create(dir .. "/overlay.qcow2", { backing_file = "a.qcow2", backing_fmt = "qcow2" })
  end)

  for _, words in ipairs({
    { "a.qcow2", "a.qcow2" },
    { "a.qcow2", "same.raw" },
    { "-f", "qcow2", "-F", "raw", "a.qcow2", "same.raw" },
    { "a.qcow2", "packed.qcow2" },
    { "a.qcow2", "different.qcow2" },
    { "a.qcow2", "longer.qcow2" },
    { "longer.qcow2", "a.qcow2" },
    { "a.qcow2", "longer-data.qcow2" },
    { "longer-data.qcow2", "longer.qcow2" },
    { "-s", "a.qcow2", "a.qcow2" },
    { "-s", "a.qcow2", "longer.qcow2" },
    { "-s", "a.qcow2", "zeros.qcow2" },
    { "-s", "a.qcow2", "packed.qcow2" },
    { "-s", "a.qcow2", "same.raw" },
    { "a.qcow2", "zeros.qcow2" },
    { "-U", "overlay.qcow2", "a.qcow2" },
    { "-q", "a.qcow2", "different.qcow2" },
    { "-q", "a.qcow2", "longer.qcow2" },
    { "-q", "a.qcow2", "same.raw" },
    { "-T", "none", "a.qcow2", "same.raw" },
    { "-T", "bad", "a.qcow2", "same.raw" },
    { "--image-opts", "driver=qcow2,file.filename=a.qcow2", "driver=raw,file.filename=same.raw" },
    { "a.qcow2" },
    { "a.qcow2", "same.raw", "zeros.qcow2" },
  }) do
    it(("answers as qemu-img does: %s"):format(table.concat(words, " ")), function()
      local theirs = qemu.img({ "compare", table.unpack(words) }, { cwd = dir })
      local ours = sh.qcow2({ "compare", table.unpack(words) }, { cwd = dir })
      assert.equal(theirs.stdout, ours.stdout)
      assert.equal(qemu.plain(theirs.stderr), qemu.plain(ours.stderr))
      assert.equal(theirs.code, ours.code)
    end)
  end

  it("answers 2 when an image does not open", function()
    for _, words in ipairs({ { "a.qcow2", "nosuch" }, { "nosuch", "a.qcow2" },
      { "-F", "bad", "a.qcow2", "same.raw" } }) do
      local result = sh.qcow2({ "compare", table.unpack(words) }, { cwd = dir })
      assert.equal(2, result.code)
      assert.equal("", result.stdout)
      assert.truthy(result.stderr:find("^qcow2: Could not open '"))
    end
  end)

  it("answers 2 when a file that an image needs does not open", function()
    qemu.create(dir .. "/lost.qcow2", { size = "4M" })
    qemu.create(dir .. "/orphan.qcow2", { backing_file = "lost.qcow2", backing_fmt = "qcow2" })
    qemu.create(dir .. "/parted.qcow2", { size = "4M", data_file = "lost.raw" })
    os.remove(dir .. "/lost.qcow2")
    os.remove(dir .. "/lost.raw")
    for _, name in ipairs({ "orphan.qcow2", "parted.qcow2" }) do
      local judge = qemu.img({ "compare", "a.qcow2", name }, { cwd = dir })
      local result = sh.qcow2({ "compare", "a.qcow2", name }, { cwd = dir })
      assert.equal(2, judge.code)
      assert.equal(2, result.code)
      assert.equal("", result.stdout)
      assert.truthy(result.stderr:find("^qcow2: Could not open '" .. name .. "': "))
    end
  end)

  it("answers more than 1 when an image cannot be read", function()
    local path = dir .. "/broken.qcow2"
    sh.check({ "cp", dir .. "/packed.qcow2", path })
    local file <close> = assert(io.open(path, "r+b"))
    file:seek("set", 5 << 16)
    file:write(("\xff"):rep(4096))
    file:flush()
    local result = sh.qcow2({ "compare", "a.qcow2", "broken.qcow2" }, { cwd = dir })
    assert.is_true(result.code == 3 or result.code == 4)
    assert.equal("", result.stdout)
    assert.truthy(result.stderr:find("broken.qcow2", 1, true))
  end)

  it("counts with -p", function()
    local result = sh.qcow2({ "compare", "-p", "a.qcow2", "same.raw" }, { cwd = dir })
    assert.equal(0, result.code)
    assert.truthy(result.stdout:find("^    %(0%.00/100%%%)\r"))
    assert.truthy(result.stdout:find("Images are identical.\n", 1, true))
    assert.truthy(result.stdout:find("\n$"))
  end)
end)
