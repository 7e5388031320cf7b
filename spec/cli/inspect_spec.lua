-- SPDX-License-Identifier: MIT
-- The verbs of our own that look into an image: dump, explain, shell.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local dir

local function run(...)
  local result = sh.qcow2({ ... }, { cwd = dir })
  assert.equal("", result.stderr)
  assert.equal(0, result.code)
  return result.stdout
end

lazy_setup(function()
  dir = tmp.dir()
  qemu.create(dir .. "/base.qcow2", { size = "4M" })
  qemu.io(dir .. "/base.qcow2", { "write -P 1 0 64k" })
  qemu.create(dir .. "/top.qcow2", { backing_file = "base.qcow2", backing_fmt = "qcow2" })
  qemu.io(dir .. "/top.qcow2", { "write -P 2 1M 200k", "write -z 2M 64k", "write -c -P 3 3M 64k" })
  qemu.snapshot(dir .. "/top.qcow2", "-c", "before")
  qemu.bitmap(dir .. "/top.qcow2", "b0", "--add")
end)

describe("dump", function()
  local function structures()
    local found = {}
    for _, structure in ipairs(qemu.decode(run("dump", "--json", "top.qcow2"))) do
      found[#found + 1] = structure
      found[structure.structure] = structure
    end
    return found
  end

  it("has every structure of the image, in the order of reading", function()
    local names = {}
    for index, structure in ipairs(structures()) do
      names[index] = structure.structure
      assert.is_nil(structure.problem)
    end
    assert.same({ "header", "header extensions", "backing file name", "refcount table", "refcount block 0", "L1 table",
      "L2 table 0", "snapshot table", "snapshot 1 L1 table", "snapshot 1 L2 table 0", "bitmap directory",
      'bitmap "b0" table' }, names)
  end)

  it("gives each row the bytes that lie at its place in the file", function()
    local file <close> = assert(io.open(dir .. "/top.qcow2", "rb"))
    local rows = 0
    for _, structure in ipairs(structures()) do
      for _, row in ipairs(structure.rows) do
        file:seek("set", row.offset)
        local bytes = file:read(math.min(row.length, 512)):gsub(".", function(char)
          return ("%02x "):format(char:byte())
        end)
        assert.equal(bytes:sub(1, -2), (row.bytes:gsub(" %.%.$", "")))
        rows = rows + 1
      end
    end
    assert.is_true(rows > 40)
  end)

  it("has the header's fields as numbers", function()
    local values = {}
    for _, row in ipairs(structures().header.rows) do
      values[row.name] = row.value
    end
    assert.equal(0x514649fb, values.magic)
    assert.equal(3, values.version)
    assert.equal(4 << 20, values.size)
    assert.equal(1, values.nb_snapshots)
    assert.equal("0x0000000000000001", values.autoclear_features)
  end)

  it("joins entries that follow one another", function()
    local meanings = {}
    for index, row in ipairs(structures()["L2 table 0"].rows) do
      meanings[index] = row.name .. " " .. row.meaning:gsub("0x%x+$", "X"):gsub("host 0x%x+", "host X")
    end
    assert.equal("entry 16-19 guest 0x100000, 256 KiB: data at host X", meanings[1])
    assert.equal("entry 32 guest 0x200000, 64 KiB: zeros", meanings[2])
    assert.truthy(meanings[3]:find("^entry 48 guest 0x300000, 64 KiB: compressed, %d+ bytes of sectors at host X$"))
    assert.is_nil(meanings[4])
  end)

  it("says the same to people", function()
    local text = run("dump", "top.qcow2")
    for _, structure in ipairs(structures()) do
      assert.truthy(text:find(("%s at 0x%x, %d bytes\n"):format(structure.structure, structure.offset,
        structure.length), 1, true))
    end
    assert.truthy(text:find("\n  0x0000000018  00 00 00 00 00 40 00 00     size                     a disk of 4 MiB\n",
      1, true))
    assert.equal(run("dump", "--json", "top.qcow2"), run("dump", "--output=json", "top.qcow2"))
  end)

  it("shows what can be shown of a damaged image", function()
    local path = dir .. "/damaged.qcow2"
    sh.check({ "cp", dir .. "/top.qcow2", path })
    local file <close> = assert(io.open(path, "r+b"))
    file:seek("set", 40)
    file:seek("set", (">I8"):unpack(file:read(8))) -- the first L1 entry
    file:write((">I8"):pack(1 << 40))
    file:flush()
    local found = {}
    for _, structure in ipairs(qemu.decode(run("dump", "--json", "damaged.qcow2"))) do
      found[structure.structure] = structure
    end
    assert.truthy(found["L2 table 0"].problem)
    assert.equal(1, #found["snapshot table"].rows)
    assert.is_nil(found["snapshot table"].problem)
    assert.truthy(run("dump", "damaged.qcow2"):find("\n  ! ", 1, true))
  end)

  it("works without the backing file", function()
    qemu.create(dir .. "/gone.qcow2", { size = "1M" })
    qemu.create(dir .. "/orphan.qcow2", { backing_file = "gone.qcow2", backing_fmt = "qcow2" })
    os.remove(dir .. "/gone.qcow2")
    assert.truthy(run("dump", "orphan.qcow2"):find('"gone.qcow2"', 1, true))
  end)

  it("refuses raw files", function()
    local result = sh.qcow2({ "dump", "-f", "raw", "top.qcow2" }, { cwd = dir })
    assert.equal(1, result.code)
    assert.equal("qcow2: 'top.qcow2' is a raw image, it has no structures\n", result.stderr)
  end)
end)

describe("explain", function()
  it("leads from the tables to the byte in the file", function()
    local way = qemu.decode(run("explain", "--output=json", "top.qcow2", "1M"))
    assert.equal("data", way.kind)
    assert.equal(0, way.depth)
    local file <close> = assert(io.open(dir .. "/top.qcow2", "rb"))
    file:seek("set", way.host_offset)
    assert.equal(("\2"):rep(16), file:read(16))
    file:seek("set", way.layers[1].l2_entry_offset)
    assert.equal(way.layers[1].l2_raw, ("0x%016x"):format((">I8"):unpack(file:read(8))))
  end)

  it("takes offsets with suffixes and in hexadecimal", function()
    local text = run("explain", "top.qcow2", "1048576")
    assert.equal(text, run("explain", "top.qcow2", "1M"))
    assert.equal(text, run("explain", "top.qcow2", "0x100000"))
    assert.truthy(text:find("guest offset 0x100000", 1, true))
  end)

  it("goes on to the backing file", function()
    local way = qemu.decode(run("explain", "--output=json", "top.qcow2", "0"))
    assert.equal(1, way.depth)
    assert.equal("data", way.kind)
    assert.equal(2, #way.layers)
  end)

  for _, case in ipairs({
    { { "top.qcow2" }, "Expecting an image file name and an offset\nTry 'qcow2 explain --help' for more info" },
    { { "top.qcow2", "x" }, "Invalid offset specified: 'x'" },
    { { "top.qcow2", "4M" }, "Offset 4194304 is past the disk's end 4194304" },
  }) do
    it(("refuses `explain %s`"):format(table.concat(case[1], " ")), function()
      local result = sh.qcow2({ "explain", table.unpack(case[1]) }, { cwd = dir })
      assert.equal("qcow2: " .. case[2] .. "\n", result.stderr)
      assert.equal(1, result.code)
    end)
  end
end)

describe("shell", function()
  local function shell(input, ...)
    return sh.qcow2({ "shell", ... }, { cwd = dir, input = input })
  end

  it("completes names at a terminal", function()
    local command = sh.quote(sh.build() .. "/bin/qcow2") .. " shell top.qcow2"
    local result = sh.run({ "script", "-qec", command, "/dev/null" },
      { cwd = dir, input = "img.refcount_b\t\nimg:snapshot_cre\t 'x')\n\4", env = { TERM = "dumb" } })
    assert.is_truthy(result.stdout:find("img.refcount_bits\r?\n[^\n]*16\r?\n"), result.stdout)
    assert.is_truthy(result.stdout:find("img:snapshot_create( 'x')", 1, true), result.stdout)
  end)

  it("prints what each line yields", function()
    local result = shell("img.size\n'a\\27b'\nnil, 1, nil\nx = 5\nx\n", "top.qcow2")
    assert.equal("", result.stderr)
    assert.equal('4194304 (0x400000)\n"a\\x1bb"\nnil\t1\n5\n', result.stdout)
    assert.equal(0, result.code)
  end)

  it("reads on until a statement is complete", function()
    assert.equal("1\n2\n", shell("for i = 1, 2 do\nprint(i)\nend\n").stdout)
  end)

  it("stops at the first mistake with exit code 1 when nobody sits there", function()
    local result = shell("print(1)\nerror('boo')\nprint(2)\n")
    assert.equal(1, result.code)
    assert.equal("1\n", result.stdout)
    assert.equal("qcow2: stdin:2: boo\n", result.stderr)
    assert.equal(1, shell("x = = 1\n").code)
    assert.equal(1, shell("for i = 1, 2 do\n").code)
  end)

  it("runs code from the command line", function()
    assert.equal("qcow2\n4194304\n", run("shell", "-e", "print(img.format)", "-e", "print(img.size)", "top.qcow2"))
  end)

  it("has the library and needs no image", function()
    assert.equal('"qcow2"\n1024\n', shell("qcow2.probe('top.qcow2')\nqcow2.size('1K')\n").stdout)
  end)

  it("shows tables with their fields in order", function()
    assert.equal("{\n  1\n  a = true\n  b = {\n    c = 2\n  }\n}\n", shell("{ 1, b = { c = 2 }, a = true }\n").stdout)
  end)

  it("fails when the image does not open", function()
    local result = shell("", "nosuch")
    assert.equal(1, result.code)
    assert.equal("qcow2: Could not open 'nosuch': No such file or directory\n", result.stderr)
  end)
end)
