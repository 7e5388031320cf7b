-- SPDX-License-Identifier: MIT
-- Images made by `qcow2 create` beside those that qemu-img makes of the same words: the same line, the same bytes
-- where nothing is preallocated, sound, described and mapped alike, and QEMU goes on writing to them.
local decoder = require("spec.support.decoder")
local judge = require("spec.support.judge")
local lfs = require("lfs")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

-- Options of -o, the size, and what makes a case special:
--   same = false     the layout differs (preallocation, tables that outgrow a cluster)
--   words            further words before the file
local CASES = {
  { "", "1M" }, { "", "0" }, { "", "512" }, { "", "1000" }, { "", "65536" }, { "", "65537" }, { "", "20G" },
  { "", "64T", same = false }, { "compat=0.10", "10M" }, { "compat=v2,cluster_size=4k", "10M" },
  { "compat=1.1", "10M" }, { "compat=v3", "10M" },
  { "cluster_size=512", "1M" }, { "cluster_size=1k", "1M" }, { "cluster_size=2k", "10M" },
  { "cluster_size=4k", "10M" }, { "cluster_size=8k", "10M" }, { "cluster_size=16k", "10M" },
  { "cluster_size=32k", "10M" }, { "cluster_size=128k", "10M" }, { "cluster_size=256k", "10M" },
  { "cluster_size=512k", "10M" }, { "cluster_size=1M", "10M" }, { "cluster_size=2M", "10M" },
  { "cluster_size=512", "1G", same = false }, { "cluster_size=512,compat=0.10", "64M" },
  { "refcount_bits=1", "10M" }, { "refcount_bits=2", "10M" }, { "refcount_bits=4", "10M" },
  { "refcount_bits=8", "10M" }, { "refcount_bits=16", "10M" }, { "refcount_bits=32", "10M" },
  { "refcount_bits=64", "10M" }, { "refcount_bits=64,cluster_size=512", "3M", same = false },
  { "lazy_refcounts=on", "10M" }, { "nolazy_refcounts", "10M" }, { "lazy_refcounts", "10M" },
  { "extended_l2=on", "10M" }, { "extended_l2=on,cluster_size=16k", "10M" },
  { "extended_l2=on,cluster_size=2M", "100M" }, { "compression_type=zstd", "10M" },
  { "compression_type=zlib,lazy_refcounts=on,refcount_bits=8,cluster_size=4k", "10M" },
  { "compression_type=zstd,extended_l2=on,cluster_size=32k,refcount_bits=32", "10M" },
  { "preallocation=off", "10M" },
  { "preallocation=metadata", "10M", same = false }, { "preallocation=metadata", "100000k", same = false },
  { "preallocation=metadata,cluster_size=512", "3M", same = false },
  { "preallocation=metadata,refcount_bits=1", "10M", same = false },
  { "preallocation=metadata,refcount_bits=64,cluster_size=1k", "10M", same = false },
  { "preallocation=metadata,extended_l2=on", "10M", same = false },
  { "preallocation=metadata,compat=0.10", "10M", same = false },
  { "preallocation=metadata,lazy_refcounts=on,compression_type=zstd", "10M", same = false },
  { "preallocation=metadata", "0", same = false }, { "preallocation=metadata", "100G", same = false },
  { "preallocation=falloc", "4M", same = false }, { "preallocation=falloc,cluster_size=4k", "4M", same = false },
  { "preallocation=falloc,extended_l2=on", "4M", same = false },
  { "preallocation=full", "4M", same = false }, { "preallocation=full,cluster_size=2M", "4M", same = false },
  { "backing_file=base.qcow2,backing_fmt=qcow2", nil }, { "backing_file=base.raw,backing_fmt=raw", nil },
  { "backing_file=base.raw,backing_fmt=raw,compat=0.10", "10M" },
  { "backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=512", "1M" },
  { "backing_file=base.qcow2,backing_fmt=qcow2,extended_l2=on", "10M" },
  { "backing_file=base.qcow2,backing_fmt=qcow2,extended_l2=on,preallocation=metadata", "10M", same = false },
  { "", nil, words = { "-b", "base.qcow2", "-F", "qcow2" } },
  { "cluster_size=128k", "10M", words = { "-b", "base.raw", "-F", "raw" } },
  { "", "10M", words = { "-u", "-b", "base.raw", "-F", "raw" } },
  { "data_file=disk.raw", "10M" }, { "data_file=disk.raw", "1000" },
  { "data_file=disk.raw,extended_l2=on,cluster_size=16k", "10M" },
  { "data_file=disk.raw,backing_file=base.raw,backing_fmt=raw", "3M" },
  { "data_file=disk.raw,preallocation=metadata", "10M", same = false },
  { "data_file=disk.raw,preallocation=metadata,extended_l2=on", "10M", same = false },
  { "data_file=disk.raw,preallocation=falloc", "4M", same = false },
  { "data_file=disk.raw,preallocation=full", "4M", same = false },
  { "data_file=disk.raw,data_file_raw=on", "10M", same = false },
  { "data_file=disk.raw,data_file_raw=on,preallocation=metadata,lazy_refcounts=on", "10M", same = false },
  { "data_file=disk.raw,data_file_raw=on,cluster_size=1M,preallocation=full", "4M", same = false },
  { "data_file=disk.raw,data_file_raw=on,refcount_bits=64,cluster_size=512", "1M", same = false },
  { "data_file=disk.raw,data_file_raw=off", "10M" },
  { "data_file=disk.raw,data_file_raw=on", "0", same = false },
}

-- How much of the host an empty image takes is the layout's business.
local function described(path)
  local info = qemu.info(path)
  info["actual-size"], info.filename, info["full-backing-filename"] = nil, nil, nil
  return info
end

-- Maximal runs. In another layout data lies elsewhere, and whether the host has holes under it differs too.
local function mapped(path, same)
  local runs = {}
  for _, e in ipairs(qemu.map(path)) do
    local what = ("depth %d present %s data %s"):format(e.depth, e.present, e.data)
    if same then
      what = ("%s zero %s at %s"):format(what, e.zero, e.offset)
    elseif not e.data then
      what = ("%s zero %s"):format(what, e.zero)
    end
    local last = runs[#runs]
    if last and last.what == what and not same then
      last.length = last.length + e.length
    else
      runs[#runs + 1] = { start = e.start, length = e.length, what = what }
    end
  end
  for i, run in ipairs(runs) do
    runs[i] = ("%d+%d %s"):format(run.start, run.length, run.what)
  end
  return table.concat(runs, "\n")
end

-- Bytes that the host keeps for a file, holes left out.
local function spent(path)
  return lfs.attributes(path, "blocks") * 512
end

-- Writes at the start, in the middle and at the end of the disk, as far as it goes, and reads it back.
local function go_on_writing(path, size)
  if size >= 4096 then
    local middle, quarter = size // 2 // 512 * 512, size // 4 // 512 * 512
    qemu.io(path, { "write -P 17 0 512", ("write -P 18 %d 1024"):format(middle),
      ("write -P 19 %d 512"):format(size - 512), ("write -z %d 512"):format(quarter), "read -P 17 0 512",
      ("read -P 18 %d 1024"):format(middle), ("read -P 19 %d 512"):format(size - 512),
      ("read -P 0 %d 512"):format(quarter) })
  elseif size > 0 then
    qemu.io(path, { "write -P 17 0 512", "read -P 17 0 512" })
  end
end

describe("qcow2 create beside qemu-img create", function()
  local ours, theirs

  lazy_setup(function()
    ours, theirs = tmp.dir("ours"), tmp.dir("theirs")
    for _, dir in ipairs({ ours, theirs }) do
      qemu.create(dir .. "/base.qcow2", { size = "3M" })
      qemu.io(dir .. "/base.qcow2", { "write -P 1 64k 128k" })
      qemu.create(dir .. "/base.raw", { size = "2M", format = "raw" })
      qemu.io(dir .. "/base.raw", { "write -P 2 0 64k" }, { format = "raw" })
    end
  end)

  before_each(function()
    for _, name in ipairs({ "image", "disk.raw", "x" }) do
      os.remove(ours .. "/" .. name)
      os.remove(theirs .. "/" .. name)
    end
  end)

  for _, case in ipairs(CASES) do
    local words = { "create", "-f", "qcow2", table.unpack(case.words or {}) }
    if case[1] ~= "" then
      words[#words + 1], words[#words + 2] = "-o", case[1]
    end
    words[#words + 1], words[#words + 2] = "image", case[2]
    local same = case.same ~= false

    it("makes what " .. table.concat(words, " ") .. " says", function()
      local told = sh.check({ "qemu-img", table.unpack(words) }, { cwd = theirs })
      local result = sh.qcow2(words, { cwd = ours })
      assert.equal("", result.stderr)
      assert.equal(0, result.code)
      assert.equal(told.stdout, result.stdout)

      local a, b = ours .. "/image", theirs .. "/image"
      local info = described(a)
      assert.same(described(b), info)
      local fine, report = qemu.sound(a)
      assert.is_true(fine, report)
      local extended_raw = case[1]:find("extended_l2=on", 1, true) and case[1]:find("data_file_raw=on", 1, true)
      if not extended_raw then
        assert.equal(mapped(b, same), mapped(a, same))
      end
      if same then
        -- Ours end on a sector.
        local bytes = sh.slurp(b)
        assert.is_nil(judge.bytes(sh.slurp(a), bytes .. ("\0"):rep(-#bytes % 512), "the image"))
      end
      do
        local decoded <close> = decoder.open(a)
        assert.same({}, decoded:problems())
        local judged <close> = decoder.open(b)
        local fields = {}
        for name, value in pairs(judged.header) do
          fields[name] = value
        end
        if not same then
          -- Where QEMU put tables that it had to move when they grew.
          for _, name in ipairs({ "refcount_table_offset", "refcount_table_clusters", "l1_table_offset" }) do
            fields[name] = decoded.header[name]
          end
        end
        assert.same(fields, decoded.header)
        for i, extension in ipairs(judged.extensions) do
          assert.same(extension, decoded.extensions[i])
        end
        assert.equal(#judged.extensions, #decoded.extensions)
      end

      local size = info["virtual-size"]
      if case[1]:find("data_file", 1, true) then
        assert.equal(size, lfs.attributes(ours .. "/disk.raw", "size"))
        if case[1]:find("=full", 1, true) or case[1]:find("=falloc", 1, true) then
          assert.is_true(spent(ours .. "/disk.raw") >= size)
        end
      elseif case[1]:find("=full", 1, true) or case[1]:find("=falloc", 1, true) then
        assert.is_true(spent(a) >= size)
      elseif size <= 1 << 30 then
        assert.is_true(spent(a) < 1 << 20)
      end

      if size <= 1 << 30 then
        go_on_writing(a, size)
        fine, report = qemu.sound(a)
        assert.is_true(fine, report)
      end
    end)
  end

  it("makes every subcluster of a raw data file count, where QEMU forgets them", function()
    for _, case in ipairs({ "", ",preallocation=metadata" }) do
      sh.check({ sh.build() .. "/bin/qcow2", "create", "-q", "-f", "qcow2", "-o",
        "data_file=disk.raw,data_file_raw=on,extended_l2=on,cluster_size=32k" .. case, "image", "100k" },
      { cwd = ours })
      qemu.io(ours .. "/disk.raw", { "write -P 7 0 100k" }, { format = "raw" })
      local fine, report = qemu.sound(ours .. "/image")
      assert.is_true(fine, report)
      qemu.io(ours .. "/image", { "read -P 7 0 100k" })
      os.remove(ours .. "/disk.raw")
    end
  end)

  it("makes a raw data file exactly as long as the disk", function()
    sh.check({ sh.build() .. "/bin/qcow2", "create", "-q", "-f", "qcow2", "-o",
      "data_file=disk.raw,data_file_raw=on", "image", "100000" }, { cwd = ours })
    assert.equal(100352, lfs.attributes(ours .. "/disk.raw", "size"))
    assert.equal(100352, qemu.info(ours .. "/image")["virtual-size"])
  end)

  for _, words in ipairs({ { "x", "1M" }, { "-f", "raw", "x", "1000" },
    { "-f", "raw", "-o", "preallocation=full", "x", "3M" },
    { "-f", "raw", "-o", "preallocation=falloc", "x", "3M" }, { "-f", "raw", "-o", "size=1M", "x" },
    { "-f", "raw", "x", "0" } }) do
    it("makes raw disks: create " .. table.concat(words, " "), function()
      local told = sh.check({ "qemu-img", "create", table.unpack(words) }, { cwd = theirs })
      local result = sh.qcow2({ "create", table.unpack(words) }, { cwd = ours })
      assert.equal("", result.stderr)
      assert.equal(told.stdout, result.stdout)
      assert.is_true(sh.slurp(theirs .. "/x") == sh.slurp(ours .. "/x"))
      assert.equal(spent(theirs .. "/x") >= 3 << 20, spent(ours .. "/x") >= 3 << 20)
    end)
  end
end)
