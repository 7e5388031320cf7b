-- SPDX-License-Identifier: MIT
-- `dd`: the same bytes and lengths as qemu-img dd, and never the input destroyed.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("dd", function()
  local dir

  lazy_setup(function()
    dir = tmp.dir()
    qemu.create(dir .. "/base.qcow2", { size = "2M" })
    qemu.io(dir .. "/base.qcow2", { "write -P 1 0 300k", "write -P 2 1M 4k" })
    qemu.create(dir .. "/top.qcow2", { backing_file = "base.qcow2", backing_fmt = "qcow2", size = "3M" })
    qemu.io(dir .. "/top.qcow2", { "write -P 3 64k 5k", "write -c -P 4 2M 64k", "write -z 128k 64k" })
    sh.spit(dir .. "/odd.raw", ("0123456789abcdef"):rep(100):sub(1, 1300))
  end)

  for _, words in ipairs({
    { "if=top.qcow2" },
    { "if=top.qcow2", "bs=1M", "count=1" },
    { "bs=64k", "skip=1", "if=top.qcow2" },
    { "if=top.qcow2", "bs=5000", "count=100", "skip=7" },
    { "if=top.qcow2", "bs=4k", "skip=100", "count=100" },
    { "if=top.qcow2", "bs=4k", "skip=100", "count=10" },
    { "if=top.qcow2", "bs=1M", "count=100" },
    { "if=top.qcow2", "bs=1G", "skip=8589934592" },
    { "if=top.qcow2", "count=0" },
    { "-f", "raw", "if=odd.raw" },
    { "-f", "raw", "if=odd.raw", "bs=100", "skip=3", "count=10" },
    { "--image-opts", "if=driver=qcow2,,file.filename=base.qcow2" },
  }) do
    it(("copies as qemu-img does: %s"):format(table.concat(words, " ")), function()
      local command = { "dd", table.unpack(words) }
      if words[1] == "--image-opts" then
        command[3] = command[3]:gsub(",,", ",")
      end
      command[#command + 1] = "of=theirs"
      local judge = qemu.img(command, { cwd = dir })
      command[#command] = "of=ours"
      local ours = sh.qcow2(command, { cwd = dir })
      assert.equal(judge.code, ours.code)
      assert.equal((judge.stderr:gsub("qemu%-img", "qcow2")), ours.stderr)
      assert.equal(judge.stdout, ours.stdout)
      assert.equal(0, sh.run({ "cmp", "theirs", "ours" }, { cwd = dir }).code)
    end)

    it(("makes the qcow2 disk that qemu-img makes: %s"):format(table.concat(words, " ")), function()
      local command = { "dd", "-O", "qcow2", table.unpack(words) }
      if words[1] == "--image-opts" then
        command[5] = command[5]:gsub(",,", ",")
      end
      command[#command + 1] = "of=theirs.qcow2"
      local judge = qemu.img(command, { cwd = dir })
      command[#command] = "of=ours.qcow2"
      local ours = sh.qcow2(command, { cwd = dir })
      assert.equal(judge.code, ours.code)
      assert.equal((judge.stderr:gsub("qemu%-img", "qcow2")), ours.stderr)
      assert.equal(judge.stdout, ours.stdout)
      assert.is_true(qemu.sound(dir .. "/ours.qcow2"))
      assert.equal(qemu.info(dir .. "/theirs.qcow2")["virtual-size"], qemu.info(dir .. "/ours.qcow2")["virtual-size"])
      assert.is_true(qemu.compare(dir .. "/theirs.qcow2", dir .. "/ours.qcow2"))
    end)
  end

  it("overwrites a longer file wholly", function()
    sh.spit(dir .. "/long", ("x"):rep(5 << 20))
    assert.equal(0, sh.qcow2({ "dd", "if=top.qcow2", "of=long", "count=10" }, { cwd = dir }).code)
    assert.equal(5120, #sh.slurp(dir .. "/long"))
  end)

  it("leaves the target alone when a file that the input needs does not open", function()
    qemu.create(dir .. "/lost.qcow2", { size = "1M" })
    qemu.create(dir .. "/orphan.qcow2", { backing_file = "lost.qcow2", backing_fmt = "qcow2" })
    os.remove(dir .. "/lost.qcow2")
    sh.spit(dir .. "/kept", "kept")
    local result = sh.qcow2({ "dd", "if=orphan.qcow2", "of=kept" }, { cwd = dir })
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("^qcow2: Could not open 'orphan.qcow2': .*lost.qcow2"))
    assert.equal("kept", sh.slurp(dir .. "/kept"))
  end)

  it("never writes over a file that its input needs", function()
    qemu.create(dir .. "/parted.qcow2", { size = "1M", data_file = "part.raw" })
    for _, case in ipairs({ { "top.qcow2", "base.qcow2" }, { "parted.qcow2", "part.raw" } }) do
      local before = sh.slurp(dir .. "/" .. case[2])
      local result = sh.qcow2({ "dd", "if=" .. case[1], "of=" .. case[2] }, { cwd = dir })
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("lock", 1, true))
      assert.is_true(before == sh.slurp(dir .. "/" .. case[2]))
    end
  end)

  it("never writes over its own input, with and without locks", function()
    for _, words in ipairs({ { "dd", "-f", "raw" }, { "dd", "-U", "-f", "raw" } }) do
      local before = sh.slurp(dir .. "/odd.raw")
      words[#words + 1], words[#words + 2] = "if=odd.raw", "of=./odd.raw"
      local result = sh.qcow2(words, { cwd = dir })
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("^qcow2: %./odd%.raw: error while creating output image: "))
      assert.equal(before, sh.slurp(dir .. "/odd.raw"))
    end
  end)

  it("refuses a FIFO as target instead of waiting for a reader", function()
    sh.check({ "mkfifo", dir .. "/fifo" })
    local result = sh.qcow2({ "dd", "if=top.qcow2", "of=fifo" }, { cwd = dir, timeout = 10 })
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("FIFO", 1, true))
  end)

  for words, message in pairs({
    ["if=top.qcow2"] = "Must specify both input and output files",
    ["of=x"] = "Must specify both input and output files",
    ["if=top.qcow2 of=x x=y"] = "unrecognized operand x",
    ["if=top.qcow2 of=x y"] = "unrecognized operand y",
    ["if=top.qcow2 of=x bs=0"] = "Invalid bs specified. Must be between 1 and 2147483647.",
    ["if=top.qcow2 of=x bs=z"] = "Invalid bs specified: 'z'.",
    ["if=top.qcow2 of=x count=z"] = "Invalid count specified: 'z'.",
    ["if=nosuch of=x"] = "Could not open 'nosuch': No such file or directory",
    ["-O bad if=top.qcow2 of=x"] = "Unknown file format 'bad'",
  }) do
    it(("refuses `dd %s` and makes nothing"):format(words), function()
      local list = { "dd" }
      for word in words:gmatch("%S+") do
        list[#list + 1] = word
      end
      local result = sh.qcow2(list, { cwd = dir })
      assert.equal(1, result.code)
      assert.equal("qcow2: " .. message .. "\n", result.stderr)
      assert.is_nil(io.open(dir .. "/x"))
    end)
  end
end)
