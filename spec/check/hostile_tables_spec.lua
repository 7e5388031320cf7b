-- SPDX-License-Identifier: MIT
-- SAFETY rules 2, 4, 11 and 12: tables that are cut off, misplaced, shared or contradict themselves are `corrupt`,
-- never zeros; guest data past the end of the file reads as zeros.
local forge = require "spec.support.forge"
local hostile = require "spec.support.hostile"
local poke = require "spec.support.poke"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local CLUSTER = 65536
local SPAN = 8192 * CLUSTER -- bytes of disk that one L2 table maps

-- Reading, listing and explaining all fail with one kind and these words.
local function unreadable(description, words, offset, kind)
  hostile.opened(description, function(img)
    offset = offset or 0
    local bytes, message, got = img:read(offset, 512)
    assert.is_nil(bytes)
    assert.equal(kind or "corrupt", got, message)
    assert.is_truthy(message:find(words, 1, true), message)
    assert.is_truthy(message:find("image.qcow2", 1, true), message)
    local raised = hostile.raised(img:extents({ start = offset, length = 512 }))
    assert.is_truthy(raised:find(words, 1, true), raised)
    local path
    path, message, got = img:explain(offset)
    assert.is_nil(path)
    assert.equal(kind or "corrupt", got, message)
  end)
end

local function zeros(description, offset, length, options)
  hostile.opened(description, function(img)
    assert.equal(("\0"):rep(length), assert(img:read(offset, length)))
  end, options)
end

describe("A file that was cut off", function()
  -- The layout by forge: header, refcount table, refcount block, L1, data, L2 ...; each in a cluster of its own.
  local description = { clusters = { [0] = { data = "first" }, [1] = { data = "second" } },
    snapshots = { { name = "s" } }, bitmaps = { { name = "b", entries = { [0] = "\255" } } } }
  local path, at

  before_each(function() path, at = hostile.image(description) end)

  it("inside the refcount table does not open", function()
    for _, length in ipairs { at.refcount_table, at.refcount_table + 1, at.refcount_table + CLUSTER - 1 } do
      poke.truncate(path, length)
      local message, kind = hostile.refused(path)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("Reference count table", 1, true), message)
    end
  end)

  it("inside the L1 table does not open", function()
    for _, length in ipairs { at.l1, at.l1 + 1, at.l1 + 7 } do
      poke.truncate(path, length)
      local message, kind = hostile.refused(path)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("Active L1 table", 1, true), message)
    end
  end)

  it("inside an L2 table opens, and reads nothing", function()
    for _, length in ipairs { at.l2[0], at.l2[0] + 8, at.l2[0] + CLUSTER - 1 } do
      forge.write(path, { clusters = description.clusters })
      local l2 = poke.get_u64(path, at.l1) & 0xfffffffffffe00
      poke.truncate(path, l2 + (length - at.l2[0]))
      unreadable(path, "L2 table at offset")
      local result = sh.qcow2 { "convert", "-f", "qcow2", "-O", "raw", path, tmp.path("out.raw") }
      assert.equal(1, result.code)
    end
  end)

  it("before its snapshot table does not open", function()
    poke.truncate(path, at.snapshot_table)
    local message, kind = hostile.refused(path)
    assert.equal("corrupt", kind)
    assert.is_truthy(message:find("Snapshot table", 1, true), message)
  end)

  it("inside a snapshot entry opens, and lists no snapshots", function()
    poke.truncate(path, at.snapshot_table + 41)
    hostile.opened(path, function(img)
      local message = hostile.raised(function() return img.snapshots end)
      assert.is_truthy(message:find("Snapshot table: entry 0 at offset", 1, true), message)
      local view, why, kind = img:snapshot("s")
      assert.is_nil(view)
      assert.equal("corrupt", kind, why)
    end)
  end)

  it("before its refcount block says so when a count is asked for", function()
    poke.u64(path, at.refcount_table, 1 << 40)
    hostile.opened(path, function(img)
      local count, message, kind = img:refcount(0)
      assert.is_nil(count)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("Reference count block at offset 0x10000000000", 1, true), message)
      assert.equal("first", img:read(0, 5))
    end)
  end)

  it("before its bitmap directory lists no bitmaps", function()
    poke.truncate(path, at.bitmap_directory)
    hostile.opened(path, function(img)
      local message = hostile.raised(function() return img.bitmaps end)
      assert.is_truthy(message:find("Bitmap directory", 1, true), message)
    end)
  end)

  it("at any cluster is never an empty disk", function()
    local qcow2 = require "qcow2"
    local whole = at.length
    for length = whole - CLUSTER, 0, -CLUSTER do
      poke.truncate(path, length)
      local img <close> = qcow2.open(path, { format = "qcow2" })
      -- Only what lay behind the data may be gone for the bytes still to be right.
      if img then
        local bytes = img:read(0, CLUSTER + 6)
        local first = bytes and bytes:sub(1, 5)
        local second = bytes and bytes:sub(CLUSTER + 1)
        assert.is_true(bytes == nil or (first == "first" or length <= at.data[0]), "zeros at " .. length)
        assert.is_true(bytes == nil or (second == "second" or length <= at.data[1]), "zeros at " .. length)
      end
    end
  end)
end)

describe("An L1 entry", function()
  it("past the end of the file is refused", function()
    unreadable({ l1 = { [0] = 1 << 40 } }, "L1 entry 0: L2 table at offset 0x10000000000")
  end)

  it("whose table runs past the end of the file is refused", function()
    unreadable({ l1 = { [0] = 4 * CLUSTER }, length = 4 * CLUSTER + 100 }, "lies outside the file")
  end)

  it("with the largest offset is refused", function()
    unreadable({ l1 = { [0] = 0x00ffffffffff0000 } }, "lies outside the file")
  end)

  it("that is not aligned is refused", function()
    unreadable({ l1 = { [0] = 4 * CLUSTER + 512 }, length = 8 * CLUSTER }, "is not aligned to a cluster")
  end)

  it("on the header's cluster is no table at all", function()
    -- Offset 0 is how an unallocated entry says so; nothing else fits before the first cluster's end.
    zeros({ l1 = { [0] = 0 } }, 0, 512)
    unreadable({ l1 = { [0] = 512 } }, "is not aligned to a cluster")
  end)

  it("on the L1 table is refused", function()
    local _, at = hostile.image({})
    unreadable({ l1 = { [0] = at.l1 }, length = 8 * CLUSTER }, "overlaps its own L1 table")
  end)

  it("on the refcount table is refused", function()
    local _, at = hostile.image({})
    unreadable({ l1 = { [0] = at.refcount_table } }, "overlaps the reference count table")
  end)

  it("on the snapshot table is refused", function()
    local _, at = hostile.image({ snapshots = { { name = "s" } } })
    unreadable({ snapshots = { { name = "s" } }, l1 = { [0] = at.snapshot_table }, length = 1 << 20 },
      "overlaps the snapshot table")
  end)

  it("with only bit 63 is unallocated and never followed", function()
    local description = { header = { size = 2 * SPAN }, l1 = { [0] = 1 << 63, [1] = 1 << 63 } }
    zeros(description, 0, CLUSTER)
    hostile.opened(description, function(img)
      local extents = {}
      for e in img:extents() do extents[#extents + 1] = e end
      assert.equal(1, #extents)
      assert.equal("unallocated", extents[1].kind)
      assert.is_nil(img.l1[0].l2)
      assert.equal(1 << 63, img.l1[0].raw)
    end)
  end)

  it("with reserved bits set is read by its offset", function()
    local path, at = hostile.image({ clusters = { [0] = { data = "here" } } })
    poke.u64(path, at.l1, at.l2[0] | 0x7f000000000001ff)
    hostile.opened(path, function(img) assert.equal("here", img:read(0, 4)) end)
  end)

  it("that shares its L2 table with another is refused", function()
    local path, at = hostile.image({ header = { size = 3 * SPAN }, clusters = { [0] = { data = "x" } } })
    poke.u64(path, at.l1 + 16, at.l2[0])
    unreadable(path, "is used by two entries")
    hostile.opened(path, function(img) -- the raw words are there to be looked at
      assert.equal(at.l2[0], img.l1[2].offset)
      assert.equal("data", img.l1[2].l2[0].kind)
    end)
  end)

  it("that names more tables than the file has clusters is refused without sorting them", function()
    local l1 = {}
    for i = 0, 999 do l1[i] = 4 * CLUSTER end
    unreadable({ header = { size = 1000 * SPAN }, l1 = l1, length = 8 * CLUSTER },
      "names 1000 L2 tables, more than the file has clusters")
  end)

  it("behind the disk's end is judged like the others", function()
    unreadable({ l1 = { [5] = 1 << 40 } }, "L1 entry 5")
  end)
end)

describe("An L2 entry", function()
  it("whose data lies past the end of the file reads as zeros", function()
    zeros({ clusters = { [0] = 1 << 40, [1] = 1 << 40 | 1 << 63 } }, 0, 2 * CLUSTER)
  end)

  it("whose data lies across the end of the file reads what there is, then zeros", function()
    local path, at = hostile.image({ clusters = { [0] = { data = ("d"):rep(CLUSTER) } } })
    poke.truncate(path, at.length)
    local tail = 1000
    forge.write(path, { clusters = { [0] = 16 * CLUSTER }, length = 16 * CLUSTER + tail,
      poke = { { 16 * CLUSTER, ("d"):rep(tail) } } })
    hostile.opened(path, function(img)
      assert.equal(("d"):rep(tail) .. ("\0"):rep(CLUSTER - tail), img:read(0, CLUSTER))
    end)
  end)

  it("with an unaligned offset is refused", function()
    unreadable({ clusters = { [0] = CLUSTER + 512 } }, "host offset is not aligned to a cluster")
  end)

  it("with the zero flag in version 2 is refused", function()
    unreadable({ header = { version = 2 }, clusters = { [3] = 1 } }, "zero cluster in a version 2 image", 3 * CLUSTER)
  end)

  it("with reserved bits is read by its offset", function()
    local path, at = hostile.image({ clusters = { [0] = { data = "here" } } })
    poke.u64(path, at.l2[0], at.data[0] | 0x3f000000000001fe)
    hostile.opened(path, function(img)
      assert.equal("here", img:read(0, 4))
      assert.equal(0x3f000000000001fe, img.l1[0].l2[0].reserved)
    end)
  end)

  it("that is wrong leaves its neighbours readable, and names the guest offset", function()
    local description = { clusters = { [0] = { data = "good" }, [1] = CLUSTER + 512, [2] = { data = "also" } } }
    hostile.opened(description, function(img)
      assert.equal("good", img:read(0, 4))
      assert.equal("also", img:read(2 * CLUSTER, 4))
      local bytes, message = img:read(0, 3 * CLUSTER)
      assert.is_nil(bytes)
      assert.is_truthy(message:find("of guest offset 0x10000:", 1, true), message)
    end)
  end)
end)

describe("An extended L2 entry", function()
  local function extended(cluster) return { extended_l2 = true, clusters = { [0] = cluster } } end

  it("with a subcluster both allocated and zero is refused", function()
    unreadable(extended({ data = "x", alloc = 1, zero = 1 }), "subcluster bitmap contradicts itself")
    unreadable(extended({ data = "x", alloc = 1 << 31, zero = 1 << 31 }), "subcluster bitmap contradicts itself")
  end)

  it("with allocated subclusters but no cluster is refused", function()
    unreadable(extended({ raw = 0, bitmap = 1 }), "subcluster bitmap contradicts itself")
  end)

  it("with zero subclusters and no cluster reads as zeros", function()
    zeros(extended({ raw = 0, bitmap = 0xffffffff << 32 }), 0, CLUSTER)
  end)

  it("with the standard entry's zero flag reads by its bitmap", function()
    local path, at = hostile.image(extended({ data = "here" }))
    poke.flip(path, at.l2[0], 1)
    hostile.opened(path, function(img) assert.equal("here", img:read(0, 4)) end)
  end)
end)

describe("A compressed cluster", function()
  local stream = forge.deflate(("c"):rep(CLUSTER))

  it("past the end of the file is refused", function()
    unreadable({ clusters = { [0] = 1 << 62 | 1 << 40 } }, "compressed data beyond the end of the file")
  end)

  it("whose sectors cross the end of the file is read when its stream ends before", function()
    local path, at = hostile.image({ clusters = { [2] = { compressed = stream, sectors = 200 } } })
    poke.truncate(path, (poke.get_u64(path, at.l2[0] + 16) & ((1 << 54) - 1)) + #stream)
    -- The tables lie before the stream in the file.
    assert.is_true(at.l2[0] + CLUSTER < poke.length(path))
    hostile.opened(path, function(img)
      assert.equal(("c"):rep(CLUSTER), img:read(2 * CLUSTER, CLUSTER))
    end)
  end)

  it("whose stream is cut off by the end of the file is an error", function()
    local path, at = hostile.image({ clusters = { [2] = { compressed = stream } } })
    poke.truncate(path, (poke.get_u64(path, at.l2[0] + 16) & ((1 << 54) - 1)) + 100)
    hostile.opened(path, function(img)
      local bytes, message, kind = img:read(2 * CLUSTER + 5, 10)
      assert.is_nil(bytes)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("Compressed cluster at guest offset 0x20000", 1, true), message)
    end)
  end)

  for _, case in ipairs { { "deflate", 0 }, { "zstd", 1 } } do
    it("of garbage is an error that names the guest offset: " .. case[1], function()
      hostile.opened({ header = { compression_type = case[2] },
        clusters = { [3] = { compressed = ("\xff\xfe\xfd"):rep(300) } } }, function(img)
        local bytes, message, kind = img:read(3 * CLUSTER + 100, 1000)
        assert.is_nil(bytes)
        assert.equal("corrupt", kind, message)
        assert.is_truthy(message:find("Compressed cluster at guest offset 0x30000", 1, true), message)
        assert.equal(("\0"):rep(512), img:read(2 * CLUSTER, 512))
      end)
    end)
  end

  it("that holds less than a cluster is an error", function()
    hostile.opened({ clusters = { [0] = { compressed = forge.deflate("short") } } }, function(img)
      local _, message, kind = img:read(0, 10)
      assert.equal("corrupt", kind, message)
    end)
  end)

  it("that holds more than a cluster stops at the cluster's end", function()
    hostile.opened({ clusters = { [0] = { compressed = forge.deflate(("m"):rep(CLUSTER + 5000)) } } }, function(img)
      assert.equal(("m"):rep(CLUSTER), img:read(0, CLUSTER))
    end)
  end)

  it("in the header's own bytes is garbage like any other", function()
    hostile.opened({ clusters = { [0] = 1 << 62 } }, function(img)
      local bytes, message, kind = img:read(0, 512)
      assert.is_nil(bytes)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("Compressed cluster at guest offset 0:", 1, true), message)
    end)
  end)

  it("in an image with an external data file is refused", function()
    local path = hostile.image({ data_file = "data.raw", clusters = { [0] = 1 << 62 | CLUSTER } })
    sh.spit(path:gsub("[^/]*$", "data.raw"), ("r"):rep(CLUSTER))
    unreadable(path, "compressed cluster in an image with an external data file")
  end)
end)

describe("An external data file's entry", function()
  local function with_data(clusters, more)
    local path = tmp.path("image.qcow2")
    local description = { data_file = "data.raw", clusters = clusters }
    for key, value in pairs(more or {}) do description[key] = value end
    forge.write(path, description)
    sh.spit(path:gsub("[^/]*$", "data.raw"), ("r"):rep(4 * CLUSTER))
    return path
  end

  it("that leads elsewhere than its guest offset is refused", function()
    unreadable(with_data({ [1] = 2 * CLUSTER | 1 << 63 }), "differs from the guest offset", CLUSTER)
    unreadable(with_data({ [0] = CLUSTER | 1 << 63 }), "differs from the guest offset", 0)
    unreadable(with_data({ [2] = 1 << 63 }), "differs from the guest offset", 2 * CLUSTER)
  end)

  it("at offset 0 is data with bit 63 and nothing without", function()
    hostile.opened(with_data({ [0] = 1 << 63 }), function(img) assert.equal("rrr", img:read(0, 3)) end)
    zeros(with_data({ [0] = 0 }), 0, 512)
  end)

  it("past the data file's end reads as zeros", function()
    zeros(with_data({ [10] = { data = "x" } }), 10 * CLUSTER, CLUSTER)
  end)
end)

describe("A snapshot", function()
  local function view_of(fields, action)
    fields.name = fields.name or "s"
    hostile.opened({ clusters = { [0] = { data = "active" } }, snapshots = { fields } }, function(img)
      local view, message, kind = img:snapshot(fields.name)
      action(view, message, kind, img)
      assert.equal("active", img:read(0, 6))
      if view then view:close() end
    end)
  end

  it("whose L1 table lies past the end of the file cannot be read", function()
    view_of({ l1_offset = 1 << 40 }, function(view)
      local bytes, message, kind = view:read(0, 512)
      assert.is_nil(bytes)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("L1 table at offset 0x10000000000", 1, true), message)
    end)
  end)

  it("whose L1 table is not aligned, or on the header, cannot be read", function()
    view_of({ l1_offset = 77 }, function(view) assert.equal("corrupt", (select(3, view:read(0, 512)))) end)
    view_of({ l1_offset = 0 }, function(view) assert.equal("corrupt", (select(3, view:read(0, 512)))) end)
  end)

  it("whose L1 table is too large is refused", function()
    view_of({ l1_size = 0x7fffffff }, function(view, message, kind)
      assert.is_nil(view)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("Snapshot L1 table too large", 1, true), message)
      assert.is_truthy(message:find("image.qcow2", 1, true), message)
    end)
  end)

  it("whose disk is larger than its L1 table is refused", function()
    view_of({ size = 1 << 50 }, function(view, message, kind)
      assert.is_nil(view)
      assert.equal("corrupt", kind)
      assert.is_truthy(message:find("too small for a disk", 1, true), message)
    end)
    view_of({ extra = string.pack(">i8i8", 0, -2) }, function(view) assert.is_nil(view) end)
  end)

  it("with lengths that run past the file is refused", function()
    for _, field in ipairs { { name_length = 65535 }, { id_length = 65535 }, { extra_length = 0xffffffff },
      { extra_length = 1 << 20 } } do
      local path = hostile.image({ snapshots = { field } })
      hostile.opened(path, function(img)
        local message = hostile.raised(function() return img.snapshots end)
        assert.is_truthy(message:find("Snapshot table: entry 0", 1, true), message)
      end)
    end
  end)

  it("without extra data has the disk's size", function()
    view_of({ extra = "" }, function(view) assert.equal(1 << 20, view.size) end)
  end)

  it("may have more extra data than anybody knows of", function()
    view_of({ extra = string.pack(">i8i8i8", 5, 4096, 7) .. ("?"):rep(5000) }, function(view, _, _, img)
      assert.equal(4096, view.size)
      assert.equal(7, img.snapshots[1].icount)
      assert.equal(5024, #img.snapshots[1].extra_data)
    end)
  end)

  it("whose L1 entries lie on the active L1 table is refused", function()
    local path, at = hostile.image({ snapshots = { { name = "s", clusters = { [0] = { data = "x" } } } } })
    poke.u64(path, at.snapshots[1].l1, at.l1)
    hostile.opened(path, function(img)
      local view <close> = assert(img:snapshot("s"))
      local bytes, message = view:read(0, 512)
      assert.is_nil(bytes)
      assert.is_truthy(message:find("overlaps the active L1 table", 1, true), message)
    end)
  end)
end)

describe("The bitmap directory", function()
  local function listed(list, words)
    hostile.opened({ bitmaps = list }, function(img)
      local message = hostile.raised(function() return img.bitmaps end)
      assert.is_truthy(message:find(words, 1, true), message)
      assert.is_nil((img:bitmap("b")))
      assert.equal(("\0"):rep(16), img:read(0, 16))
    end)
  end

  it("of more than 65535 bitmaps is refused", function()
    listed({ { name = "b" }, header = { count = 65536 } }, "Too many bitmaps: 65536")
  end)

  it("of more than 64 MiB is refused", function()
    listed({ { name = "b" }, header = { directory_size = (64 << 20) + 8 } }, "Bitmap directory too large")
    listed({ { name = "b" }, header = { directory_size = -1 } }, "Bitmap directory too large")
  end)

  it("outside the file, unaligned or on the header is refused", function()
    listed({ { name = "b" }, header = { directory_offset = 1 << 40 } }, "lies outside the file")
    listed({ { name = "b" }, header = { directory_offset = -65536 } }, "lies outside the file")
    listed({ { name = "b" }, header = { directory_offset = 4096 } }, "is not aligned to a cluster")
    listed({ { name = "b" }, header = { directory_offset = 0 } }, "overlaps the header")
  end)

  it("whose entries run past its size is refused", function()
    listed({ { name = "b" }, header = { count = 2 } }, "entry 1 at offset")
    listed({ { name = "b" }, header = { directory_size = 8 } }, "entry 0 at offset")
    listed({ { name = "b", name_length = 60000 } }, "runs past the table's limit")
    listed({ { name = "b", extra_length = 0xffffffff } }, "runs past the table's limit")
  end)

  it("with a granularity outside 2^9-2^31 is refused", function()
    listed({ { name = "b", granularity_bits = 8, table_size = 1 } }, "granularity of 2^8 bytes is outside")
    listed({ { name = "b", granularity_bits = 32, table_size = 1 } }, "granularity of 2^32 bytes is outside")
  end)

  it("whose extension has another length than 24 is refused", function()
    hostile.opened({ header = { autoclear_features = 1 },
      extensions = { { type = forge.extension.bitmaps, data = ("\0"):rep(23) } } }, function(img)
      local message = hostile.raised(function() return img.bitmaps end)
      assert.is_truthy(message:find("23 bytes instead of 24", 1, true), message)
    end)
  end)

  it("is empty when the autoclear bit says that it is stale", function()
    hostile.opened({ bitmaps = { { name = "b", granularity_bits = 99, table_size = 1 } },
      header = { autoclear_features = 0 } }, function(img) assert.equal(0, #img.bitmaps) end)
  end)
end)

describe("A bitmap", function()
  local function ranges(bitmap, more)
    local description = { bitmaps = { bitmap } }
    for key, value in pairs(more or {}) do description[key] = value end
    return hostile.opened(description, function(img)
      local list = {}
      local fine, message = pcall(function()
        for offset, length in img:bitmap("b"):extents() do list[#list + 1] = { offset, length } end
      end)
      return fine and list, message
    end)
  end

  it("of an unknown type shows no ranges", function()
    local list, message = ranges({ name = "b", type = 2 })
    assert.is_false(list)
    assert.is_truthy(message:find("Unknown bitmap type 2", 1, true), message)
  end)

  it("whose table is smaller than the disk needs is refused", function()
    local list, message = ranges({ name = "b", granularity_bits = 9, table_size = 0 })
    assert.is_false(list)
    assert.is_truthy(message:find("does not fit a disk", 1, true), message)
  end)

  it("whose table is larger than any disk needs is refused", function()
    local list, message = ranges({ name = "b", table_size = 0x8000001 })
    assert.is_false(list)
    assert.is_truthy(message:find("does not fit a disk", 1, true), message)
  end)

  it("whose table has entries to spare is read as far as the disk goes", function()
    assert.same({ { 0, 1 << 20 } }, ranges({ name = "b", table_size = 0x8000000, entries = { [0] = "ones" } }))
  end)

  it("whose table lies outside the file is refused", function()
    local list, message = ranges({ name = "b", table_offset = 1 << 40, entries = {} }, { length = 1 << 20 })
    assert.is_false(list)
    assert.is_truthy(message:find("Bitmap table at offset", 1, true), message)
  end)

  it("whose data lies outside the file or is not aligned is refused", function()
    local list, message = ranges({ name = "b", entries = { [0] = 1 << 40 } })
    assert.is_false(list)
    assert.is_truthy(message:find("Bitmap data at offset", 1, true), message)
    list, message = ranges({ name = "b", entries = { [0] = CLUSTER + 512 } })
    assert.is_false(list)
    assert.is_truthy(message:find("not aligned", 1, true), message)
  end)

  it("whose table names one cluster twice is refused", function()
    local list, message = ranges({ name = "b", granularity_bits = 9, entries = { [0] = CLUSTER, [1] = CLUSTER } },
      { header = { size = 1 << 30 } })
    assert.is_false(list)
    assert.is_truthy(message:find("is used by two entries", 1, true), message)
  end)
end)
