-- SPDX-License-Identifier: MIT
-- One damage a recipe: what makes it, what check finds, what qemu-img says of the same file.

local forge = require "spec.support.forge"
local poke = require "spec.support.poke"
local sh = require "spec.support.sh"

local COPIED, COMPRESSED = 1 << 63, 1 << 62
local CLUSTER = 65536
local DISK = 1 << 20 -- what forge makes
local RAW = 2 -- the autoclear bit of a raw external data file

-- Where things lie in what `two` makes: header, refcount table, refcount block, L1, L2, two data clusters.
local L1, L2, DATA = 3 * CLUSTER, 4 * CLUSTER, 5 * CLUSTER

local function two(path, more)
  local description = { clusters = { [0] = { data = ("a"):rep(CLUSTER) }, [1] = { data = ("b"):rep(CLUSTER) } } }
  for key, value in pairs(more or {}) do description[key] = value end
  local at = forge.write(path, description)
  assert(at.l1 == L1 and at.l2[0] == L2 and at.data[0] == DATA, "the layout is another one")
  return at
end

-- Bytes of the one refcount block at cluster 2.
local function refcount_at(cluster) return 2 * CLUSTER + cluster * 2 end

local function external(path, more)
  local description = { data_file = path:match("[^/]+$") .. ".data", data_bytes = path .. ".data",
    clusters = { [0] = { data = ("a"):rep(CLUSTER) }, [1] = { data = ("b"):rep(CLUSTER) } } }
  for key, value in pairs(more or {}) do description[key] = value end
  local at = forge.write(path, description)
  poke.truncate(path .. ".data", 1 << 20)
  return at
end

local function extended(path, entry)
  return forge.write(path, { extended_l2 = true, clusters = { [0] = entry or { data = "x" } } })
end

local function with_bitmap(path, bitmap, header)
  bitmap = bitmap or {}
  return forge.write(path, { bitmaps = { bitmap, header = header } })
end

local function snapshots(path, list, more)
  local description = { clusters = { [0] = { data = "a" } }, snapshots = list }
  for key, value in pairs(more or {}) do description[key] = value end
  return forge.write(path, description)
end

-- title, recipe, what is found, qemu-img's exit code (nil: it cannot look), ours when it is another one.
local damages = {
  -- Header.
  { "the dirty bit", function(path) two(path, { header = { incompatible_features = 1 } }) end, { dirty = 1 }, 0 },
  { "the corrupt bit", function(path) two(path, { header = { incompatible_features = 2 } }) end,
    { ["marked-corrupt"] = 1 }, 0 },
  { "an L1 table behind the end of the file",
    function(path)
      two(path)
      poke.field(path, "l1_table_offset", 1 << 30)
    end, { ["l1-outside"] = 1, leak = 4 }, 2 },
  { "an encryption header behind the end of the file",
    function(path)
      two(path, { header = { crypt_method = 2 },
        extensions = { { type = forge.extension.encryption, data = string.pack(">I8I8", 1 << 30, 4096) } } })
    end, { ["crypto-outside"] = 1 }, nil, 2 },
  { "an encrypted image without an encryption header",
    function(path) two(path, { header = { crypt_method = 2 } }) end, { ["crypto-outside"] = 1 }, nil, 2 },

  -- Reference counts.
  { "a count of 0 for a cluster in use", function(path) two(path, { refcounts = { [5] = 0 } }) end,
    { ["refcount-low"] = 1, ["copied-data"] = 1 }, 2 },
  { "a count of 2 for a cluster with one reference", function(path) two(path, { refcounts = { [6] = 2 } }) end,
    { leak = 1, ["copied-data"] = 1 }, 2 },
  { "counts for clusters that nothing reaches",
    function(path)
      two(path, { length = 10 * CLUSTER })
      for cluster = 7, 9 do poke.u16(path, refcount_at(cluster), 1) end
    end, { leak = 3 }, 3 },
  { "a count of 1 for two references",
    function(path) two(path, { clusters = { [0] = { data = "a", copied = true }, [1] = { host = DATA } } }) end,
    { ["refcount-low"] = 1 }, 2 },
  { "more references than the width counts",
    function(path)
      two(path, { header = { refcount_order = 0 }, clusters = { [0] = { data = "a" }, [1] = { host = DATA } } })
    end, { ["refcount-overflow"] = 1 }, 2 },
  { "no refcount table", function(path)
    two(path)
    poke.field(path, "refcount_table_clusters", 0)
  end, { ["reftable-missing"] = 1, ["refcount-low"] = 5, ["copied-l2"] = 1, ["copied-data"] = 2 }, 2 },
  { "a refcount table behind the end of the file", function(path)
    two(path)
    poke.field(path, "refcount_table_offset", 1 << 30)
  end, { ["reftable-missing"] = 1, ["refcount-low"] = 5, ["copied-l2"] = 1, ["copied-data"] = 2 }, 2 },
  { "reserved bits in a refcount table entry",
    function(path) two(path, { refcount_table = { [0] = 2 * CLUSTER | 8 } }) end, { ["reftable-reserved"] = 1 }, 2 },
  { "a refcount table entry between two clusters",
    function(path) two(path, { refcount_table = { [1] = 2 * CLUSTER + 512 } }) end, { ["refblock-unaligned"] = 1 },
    2 },
  { "a refcount table entry behind the end of the file",
    function(path) two(path, { refcount_table = { [1] = 1 << 30 } }) end, { ["refblock-outside"] = 1 }, 2 },
  { "two refcount table entries for one block",
    function(path) two(path, { refcount_table = { [1] = 2 * CLUSTER } }) end, { ["refblock-shared"] = 1 }, 2 },

  -- Overlaps.
  { "a refcount block on an L2 table",
    function(path) two(path, { refcount_table = { [1] = L2 }, refcounts = { [4] = 2 } }) end,
    { overlap = 1, ["copied-l2"] = 1 }, 2 },
  { "guest data on the refcount table, counted twice",
    function(path)
      two(path, { clusters = { [0] = { data = "a" }, [1] = { host = CLUSTER, copied = false } },
        refcounts = { [1] = 2 } })
    end, { overlap = 1 }, 0, 2 },
  { "guest data on the header, counted once",
    function(path)
      two(path, { header = { refcount_order = 4 }, l2 = { [0] = { [2] = COPIED | 3 * CLUSTER } } })
    end, { overlap = 1, ["refcount-low"] = 1 }, 2 },

  -- L1 entries.
  { "reserved bits in an L1 entry", function(path)
    two(path)
    poke.flip(path, L1, 1 << 60)
  end, { ["l1-reserved"] = 1 }, 2 },
  { "an L1 entry of nothing but COPIED", function(path)
    two(path, { l1 = { [0] = COPIED } })
  end, { ["l1-empty"] = 1, leak = 3 }, 2 },
  { "an L1 entry between two clusters", function(path)
    two(path)
    poke.flip(path, L1, 512)
  end, { ["l2-unaligned"] = 1, leak = 1 }, 2 },
  { "an L1 entry behind the end of the file", function(path)
    two(path)
    poke.u64(path, L1, COPIED | 1 << 30)
  end, { ["l2-outside"] = 1, leak = 3 }, 2 },
  { "two L1 entries for one L2 table", function(path)
    two(path, { header = { size = 1 << 30 }, l1 = { [1] = L2 } })
    poke.flip(path, L1, COPIED)
    for i = 0, 1 do poke.flip(path, L2 + i * 8, COPIED) end
    for cluster = 4, 6 do poke.u16(path, refcount_at(cluster), 2) end
  end, { ["l2-shared"] = 1 }, 0, 2 },
  { "COPIED lost in an L1 entry", function(path)
    two(path)
    poke.flip(path, L1, COPIED)
  end, { ["copied-l2"] = 1 }, 2 },

  -- L2 entries.
  { "COPIED lost in an L2 entry", function(path)
    two(path)
    poke.flip(path, L2, COPIED)
  end, { ["copied-data"] = 1 }, 2 },
  { "COPIED in an L2 entry that a snapshot shares", function(path)
    local at = snapshots(path, { {} })
    poke.flip(path, at.l2[0], COPIED)
  end, { ["copied-data"] = 1 }, 2 },
  { "reserved bits in an L2 entry", function(path)
    two(path)
    poke.flip(path, L2, 1 << 58 | 2)
  end, { ["l2-reserved"] = 1 }, 2 },
  { "the zero flag in version 2", function(path)
    two(path, { header = { version = 2 } })
    poke.flip(path, L2 + 16, 1)
  end, { ["zero-version-2"] = 1 }, 0, 2 },
  { "the zero flag with extended L2", function(path)
    poke.flip(path, extended(path).l2[0], 1)
  end, { ["zero-extended"] = 1 }, 0, 2 },
  { "an L2 entry between two clusters", function(path)
    two(path)
    poke.u64(path, L2 + 8, COPIED | DATA + CLUSTER - 512)
  end, { ["data-unaligned"] = 1, ["refcount-low"] = 1 }, 2 },
  { "an L2 entry behind the end of the file", function(path)
    two(path)
    poke.u64(path, L2 + 8, COPIED | 1 << 30)
  end, { ["data-outside"] = 1, leak = 1 }, 2 },
  { "a file cut off by two clusters of data", function(path)
    two(path)
    poke.truncate(path, DATA)
  end, { ["data-outside"] = 2 }, 2 },

  -- Compressed clusters.
  { "COPIED in a compressed entry", function(path)
    local at = forge.write(path, { clusters = { [0] = { compressed = forge.deflate(("z"):rep(CLUSTER)) } } })
    poke.flip(path, at.l2[0], COPIED)
  end, { ["copied-compressed"] = 1 }, 2 },
  { "compressed sectors that end behind the file", function(path)
    forge.write(path, { clusters = { [0] = { compressed = forge.deflate("z"), sectors = 30 } } })
  end, { ["compressed-outside"] = 1 }, 0, 2 },
  { "compressed sectors that lie behind the file", function(path)
    two(path)
    poke.u64(path, L2 + 16, COMPRESSED | 1 << 30)
  end, { ["compressed-outside"] = 1 }, 2 },
  { "a subcluster bitmap beside a compressed entry", function(path)
    local at = extended(path, { compressed = forge.deflate(("z"):rep(CLUSTER)) })
    poke.u64(path, at.l2[0] + 8, 1)
  end, { ["compressed-bitmap"] = 1 }, 2 },

  -- Subclusters.
  { "subclusters that are both allocated and zeros", function(path)
    extended(path, { data = "x", alloc = 0xff, zero = 0xf0 })
  end, { ["subcluster-both"] = 1 }, 2 },
  { "allocated subclusters without a cluster", function(path)
    extended(path, { raw = 0, bitmap = 3 })
  end, { ["subcluster-homeless"] = 1 }, 2 },

  -- External data file.
  { "a compressed cluster beside a data file", function(path)
    local at = external(path)
    poke.u64(path, at.l2[0] + 16, COMPRESSED | 512)
  end, { ["compressed-data-file"] = 1 }, 2 },
  { "an entry for another place in the data file", function(path)
    local at = external(path)
    poke.u64(path, at.l2[0] + 8, COPIED | 7 * CLUSTER)
  end, { ["data-file-offset"] = 1 }, 0, 2 },
  { "an entry between two clusters of the data file", function(path)
    local at = external(path)
    poke.u64(path, at.l2[0] + 8, COPIED | CLUSTER + 512)
  end, { ["data-unaligned"] = 1 }, 2 },
  { "COPIED lost for a cluster of the data file", function(path)
    local at = external(path)
    poke.flip(path, at.l2[0] + 8, COPIED)
  end, { ["copied-data"] = 1 }, 2 },
  { "COPIED lost for guest cluster 0 of a raw data file", function(path)
    local at = external(path)
    poke.u64(path, 88, RAW)
    poke.truncate(path .. ".data", DISK)
    poke.flip(path, at.l2[0], COPIED)
  end, { ["data-file-lost"] = 1 }, 0, 2 },
  { "a discard of guest cluster 0 that was cut off before its punch", function(path)
    local at = external(path)
    poke.flip(path, at.l2[0], COPIED)
  end, { ["data-file-stale"] = 1 }, 0 },
  { "an emptied overlay whose data file still has data", function(path)
    local at = external(path, { backing_file = "nothing.raw", backing_format = "raw" })
    sh.spit(path:match("^(.*/)") .. "nothing.raw", "")
    poke.flip(path, at.l2[0], COPIED)
  end, { ["data-file-stale"] = 1 }, 0 },
  { "a short data file", function(path)
    external(path)
    poke.truncate(path .. ".data", 2 * CLUSTER + 5)
  end, { ["data-file-short"] = 1 }, 0 },
  { "a short raw data file", function(path)
    external(path)
    poke.u64(path, 88, RAW)
    poke.truncate(path .. ".data", 2 * CLUSTER + 5)
  end, { ["data-file-short"] = 1 }, 0 },
  { "a raw data file that goes on behind the disk's end", function(path)
    external(path)
    poke.u64(path, 88, RAW)
    poke.truncate(path .. ".data", DISK + 1)
  end, { ["data-file-long"] = 1 }, 0 },
  { "a long data file", function(path)
    external(path)
    poke.truncate(path .. ".data", 4 << 20)
  end, { ["data-file-long"] = 1 }, 0 },
  { "a data file that is gone", function(path)
    external(path)
    os.remove(path .. ".data")
  end, { ["data-file-unseen"] = 1 }, nil, 0 },

  -- What is counted that is not there.
  { "clusters that are counted behind the end of the file", function(path)
    two(path)
    poke.u16(path, refcount_at(100), 1)
    poke.u16(path, refcount_at(20000), 3)
  end, { leak = 2 }, 0, 3 },

  -- Snapshots.
  { "an encryption header's extension of another length", function(path)
    forge.write(path, { header = { crypt_method = 2 }, extensions = { { type = 0x0537be77,
      data = string.pack(">I8I8I8", 65536, 0, 0) } } })
  end, { ["crypto-pointer"] = 1 }, nil, 2 },
  { "a snapshot table that ends with the file", function(path)
    local at = snapshots(path, { { name = ("n"):rep(60000) }, { name = ("m"):rep(60000) } })
    poke.truncate(path, at.snapshot_table + CLUSTER)
  end, { ["snapshot-table"] = 1, leak = 3 }, 0, 2 },
  { "too much extra data of a snapshot", function(path)
    snapshots(path, { { extra = ("\0"):rep(1032) } })
  end, { ["snapshot-extra"] = 1 }, nil, 2 },
  { "a snapshot of version 3 without its disk size", function(path)
    snapshots(path, { { extra = ("\0"):rep(8) } })
  end, { ["snapshot-incomplete"] = 1 }, 2 },
  { "a snapshot whose L1 table lies between two clusters", function(path)
    snapshots(path, { { clusters = {}, l1_offset = 3 * CLUSTER + 512 } })
  end, { ["snapshot-l1-unaligned"] = 1, leak = 1 }, 2 },
  { "a snapshot whose L1 table lies behind the end of the file", function(path)
    snapshots(path, { { clusters = {}, l1_offset = 1 << 30 } })
  end, { ["l1-outside"] = 1, leak = 1 }, 2 },
  { "a snapshot with too many L1 entries", function(path)
    snapshots(path, { { clusters = {}, l1_size = 1 << 30 } })
  end, { ["snapshot-l1-size"] = 1, leak = 1 }, 2 },
  { "a snapshot with too few L1 entries for its disk", function(path)
    snapshots(path, { { clusters = {}, size = 1 << 40 } })
  end, { ["snapshot-l1-size"] = 1 }, 0, 2 },
  { "a snapshot beside a data file", function(path)
    external(path, { snapshots = { { clusters = {} } } })
  end, { ["snapshot-data-file"] = 1 }, 2 },

  -- Bitmaps.
  { "bitmaps without their autoclear bit", function(path)
    with_bitmap(path, { entries = { [0] = "x" } })
    poke.field(path, "autoclear_features", 0)
  end, { ["bitmaps-stale"] = 1, leak = 3 }, 3 },
  { "a bitmap directory behind the end of the file", function(path)
    with_bitmap(path, {}, { directory_offset = 1 << 30 })
  end, { ["bitmap-directory"] = 1, leak = 2 }, nil, 2 },
  { "a bitmap directory that ends inside an entry", function(path)
    with_bitmap(path, {}, { directory_size = 16 })
  end, { ["bitmap-directory"] = 1, leak = 1 }, nil, 2 },
  { "reserved bits in the bitmaps extension", function(path)
    with_bitmap(path, { entries = { [0] = "x" } }, { reserved = 1 << 31 })
  end, { ["bitmaps-reserved"] = 1 }, nil, 2 },
  { "a bitmap of an impossible granularity", function(path)
    with_bitmap(path, { granularity_bits = 40, table_size = 1 })
  end, { ["bitmap-entry"] = 1 }, nil, 2 },
  { "a bitmap table behind the end of the file", function(path)
    with_bitmap(path, { table_offset = 1 << 30 })
  end, { ["bitmap-table"] = 1 }, 2 },
  { "reserved bits in a bitmap table entry", function(path)
    with_bitmap(path, { entries = { [0] = 4 } })
  end, { ["bitmap-table-entry"] = 1 }, nil, 2 },
  { "a bitmap table entry behind the end of the file", function(path)
    with_bitmap(path, { entries = { [0] = 1 << 30 } })
  end, { ["bitmap-table-entry"] = 1 }, 2 },
  { "a bitmap directory that is longer than its entries", function(path)
    with_bitmap(path, { entries = { [0] = "x" } }, { directory_size = 64 })
  end, { ["bitmap-directory-size"] = 1 }, nil, 2 },
  { "two bitmaps of one name", function(path)
    local twin = { name = "twin", entries = { [0] = "x" } }
    forge.write(path, { bitmaps = { twin, { name = "other" }, { name = "twin" } } })
  end, { ["bitmap-same-name"] = 1 }, nil, 2 },
  { "a bitmap with extra data", function(path)
    with_bitmap(path, { flags = 4, extra = "unknown." })
  end, { ["bitmap-extra"] = 1 }, nil, 0 },
  { "a bitmap in use", function(path)
    with_bitmap(path, { flags = 1 })
  end, { ["bitmap-in-use"] = 1 }, 0 },
}

return {
  list = damages,
  two = two,
  snapshots = snapshots,
  refcount_at = refcount_at,
  CLUSTER = CLUSTER,
  L1 = L1,
  L2 = L2,
  DATA = DATA,
  COPIED = COPIED,
}
