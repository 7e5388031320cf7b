-- SPDX-License-Identifier: MIT
-- The Lua API as a script uses it: handles, properties, tables as live values, explanations.
local decoder = require "spec.support.decoder"
local forge = require "spec.support.forge"
local qcow2 = require "qcow2"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local CLUSTER = 65536

local function rich(more)
  local dir = tmp.dir()
  local description = {
    header = { compatible_features = 1 },
    clusters = { [0] = { data = "first" }, [1] = "zero", [2] = { data = "kept", zero = true },
      [3] = { compressed = forge.deflate(("c"):rep(CLUSTER)) }, [5] = { data = "fifth" } },
    backing_file = "base.raw", backing_format = "raw",
    snapshots = { { id = "1", name = "shared" }, { id = "2", name = "own", clusters = { [0] = { data = "old" } } } },
    bitmaps = { { name = "b0", flags = 2, entries = { [0] = "\5" } }, { name = "b1" } },
    extensions = { { type = 7, data = "seven" } },
  }
  for key, value in pairs(more or {}) do description[key] = value end
  forge.write(dir .. "/image.qcow2", description)
  sh.spit(dir .. "/base.raw", ("b"):rep(16 * CLUSTER))
  return dir .. "/image.qcow2", dir
end

describe("Requiring the module", function()
  it("adds no globals", function()
    local result = sh.run({ os.getenv("Q2_LUA") or "lua5.4", "-e", ([[
      package.path, package.cpath = "./lua/?.lua;./lua/?/init.lua", "%s/lib/lua/5.4/?.so"
      local before = {}
      for name in pairs(_G) do before[name] = true end
      local strings = {}
      for name in pairs(string) do strings[name] = true end
      local qcow2 = require "qcow2"
      local img = qcow2.open("/nonexistent")
      pcall(function() return qcow2.size("1G"), qcow2.probe("/nonexistent") end)
      for name in pairs(_G) do if not before[name] then print("global " .. name) end end
      for name in pairs(string) do if not strings[name] then print("string." .. name) end end
    ]]):format(sh.build()) })
    assert.equal("", result.stdout .. result.stderr)
  end)

  it("gives the version and what the build can do", function()
    assert.is_truthy(qcow2._VERSION:find("^%d+%.%d+%.%d+$"))
    assert.is_truthy(type(qcow2.features.deflate) == "string")
    for _, name in ipairs { "deflate", "zstd", "crypto" } do
      assert.is_truthy(qcow2.features[name] == false or type(qcow2.features[name]) == "string", name)
    end
  end)
end)

describe("An image handle", function()
  it("closes by <close>, by close() as often as one likes, and by the collector", function()
    local path = rich()
    local img = assert(qcow2.open(path))
    assert.is_true(img:close())
    assert.is_true(img:close())
    do
      local scoped <close> = assert(qcow2.open(path))
      img = scoped
    end
    assert.equal("qcow2.image (closed)", tostring(img))
    for _ = 1, 50 do qcow2.open(path) end
    img = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    local mine = require("lfs").symlinkattributes
    for descriptor = 0, 255 do
      assert.not_equal(path, (mine("/proc/self/fd/" .. descriptor, "target")), "still open")
    end
  end)

  it("lets go of every file of its chain when it is closed", function()
    local path, dir = rich()
    local img = assert(qcow2.open(path))
    assert(img:read(10 * CLUSTER, 10))
    assert(img:explain(10 * CLUSTER))
    img:close()
    -- A writer of the backing file finds no lock of ours.
    local base <close> = assert(qcow2.open(dir .. "/base.raw", { mode = "rw", format = "raw" }))
    assert.equal("rw", base.mode)
    local top <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert.equal("rw", top.mode)
  end)

  it("that is closed raises, whatever is asked of it", function()
    local img = assert(qcow2.open((rich())))
    local bitmap, l1, snapshots = img:bitmap("b0"), img.l1, img.snapshots
    -- 400 runs, far more than come out in one batch: some are still to be read when the image is closed.
    local many = {}
    for i = 0, 799, 2 do many[i] = "zero" end
    local fragmented = assert(qcow2.open((rich({ header = { cluster_bits = 9, size = 800 * 512 }, clusters = many,
      bitmaps = false, snapshots = false }))))
    local extents = fragmented:extents()
    assert.is_table(extents())
    fragmented:close()
    img:close()
    for _, name in ipairs { "read", "extents", "explain", "refcount", "snapshot", "bitmap", "chain", "attach" } do
      local fine, message = pcall(img[name], img, name == "snapshot" and "1" or name == "bitmap" and "b0" or nil, 0)
      if name == "extents" then fine, message = pcall(img.extents, img) end
      if name == "read" or name == "explain" or name == "refcount" then fine, message = pcall(img[name], img, 0, 1) end
      assert.is_false(fine, name)
      assert.is_truthy(tostring(message):find("closed image", 1, true), name .. ": " .. tostring(message))
    end
    for _, name in ipairs { "size", "version", "header", "extensions", "features", "l1", "refcount_table", "snapshots",
      "bitmaps", "disk_size", "backing_file", "preallocated" } do
      local fine, message = pcall(function() return img[name] end)
      assert.is_false(fine, name)
      assert.is_truthy(tostring(message):find("closed image", 1, true), name)
    end
    for name, call in pairs {
      extents = function() for _ = 1, 1000 do extents() end end,
      bitmap = function() return bitmap:extents()() end,
      l1 = function() return l1[0] end,
      snapshots = function() return snapshots[1] end,
      pairs = function() for _ in pairs(img) do return end end, -- luacheck: ignore
    } do
      local fine, message = pcall(call)
      assert.is_false(fine, name)
      assert.is_truthy(tostring(message):find("closed image", 1, true), name .. ": " .. tostring(message))
    end
  end)

  it("says in one line what it is, names escaped", function()
    local path = rich({ backing_file = "ba\27se" })
    local img <close> = assert(qcow2.open(path))
    local line = tostring(img)
    assert.is_truthy(line:find("qcow2 image '" .. path .. "', 1048576 bytes, version 3, clusters of 65536", 1, true),
      line)
    assert.is_truthy(line:find([['ba\x1bse']], 1, true), line)
    assert.is_falsy(line:find("[%c]"))
    local view <close> = assert(img:snapshot("own"))
    assert.is_truthy(tostring(view):find("snapshot 'own'", 1, true))
  end)

  it("holds tables that show themselves when they are printed, in clean characters", function()
    local img <close> = assert(qcow2.open((rich())))
    local header = tostring(img.header)
    assert.is_truthy(header:find("^magic +0x514649fb\n"))
    assert.is_truthy(header:find("\nl1_table_offset +0x%x+\n"))
    assert.is_truthy(tostring(img.extensions):find("extension 0x00000007 unknown, 5 bytes at 0x", 1, true))
    assert.is_truthy(tostring(img.features):find("compatible bit 0, lazy refcounts", 1, true))
    assert.is_truthy(tostring(img.snapshots[2]):find("snapshot 2 'own' of ", 1, true))
    assert.is_truthy(tostring(img.bitmaps[1]):find("bitmap 'b0', granularity 65536", 1, true))
    assert.is_truthy(tostring(img.refcount_table[0]):find(" block at 0x", 1, true))
    local shown = {}
    for extent in img:extents({ length = 4 * CLUSTER, holes = false }) do
      shown[#shown + 1] = tostring(extent)
    end
    assert.is_truthy(shown[1]:find("^0x0 %+0x10000 data at 0x%x+$"), shown[1])
    assert.equal("0x10000 +0x10000 zero", shown[2])
    assert.is_truthy(shown[3]:find("^0x20000 %+0x10000 zero at 0x%x+$"), shown[3])
    assert.is_truthy(shown[4]:find("^0x30000 %+0x10000 compressed at 0x%x+$"), shown[4])
    local path = rich({ snapshots = { { id = "\27", name = "\1" } }, bitmaps = { { name = "\n" } } })
    local odd <close> = assert(qcow2.open(path))
    assert.is_falsy((tostring(odd.snapshots[1]) .. tostring(odd.bitmaps[1])):find("%c"))
  end)

  it("lists its properties by pairs, in a fixed order", function()
    local img <close> = assert(qcow2.open((rich())))
    local names, values = {}, {}
    for name, value in pairs(img) do
      names[#names + 1] = name
      values[name] = value
      assert.same(value, img[name], name)
    end
    assert.equal("path", names[1])
    assert.equal(1 << 20, values.size)
    assert.equal("base.raw", values.backing_file)
    assert.is_true(values.lazy_refcounts)
    local again = {}
    for name in pairs(img) do again[#again + 1] = name end
    assert.same(names, again)
  end)

  it("raises for a property that it has not, and for an assignment", function()
    local img <close> = assert(qcow2.open((rich())))
    local fine, message = pcall(function() return img.cluster_bits end)
    assert.is_false(fine)
    assert.is_truthy(message:find("an image has no 'cluster_bits'", 1, true), message)
    fine, message = pcall(function() img.size = 5 end)
    assert.is_false(fine)
    assert.is_truthy(message:find("'size' cannot be assigned", 1, true), message)
  end)
end)

describe("A snapshot's view", function()
  it("lives on when the image that it came from is closed", function()
    local img = assert(qcow2.open((rich())))
    assert(img:read(10 * CLUSTER, 10)) -- with the backing file attached
    local view <close> = assert(img:snapshot("own"))
    img:close()
    collectgarbage()
    assert.equal("old", view:read(0, 3))
    assert.equal("bbb", view:read(10 * CLUSTER, 3))
    assert.equal(2, #view:chain())
    assert.equal("data", view:explain(0).kind)
  end)

  it("attaches what it needs by itself", function()
    local img = assert(qcow2.open((rich())))
    local view <close> = assert(img:snapshot("2"))
    img:close()
    assert.equal("bbb", view:read(10 * CLUSTER, 3))
  end)

  it("is found by its id before any name, and opened at once by the option", function()
    local path = rich({ snapshots = { { id = "5", name = "1" }, { id = "1", name = "5",
      clusters = { [0] = { data = "right" } } } } })
    local img <close> = assert(qcow2.open(path, { snapshot = "1" }))
    assert.equal("right", img:read(0, 5))
    assert.equal("r", img.mode)
    local none, message, kind = qcow2.open(path, { snapshot = "no\n" })
    assert.is_nil(none)
    assert.equal("missing", kind)
    assert.is_truthy(message:find([[Snapshot 'no\x0a' does not exist]], 1, true), message)
  end)

  it("is explained by its own L1 table", function()
    local path = rich()
    local decoded <close> = decoder.open(path)
    local img <close> = assert(qcow2.open(path))
    local view <close> = assert(img:snapshot("own"))
    local layer = view:explain(0).layers[1]
    assert.equal(decoded.snapshots[2].l1_offset, layer.l1_entry_offset)
    assert.equal(decoded.snapshots[2].l1[0], layer.l1_raw)
  end)
end)

describe("A chain", function()
  it("gives images that live on when the top is closed", function()
    local img = assert(qcow2.open((rich())))
    local chain = img:chain()
    assert.equal(2, #chain)
    img:close()
    collectgarbage()
    assert.equal("bbb", chain[2].image:read(0, 3))
    assert.equal("raw", chain[2].format)
    chain[2].image:close()
  end)

  it("takes an open image as backing file, which may be closed afterwards", function()
    local path, dir = rich()
    local base = assert(qcow2.open(dir .. "/base.raw", { format = "raw" }))
    local img <close> = assert(qcow2.open(path, { backing = base, references = "none" }))
    assert.equal("bbb", img:read(10 * CLUSTER, 3))
    base:close()
    assert.equal("bbb", img:read(11 * CLUSTER, 3))
    assert.equal(2, #img:chain())
    assert.equal("data", img:explain(11 * CLUSTER).layers[2].kind or "data")
  end)

  it("is cut by backing = false", function()
    local img <close> = assert(qcow2.open((rich()), { backing = false }))
    local bytes, message, kind = img:read(10 * CLUSTER, 3)
    assert.is_nil(bytes)
    assert.equal("missing", kind, message)
    assert.equal("first", img:read(0, 5))
  end)
end)

describe("Extents", function()
  local function list(img, options)
    local out = {}
    for e in img:extents(options) do out[#out + 1] = { e.offset, e.length, e.kind, e.depth } end
    return out
  end

  it("take start and length as sizes, a layer, and holes", function()
    local img <close> = assert(qcow2.open((rich())))
    assert.same({ { CLUSTER, 2 * CLUSTER, "zero", 0 } }, { (function()
      local e = list(img, { start = "64K", length = "128K", holes = false })
      return { e[1][1], e[1][2] + (e[2] and e[2][2] or 0), e[1][3], e[1][4] }
    end)() })
    assert.same({ { 4 * CLUSTER, CLUSTER, "unallocated", 0 } },
      list(img, { start = 4 * CLUSTER, length = CLUSTER, layer = true }))
    assert.same({ { 4 * CLUSTER, CLUSTER, "data", 1 } }, list(img, { start = 4 * CLUSTER, length = CLUSTER }))
    assert.same({}, list(img, { start = img.size }))
    assert.same({}, list(img, { length = 0 }))
    assert.same(list(img), list(img, { length = 1 << 60 }))
  end)

  it("say where compressed data lies", function()
    local path = rich()
    local decoded <close> = decoder.open(path)
    local img <close> = assert(qcow2.open(path))
    local e = img:extents({ start = 3 * CLUSTER })()
    local host, length = decoded:compressed(decoded:l2(decoded.l1[0] & 0xfffffffffffe00)[3])
    assert.same({ "compressed", CLUSTER, host, length, path },
      { e.kind, e.length, e.host_offset, e.host_length, e.file })
  end)

  it("raise what the world does, with file and structure", function()
    local img <close> = assert(qcow2.open((rich({ clusters = { [0] = 77 << 9 } }))))
    local fine, message = pcall(function() for _ in img:extents() do end end) -- luacheck: ignore
    assert.is_false(fine)
    assert.is_truthy(message:find("^/[^:]*image.qcow2: L2 entry"), message)
  end)
end)

describe("An explanation", function()
  it("exists for every kind, and reads as a path through the tables", function()
    local img <close> = assert(qcow2.open((rich())))
    local cases = {
      { 0, "data", "host byte 0x" }, { 5, "data", "host byte 0x" }, { CLUSTER, "zero", "reads as zeros" },
      { 2 * CLUSTER, "zero", "space kept at host byte" },
      { 3 * CLUSTER + 9, "compressed", "byte 0x9 of the compressed" },
      { 4 * CLUSTER, nil, "host byte 0x40000 of the raw file" },
      { 15 * CLUSTER, nil, "ask the backing file 'base.raw'" },
    }
    for _, case in ipairs(cases) do
      local path = assert(img:explain(case[1]))
      local text = tostring(path)
      assert.is_truthy(text:find(case[3], 1, true), text)
      if case[2] then assert.equal(case[2], path.kind) end
      assert.is_truthy(text:find("l1_table_offset", 1, true), text)
      assert.is_truthy(text:find("L2[" .. case[1] // CLUSTER .. "]", 1, true), text)
    end
    assert.equal(img:explain("64K").offset, CLUSTER)
    local none, message, kind = img:explain(img.size)
    assert.is_nil(none)
    assert.equal("range", kind, message)
  end)

  it("names subclusters, external data files, ends of short layers, and missing files", function()
    local sub <close> = assert(qcow2.open((rich({ extended_l2 = true,
      clusters = { [0] = { data = "x", alloc = 2 } } }))))
    assert.is_truthy(tostring(sub:explain(2048)):find("subcluster 1 of 32", 1, true))
    local data <close> = assert(qcow2.open((rich({ data_file = "d", snapshots = false,
      clusters = { [1] = { data = "" } } }))))
    assert.is_truthy(tostring(data:explain(CLUSTER)):find("of the external data file", 1, true))
    local path, dir = rich()
    sh.spit(dir .. "/base.raw", "short")
    local short <close> = assert(qcow2.open(path))
    assert.is_truthy(tostring(short:explain(10 * CLUSTER)):find("past the end of this layer: zeros", 1, true))
    os.remove(dir .. "/base.raw")
    local gone <close> = assert(qcow2.open(path))
    assert.is_truthy(tostring(gone:explain(10 * CLUSTER)):find("No such file", 1, true))
  end)

  it("never shows a name's control characters", function()
    local path = rich({ backing_file = "x\27[31m\n" })
    local img <close> = assert(qcow2.open(path))
    assert.is_falsy(tostring(img:explain(10 * CLUSTER)):find("[\1-\9\11-\31\127]"))
  end)
end)

describe("Tables as live values", function()
  it("are those that the decoder reads", function()
    local path = rich()
    local decoded <close> = decoder.open(path)
    local img <close> = assert(qcow2.open(path))
    assert.equal(decoded.header.l1_size, #img.l1)
    assert.equal(decoded.cluster_size // 8, #img.refcount_table)
    for i = 0, #img.l1 - 1 do
      assert.equal(decoded.l1[i], img.l1[i].raw)
      assert.equal(decoded.l1[i] & 0xfffffffffffe00, img.l1[i].offset)
      local l2 = decoded:l2(img.l1[i].offset)
      for j = 0, 40 do assert.equal(l2[j], img.l1[i].l2[j].raw) end
    end
    for i = 0, 3 do assert.equal(decoded.refcount_table[i], img.refcount_table[i].raw) end
    for i, b in ipairs(decoded.bitmaps) do
      local ranges = {}
      for offset, length in img:bitmap(b.name):extents() do
        ranges[#ranges + 1] = { offset = offset, length = length }
      end
      assert.same(decoded:bitmap_ranges(b), ranges)
      assert.equal(b.name, img.bitmaps[i].name)
    end
  end)

  it("know their length, give nil outside it, are read by pairs and written by nobody", function()
    local img <close> = assert(qcow2.open((rich())))
    for _, case in ipairs { { img.l1, 0 }, { img.l1[0].l2, 0 }, { img.refcount_table, 0 }, { img.snapshots, 1 },
      { img.bitmaps, 1 } } do
      local values, first = case[1], case[2]
      for _, index in ipairs { first - 1, first + #values, math.maxinteger, math.mininteger, 0.5, "x", true } do
        assert.is_nil(values[index])
      end
      assert.is_table(values[first])
      assert.is_table(values[first + #values - 1])
      local next_value = pairs(values)
      local index, value = next_value()
      assert.equal(first, index)
      assert.is_table(value)
      assert.is_false(pcall(function() values[first] = 1 end))
      assert.is_truthy(tostring(values):find(" of %d+ entries$"))
    end
    local count = 0
    for _ in ipairs(img.snapshots) do count = count + 1 end
    assert.equal(2, count)
  end)

  it("of a raw image are empty or nil", function()
    local _, dir = rich()
    local img <close> = assert(qcow2.open(dir .. "/base.raw", { format = "raw" }))
    assert.equal(0, #img.l1)
    assert.equal(0, #img.refcount_table)
    assert.equal(0, #img.snapshots)
    assert.equal(0, #img.bitmaps)
    assert.equal(0, #img.extensions)
    for _, name in ipairs { "version", "header", "features", "cluster_size", "backing_file", "data_file" } do
      assert.is_nil(img[name], name)
    end
    assert.equal("conflict", (select(3, img:refcount(0))))
    assert.is_truthy(tostring(img:explain(5)):find("host byte 0x5 of the raw file", 1, true))
    assert.is_truthy(tostring(img):find("^raw image"))
  end)
end)
