-- SPDX-License-Identifier: MIT
-- `convert`: qemu-img's grammar and messages; the same bytes in a raw file. What is in qcow2 targets is
-- spec/interop/convert_spec.lua's.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local dir

local function convert(...)
  return sh.qcow2({ "convert", ... }, { cwd = dir })
end

local function same(a, b)
  return sh.run({ "cmp", a, b }, { cwd = dir }).code == 0
end

local function exists(name)
  local file = io.open(dir .. "/" .. name)
  return file ~= nil and file:close()
end

-- Bytes that the host spends on a file.
local function spent(name)
  return tonumber(sh.check({ "stat", "-c", "%b", dir .. "/" .. name }).stdout) * 512
end

lazy_setup(function()
  dir = tmp.dir()
  qemu.create(dir .. "/base.qcow2", { size = "4M" })
  qemu.io(dir .. "/base.qcow2", { "write -P 1 0 300k", "write -P 2 1M 70k", "write -z 2M 64k" })
  qemu.create(dir .. "/top.qcow2", { backing_file = "base.qcow2", backing_fmt = "qcow2", size = "6M" })
  qemu.io(dir .. "/top.qcow2", { "write -P 3 64k 5k", "write -z 1M 64k", "write -c -P 4 5M 64k" })
  qemu.create(dir .. "/snap.qcow2", { size = "1M" })
  qemu.io(dir .. "/snap.qcow2", { "write -P 1 0 64k" })
  qemu.snapshot(dir .. "/snap.qcow2", "-c", "2")
  qemu.io(dir .. "/snap.qcow2", { "write -P 2 0 64k" })
  qemu.snapshot(dir .. "/snap.qcow2", "-c", "later")
  qemu.io(dir .. "/snap.qcow2", { "write -P 3 0 64k" })
  sh.spit(dir .. "/odd.raw", ("0123456789abcdef"):rep(100):sub(1, 1300))
end)

describe("convert", function()
  for _, words in ipairs({
    { "top.qcow2" },
    { "-O", "raw", "top.qcow2" },
    { "-f", "qcow2", "-O", "raw", "-t", "none", "-T", "none", "-m", "16", "-W", "top.qcow2" },
    { "-Oraw", "-S", "0", "base.qcow2" },
    { "-S", "1M", "top.qcow2" },
    { "-C", "base.qcow2" },
    { "-U", "top.qcow2" },
    { "-f", "raw", "odd.raw" },
    { "base.qcow2", "top.qcow2", "snap.qcow2" },
    { "-l", "2", "snap.qcow2" },
    { "-l", "1", "snap.qcow2" },
    { "-l", "later", "snap.qcow2" },
    { "-l", "snapshot.name=2", "snap.qcow2" },
    { "-l", "snapshot.id=2,snapshot.name=later", "snap.qcow2" },
    { "--image-opts", "driver=qcow2,file.filename=top.qcow2" },
    { "--image-opts", "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=base.qcow2" },
    { "--salvage", "top.qcow2" },
    { "-o", "preallocation=off", "top.qcow2" },
    { "--object", "secret,id=s,data=x", "top.qcow2" },
  }) do
    it(("makes the bytes that qemu-img makes: %s"):format(table.concat(words, " ")), function()
      local theirs = { "convert", table.unpack(words) }
      theirs[#theirs + 1] = "theirs"
      sh.check({ "qemu-img", table.unpack(theirs) }, { cwd = dir })
      local ours = { table.unpack(words) }
      ours[#ours + 1] = "ours"
      local result = convert(table.unpack(ours))
      assert.equal("", result.stderr)
      assert.equal("", result.stdout)
      assert.equal(0, result.code)
      assert.is_true(same("theirs", "ours"))
    end)
  end

  it("leaves holes where the disk is zero, and none with -S 0", function()
    assert.equal(0, convert("top.qcow2", "sparse").code)
    assert.is_true(spent("sparse") <= 512 << 10)
    assert.equal(0, convert("-S", "0", "top.qcow2", "full").code)
    assert.is_true(spent("full") >= 6 << 20)
  end)

  it("writes into a target that exists with -n, over all that was there", function()
    sh.spit(dir .. "/target", ("x"):rep(7 << 20))
    assert.equal(0, convert("-n", "top.qcow2", "target").code)
    assert.equal(0, convert("top.qcow2", "fresh").code)
    local target = sh.slurp(dir .. "/target")
    assert.equal(7 << 20, #target)
    assert.is_true(target:sub(1, 6 << 20) == sh.slurp(dir .. "/fresh"))
  end)

  it("overwrites a target that exists without -n", function()
    sh.spit(dir .. "/target", ("x"):rep(7 << 20))
    assert.equal(0, convert("base.qcow2", "target").code)
    assert.equal(4 << 20, #sh.slurp(dir .. "/target"))
  end)

  it("counts to a hundred with -p, as qemu-img does on a pipe", function()
    local result = convert("-p", "top.qcow2", "ours")
    assert.equal(0, result.code)
    assert.truthy(result.stdout:find("^    %(0%.00/100%%%)\r.*    %(100%.00/100%%%)\r\n$"))
    for step in result.stdout:gmatch("[^\r\n]+") do
      assert.truthy(step:find("^    %(%d+%.%d%d/100%%%)$"))
    end
    assert.equal("", convert("-p", "-q", "top.qcow2", "ours").stdout)
  end)

  it("tells programs how far it is, in JSON on stderr", function()
    local result = convert("--progress=json", "top.qcow2", "ours")
    assert.equal(0, result.code)
    assert.equal("", result.stdout)
    local last
    for line in result.stderr:gmatch("[^\n]+") do
      last = qemu.decode(line)
    end
    assert.same({ complete = true }, last)
  end)

  it("lists the creation options of raw files as qemu-img does", function()
    for _, words in ipairs({ { "-o", "help", "a", "b" }, { "-O", "raw", "-o", "?", "a", "b" } }) do
      local theirs = sh.check({ "qemu-img", "convert", table.unpack(words) }, { cwd = dir }).stdout
      assert.equal(theirs, convert(table.unpack(words)).stdout)
    end
  end)

  describe("refuses, and makes nothing:", function()
    for words, message in pairs({
      [""] = "Must specify image file name",
      ["top.qcow2"] = "Must specify image file name",
      ["nosuch x"] = "Could not open 'nosuch': No such file or directory",
      ["-O bad top.qcow2 x"] = "Unknown file format 'bad'",
      ["-O raw -c top.qcow2 x"] = "Compression not supported for this file format",
      ["-O raw -B base.qcow2 top.qcow2 x"] = "Backing file not supported for file format 'raw'",
      ["-O raw --bitmaps top.qcow2 x"] = "Format driver 'raw' does not support bitmaps",
      ["--skip-broken-bitmaps top.qcow2 x"] = "Use of --skip-broken-bitmaps requires --bitmaps",
      ["-S 5 top.qcow2 x"] = "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to "
        .. "16777216. Select 0 to disable sparse detection (fully allocates output).",
      ["-S x top.qcow2 x"] = "Invalid buffer size for sparse output specified: 'x'.",
      ["-m 17 top.qcow2 x"] = "Invalid number of coroutines specified. Must be between 1 and 16.",
      ["-m x top.qcow2 x"] = "Invalid number of coroutines specified. Must be between 1 and 16.",
      ["-t bad top.qcow2 x"] = "Invalid cache option: bad",
      ["-T bad top.qcow2 x"] = "Invalid source cache option: bad",
      ["-l nosuch snap.qcow2 x"] = "Failed to load snapshot: Can't find snapshot",
      ["-l snapshot.id=1,snapshot.name=later snap.qcow2 x"] = "Failed to load snapshot: Can't find snapshot",
      ["-l snapshot.nme=x snap.qcow2 x"] = "Invalid parameter 'snapshot.nme'",
      ["-l 1 snap.qcow2 snap.qcow2 x"] = "No support for concatenating multiple snapshot",
      ["--target-is-zero top.qcow2 x"] = "--target-is-zero requires use of -n flag",
      ["--target-image-opts top.qcow2 x"] = "--target-image-opts requires use of -n flag",
      ["-n -o size=5 top.qcow2 x"] = "-o has no effect when skipping image creation",
      ["-o ,a top.qcow2 x"] = "Invalid option list: ,a",
      ["-o foo=1 top.qcow2 x"] = "Invalid parameter 'foo'",
      ["-o preallocation=bad top.qcow2 x"] = "x: error while converting raw: invalid parameter value: bad",
      ["-c -C top.qcow2 x"] = "Cannot enable copy offloading when -c is used",
      ["-S 4k -C top.qcow2 x"] = "Cannot enable copy offloading when -S is used",
      ["--salvage -C top.qcow2 x"] = "Cannot use copy offloading in salvaging mode",
      ["--progress=xml top.qcow2 x"] = "--progress expects 'json' or nothing, not 'xml'",
    }) do
      it("convert " .. words, function()
        local list = {}
        for word in words:gmatch("%S+") do
          list[#list + 1] = word
        end
        local result = convert(table.unpack(list))
        assert.equal("qcow2: " .. message .. "\n", result.stderr)
        assert.equal("", result.stdout)
        assert.equal(1, result.code)
        assert.is_false(exists("x"))
      end)
    end

    it("a source as its own target", function()
      local before = sh.slurp(dir .. "/base.qcow2")
      local result = convert("base.qcow2", "base.qcow2")
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("^qcow2: base.qcow2: error while converting raw: "))
      assert.is_true(before == sh.slurp(dir .. "/base.qcow2"))
    end)

    it("the backing file of a source as target", function()
      local before = sh.slurp(dir .. "/base.qcow2")
      assert.equal(1, convert("top.qcow2", "base.qcow2").code)
      assert.is_true(before == sh.slurp(dir .. "/base.qcow2"))
    end)

    it("a target in a directory that is not there", function()
      local result = convert("base.qcow2", "nodir/x")
      assert.equal("qcow2: nodir/x: error while converting raw: Could not create 'nodir/x': No such file or "
        .. "directory\n", result.stderr)
      assert.equal(1, result.code)
    end)

    it("with -n a target that is missing or too small", function()
      assert.equal(1, convert("-n", "base.qcow2", "nox").code)
      assert.is_false(exists("nox"))
      sh.spit(dir .. "/small", ("x"):rep(512))
      local result = convert("-n", "base.qcow2", "small")
      assert.equal(1, result.code)
      assert.equal(("x"):rep(512), sh.slurp(dir .. "/small"))
    end)
  end)
end)

describe("convert -O qcow2", function()
  -- The same words to both; what stdout, stderr and the exit code say, with one name for both programs.
  local function both(words)
    local list = {}
    for word in words:gmatch("%S+") do
      list[#list + 1] = word
    end
    local function clear()
      os.remove(dir .. "/x")
      os.remove(dir .. "/x.data")
    end
    clear()
    local theirs = sh.run({ "qemu-img", "convert", table.unpack(list) }, { cwd = dir })
    clear()
    local ours = convert(table.unpack(list))
    return ours, theirs
  end

  it("lists the creation options of qcow2 as qemu-img does, and ours", function()
    for _, words in ipairs({ "-O qcow2 -o help", "-O qcow2 -o help a b", "-O qcow2 -o help a", "-O raw -o help" }) do
      local ours, theirs = both(words)
      assert.equal(0, ours.code)
      local known = ours.stdout:gsub("  keep_data_file=[^\n]*\n", ""):gsub("  overwrite=[^\n]*\n", "")
      assert.equal(theirs.stdout, (known:gsub(" %(default: %w+%)", "")))
    end
  end)

  for _, words in ipairs({
    "-O qcow2 -o foo=1 base.qcow2 x", "-O qcow2 -o cluster_size=3 base.qcow2 x",
    "-O qcow2 -o cluster_size=x base.qcow2 x", "-O qcow2 -o preallocation=xx base.qcow2 x",
    "-O qcow2 -o refcount_bits=7 base.qcow2 x", "-O qcow2 -o lazy_refcounts=maybe base.qcow2 x",
    "-O qcow2 -B base.qcow2 base.qcow2 x", "-O qcow2 -F qcow2 base.qcow2 x",
    "-O qcow2 -o backing_file=base.qcow2 base.qcow2 x", "-O qcow2 -c -o preallocation=full base.qcow2 x",
    "-O qcow2 -o data_file=x.data,data_file_raw=on -B base.qcow2 -F qcow2 base.qcow2 x",
    "-O qcow2 --bitmaps -o compat=0.10 snap.qcow2 x", "-O qcow2 --bitmaps -f raw odd.raw x",
    "-O qcow2 base.qcow2 top.qcow2 -B base.qcow2 x", "-O qcow2 -n -o compat=1.1 base.qcow2 x",
    "-O qcow2 --target-is-zero base.qcow2 x",
    "-O qcow2 base.qcow2 nodir/x", "-O qcow2 --target-image-opts -n base.qcow2 driver=qcow2,file.filename=x",
    "-O raw -o preallocation=metadata base.qcow2 x", "-O qcow2 -o compat=0.10,lazy_refcounts=on base.qcow2 x",
  }) do
    it("says what qemu-img says, and makes nothing: " .. words, function()
      local ours, theirs = both(words)
      assert.equal((theirs.stderr:gsub("qemu%-img: ", "qcow2: ")), ours.stderr)
      assert.equal(theirs.stdout, ours.stdout)
      assert.same({ 1, 1 }, { theirs.code, ours.code })
      assert.is_false(exists("x"))
      assert.is_false(exists("x.data"))
    end)
  end

  for words, message in pairs({
    ["-O qcow2 -c -o data_file=x.data base.qcow2 x"] = "x: error while converting qcow2: Clusters in an external data "
      .. "file cannot be compressed",
    ["-O qcow2 -B nosuch -F qcow2 base.qcow2 x"] = "x: error while converting qcow2: Could not open 'nosuch': "
      .. "No such file or directory\nCould not open backing image.",
    ["-O qcow2 -o data_file=base.qcow2 base.qcow2 x"] = "x: error while converting qcow2: Data file 'base.qcow2' "
      .. "exists and holds data; keep_data_file=on makes what it holds the disk's contents, overwrite=on discards it",
    ["-O qcow2 -o data_file=base.qcow2,overwrite=on -U base.qcow2 x"] = "x: error while converting qcow2: 'base.qcow2' "
      .. "is a file that is read: it cannot be the target too",
    ["-O qcow2 -o data_file=odd.raw,keep_data_file=on base.qcow2 x"] = "keep_data_file is for adopting a data file: "
      .. "convert writes to it",
    ["-O qcow2 -U base.qcow2 base.qcow2"] = "base.qcow2: error while converting qcow2: 'base.qcow2' is a file that is "
      .. "read: it cannot be the target too",
    ["-O qcow2 -U top.qcow2 base.qcow2"] = "base.qcow2: error while converting qcow2: 'base.qcow2' is a file that is "
      .. "read: it cannot be the target too",
    -- As qemu-img says too, but with exit status 0.
    ["-O qcow2 -n --target-is-zero -B base.qcow2 base.qcow2 x"] = "Cannot use --target-is-zero when the destination "
      .. "image has a backing file",
    ["-O qcow2 -r x base.qcow2 x"] = "Invalid rate limit specified: 'x'.",
  }) do
    it("refuses, with the reason, and changes nothing: " .. words, function()
      local before = sh.slurp(dir .. "/base.qcow2")
      local list = {}
      for word in words:gmatch("%S+") do
        list[#list + 1] = word
      end
      os.remove(dir .. "/x")
      local ours = convert(table.unpack(list))
      assert.equal("qcow2: " .. message .. "\n", ours.stderr)
      assert.equal(1, ours.code)
      assert.is_false(exists("x"))
      assert.is_false(exists("x.data"))
      assert.is_true(before == sh.slurp(dir .. "/base.qcow2"))
    end)
  end

  it("makes raw targets with all their space", function()
    for _, mode in ipairs({ "falloc", "full" }) do
      os.remove(dir .. "/x")
      assert.equal(0, convert("-O", "raw", "-o", "preallocation=" .. mode, "top.qcow2", "x").code)
      assert.is_true(spent("x") >= 6 << 20)
      assert.equal(0, convert("-O", "raw", "top.qcow2", "y").code)
      assert.is_true(same("x", "y"))
    end
  end)

  it("takes -o again and again, and a size that means nothing", function()
    local lists = { "-o", "cluster_size=4k", "-o", "compat=0.10,size=1G" }
    assert.equal(0, convert("-O", "qcow2", "top.qcow2", "x", table.unpack(lists)).code)
    local info = qemu.info(dir .. "/x")
    assert.same({ 4096, 6 << 20, "0.10" },
      { info["cluster-size"], info["virtual-size"], info["format-specific"].data.compat })
  end)

  it("shows how far it is with -p, as qemu-img does on a pipe", function()
    local result = convert("-p", "-O", "qcow2", "-c", "top.qcow2", "x")
    assert.equal(0, result.code)
    assert.truthy(result.stdout:find("^    %(0%.00/100%%%)\r.*    %(100%.00/100%%%)\r\n$"))
  end)

  it("overwrites an image that exists, and its own data file", function()
    for _ = 1, 2 do
      local result = convert("-O", "qcow2", "-o", "data_file=own.data", "top.qcow2", "own")
      assert.equal("", result.stderr)
      assert.equal(0, result.code)
    end
    os.remove(dir .. "/x")
    assert.equal(0, convert("top.qcow2", "x").code)
    assert.is_true(sh.slurp(dir .. "/own.data") == sh.slurp(dir .. "/x"))
  end)
end)

describe("convert, given up with Ctrl-C,", function()
  it("removes what it made and ends with 130", function()
    qemu.create(dir .. "/large.qcow2", { size = "1G" })
    qemu.io(dir .. "/large.qcow2", { "write -P 9 0 512M", "write -P 9 512M 512M" })
    for _, words in ipairs({ "-O raw", "-O qcow2", "-c -O qcow2", "-O qcow2 -o data_file=given-up.data" }) do
      local result = sh.run(([[env --default-signal=INT %s/bin/qcow2 convert %s large.qcow2 given-up & job=$!
        blocks() { stat -c %%b given-up given-up.data 2>/dev/null | awk '{ n += $1 } END { print n + 0 }'; }
        while [ "$(blocks)" -lt 100 ] && kill -0 $job; do sleep 0.01; done
        kill -INT $job; wait $job; echo $?]]):format(sh.build(), words), { cwd = dir })
      assert.equal("130\n", result.stdout)
      assert.equal("", result.stderr)
      assert.is_false(exists("given-up"))
      assert.is_false(exists("given-up.data"))
    end
    os.remove(dir .. "/large.qcow2")
  end)

  it("says on SIGUSR1 how far it is, and goes on", function()
    sh.spit(dir .. "/slow.raw", ("x"):rep(8 << 20))
    local said = sh.run(sh.build() .. "/bin/qcow2 convert -r 4M -f raw -O raw slow.raw slow.copy & sleep 1; "
      .. "kill -USR1 $!; wait $!", { cwd = dir })
    assert.equal(0, said.code)
    assert.truthy(said.stderr:find("^    %(%d+%.%d%d/100%%%)\n$"))
  end)
end)
