-- SPDX-License-Identifier: MIT
-- `resize`: qemu-img's grammar, words and exit codes, and what becomes of the disk.
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("resize", function()
  local dir

  local function make(name, options)
    options.size = options.size or "4M"
    qemu.create(dir .. "/" .. name, options)
    qemu.io(dir .. "/" .. name, { "write -P 1 0 300k", "write -P 2 3M 70k" }, { format = options.format })
  end

  before_each(function()
    dir = tmp.dir()
  end)

  for _, words in ipairs({
    { "a.qcow2", "0" },
    { "a.qcow2", "abc" },
    { "a.qcow2", "+1x" },
    { "a.qcow2", "1M" },
    { "a.qcow2", "1000001" },
    { "--preallocation=bad", "a.qcow2", "8M" },
    { "--preallocation=full", "a.qcow2", "2M" },
    { "--preallocation=falloc", "a.qcow2", "4M" },
    { "--shrink", "a.qcow2", "1M" },
    { "--shrink", "a.qcow2", "-1M" },
    { "a.qcow2", "-8M" },
    { "a.qcow2", "+1M" },
    { "a.qcow2", "4M" },
    { "a.qcow2", "1.5G" },
    { "a.qcow2", "+1.M" },
    { "a.qcow2", "." },
    { "a.qcow2", ".k" },
    { "-q", "a.qcow2", "6M" },
    { "-f", "qcow2", "a.qcow2", "6M" },
    { "--image-opts", "driver=qcow2,file.filename=a.qcow2", "6M" },
    { "a.qcow2", "6M", "7M" },
    { "-x", "a.qcow2", "6M" },
    { "a.qcow2", "99999999999999999999" },
    { "-f", "raw", "a.raw", "6M" },
    { "-f", "raw", "--shrink", "a.raw", "1M" },
    { "-f", "raw", "a.raw", "1M" },
    { "-f", "raw", "--preallocation=metadata", "a.raw", "+1M" },
    { "-f", "raw", "--preallocation=full", "a.raw", "+1M" },
    { "-f", "raw", "a.raw", "+1000" },
  }) do
    it(("does and says what qemu-img does: %s"):format(table.concat(words, " ")), function()
      make("a.qcow2", {})
      make("a.raw", { format = "raw" })
      local twin = tmp.dir()
      sh.check({ "cp", dir .. "/a.qcow2", dir .. "/a.raw", twin })
      local theirs = qemu.img({ "resize", table.unpack(words) }, { cwd = twin })
      local ours = sh.qcow2({ "resize", table.unpack(words) }, { cwd = dir })
      assert.equal(theirs.stdout, ours.stdout)
      assert.equal(qemu.plain(theirs.stderr), qemu.plain(ours.stderr))
      assert.equal(theirs.code, ours.code)
      assert.equal(qemu.info(twin .. "/a.qcow2")["virtual-size"], qemu.info(dir .. "/a.qcow2")["virtual-size"])
      assert.is_true(qemu.compare(dir .. "/a.qcow2", twin .. "/a.qcow2"))
      assert.is_true(qemu.sound(dir .. "/a.qcow2"))
      assert.equal(sh.slurp(twin .. "/a.raw"), sh.slurp(dir .. "/a.raw"))
    end)
  end

  it("takes a size that begins with a minus for a size", function()
    make("a.qcow2", {})
    local result = sh.qcow2({ "resize", "a.qcow2", "--shrink", "-1M" }, { cwd = dir })
    assert.equal("Image resized.\n", result.stdout)
    assert.equal(3 << 20, qemu.info(dir .. "/a.qcow2")["virtual-size"])
  end)

  it("resizes a file that was only guessed to be raw, with a warning", function()
    sh.spit(dir .. "/a.raw", ("x"):rep(1024))
    local result = sh.qcow2({ "resize", "a.raw", "2048" }, { cwd = dir })
    assert.equal(0, result.code)
    assert.truthy(result.stderr:find("^WARNING: Image format was not specified for 'a.raw' and probing guessed raw"))
    assert.equal(("x"):rep(1024) .. ("\0"):rep(1024), sh.slurp(dir .. "/a.raw"))
  end)

  it("shows no byte of a longer backing file in what the disk grew by", function()
    qemu.create(dir .. "/base", { size = "4M" })
    qemu.io(dir .. "/base", { "write -P 9 0 4M" })
    for _, mode in ipairs({ "off", "metadata" }) do
      for _, extended in ipairs({ false, true }) do
        qemu.create(dir .. "/top", { backing_file = "base", backing_fmt = "qcow2", size = 1 << 20 | 12288,
          extended_l2 = extended })
        local result = sh.qcow2({ "resize", "--preallocation", mode, "top", "3M" }, { cwd = dir })
        assert.equal("", result.stderr)
        qemu.io(dir .. "/top", { ("read -P 9 0 %d"):format(1 << 20 | 12288),
          ("read -P 0 %d %d"):format(1 << 20 | 12288, (2 << 20) - 12288) })
        assert.is_true(qemu.sound(dir .. "/top"))
      end
    end
  end)

  for _, extended in ipairs({ false, true }) do
    for _, data_file in ipairs({ false, true }) do
      for _, mode in ipairs({ "metadata", "falloc", "full" }) do
        it(("--preallocation=%s gives every new cluster a place that reads as zeros%s%s"):format(mode,
          extended and ", extended L2" or "", data_file and ", data file" or ""), function()
          local path = dir .. "/a.qcow2"
          make("a.qcow2", { extended_l2 = extended, data_file = data_file and "data.raw" or nil })
          -- Places with old bytes, to be used again.
          qemu.io(path, { "write -P 3 1M 1M", "discard 1M 1M" })
          local before = qemu.read_all(path, dir .. "/scratch")
          local result = sh.qcow2({ "resize", "--preallocation", mode, "a.qcow2", "+2100k" }, { cwd = dir })
          assert.equal("", result.stderr)
          assert.is_true(qemu.sound(path))
          local size = (4 << 20) + 2100 * 1024
          assert.equal(before .. ("\0"):rep(2100 * 1024), qemu.read_all(path, dir .. "/scratch"))
          local img <close> = assert(qcow2.open(path))
          local mapped = 0
          for cluster = 4 << 20, size - 1, img.cluster_size do
            local entry = img.l1[0].l2[cluster // img.cluster_size]
            assert.equal("data", entry.kind)
            mapped = mapped + 1
          end
          assert.equal(33, mapped)
          local file = data_file and dir .. "/data.raw" or path
          local spent = tonumber(sh.check({ "stat", "-c", "%b", file }).stdout) * 512
          if mode ~= "metadata" then
            assert.is_true(spent >= 2100 * 1024, spent)
          end
        end)
      end
    end
  end

  it("takes back the places of clusters with extended L2 that were only preallocated", function()
    local path = dir .. "/a.qcow2"
    qemu.create(path, { size = "2M", extended_l2 = true, preallocation = "metadata" })
    sh.qcow2({ "resize", "--shrink", "a.qcow2", "600k" }, { cwd = dir })
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    for cluster = 0, 31 do
      assert.equal("unallocated", img.l1[0].l2[cluster].kind)
      assert.equal(cluster < 10, img.l1[0].l2[cluster].host_offset ~= nil, cluster)
    end
    assert(img:resize("2M", { preallocation = "metadata" }))
    assert(img:discard(0, 5 * 65536))
    assert(img:flush())
    assert.is_nil(img.l1[0].l2[4].host_offset)
    assert.is_not_nil(img.l1[0].l2[5].host_offset)
    assert(img:close())
    assert.is_true(qemu.sound(path))
  end)
end)
