-- SPDX-License-Identifier: MIT
-- SAFETY rule 10: time and memory are bounded by what the file really holds. Files of up to 64 MiB, made to be as
-- expensive as they can be; processor time, so that a busy machine does not fail them. And rule 12: no command
-- that reads changes a byte.
local cc = require "spec.support.cc"
local forge = require "spec.support.forge"
local hostile = require "spec.support.hostile"
local poke = require "spec.support.poke"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local MIB = 1 << 20
local sanitized = cc.is_sanitized()
local measure

local function cost(words, output)
  measure = measure or cc.program("measure")
  local report = tmp.path("cost")
  local command = { measure, report, sh.build() .. "/bin/qcow2", table.unpack(words) }
  local result = sh.run(command, { timeout = 120, output = output })
  local seconds, kib = sh.slurp(report):match("(%S+) (%S+)")
  return result, tonumber(seconds), tonumber(kib) / 1024
end

-- Runs a command and holds it to its bounds; what it prints goes to the file `output`, if given. gives: the result.
-- Other programs on the machine can only make it slower, so the best of three runs counts.
local function within(words, seconds_bound, mib_bound, code, output)
  local result, seconds, mib = cost(words, output)
  for _ = 1, 2 do
    if seconds <= seconds_bound or sanitized then break end
    seconds = math.min(seconds, (select(2, cost(words, output))))
  end
  local line = table.concat(words, " ")
  assert.is_truthy(result.code == code or code == nil and result.code <= 1,
    ("%s: exit code %d\n%s"):format(line, result.code, result.stderr:sub(1, 2000)))
  assert.is_falsy(result.stderr:find("mistake in the program", 1, true), result.stderr)
  if not sanitized then
    assert.is_true(seconds <= seconds_bound, ("%s took %.2f s of %.2f"):format(line, seconds, seconds_bound))
    assert.is_true(mib <= mib_bound, ("%s took %.1f MiB of %.1f"):format(line, mib, mib_bound))
  end
  return result
end

local function info(path, code) return within({ "info", path }, 0.1, 16, code) end
local function info_json(path, code) return within({ "info", "--output=json", path }, 0.1, 16, code) end
local function map(path, code) return within({ "map", path }, 2, 64, code) end
local function map_json(path, code) return within({ "map", "--output=json", path }, 2, 64, code) end

-- An image whose L1 table of `entries` lies at 16 MiB, in a file of 64 MiB (sparse where nothing is put).
local function with_l1(bits, entries, more)
  local description = { header = { cluster_bits = bits, l1_size = entries, l1_table_offset = 16 * MIB,
    size = entries << (2 * bits - 3) }, l1_size = 1, length = 64 * MIB }
  for key, value in pairs(more or {}) do description[key] = value end
  return hostile.image(description)
end

describe("A file of 64 MiB costs little:", function()
  it("an empty L1 table of 32 MiB", function()
    local path = with_l1(9, 4 * MIB)
    info(path, 0)
    map(path, 0)
    assert.is_truthy(map_json(path, 0).stdout:find('^%[{ "start": 0, "length": 137438953472, .*}%]\n$'))
  end)

  it("an L1 table of 32 MiB that names one L2 table four million times", function()
    local path, at = with_l1(9, 4 * MIB)
    poke.bytes(path, 16 * MIB, string.pack(">I8", 1 << 63 | at.length - 512):rep(4 * MIB))
    info(path, 0)
    assert.is_truthy(map(path, 1).stderr:find("more than the file has clusters", 1, true))
  end)

  it("as many L2 tables as there is room for, in the worst order, with nothing in them", function()
    local count, l1 = 30 * MIB // 512, {}
    local path = with_l1(9, count)
    for i = 1, count do l1[i] = string.pack(">I8", 32 * MIB + (i * 7919) % count * 512) end
    poke.bytes(path, 16 * MIB, table.concat(l1))
    info(path, 0)
    map(path, 0)
    map_json(path, 0)
  end)

  it("L2 tables of large clusters with entries that begin no run twice", function()
    local count, l1 = 512, {}
    local path = with_l1(16, count)
    for i = 1, count do l1[i] = string.pack(">I8", 32 * MIB + (i - 1) * 65536) end
    poke.bytes(path, 16 * MIB, table.concat(l1))
    -- A quarter of a million short runs among four million entries.
    for i = 0, 31 do
      poke.bytes(path, 32 * MIB + i * 65536, string.pack(">I8I8", 1, 0):rep(4096))
    end
    map(path, 0)
  end)

  it("millions of runs, each a row of the map or joined to one", function()
    local count, l1 = 60 * MIB >> 16, {}
    local path = with_l1(16, count)
    for i = 1, count do l1[i] = string.pack(">I8", 4 * MIB + (i - 1) * 65536) end
    poke.bytes(path, 16 * MIB, table.concat(l1)) -- inside the tables, which then say nothing there
    poke.field(path, "l1_table_offset", 2 * MIB)
    poke.bytes(path, 2 * MIB, table.concat(l1))
    local function fill(a, b)
      poke.bytes(path, 4 * MIB, string.pack(">I8I8", a, b):rep(count << 12))
    end
    fill(1 << 62 | 65536, 1 << 62 | 70000) -- streams: each is a run, all are one row
    assert.equal(1, select(2, map_json(path, 0).stdout:gsub("\n", "")))
    within({ "measure", "-O", "qcow2", path }, 2, 64, 0)
    fill(1, MIB) -- zeros and one cluster of data by turns: four million rows
    within({ "map", path }, 2, 64, 0, "/dev/null")
    within({ "map", "--output=json", path }, 3, 64, 0, "/dev/null")
  end)

  it("a check that finds two mistakes in each of millions of entries", function()
    local count, l1 = 48 * MIB >> 16, {}
    local path = with_l1(16, count)
    for i = 1, count do l1[i] = string.pack(">I8", 1 << 63 | 16 * MIB + i * 65536) end
    poke.bytes(path, 16 * MIB, table.concat(l1))
    poke.bytes(path, 16 * MIB + 65536, string.pack(">I8", 1 << 63 | 1 << 40 | 0x202):rep(count - 1 << 13))
    local result = within({ "check", path }, 2, 65, 2, "/dev/null")
    assert.is_truthy(result.stderr:find("There is more of this; the sums below count it.", 1, true))
  end)

  it("a refcount table of 8 MiB that names blocks everywhere", function()
    local path = with_l1(9, 64, { refcount_table_clusters = 8 * MIB // 512 })
    poke.bytes(path, 512 + 4096, string.pack(">I8", 1 << 40):rep(100000))
    poke.u64(path, 512, 1 << 40) -- the block of the file's first clusters, too
    info(path, 0)
    map(path, 0)
    assert.equal(0, within({ "dump", "--help" }, 1, 16).code)
  end)

  it("65,536 snapshots", function()
    local path = hostile.image({ header = { nb_snapshots = 65536, snapshots_offset = MIB }, length = MIB + 65536 * 40 })
    assert.is_true(select(2, info(path, 0).stdout:gsub("\n", "")) > 65536)
    assert.equal(65536, select(2, info_json(path, 0).stdout:gsub('"date%-sec": 0,', "")))
    assert.equal(65538, select(2, within({ "snapshot", "-l", path }, 0.1, 16, 0).stdout:gsub("\n", "")))
  end)

  it("a dump of a snapshot whose L1 table is said to have 2^31 entries", function()
    local path = hostile.image({ header = { nb_snapshots = 1, snapshots_offset = MIB }, length = 2 * MIB })
    poke.u64(path, MIB, MIB + 65536)
    poke.u32(path, MIB + 8, 1 << 31)
    local words = {}
    for i = 1, 30000 do words[i] = string.pack(">I8", i % 4000 << 9) end
    poke.bytes(path, MIB + 65536, table.concat(words))
    local result = within({ "dump", path }, 2.5, 96, 0)
    assert.is_truthy(result.stdout:find("the table is larger than the format allows", 1, true))
    assert.is_truthy(result.stdout:find("the table does not begin at a cluster", 1, true))
  end)

  it("a dump of 3,000 snapshots that share their tables", function()
    local path = hostile.image({ header = { nb_snapshots = 3000, snapshots_offset = MIB }, length = 4 * MIB })
    poke.bytes(path, MIB, (string.pack(">I8I4", 2 * MIB, 1 << 17) .. ("\0"):rep(28)):rep(3000))
    local result = within({ "dump", path }, 2.5, 96, 0)
    assert.is_truthy(result.stdout:find("the tables lie on one another too often", 1, true))
  end)

  it("a dump of a table of which every entry is a row", function()
    local path = with_l1(9, 100000)
    poke.bytes(path, 16 * MIB, string.pack(">I8I8", 1 << 40, 1 << 41):rep(50000))
    for _, words in ipairs { { "dump", path }, { "dump", "--json", path } } do
      local text = within(words, 8, 32, 0).stdout
      assert.is_truthy(text:find("entry 99999", 1, true))
    end
  end)

  it("a dump of an L1 table that names 100,000 tables outside the file", function()
    local path, words = with_l1(9, 100000), {}
    for i = 1, 100000 do words[i] = string.pack(">I8", (1 << 40) + (i << 9)) end
    poke.bytes(path, 16 * MIB, table.concat(words))
    local text = within({ "dump", path }, 8, 48, 0).stdout
    assert.is_truthy(text:find("the table does not lie wholly in the file", 1, true))
    assert.is_truthy(text:find("the tables lie on one another too often", 1, true))
  end)

  it("65,536 snapshots of which the last does not fit", function()
    local path = hostile.image({ header = { nb_snapshots = 65536, snapshots_offset = MIB },
      length = MIB + 65536 * 40 })
    poke.u32(path, MIB + 65535 * 40 + 36, 1)
    info(path, 1)
  end)

  it("one snapshot with 60 MiB of extra data", function()
    local path = hostile.image({ header = { nb_snapshots = 1, snapshots_offset = MIB }, length = 64 * MIB })
    poke.u32(path, MIB + 36, 60 * MIB)
    within({ "info", path }, 0.2, 72) -- they are in memory while it is shown
  end)

  it("65,535 bitmaps", function()
    local entry = string.pack(">I8I4I4BBI2I4", 0, 0, 0, 1, 16, 1, 0) .. "b" .. ("\0"):rep(7)
    local path, at = hostile.image({ length = 4 * MIB,
      bitmaps = { { name = "b" }, header = { count = 65535, directory_size = 65535 * 32 } } })
    poke.bytes(path, at.bitmap_directory, entry:rep(65535))
    assert.equal(65535, select(2, info(path, 0).stdout:gsub("name: b\n", "")))
    assert.equal(65535, select(2, info_json(path, 0).stdout:gsub('"name": "b"', "")))
  end)

  it("a bitmap whose table names one cluster of bits a hundred thousand times", function()
    local qcow2 = require "qcow2"
    local count = (1 << 50) // (8 << 21 << 9)
    local path, at = hostile.image({ header = { cluster_bits = 21, size = 1 << 50 },
      bitmaps = { { name = "b", granularity_bits = 9, entries = {} } } })
    poke.bytes(path, at.bitmaps[1].table, string.pack(">I8", at.refcount_table):rep(count)) -- 256 GiB of bits
    local img <close> = assert(qcow2.open(path))
    local start = os.clock()
    local fine, message = pcall(function() return img:bitmap("b"):extents()() end)
    assert.is_false(fine)
    assert.is_truthy(message:find("is used by two entries", 1, true), message)
    assert.is_true(sanitized or os.clock() - start < 1)
  end)

  it("a header of 2 MiB full of extensions and feature names", function()
    local names = {}
    for i = 0, 20000 do names[#names + 1] = string.pack("BBc46", 0, i % 64, "name") end
    local bytes = table.concat(names)
    bytes = string.pack(">I4I4", 0x6803f857, #bytes) .. bytes .. ("\0"):rep(-#bytes % 8)
    bytes = bytes .. string.pack(">I4I4", 9, 0):rep((2 * MIB - #bytes - 200) // 8)
    local path = hostile.image({ header = { cluster_bits = 21, size = MIB }, extension_bytes = bytes })
    info(path, 0)
    info_json(path, 0)
    poke.field(path, "incompatible_features", ~31)
    info(path, 1)
  end)

  it("a sparse file of a terabyte", function()
    local path = hostile.image({ header = { cluster_bits = 9, size = MIB } })
    poke.truncate(path, 1 << 40)
    info(path, 0)
    map(path, 0)
  end)

  it("a disk of 64 PiB", function()
    local path = hostile.image({ header = { cluster_bits = 21, size = 1 << 56 } })
    info(path, 0)
    map_json(path, 0)
  end)
end)

describe("A repair", function()
  it("does not fill the disk with copies of what a small file names again and again", function()
    local count = 1 << 20
    local path, at = hostile.image({ header = { cluster_bits = 12, l1_size = count, l1_table_offset = 16 * MIB,
      size = count << 21 }, l1_size = 1, clusters = { [0] = { data = "x" } }, length = 32 * MIB })
    poke.bytes(path, 16 * MIB, string.pack(">I8", at.l2[0]):rep(count))
    local result = within({ "check", "-r", "all", path }, 4, 96, 1)
    assert.is_truthy(result.stderr:find("Too many entries share one place", 1, true), result.stderr)
    assert.is_true(poke.length(path) < 512 * MIB)
  end)
end)

describe("Walking is linear:", function()
  it("a large empty overlay over a fragmented backing file", function()
    local path = with_l1(9, 4 * MIB, { backing_file = "base.qcow2", backing_format = "qcow2" })
    local base = path:gsub("[^/]*$", "base.qcow2")
    local count, l1 = 300, {}
    forge.write(base, { l1_size = 1, length = 20 * MIB,
      header = { cluster_bits = 9, l1_size = count, l1_table_offset = 16 * MIB, size = count * 32768 } })
    for i = 1, count do l1[i] = string.pack(">I8", 17 * MIB + (i - 1) * 512) end
    poke.bytes(base, 16 * MIB, table.concat(l1))
    poke.bytes(base, 17 * MIB, string.pack(">I8I8", 1, 0):rep(32 * count))
    local _, seconds = cost { "map", path }
    assert.is_true(sanitized or seconds < 2, seconds)
  end)

  it("a data file in many pieces under one long run", function()
    local dir = tmp.dir()
    local path, size = dir .. "/image.qcow2", 16 << 30
    local clusters = size >> 16
    local at = forge.write(path, { data_file = "data.raw", data_file_raw = true, header = { size = size } })
    -- All of it mapped one to one: 32 L2 tables behind what the forge made.
    local first, l1 = (at.length + 65535) // 65536 * 65536, {}
    for i = 0, clusters // 8192 - 1 do
      l1[#l1 + 1] = string.pack(">i8", 1 << 63 | first + i * 65536)
      local words = {}
      for j = 0, 8191 do words[j + 1] = string.pack(">i8", 1 << 63 | (i * 8192 + j) << 16) end
      poke.bytes(path, first + i * 65536, table.concat(words))
    end
    poke.bytes(path, at.l1, table.concat(l1))
    local data <close> = assert(io.open(dir .. "/data.raw", "wb"))
    for i = 0, 999 do
      data:seek("set", i << 24)
      data:write("x")
    end
    data:close()
    local result, seconds = cost { "map", path }
    assert.equal(0, result.code, result.stderr)
    assert.equal(1001, select(2, result.stdout:gsub("\n", "")))
    assert.is_true(sanitized or seconds < 2, seconds)
  end)
end)

describe("A command that reads", function()
  it("changes no byte of any file, nor its times, even with the autoclear bits of others set", function()
    local dir = tmp.dir()
    local path = dir .. "/image.qcow2"
    forge.write(path, { header = { autoclear_features = 0xff01, incompatible_features = 1, compatible_features = 1 },
      clusters = { [0] = { data = "x" }, [1] = { compressed = forge.deflate(("c"):rep(65536)) } },
      snapshots = { { name = "s" } }, bitmaps = { { name = "b", flags = 3 } },
      backing_file = "base.raw", backing_format = "raw" })
    sh.spit(dir .. "/base.raw", ("b"):rep(MIB))
    local function state()
      return sh.slurp(path) .. sh.slurp(dir .. "/base.raw")
        .. sh.check("stat -c '%n %s %Y %Z %i' " .. dir .. "/*").stdout
    end
    local before = state()
    for _, words in ipairs { { "info", path }, { "info", "--output=json", "--backing-chain", path }, { "map", path },
      { "map", "--output=json", path }, { "dump", path }, { "explain", path, "0" },
      { "compare", path, path }, { "dd", "if=" .. path, "of=/dev/null" } } do
      local result = sh.qcow2(words)
      assert.is_true(result.code <= 1, table.concat(words, " ") .. "\n" .. result.stderr)
      assert.equal(before, state(), words[1])
    end
  end)
end)
