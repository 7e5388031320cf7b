-- SPDX-License-Identifier: MIT
-- `qcow2 convert -O qcow2` beside qemu-img's: every option of creation, from every kind of source; sound, the same
-- disk, described alike, the same bytes on every run and with any number of threads; QEMU goes on writing to it.
local lfs = require("lfs")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local dir
local KIB, MIB = 1 << 10, 1 << 20

-- Zeros, text, noise and repetition in pieces of all sizes, an odd length at the end.
local function contents(length)
  local r, parts, at = random.new(11), {}, 0
  local text = ("The quick brown fox jumps over the lazy dog. "):rep(200)
  while at < length do
    local piece = math.min(r:pick({ 512, 4096, 5000, 65536, 70000, 300000 }), length - at)
    local kind = r:int(1, 5)
    local bytes
    if kind == 1 then
      bytes = r:bytes(piece)
    elseif kind == 2 then
      bytes = text:rep(piece // #text + 1):sub(1, piece)
    elseif kind == 3 then
      bytes = string.char(r:int(1, 255)):rep(piece)
    else
      bytes = ("\0"):rep(piece)
    end
    parts[#parts + 1] = bytes
    at = at + piece
  end
  return table.concat(parts)
end

-- name -> words that name the source on the command line
local SOURCES = {
  { "raw", "-f", "raw", "disk.raw" },
  { "qcow2", "plain.qcow2" },
  { "compressed", "packed.qcow2" },
  { "chain", "top.qcow2" },
  { "subclusters", "subs.qcow2" },
  { "snapshot", "-l", "first", "snap.qcow2" },
  { "two disks", "-f", "qcow2", "top.qcow2", "snap.qcow2" },
}

-- -o lists; `words`: what else is said.
local CASES = {
  { "" }, { "compat=0.10" }, { "compat=v3,lazy_refcounts=on" },
  { "cluster_size=512" }, { "cluster_size=1k" }, { "cluster_size=2k" }, { "cluster_size=4k" }, { "cluster_size=8k" },
  { "cluster_size=16k" }, { "cluster_size=32k" }, { "cluster_size=128k" }, { "cluster_size=256k" },
  { "cluster_size=512k" }, { "cluster_size=1M" }, { "cluster_size=2M" },
  { "refcount_bits=1" }, { "refcount_bits=2" }, { "refcount_bits=4" }, { "refcount_bits=8" },
  { "refcount_bits=32" }, { "refcount_bits=64" }, { "refcount_bits=64,cluster_size=512" },
  { "extended_l2=on" }, { "extended_l2=on,cluster_size=16k" }, { "extended_l2=on,cluster_size=2M" },
  { "compression_type=zstd" },
  { "", words = { "-c" } }, { "compression_type=zstd", words = { "-c" } },
  { "cluster_size=512", words = { "-c" } }, { "cluster_size=4k", words = { "-c" } },
  { "cluster_size=2M", words = { "-c" } }, { "cluster_size=2M,compression_type=zstd", words = { "-c" } },
  { "extended_l2=on", words = { "-c" } }, { "refcount_bits=1,cluster_size=64k", words = { "-c" } },
  { "refcount_bits=2,cluster_size=64k", words = { "-c" } }, { "compat=0.10,cluster_size=64k", words = { "-c" } },
  { "", words = { "-c", "-S", "0" } }, { "", words = { "-S", "0" } }, { "", words = { "-S", "1M" } },
  { "", words = { "-m", "16", "-W" } }, { "", words = { "-t", "writeback" } },
  { "preallocation=metadata" }, { "preallocation=falloc" }, { "preallocation=full" },
  { "preallocation=metadata,extended_l2=on" }, { "preallocation=metadata,cluster_size=4k,lazy_refcounts=on" },
  { "data_file=@.data" }, { "data_file=@.data,cluster_size=4k" }, { "data_file=@.data,extended_l2=on" },
  { "data_file=@.data,data_file_raw=on" }, { "data_file=@.data,data_file_raw=on,cluster_size=2M" },
  { "data_file=@.data,preallocation=metadata" }, { "data_file=@.data,preallocation=full" },
  { "data_file=@.data,data_file_raw=on,lazy_refcounts=on", words = { "-S", "0" } },
}

local function path(name)
  return dir .. "/" .. name
end

local function words_of(case, source, target)
  local words = { "convert", "-O", "qcow2", table.unpack(case.words or {}) }
  if case[1] ~= "" then
    words[#words + 1] = "-o"
    words[#words + 1] = (case[1]:gsub("@", target))
  end
  for i = 2, #source do
    words[#words + 1] = source[i]
  end
  words[#words + 1] = target
  return words
end

local function ours(case, source, target, ...)
  local words = words_of(case, source, target)
  for _, word in ipairs({ ... }) do
    table.insert(words, 2, word)
  end
  local result = sh.qcow2(words, { cwd = dir })
  assert.equal("", result.stderr)
  assert.equal("", result.stdout)
  assert.equal(0, result.code)
end

local function theirs(case, source, target)
  sh.check({ "qemu-img", table.unpack(words_of(case, source, target)) }, { cwd = dir })
end

local function described(name)
  local info = qemu.info(path(name))
  info["actual-size"], info.filename, info["full-backing-filename"] = nil, nil, nil
  info.children = nil
  local data = info["format-specific"].data
  data["data-file"] = data["data-file"] and data["data-file"]:gsub("^%w+", "X")
  return info
end

local function same_disk(a, b)
  local result = qemu.img({ "compare", a, b }, { cwd = dir })
  assert.equal(0, result.code, result.stdout .. result.stderr)
end

local function sound(name)
  assert.is_true(qemu.sound(path(name)))
end

local function remove(...)
  for _, name in ipairs({ ... }) do
    os.remove(path(name))
    os.remove(path(name .. ".data"))
  end
end

local function exists(name)
  return lfs.attributes(path(name)) ~= nil
end

lazy_setup(function()
  dir = tmp.dir()
  sh.spit(path("disk.raw"), contents(5 * MIB + 3 * 512))
  qemu.convert(path("disk.raw"), path("plain.qcow2"), { format = "qcow2", source_format = "raw" })
  sh.check({ "qemu-img", "convert", "-c", "-O", "qcow2", "plain.qcow2", "packed.qcow2" }, { cwd = dir })
  qemu.io(path("packed.qcow2"), { "write -P 7 100k 30k", "write -z 1M 64k" })
  qemu.create(path("base.qcow2"), { size = "4M", cluster_size = 4096 })
  qemu.io(path("base.qcow2"), { "write -P 1 0 300k", "write -P 2 1M 70k", "write -z 2M 64k", "write -P 9 3M 1M" })
  qemu.create(path("top.qcow2"), { backing_file = "base.qcow2", backing_fmt = "qcow2", size = "6M" })
  qemu.io(path("top.qcow2"), { "write -P 3 64k 5k", "write -z 1M 64k", "write -c -P 4 5M 64k", "discard 3M 128k" })
  qemu.create(path("subs.qcow2"), { backing_file = "base.qcow2", backing_fmt = "qcow2", extended_l2 = true,
    size = "5M" })
  qemu.io(path("subs.qcow2"), { "write -P 5 66k 2k", "write -z 130k 4k", "write -P 6 4M 3k", "write -z 3M 256k" })
  sh.check({ "qemu-img", "convert", "-O", "qcow2", "plain.qcow2", "snap.qcow2" }, { cwd = dir })
  qemu.snapshot(path("snap.qcow2"), "-c", "first")
  qemu.io(path("snap.qcow2"), { "write -P 2 0 1M", "write -z 2M 1M" })
end)

describe("convert -O qcow2", function()
  local function check(case, source)
    remove("theirs", "ours")
    theirs(case, source, "theirs")
    ours(case, source, "ours")
    sound("ours")
    same_disk("theirs", "ours")
    assert.same(described("theirs"), described("ours"))
    local bytes = sh.slurp(path("ours"))
    local data = case[1]:find("data_file=") and sh.slurp(path("ours.data"))
    if data and case[1]:find("data_file_raw=on") then
      -- QEMU makes its file longer, whole clusters.
      assert.is_true(data == sh.slurp(path("theirs.data")):sub(1, #data))
    end
    -- Again, over what is there.
    for _, threads in ipairs({ "1", "4" }) do
      ours(case, source, "ours", "-m" .. threads)
      assert.is_true(bytes == sh.slurp(path("ours")), threads .. " threads")
      assert.is_true(not data or data == sh.slurp(path("ours.data")))
    end
    qemu.io(path("ours"), { "write -P 200 1M 100k", "read -P 200 1M 100k", "write -z 64k 64k" })
    sound("ours")
  end

  for i, case in ipairs(CASES) do
    for j, source in ipairs(SOURCES) do
      -- One source a case always, all of them in the long run.
      local tag = (i + j) % #SOURCES == 0 and "" or " #long"
      local title = table.concat({ case[1], table.unpack(case.words or {}) }, " ")
      it(("makes what qemu-img makes, sound and the same every time: %s from %s%s"):format(title, source[1], tag),
        function()
          check(case, source)
        end)
    end
  end

  it("writes no more than qemu-img does: zeros are found and take no place", function()
    for _, source in ipairs(SOURCES) do
      for _, case in ipairs({ { "" }, { "cluster_size=4k" }, { "", words = { "-c" } } }) do
        remove("theirs", "ours")
        theirs(case, source, "theirs")
        ours(case, source, "ours")
        local most = lfs.attributes(path("theirs"), "size")
        assert.is_true(lfs.attributes(path("ours"), "size") <= most + (case.words and most // 50 or 0), source[1])
      end
    end
  end)

  it("never reads holes: a disk of 8 TiB with nothing in it is copied at once", function()
    remove("ours")
    local huge = assert(io.open(path("huge.raw"), "wb"))
    huge:close()
    sh.check({ "truncate", "-s", "8T", path("huge.raw") })
    sh.check({ "sh", "-c", "printf data | dd of=huge.raw bs=1 seek=5T conv=notrunc status=none" }, { cwd = dir })
    local begun = os.time()
    ours({ "" }, { "", "-f", "raw", "huge.raw" }, "ours")
    assert.is_true(os.time() - begun <= 3)
    sound("ours")
    assert.is_true(lfs.attributes(path("ours"), "size") < 4 * MIB)
    local extents = qemu.map(path("ours"))
    assert.equal(3, #extents)
    assert.equal(5 << 40, extents[2].start)
    remove("huge.raw")
  end)

  describe("with a backing file", function()
    local function overlay(name, target, ...)
      local words = { "convert", "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", name, target, ... }
      local result = sh.qcow2(words, { cwd = dir })
      assert.equal("", result.stderr)
      assert.equal(0, result.code)
    end

    for _, source in ipairs({ "top.qcow2", "subs.qcow2", "plain.qcow2", "packed.qcow2" }) do
      for _, options in ipairs({ "cluster_size=64k", "cluster_size=4k", "extended_l2=on", "cluster_size=2M",
        "compat=0.10", "data_file=ours.data" }) do
        it(("leaves out what %s does not have itself: %s"):format(source, options), function()
          remove("ours")
          overlay(source, "ours", "-o", options)
          sound("ours")
          same_disk(source, "ours")
          assert.equal("base.qcow2", qemu.info(path("ours"))["backing-filename"])
          if source == "top.qcow2" and options == "cluster_size=64k" then
            for _, e in ipairs(qemu.map(path("ours"))) do
              local own = e.depth == 0
              assert.is_true(own == (e.start == 64 * KIB or e.start == MIB or e.start == 5 * MIB
                or (e.start >= 3 * MIB and e.start < 3 * MIB + 128 * KIB) or e.start >= 4 * MIB), tostring(e.start))
            end
          end
        end)
      end
    end

    it("compresses into an overlay", function()
      remove("ours")
      overlay("top.qcow2", "ours", "-c")
      sound("ours")
      same_disk("top.qcow2", "ours")
    end)
  end)

  describe("with -n", function()
    local function into(target, ...)
      local words = { "convert", "-n", "-O", "qcow2", ... }
      words[#words + 1] = target
      local result = sh.qcow2(words, { cwd = dir })
      assert.equal("", result.stderr)
      assert.equal(0, result.code)
    end

    for _, options in ipairs({ {}, { cluster_size = 4096 }, { extended_l2 = true }, { data_file = "ours.data" },
      { data_file = "ours.data", data_file_raw = true }, { refcount_bits = 1 }, { lazy_refcounts = true },
      { compat = "0.10" } }) do
      it("writes over all that an image held: " .. qemu.option_list(options), function()
        for _, words in ipairs({ {}, { "-c" }, { "-S", "0" } }) do
          if not (words[1] == "-c" and options.data_file) then
            remove("ours")
            options.size = "7M"
            qemu.create(path("ours"), options)
            qemu.io(path("ours"), { "write -P 170 0 6900k" })
            if not options.data_file and options.refcount_bits ~= 1 then
              qemu.snapshot(path("ours"), "-c", "before")
            end
            into("ours", "-f", "raw", table.unpack({ words[1] or "disk.raw", words[2] or words[1] and "disk.raw",
              words[2] and "disk.raw" }))
            sound("ours")
            sh.check({ "qemu-img", "convert", "-O", "raw", "ours", "raw" }, { cwd = dir })
            local disk = sh.slurp(path("disk.raw"))
            local got = sh.slurp(path("raw"))
            assert.is_true(got:sub(1, #disk) == disk)
            assert.is_true(got:sub(#disk + 1, 6900 * KIB) == ("\xaa"):rep(6900 * KIB - #disk))
            if not options.data_file and options.refcount_bits ~= 1 then
              sh.check({ "qemu-img", "convert", "-l", "before", "-O", "raw", "ours", "raw" }, { cwd = dir })
              assert.is_true(sh.slurp(path("raw")):sub(1, 6900 * KIB) == ("\xaa"):rep(6900 * KIB))
            end
          end
        end
      end)
    end

    it("takes a target's word that it is zero, and leaves alone what its backing file has", function()
      remove("ours")
      qemu.create(path("ours"), { size = "6M" })
      into("ours", "--target-is-zero", "top.qcow2")
      sound("ours")
      same_disk("top.qcow2", "ours")
      remove("ours")
      qemu.create(path("ours"), { size = "6M", backing_file = "base.qcow2", backing_fmt = "qcow2" })
      into("ours", "-B", "base.qcow2", "top.qcow2")
      sound("ours")
      same_disk("top.qcow2", "ours")
      assert.equal(1, qemu.map(path("ours"))[1].depth)
    end)

    it("opens a target by its options", function()
      remove("ours")
      qemu.create(path("ours"), { size = "6M" })
      local result = sh.qcow2({ "convert", "-n", "--target-image-opts", "top.qcow2",
        "driver=qcow2,file.filename=ours" }, { cwd = dir })
      assert.equal("", result.stderr)
      assert.equal(0, result.code)
      sound("ours")
      same_disk("top.qcow2", "ours")
      sh.spit(path("flat"), ("x"):rep(6 * MIB))
      result = sh.qcow2({ "convert", "-n", "--target-image-opts", "top.qcow2", "driver=raw,file.filename=flat" },
        { cwd = dir })
      assert.equal("", result.stderr)
      same_disk("top.qcow2", "flat")
    end)
  end)

  describe("with --bitmaps", function()
    lazy_setup(function()
      qemu.create(path("marked.qcow2"), { size = "5M" })
      qemu.bitmap(path("marked.qcow2"), "b0", "--add", "-g", "4k")
      qemu.bitmap(path("marked.qcow2"), "b1", "--add")
      qemu.io(path("marked.qcow2"), { "write -P 1 10k 100k", "write -P 2 4M 5k" })
      qemu.bitmap(path("marked.qcow2"), "b1", "--disable")
      qemu.io(path("marked.qcow2"), { "write -P 1 2M 64k" })
    end)

    it("copies them with bits, granularity and whether they go on", function()
      for _, options in ipairs({ "cluster_size=64k", "cluster_size=512", "data_file=ours.data" }) do
        remove("ours")
        ours({ options, words = { "--bitmaps" } }, { "", "marked.qcow2" }, "ours")
        sound("ours")
        same_disk("marked.qcow2", "ours")
        local function list(name)
          return qemu.info(path(name))["format-specific"].data.bitmaps
        end
        assert.same(list("marked.qcow2"), list("ours"))
        local decoder = require("spec.support.decoder")
        local a <close> = decoder.open(path("marked.qcow2"))
        local b <close> = decoder.open(path("ours"))
        for i, bitmap in ipairs(a.bitmaps) do
          assert.same(a:bitmap_ranges(bitmap), b:bitmap_ranges(b.bitmaps[i]))
        end
      end
    end)

    it("refuses those that were not stored, or leaves them out when told to", function()
      sh.check({ "cp", path("marked.qcow2"), path("broken.qcow2") })
      local extension
      do
        local decoder = require("spec.support.decoder")
        local image <close> = decoder.open(path("broken.qcow2"))
        for _, e in ipairs(image.extensions) do
          if e.type == 0x23852875 then
            extension = e
          end
        end
      end
      local directory = (">I8"):unpack(extension.data, 17)
      local file <close> = assert(io.open(path("broken.qcow2"), "r+b"))
      file:seek("set", directory + 12)
      local flags = (">I4"):unpack(file:read(4))
      file:seek("set", directory + 12)
      file:write((">I4"):pack(flags | 1))
      file:close()
      remove("ours")
      local result = sh.qcow2({ "convert", "-O", "qcow2", "--bitmaps", "broken.qcow2", "ours" }, { cwd = dir })
      assert.equal("qcow2: Cannot copy inconsistent bitmap 'b0'\nTry --skip-broken-bitmaps, or use "
        .. "'qcow2 bitmap --remove'\n", result.stderr)
      assert.equal(1, result.code)
      assert.is_false(exists("ours"))
      result = sh.qcow2({ "convert", "-O", "qcow2", "--bitmaps", "--skip-broken-bitmaps", "broken.qcow2", "ours" },
        { cwd = dir })
      assert.equal("qcow2: warning: Skipping inconsistent bitmap 'b0'\n", result.stderr)
      assert.equal(0, result.code)
      local bitmaps = qemu.info(path("ours"))["format-specific"].data.bitmaps
      assert.same({ 1, "b1" }, { #bitmaps, bitmaps[1].name })
    end)
  end)

  describe("that does not end", function()
    lazy_setup(function()
      sh.check({ "sh", "-c", "head -c 300M /dev/urandom >large.raw" }, { cwd = dir })
    end)
    lazy_teardown(function()
      remove("large.raw")
    end)

    it("leaves nothing that looks like an image when it is killed", function()
      for _, words in ipairs({ "", "-c", "-o preallocation=metadata", "-o cluster_size=4k,lazy_refcounts=on",
        "-o data_file=ours.data" }) do
        for _, blocks in ipairs({ 1, 1000, 100000, 300000 }) do
          remove("ours")
          local result = sh.run(([[%s/bin/qcow2 convert -f raw -O qcow2 %s large.raw ours & job=$!
            while [ $(( $(stat -c %%b ours 2>/dev/null || echo 0) + $(stat -c %%b ours.data 2>/dev/null || echo 0) )) \
              -lt %d ] && kill -0 $job 2>/dev/null; do :; done
            kill -KILL $job 2>/dev/null && echo killed; wait $job; echo $?]]):format(sh.build(), words, blocks),
            { cwd = dir })
          if result.stdout == "killed\n137\n" and exists("ours") then
            assert.not_equal("QFI\xfb", sh.slurp(path("ours")):sub(1, 4), words .. " at " .. blocks)
          end
        end
      end
    end)

    it("removes what it made when there is no room, and says so", function()
      for _, words in ipairs({ "", "-c", "-o preallocation=metadata", "-o data_file=ours.data" }) do
        remove("ours")
        local result = sh.run(("ulimit -f 100000; trap '' XFSZ; exec %s/bin/qcow2 convert -f raw -O qcow2 %s "
          .. "large.raw ours"):format(sh.build(), words), { cwd = dir })
        assert.equal(1, result.code, words)
        assert.matches("^qcow2: ours: error while converting qcow2: .*File too large", result.stderr)
        assert.is_false(exists("ours"))
        assert.is_false(exists("ours.data"))
      end
    end)

    it("leaves a file that it was to overwrite empty, and only that", function()
      sh.spit(path("ours"), ("x"):rep(MIB))
      sh.spit(path("bystander"), "precious")
      local result = sh.run(("ulimit -f 100000; trap '' XFSZ; exec %s/bin/qcow2 convert -f raw -O qcow2 large.raw ours")
        :format(sh.build()), { cwd = dir })
      assert.equal(1, result.code)
      assert.equal(0, lfs.attributes(path("ours"), "size"))
      assert.equal("precious", sh.slurp(path("bystander")))
    end)
  end)

  it("keeps to a rate", function()
    remove("ours")
    for _, words in ipairs({ { "-O", "qcow2" }, { "-O", "raw" } }) do
      local result = sh.run({ "sh", "-c", "date +%s%N; \"$0\" \"$@\"; date +%s%N", sh.build() .. "/bin/qcow2",
        "convert", "-r", "4M", words[1], words[2], "-S", "0", "-f", "raw", "disk.raw", "ours" }, { cwd = dir })
      local first, last = result.stdout:match("(%d+)\n(%d+)\n$")
      local seconds = (last - first) / 1e9
      assert.is_true(seconds > 0.9 and seconds < 4, tostring(seconds))
    end
  end)
end)
