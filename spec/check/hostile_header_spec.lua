-- SPDX-License-Identifier: MIT
-- SAFETY rules 1, 3 and 12: every header field outside its limits, and the message it gives.
local forge = require "spec.support.forge"
local hostile = require "spec.support.hostile"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

describe("A header field outside its limits is refused:", function()
  -- title, header fields, kind, part of the message, more of the description
  local cases = {
    { "a magic that is not qcow2's", { magic = 0x514649fc }, "format", "not in qcow2 format" },
    { "version 1", { version = 1 }, "unsupported", "Unsupported qcow2 version 1" },
    { "version 4", { version = 4 }, "unsupported", "Unsupported qcow2 version 4" },
    { "version 2^32 - 1", { version = -1 }, "unsupported", "Unsupported qcow2 version 4294967295" },
    { "clusters of 256 bytes", { cluster_bits = 8 }, "corrupt", "Unsupported cluster size: 2^8" },
    { "clusters of 4 MiB", { cluster_bits = 22 }, "corrupt", "Unsupported cluster size: 2^22" },
    { "cluster_bits 0", { cluster_bits = 0 }, "corrupt", "Unsupported cluster size: 2^0" },
    { "cluster_bits 63", { cluster_bits = 63 }, "corrupt", "Unsupported cluster size: 2^63" },
    { "cluster_bits 2^32 - 1", { cluster_bits = -1 }, "corrupt", "Unsupported cluster size: 2^4294967295" },
    { "a header shorter than 104 bytes", { header_length = 103 }, "corrupt", "qcow2 header too short: 103 bytes" },
    { "a header of no bytes", { header_length = 0 }, "corrupt", "qcow2 header too short: 0 bytes" },
    { "a header longer than a cluster", { header_length = 65544 }, "corrupt", "exceeds the cluster size" },
    { "a header of 2^32 - 8 bytes", { header_length = -8 }, "corrupt", "exceeds the cluster size" },
    { "a header length that is no multiple of 8", { header_length = 108 }, "corrupt", "not a multiple of 8" },
    { "refcounts of 128 bits", { refcount_order = 7 }, "corrupt", "may not exceed 64 bits" },
    { "refcount_order 2^32 - 1", { refcount_order = -1 }, "corrupt", "may not exceed 64 bits" },
    { "encryption method 3", { crypt_method = 3 }, "unsupported", "Unsupported encryption method 3" },
    { "compression type 2", { compression_type = 2 }, "unsupported", "Unknown compression type 2" },
    { "a compression type without its feature bit", { compression_type = 1, incompatible_features = 0 }, "corrupt",
      "feature bit, which is clear" },
    { "the compression feature bit without a type", { incompatible_features = 8 }, "corrupt",
      "feature bit, which is set" },
    { "extended L2 entries in clusters of 8 KiB", { cluster_bits = 13, incompatible_features = 16 }, "corrupt",
      "need clusters of 16 KiB" },
    { "a disk of 2^63 bytes", { size = 1 << 63 }, "corrupt", "Disk size 9223372036854775808 is too large" },
    { "a disk larger than its L1 table", { size = 1 << 50 }, "corrupt", "L1 table is too small" },
    { "an L1 table of more than 32 MiB", { l1_size = (4 << 20) + 1 }, "corrupt", "Active L1 table too large" },
    { "an L1 table of 2^32 - 1 entries", { l1_size = -1 }, "corrupt", "Active L1 table too large" },
    { "an L1 table of no entries for a disk with bytes", { l1_size = 0 }, "corrupt", "L1 table is too small" },
    { "an L1 table past the end of the file", { l1_table_offset = 1 << 40 }, "corrupt", "Active L1 table at offset "
      .. "0x10000000000 (8 bytes) lies outside the file" },
    { "an L1 table at 2^64 - 2^16", { l1_table_offset = -65536 }, "corrupt", "lies outside the file" },
    { "an L1 table that runs past the end of the file", { l1_size = 65536 }, "corrupt", "lies outside the file" },
    { "an unaligned L1 table", { l1_table_offset = 196616 }, "corrupt", "is not aligned to a cluster" },
    { "an L1 table on the header", { l1_table_offset = 0 }, "corrupt", "Active L1 table overlaps the header" },
    { "an L1 table on the refcount table", { l1_table_offset = 65536 }, "corrupt",
      "Active L1 table overlaps the Reference count table" },
    { "no refcount table", { refcount_table_clusters = 0 }, "corrupt", "does not contain a reference count table" },
    { "a refcount table of more than 8 MiB", { refcount_table_clusters = 129 }, "corrupt",
      "Reference count table too large" },
    { "a refcount table of 2^32 - 1 clusters", { refcount_table_clusters = -1 }, "corrupt",
      "Reference count table too large" },
    { "a refcount table past the end of the file", { refcount_table_offset = 1 << 62 }, "corrupt",
      "Reference count table at offset" },
    { "a refcount table at 2^64 - 2^16", { refcount_table_offset = -65536 }, "corrupt", "lies outside the file" },
    { "an unaligned refcount table", { refcount_table_offset = 65537 }, "corrupt", "is not aligned to a cluster" },
    { "a refcount table on the header", { refcount_table_offset = 0 }, "corrupt",
      "Reference count table overlaps the header" },
    { "more than 65536 snapshots", { nb_snapshots = 65537, snapshots_offset = 65536 }, "corrupt",
      "Snapshot table too large: 65537 entries" },
    { "2^32 - 1 snapshots", { nb_snapshots = -1 }, "corrupt", "Snapshot table too large" },
    { "a snapshot table past the end of the file", { nb_snapshots = 1, snapshots_offset = 1 << 40 }, "corrupt",
      "Snapshot table at offset" },
    { "a snapshot table at 2^64 - 2^16", { nb_snapshots = 1, snapshots_offset = -65536 }, "corrupt",
      "lies outside the file" },
    { "more snapshots than the file has bytes for", { nb_snapshots = 65536, snapshots_offset = 196608 }, "corrupt",
      "lies outside the file" },
    { "an unaligned snapshot table", { nb_snapshots = 1, snapshots_offset = 196609 }, "corrupt",
      "is not aligned to a cluster" },
    { "a snapshot table on the header", { nb_snapshots = 1 }, "corrupt", "Snapshot table overlaps the header" },
    { "a snapshot table on the L1 table", { nb_snapshots = 1, snapshots_offset = 196608 }, "corrupt",
      "Snapshot table overlaps the Active L1 table" },
    { "a snapshot table on the refcount table", { nb_snapshots = 1, snapshots_offset = 65536 }, "corrupt",
      "Snapshot table overlaps the Reference count table" },
    { "a backing file name inside the header's fields", { backing_file_offset = 100, backing_file_size = 4 },
      "corrupt", "Invalid backing file offset 0x64" },
    { "a backing file name past the header cluster", { backing_file_offset = 65537, backing_file_size = 4 },
      "corrupt", "Invalid backing file offset" },
    { "a backing file name at 2^64 - 1", { backing_file_offset = -1, backing_file_size = 4 }, "corrupt",
      "Invalid backing file offset" },
    { "a backing file name of 1024 bytes", { backing_file_offset = 4096, backing_file_size = 1024 }, "corrupt",
      "Backing file name too long: 1024 bytes" },
    { "a backing file name of 2^32 - 1 bytes", { backing_file_offset = 4096, backing_file_size = -1 }, "corrupt",
      "Backing file name too long: 4294967295 bytes" },
    { "a backing file name that leaves the header cluster", { backing_file_offset = 65532, backing_file_size = 5 },
      "corrupt", "Backing file name too long" },
    { "an unknown incompatible feature", { incompatible_features = 1 << 5 }, "unsupported",
      "Unsupported qcow2 feature(s): Unknown incompatible feature: 20" },
    { "the highest incompatible feature", { incompatible_features = 1 << 63 }, "unsupported",
      "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000" },
    { "a raw external data file under encryption",
      { crypt_method = 2, incompatible_features = 4, autoclear_features = 2 }, "conflict", "encrypted image" },
  }
  for _, case in ipairs(cases) do
    local title, header, kind, words = table.unpack(case)
    it(title, function()
      local message, got = hostile.refused({ header = header, size = 1 << 20,
        cluster_bits = header.cluster_bits == 13 and 13 or 16 }, { format = "qcow2" })
      assert.equal(kind, got, message)
      assert.is_truthy(message:find(words, 1, true), message)
      assert.is_truthy(message:find("image.qcow2", 1, true), "the file is not named: " .. message)
    end)
  end

  it("the same through the command line, with exit code 1 and nothing on standard output", function()
    local path = hostile.image({ header = { cluster_bits = 31 } })
    for _, words in ipairs { { "info" }, { "map" }, { "dump" }, { "explain" } } do
      local result = sh.qcow2({ words[1], path, words[1] == "explain" and "0" or nil })
      assert.equal(1, result.code, result.stderr)
      assert.is_truthy(result.stderr:find("^qcow2: "), result.stderr)
      assert.is_truthy(result.stderr:find("Unsupported cluster size", 1, true), result.stderr)
    end
  end)
end)

describe("A header at its limits is accepted:", function()
  local cases = {
    { "clusters of 512 bytes", { header = { cluster_bits = 9, size = 4096 } } },
    { "clusters of 2 MiB", { header = { cluster_bits = 21, size = 1 << 30 } } },
    { "a header that fills its cluster", { header = { cluster_bits = 9, size = 4096, header_length = 512 },
      extension_bytes = "" } },
    { "a header of 104 bytes", { header = { header_length = 104 } } },
    { "a disk of no bytes", { header = { size = 0 } } },
    { "a disk of one byte", { header = { size = 1 } } },
    { "a name of 1023 bytes", { backing_file = ("n"):rep(1023) } },
    { "unknown compatible and autoclear features", { header = { compatible_features = -2, autoclear_features = -4 } } },
    { "the dirty and the corrupt bit", { header = { incompatible_features = 3 } } },
  }
  for _, case in ipairs(cases) do
    it(case[1], function()
      hostile.opened(case[2], function(img) assert.equal("qcow2", img.format) end)
    end)
  end
end)

describe("A file cut inside the header", function()
  it("is refused at every length", function()
    local path = tmp.path()
    local _, chunks = forge.build({})
    forge.write(path, {})
    local whole = sh.slurp(path):sub(1, 200)
    assert.is_true(#chunks > 0)
    for length = 0, 111 do
      sh.spit(path, whole:sub(1, length))
      local message, kind = hostile.refused(path, { format = "qcow2" })
      assert.equal(length < 8 and "format" or "corrupt", kind, length .. ": " .. message)
    end
  end)

  it("is a raw disk to the probe when not even the magic is there", function()
    local qcow2 = require "qcow2"
    local path = tmp.path()
    sh.spit(path, "QFI")
    assert.equal("raw", qcow2.probe(path))
    local img <close> = assert(qcow2.open(path))
    assert.equal("raw", img.format)
    assert.equal(512, img.size)
    assert.equal("QFI" .. ("\0"):rep(509), img:read(0, 512))
  end)
end)

describe("An unknown incompatible feature", function()
  local function refused(names, bits)
    return hostile.refused({ header = { incompatible_features = bits }, feature_names = names })
  end

  it("is named by the image's own table", function()
    local message, kind = refused({ { 0, 40, "time travel" }, { 1, 40, "not this one" } }, 1 << 40)
    assert.equal("unsupported", kind)
    assert.is_truthy(message:find("Unsupported qcow2 feature(s): time travel", 1, true), message)
  end)

  it("is named with its control characters escaped", function()
    local message = refused({ { 0, 40, "a\27[31mb\n\\" } }, 1 << 40)
    assert.is_truthy(message:find([[a\x1b[31mb\x0a\x5c]], 1, true), message)
    assert.is_falsy(message:find("[\1-\31\127]"))
  end)

  it("is named by its number when its name is empty or missing", function()
    local message = refused({ { 0, 40, "" } }, 1 << 40 | 1 << 41)
    assert.is_truthy(message:find("Unknown incompatible feature: 30000000000", 1, true), message)
  end)

  it("is named with all the others, cut where the message is full", function()
    local names = {}
    for bit = 5, 63 do names[#names + 1] = { 0, bit, ("x"):rep(46) } end
    local message = refused(names, ~31)
    assert.is_truthy(message:find(("x"):rep(46) .. ", " .. ("x"):rep(46), 1, true), message)
    assert.is_truthy(message:find(", ...", 1, true), message)
  end)

  it("cannot rename a bit that the specification names", function()
    hostile.opened({ header = { incompatible_features = 1 }, feature_names = { { 0, 0, "harmless" } } }, function(img)
      assert.equal("dirty bit", img.features[1].name)
      assert.equal("harmless", img.feature_names[1].name)
    end)
  end)
end)

describe("A header extension", function()
  it("that runs past the header cluster is refused", function()
    local message, kind = hostile.refused({ extensions = { { type = 0x1234, length = 65536 } } })
    assert.equal("corrupt", kind)
    assert.is_truthy(message:find("runs past the header's end", 1, true), message)
  end)

  it("of 2^32 - 1 bytes is refused", function()
    local message, kind = hostile.refused({ extensions = { { type = 0x1234, length = 0xffffffff } } })
    assert.equal("corrupt", kind)
    assert.is_truthy(message:find("4294967295 bytes", 1, true), message)
  end)

  it("that runs into the backing file's name is refused", function()
    local _, kind = hostile.refused({ header = { backing_file_offset = 120, backing_file_size = 4 },
      extension_bytes = string.pack(">I4I4", 0x1234, 16) .. ("x"):rep(16) })
    assert.equal("corrupt", kind)
  end)

  it("that is unknown is shown and otherwise ignored", function()
    hostile.opened({ extensions = { { type = 0xdeadbeef, data = "\0\1\2" } } }, function(img)
      assert.equal(0xdeadbeef, img.extensions[1].type)
      assert.equal("unknown", img.extensions[1].name)
      assert.equal("\0\1\2", img.extensions[1].data)
    end)
  end)

  it("may come tens of thousands of times", function()
    local bytes = string.pack(">I4I4", 7, 0):rep((1 << 16) // 8 - 15) .. ("\0"):rep(8)
    hostile.opened({ extension_bytes = bytes }, function(img) assert.equal(8177, #img.extensions) end)
  end)

  it("may have any length of feature name table", function()
    for _, length in ipairs { 0, 1, 47, 48, 49, 95 } do
      hostile.opened({ extensions = { { type = 0x6803f857, data = ("\1"):rep(length) } } }, function(img)
        assert.equal(length // 48, #img.feature_names)
      end)
    end
  end)

  it("that names a data file does nothing without the feature bit", function()
    hostile.opened({ extensions = { { type = 0x44415441, data = "/etc/passwd" } } }, function(img)
      assert.is_nil(img.data_file)
      assert.equal(("\0"):rep(10), img:read(0, 10))
    end)
  end)
end)
