-- SPDX-License-Identifier: MIT
-- `create`: what it says beside qemu-img, what it refuses before anything is made, and what it never loses.
local decoder = require("spec.support.decoder")
local lfs = require("lfs")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function names(dir)
  local list = {}
  for name in lfs.dir(dir) do
    list[#list + 1] = name
  end
  table.sort(list)
  return table.concat(list, " ")
end

describe("create", function()
  local dir

  local function create(...)
    return sh.qcow2({ "create", ... }, { cwd = dir })
  end

  local function refused(message, ...)
    local before = names(dir)
    local result = create(...)
    assert.equal(message, result.stderr)
    assert.equal(1, result.code)
    assert.equal(before, names(dir))
    return result
  end

  before_each(function()
    dir = tmp.dir()
    sh.spit(dir .. "/base.raw", ("base"):rep(65536))
    sh.check({ "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "3M" }, { cwd = dir })
  end)

  after_each(function() tmp.remove(dir) end)

  -- The line on stdout and the message on stderr are qemu-img's, word for word; nothing is made.
  for _, words in ipairs({
    "", "-f qcow2", "-f qcow2 x", "-f nope x 1M", "-f qcow2 x 1M 2M", "-f qcow2 x 1x", "-f qcow2 x -- -1",
    "-f qcow2 x 8E", "-f qcow2 -o size=1M x 2M", "-f qcow2 -o foo=1 x 1M", "-f qcow2 -o cluster_size=100 x 1M",
    "-f qcow2 -o cluster_size=4M x 1M", "-f qcow2 -o cluster_size=256 x 1M", "-f qcow2 -o cluster_size=0 x 1M",
    "-f qcow2 -o cluster_size=x x 1M", "-f qcow2 -o lazy_refcounts=z x 1M", "-f qcow2 -o refcount_bits=3 x 1M",
    "-f qcow2 -o refcount_bits=128 x 1M", "-f qcow2 -o refcount_bits=0 x 1M", "-f qcow2 -o refcount_bits=x x 1M",
    "-f qcow2 -o compat=0.10,refcount_bits=8 x 1M", "-f qcow2 -o compat=0.10,lazy_refcounts=on x 1M",
    "-f qcow2 -o compat=0.10,extended_l2=on x 1M", "-f qcow2 -o extended_l2=on,cluster_size=8k x 1M",
    "-f qcow2 -o compat=0.10,compression_type=zstd x 1M", "-f qcow2 -o compression_type=lz4 x 1M",
    "-f qcow2 -o data_file_raw=on x 1M", "-f qcow2 -o compat=9 x 1M", "-f qcow2 -o preallocation=foo x 1M",
    "-f qcow2 x 100P", "-f qcow2 x 7E", "-f qcow2 -o cluster_size=512 x 1T",
    "-f qcow2 -b nobase -F qcow2 x", "-f qcow2 -b nobase -F qcow2 x 1M", "-f qcow2 -u -b nobase -F qcow2 x",
    "-f qcow2 -u -b nobase x 1M", "-f qcow2 -b x -F qcow2 x 1M", "-f qcow2 -b '' -F qcow2 x 1M",
    "-f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,preallocation=metadata x",
    "-f qcow2 -F qcow2 x 1M", "-f qcow2 -o backing_fmt=qcow2 x 1M", "-f raw -b base.raw x 1M", "-f raw -F raw x 1M",
    "-f raw -o preallocation=metadata x 1M", "-f raw -o cluster_size=1 x 1M", "-f raw -o , x 1M", "-f raw x",
    "-f qcow2 nodir/x 1M", "-o preallocation x 1M",
  }) do
    it(("refuses `create %s` in qemu-img's words"):format(words), function()
      local judge = sh.run("qemu-img create " .. words, { cwd = dir })
      os.remove(dir .. "/x")
      assert.equal(1, judge.code)
      local before = names(dir)
      local result = sh.run(sh.build() .. "/bin/qcow2 create " .. words, { cwd = dir })
      assert.equal(qemu.plain(judge.stderr), qemu.plain(result.stderr))
      assert.equal(judge.stdout, result.stdout)
      assert.equal(1, result.code)
      assert.equal(before, names(dir))
    end)
  end

  for _, words in ipairs({
    "-f qcow2 x 1M", "-q -f qcow2 x 1M", "-f qcow2 x 1.5k", "-f qcow2 x 0x100000", "-f qcow2 -o size=1M x",
    "-f qcow2 -o size=1M,size=2M x", "-q -f qcow2 -o cluster_size=4k -o nolazy_refcounts x 1M",
    "-f qcow2 -o lazy_refcounts=yes x 1M", "-f qcow2 -b base.qcow2 -F qcow2 x", "-f qcow2 -b base.raw -F raw x 10M",
    "-f qcow2 -b base.qcow2 -F qcow2 -o backing_file=nobase x 1M", "-f qcow2 -u -b nobase -F raw x 1M",
    "-f qcow2 -o data_file=a,,b x 1M", "x 1M", "-f raw -o nocow=off,preallocation=off x 10k",
    "-f qcow2 -o preallocation=off,compat=v3,backing_file=base.raw,backing_fmt=raw,data_file=d,refcount_bits=8 x 1M",
    "-f qcow2 -o encryption=off x 1M",
  }) do
    it(("says what `create %s` makes as qemu-img does"):format(words), function()
      local judge = sh.check("qemu-img create " .. words, { cwd = dir })
      for _, name in ipairs({ "x", "d", "a,b" }) do
        os.remove(dir .. "/" .. name)
      end
      local result = sh.run(sh.build() .. "/bin/qcow2 create " .. words, { cwd = dir })
      assert.equal("", result.stderr)
      assert.equal(judge.stdout, result.stdout)
      assert.equal(0, result.code)
    end)
  end

  it("lists qemu-img's options with their defaults, and two of its own", function()
    for _, words in ipairs({ "-f qcow2 -o help", "-f qcow2 -o help x", "-o help x", "-f raw -o '?' x" }) do
      local judge = sh.check("qemu-img create " .. words, { cwd = dir }).stdout
      local result = sh.check(sh.build() .. "/bin/qcow2 create " .. words, { cwd = dir }).stdout
      assert.equal(judge, (result:gsub(" %(default: [^)]*%)", ""):gsub("  keep_data_file=[^\n]*\n", "")
        :gsub("  overwrite=[^\n]*\n", "")))
    end
    local text = create("-f", "qcow2", "-o", "help").stdout
    assert.truthy(text:find("qcow2 cluster size (default: 65536)", 1, true))
  end)

  it("asks for the backing file's format and says what it found", function()
    refused("qcow2: x: Backing file specified without backing format\nDetected format of qcow2.\n",
      "-f", "qcow2", "-b", "base.qcow2", "x")
    refused("qcow2: x: Unknown backing file format 'vmdk'\n", "-f", "qcow2", "-b", "base.raw", "-F", "vmdk", "x")
  end)

  it("finds the backing file from the image's directory, and stores its name as given", function()
    lfs.mkdir(dir .. "/sub")
    assert.equal(0, create("-f", "qcow2", "-b", "../base.raw", "-F", "raw", "sub/x").code)
    local image <close> = decoder.open(dir .. "/sub/x")
    assert.equal(262144, image.header.size)
    assert.equal("../base.raw", image:pread(image.header.backing_file_offset, image.header.backing_file_size))
  end)

  it("refuses an image that is in its own backing chain", function()
    assert.equal(0, create("-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top").code)
    local before = sh.slurp(dir .. "/base.qcow2")
    local result = create("-f", "qcow2", "-b", "top", "-F", "qcow2", "./base.qcow2")
    assert.equal("qcow2: ./base.qcow2: './base.qcow2' is in the backing chain of 'top': it would be its own backing "
      .. "file\n", result.stderr)
    assert.is_true(before == sh.slurp(dir .. "/base.qcow2"))
  end)

  it("stores names of up to 1023 bytes that fit the header cluster", function()
    local line = create("-q", "-u", "-f", "qcow2", "-b", ("n"):rep(1023), "-F", "raw", "x", "1M")
    assert.equal("", line.stderr)
    assert.equal(("n"):rep(1023), qemu.info(dir .. "/x")["backing-filename"])
    os.remove(dir .. "/x")
    refused("qcow2: x: Backing file name has 1024 bytes, 1023 are the most\n",
      "-q", "-u", "-f", "qcow2", "-b", ("n"):rep(1024), "-F", "raw", "x", "1M")
    refused("qcow2: x: Header and names take 536 bytes, a cluster has 512 (use shorter names or larger clusters)\n",
      "-q", "-u", "-f", "qcow2", "-o", "cluster_size=512", "-b", ("n"):rep(400), "-F", "raw", "x", "1M")
  end)

  it("says that encryption is not there", function()
    for _, option in ipairs({ "encryption=on", "encrypt.format=luks" }) do
      local result = refused(("qcow2: x: %s is unsupported: this build makes no encrypted images\n")
        :format(option:match("^[^=]*")), "-f", "qcow2", "-o", option, "x", "1M")
      assert.truthy(result.stdout:find("fmt=qcow2 " .. option .. " cluster_size=65536", 1, true))
    end
  end)

  it("says that nocow did nothing where the host does not know it", function()
    local result = create("-q", "-f", "qcow2", "-o", "nocow=on", "x", "1M")
    assert.equal(0, result.code)
    if result.stderr ~= "" then
      assert.equal("qcow2: x: nocow=on has no effect: the file system of 'x' knows no copy-on-write that could be "
        .. "turned off\n", result.stderr)
    end
  end)

  it("warns that it cannot give the hint of an extent's size, and goes on", function()
    local result = create("-q", "-f", "qcow2", "-o", "extent_size_hint=1M", "x", "1M")
    assert.same({ 0, "qcow2: warning: Failed to set extent size hint: Operation not supported\n" },
      { result.code, result.stderr })
    assert.equal("", create("-q", "-f", "qcow2", "-o", "extent_size_hint=0", "x", "1M").stderr)
  end)

  it("begins its messages with the name it was called by", function()
    assert(lfs.link(sh.build() .. "/bin/qcow2", dir .. "/qemu-img", true))
    local result = sh.run({ "./qemu-img", "create", "-f", "qcow2", "-o", "foo=1", "x", "1M" }, { cwd = dir })
    assert.equal("qemu-img: x: Invalid parameter 'foo'\n", result.stderr)
    assert.equal(1, result.code)
  end)

  -- ---- what is there already -----------------------------------------------------------------

  it("overwrites an image, whatever its size was", function()
    for _, old in ipairs({ ("x"):rep(3 << 20), "", "QFI\xfb" }) do
      sh.spit(dir .. "/x", old)
      assert.equal(0, create("-q", "-f", "qcow2", "x", "1M").code)
      sh.check({ "qemu-img", "create", "-q", "-f", "qcow2", "y", "1M" }, { cwd = dir })
      -- Ours ends on a sector.
      local theirs = sh.slurp(dir .. "/y")
      assert.is_true(theirs .. ("\0"):rep(-#theirs % 512) == sh.slurp(dir .. "/x"))
    end
  end)

  it("leaves an image that will be refused as it was", function()
    sh.spit(dir .. "/x", "precious")
    refused("qcow2: x: data-file-raw requires data-file\n", "-q", "-f", "qcow2", "-o", "data_file_raw=on", "x", "1M")
    assert.equal("precious", sh.slurp(dir .. "/x"))
  end)

  it("refuses FIFOs, directories and devices that are no disks", function()
    sh.check({ "mkfifo", dir .. "/fifo" })
    for _, name in ipairs({ "fifo", ".", "/dev/null" }) do
      local result = create("-q", "-f", "qcow2", name, "1M")
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("Could not open '" .. name .. "': It is a ", 1, true), result.stderr)
    end
    local result = create("-q", "-f", "qcow2", "-o", "data_file=fifo", "x", "1M")
    assert.equal("qcow2: x: Could not open 'fifo': It is a FIFO, but only regular files and block devices are opened "
      .. "here\n", result.stderr)
    assert.is_nil(lfs.attributes(dir .. "/x"))
  end)

  it("refuses a disk that a virtual machine has open", function()
    assert.equal(0, create("-q", "-f", "qcow2", "x", "1M").code)
    local machine = qemu.holds(dir .. "/x", "qcow2", { "write -P 9 0 64k", "flush" })
    local result = create("-q", "-f", "qcow2", "x", "2M")
    assert.equal(1, result.code)
    assert.truthy(result.stderr:find("lock", 1, true), result.stderr)
    machine:close()
    assert.is_true(qemu.sound(dir .. "/x"))
    qemu.io(dir .. "/x", { "read -P 9 0 64k" })
  end)

  local exists = "qcow2: x: Data file 'd' exists and holds data; keep_data_file=on makes what it holds the disk's "
    .. "contents, overwrite=on discards it\n"

  it("refuses a data file that holds data", function()
    sh.spit(dir .. "/d", "precious")
    for _, option in ipairs({ "data_file=d", "data_file=d,data_file_raw=on", "data_file=d,preallocation=full" }) do
      refused(exists, "-q", "-f", "qcow2", "-o", option, "x", "1M")
      assert.equal("precious", sh.slurp(dir .. "/d"))
    end
  end)

  it("takes a data file that is one hole", function()
    sh.check({ "truncate", "-s", "5M", dir .. "/d" })
    assert.equal("", create("-q", "-f", "qcow2", "-o", "data_file=d", "x", "1M").stderr)
    assert.equal(1 << 20, lfs.attributes(dir .. "/d", "size"))
  end)

  it("overwrites a data file when told to", function()
    sh.spit(dir .. "/d", "precious")
    assert.equal(0, create("-q", "-f", "qcow2", "-o", "data_file=d,overwrite=on", "x", "4k").code)
    assert.equal(("\0"):rep(4096), sh.slurp(dir .. "/d"))
  end)

  it("overwrites the data file of the image that it overwrites, and no other", function()
    assert.equal(0, create("-q", "-f", "qcow2", "-o", "data_file=d,data_file_raw=on", "x", "64k").code)
    qemu.io(dir .. "/x", { "write -P 7 0 64k" })
    assert.equal(0, create("-q", "-f", "qcow2", "-o", "data_file=./d", "x", "64k").code)
    assert.equal(("\0"):rep(65536), sh.slurp(dir .. "/d"))
    qemu.io(dir .. "/x", { "write -P 7 0 64k" })
    refused("qcow2: y: " .. exists:match("^qcow2: x: (.*)$"), "-q", "-f", "qcow2", "-o", "data_file=d", "y", "64k")
    assert.equal(("\7"):rep(65536), sh.slurp(dir .. "/d"))
  end)

  it("keeps a data file, byte for byte, as the disk's contents", function()
    local bytes = ("precious"):rep(20000):sub(1, 131072 + 512)
    for _, option in ipairs({ "data_file_raw=on", "data_file_raw=off", "extended_l2=on", "cluster_size=512" }) do
      sh.spit(dir .. "/d", bytes)
      assert.equal("", create("-q", "-f", "qcow2", "-o", "data_file=d,keep_data_file=on," .. option, "x").stderr)
      assert.equal(bytes, sh.slurp(dir .. "/d"))
      assert.is_true(qemu.sound(dir .. "/x"))
      assert.equal(bytes, qemu.read_all(dir .. "/x", dir .. "/scratch"))
    end
  end)

  for _, case in ipairs({
    { "data_file=d,keep_data_file=on", "4k", "The data file has 8192 bytes and does not fit a disk of 4096 bytes: "
      .. "its end would be out of reach" },
    { "data_file=d,keep_data_file=on,data_file_raw=on", "12k", "The data file has 8192 bytes and does not fit a disk "
      .. "of 12288 bytes: it is too short" },
    { "data_file=odd,keep_data_file=on", nil, "The data file has 1000 bytes and does not fit a disk of 1000 bytes: a "
      .. "disk is a whole number of 512-byte sectors" },
    { "data_file=none,keep_data_file=on", nil, "Could not open 'none': No such file or directory" },
    { "keep_data_file=on", "1M", "keep_data_file requires data_file" },
    { "data_file=d,keep_data_file=on,preallocation=full", nil, "keep_data_file and preallocation cannot be used at "
      .. "the same time: the data file is not written to" },
    { "data_file=d,keep_data_file=on,backing_file=base.raw,backing_fmt=raw", nil, "Backing file and keep_data_file "
      .. "cannot be used at the same time: what the data file holds hides all of the backing file" },
    { "data_file=d,data_file_raw=on,backing_file=base.raw,backing_fmt=raw", "8k", "Backing file and data-file-raw "
      .. "cannot be used at the same time" },
    { "compat=0.10,data_file=d", "8k", "External data files are only supported with compatibility level 1.1 and "
      .. "above (use version=v3 or greater)" },
    { "data_file=x", "1M", "'x' cannot be its own data file" },
    { "data_file=link", "1M", "Could not create 'link': File exists" },
    { "data_file=", "1M", "The data file's name is empty or has a NUL in it" },
    { "data_file=nodir/d", "1M", "Could not create 'nodir/d': No such file or directory" },
  }) do
    it(("refuses -o %s %s"):format(case[1], case[2] or ""), function()
      sh.spit(dir .. "/d", ("precious"):rep(1024))
      sh.spit(dir .. "/odd", ("p"):rep(1000))
      assert(lfs.link("x", dir .. "/link", true))
      refused("qcow2: x: " .. case[3] .. "\n", "-q", "-f", "qcow2", "-o", case[1], "x", case[2])
      assert.equal(("precious"):rep(1024), sh.slurp(dir .. "/d"))
      assert.equal(("p"):rep(1000), sh.slurp(dir .. "/odd"))
    end)
  end

  it("knows a hard link to the image as the image", function()
    sh.spit(dir .. "/x", "precious")
    assert(lfs.link(dir .. "/x", dir .. "/hard"))
    refused("qcow2: x: 'x' cannot be its own data file\n",
      "-q", "-f", "qcow2", "-o", "data_file=hard,overwrite=on", "x", "1M")
    assert.equal("precious", sh.slurp(dir .. "/x"))
  end)

  it("makes the data file beside the image and stores its name as given", function()
    lfs.mkdir(dir .. "/sub")
    assert.equal(0, create("-q", "-f", "qcow2", "-o", "data_file=d", "sub/x", "1M").code)
    assert.equal(1 << 20, lfs.attributes(dir .. "/sub/d", "size"))
    local image <close> = decoder.open(dir .. "/sub/x")
    assert.equal("d", image.extensions.data_file.data)
  end)

  it("takes back what it made when the host has no room, and only that", function()
    local limited = ("ulimit -f 100; trap '' XFSZ; exec %s/bin/qcow2 create -q -f qcow2 -o %%s x 4M"):format(sh.build())
    for _, case in ipairs({ { "preallocation=full", "" }, { "data_file=d,preallocation=full", "" },
      { "data_file=d", "" }, { "preallocation=full", "x" }, { "data_file=d", "d" } }) do
      for _, name in ipairs({ "x", "d" }) do
        os.remove(dir .. "/" .. name)
      end
      if case[2] ~= "" then
        sh.spit(dir .. "/" .. case[2], "")
      end
      local before = names(dir)
      local result = sh.run(limited:format(case[1]), { cwd = dir })
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("File too large", 1, true), result.stderr)
      assert.equal(before, names(dir))
    end
  end)

  describe("on a block device", function()
    local device

    before_each(function()
      sh.spit(dir .. "/host", ("\xa5"):rep(8 << 20))
      device = sh.run({ "losetup", "-f", "--show", dir .. "/host" }).stdout:match("^(/dev/%S+)")
    end)

    after_each(function()
      if device then
        sh.check({ "losetup", "-d", device })
      end
    end)

    it("makes images that show nothing of what was there", function()
      if not device then
        return pending("no loop devices here")
      end
      for _, option in ipairs({ "preallocation=off", "preallocation=metadata", "preallocation=full" }) do
        assert.equal("", create("-q", "-f", "qcow2", "-o", option, device, "4M").stderr)
        assert.is_true(qemu.sound(device))
        assert.is_true(qemu.read_all(device, dir .. "/scratch") == ("\0"):rep(4 << 20))
      end
    end)

    it("refuses what does not fit, and data files unless told", function()
      if not device then
        return pending("no loop devices here")
      end
      local result = create("-q", "-f", "qcow2", "-o", "preallocation=full", device, "8M")
      assert.equal(("qcow2: %s: The device has 8388608 bytes, 8716288 are needed\n"):format(device), result.stderr)
      result = create("-q", "-f", "qcow2", "-o", "data_file=" .. device, "x", "1M")
      assert.equal(("qcow2: x: Data file '%s' exists and is a block device; keep_data_file=on makes what it holds the "
        .. "disk's contents, overwrite=on discards it\n"):format(device), result.stderr)
      assert.is_true(sh.slurp(dir .. "/host") == ("\xa5"):rep(8 << 20))
      assert.equal("", create("-q", "-f", "qcow2", "-o", "keep_data_file=on,data_file=" .. device, "x", "1M").stderr)
      qemu.io(dir .. "/x", { "read -P 0xa5 0 1M" })
      assert.is_true(sh.slurp(dir .. "/host") == ("\xa5"):rep(8 << 20))
    end)
  end)

  it("preallocates a terabyte without holding its tables", function()
    if sh.build():find("asan", 1, true) then
      return pending("address space cannot be limited under this sanitizer")
    end
    local result = sh.run(("ulimit -v 60000; exec %s/bin/qcow2 create -q -f qcow2 -o preallocation=metadata x 1T")
      :format(sh.build()), { cwd = dir })
    assert.equal("", result.stderr)
    assert.equal(0, result.code)
    assert.is_true(lfs.attributes(dir .. "/x", "blocks") * 512 < 200 << 20)
    local image <close> = decoder.open(dir .. "/x")
    local last = image.header.l1_table_offset + 8 * (image.header.l1_size - 1)
    local l2 = string.unpack(">i8", image:pread(last, 8)) & 0x00fffffffffffe00
    -- The last entry of the last table leads to the last cluster of the file.
    local entry = string.unpack(">i8", image:pread(l2 + 65536 - 8, 8)) & 0x00fffffffffffe00
    assert.equal(lfs.attributes(dir .. "/x", "size") - 65536, entry)
    os.remove(dir .. "/x")
  end)
end)
