-- SPDX-License-Identifier: MIT
-- `info`: qemu-img's text and JSON, with the block of the file node that qemu-img has had since version 8.
local forge = require("spec.support.forge")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

-- Our JSON without what qemu-img 7.2 does not print.
local function without_children(json)
  return (json:gsub('    "children": %[\n        .-\n    %],\n', ""))
end

local function without_node(human)
  return (human:gsub("Child node '/file':\n.*", ""))
end

local function info(dir, ...)
  local result = sh.qcow2({ "info", ... }, { cwd = dir })
  assert.equal("", result.stderr)
  assert.equal(0, result.code)
  return result.stdout
end

local function theirs(dir, ...)
  return sh.check({ "qemu-img", "info", ... }, { cwd = dir }).stdout
end

describe("info", function()
  local dir

  lazy_setup(function()
    dir = tmp.dir()
    qemu.create(dir .. "/plain.qcow2", { size = "1M" })
    qemu.create(dir .. "/old.qcow2", { size = "3G", compat = "0.10", cluster_size = 4096 })
    qemu.create(dir .. "/rich.qcow2", { size = "10M", extended_l2 = true, lazy_refcounts = true,
      compression_type = "zstd", refcount_bits = 64 })
    qemu.create(dir .. "/top.qcow2", { backing_file = "plain.qcow2", backing_fmt = "qcow2" })
    qemu.create(dir .. "/bitmaps.qcow2", { size = "1M" })
    qemu.bitmap(dir .. "/bitmaps.qcow2", "b0", "--add")
    qemu.bitmap(dir .. "/bitmaps.qcow2", "b1", "--add", "--disable", "-g", "128k")
    qemu.create(dir .. "/data.qcow2", { size = "1M", data_file = "data.raw", data_file_raw = true })
    sh.check({ "qemu-img", "create", "-q", "-f", "raw", dir .. "/disk.raw", "1M" })
    sh.spit(dir .. "/short.raw", ("x"):rep(1000))
  end)

  for _, name in ipairs({ "plain.qcow2", "old.qcow2", "rich.qcow2", "top.qcow2", "bitmaps.qcow2" }) do
    it(("says of %s what qemu-img says, as JSON"):format(name), function()
      assert.equal(theirs(dir, "--output=json", name), without_children(info(dir, "--output=json", name)))
    end)

    it(("says of %s what qemu-img says, to people"):format(name), function()
      assert.equal(theirs(dir, name), without_node(info(dir, name)))
    end)

    it(("says of %s what qemu-img says, from another directory"):format(name), function()
      local path = dir .. "/" .. name
      assert.equal(theirs("/", path), without_node(info("/", path)))
      assert.equal(theirs("/", "--output=json", path), without_children(info("/", "--output=json", path)))
    end)
  end

  it("shows the file below an image, as qemu-img 10 does", function()
    local spent = tonumber(info(dir, "--output=json", "plain.qcow2"):match('\n    "actual%-size": (%d+)'))
    local shown = ("%d KiB"):format(spent // 1024)
    assert.equal(([[
image: plain.qcow2
file format: qcow2
virtual size: 1 MiB (1048576 bytes)
disk size: SPENT
cluster_size: 65536
Format specific information:
    compat: 1.1
    compression type: zlib
    lazy refcounts: false
    refcount bits: 16
    corrupt: false
    extended l2: false
Child node '/file':
    filename: plain.qcow2
    protocol type: file
    file length: 192 KiB (197120 bytes)
    disk size: SPENT
]]):gsub("SPENT", shown), (info(dir, "plain.qcow2")))
  end)

  it("shows the file below an image as JSON, as qemu-img 10 does", function()
    local text = info(dir, "--output=json", "disk.raw")
    assert.equal([[
{
    "children": [
        {
            "name": "file",
            "info": {
                "children": [
                ],
                "virtual-size": 1048576,
                "filename": "disk.raw",
                "format": "file",
                "actual-size": SPENT,
                "format-specific": {
                    "type": "file",
                    "data": {
                    }
                },
                "dirty-flag": false
            }
        }
    ],
    "virtual-size": 1048576,
    "filename": "disk.raw",
    "format": "raw",
    "actual-size": SPENT,
    "dirty-flag": false
}
]], (text:gsub('"actual%-size": %d+', '"actual-size": SPENT')))
  end)

  it("rounds a raw file up to whole sectors", function()
    assert.equal(theirs(dir, "-f", "raw", "short.raw"), without_node(info(dir, "-f", "raw", "short.raw")))
  end)

  it("lists snapshots in qemu-img 10's columns", function()
    local path = dir .. "/snapshots.qcow2"
    qemu.create(path, { size = "1M" })
    qemu.snapshot(path, "-c", "first")
    qemu.snapshot(path, "-c", "a name longer than its column")
    local text = info(dir, "snapshots.qcow2")
    assert.truthy(text:find("\nSnapshot list:\nID      TAG               VM_SIZE                DATE        VM_CLOCK"
      .. "     ICOUNT\n1       first                 0 B 20%d%d%-%d%d%-%d%d %d%d:%d%d:%d%d  0000:00:00.000          0\n"
      .. "2       a name longer than its column      0 B 20%d%d"))
    assert.equal(theirs(dir, "--output=json", "snapshots.qcow2"),
      without_children(info(dir, "--output=json", "snapshots.qcow2")))
  end)

  it("lists snapshots and bitmaps whose numbers and names are as odd as they can be", function()
    local path = dir .. "/odd.qcow2"
    local names = { "a\27[2J\"\\", "e\u{e9}\u{1f600}\u{9b}", "x\x9by\xe2\x82z\xff", "" }
    local snapshots, bitmaps = {}, {}
    for i, name in ipairs(names) do
      snapshots[i] = { id = name:reverse(), name = name, date_sec = 1000000000 * i, vm_clock_nsec = -1 >> 16 * (i - 1),
        extra = string.pack(">i8i8i8", -1 >> 10 * (i - 1), 1 << 20, i - 3) }
      bitmaps[i] = { name = "b" .. name, flags = i - 1 & 2 }
    end
    forge.write(path, { snapshots = snapshots, bitmaps = bitmaps, header = { size = 1 << 20 } })
    assert.equal(theirs(dir, "--output=json", "odd.qcow2"), without_children(info(dir, "--output=json", "odd.qcow2")))
    local text = info(dir, "odd.qcow2")
    assert.truthy(text:find('\\"J2[\\x1ba a\\x1b[2J"\\         16 EiB 2001-09-0', 1, true), text)
    assert.truthy(text:find(" 5124095:34:33.709         -2\n", 1, true), text)
    assert.truthy(text:find("\n\\xffz\\x82\\xe2y\\x9bx x\\x9by\\xe2\\x82z\\xff ", 1, true), text)
    assert.truthy(text:find("\n        [1]:\n            flags:\n            name: be\u{e9}\u{1f600}\\xc2\\x9b\n"
      .. "            granularity: 65536\n        [2]:\n            flags:\n                [0]: auto\n",
      1, true), text)
  end)

  it("shows a raw image that begins like qcow2 as raw when told so", function()
    assert.truthy(info(dir, "-f", "raw", "plain.qcow2"):find("file format: raw\n", 1, true))
  end)

  it("walks the backing chain", function()
    assert.equal(theirs(dir, "--backing-chain", "--output=json", "top.qcow2"),
      (info(dir, "--backing-chain", "--output=json", "top.qcow2")
        :gsub('        "children": %[\n            .-\n        %],\n', "")))
    local human = info(dir, "--backing-chain", "top.qcow2")
    assert.truthy(human:find("\n\nimage: plain.qcow2\n", 1, true))
  end)

  it("gives a list for the chain of an image without backing file", function()
    assert.equal(1, #qemu.decode(info(dir, "--backing-chain", "--output=json", "plain.qcow2")))
  end)

  it("works without the backing file and without the data file", function()
    qemu.create(dir .. "/gone.qcow2", { size = "1M" })
    qemu.create(dir .. "/orphan.qcow2", { backing_file = "gone.qcow2", backing_fmt = "qcow2" })
    os.remove(dir .. "/gone.qcow2")
    assert.equal(theirs(dir, "orphan.qcow2"), without_node(info(dir, "orphan.qcow2")))
    qemu.create(dir .. "/dataless.qcow2", { size = "1M", data_file = "lost.raw" })
    os.remove(dir .. "/lost.raw")
    assert.truthy(info(dir, "dataless.qcow2"):find("\n    data file: lost.raw\n", 1, true))
  end)

  it("says where the data file is looked for, behind what qemu-img says", function()
    local text = info("/", dir .. "/data.qcow2")
    assert.truthy(text:find(("    data file: data.raw\n    data file raw: true\n    corrupt: false\n"
      .. "    extended l2: false\n    data file path: %s/data.raw\nChild"):format(dir), 1, true))
  end)

  it("fails for a chain with a file missing, before it prints anything", function()
    local result = sh.qcow2({ "info", "--backing-chain", "orphan.qcow2" }, { cwd = dir })
    assert.equal(1, result.code)
    assert.equal("", result.stdout)
    assert.truthy(result.stderr:find("gone.qcow2", 1, true))
    assert.truthy(result.stderr:find("No such file or directory", 1, true))
  end)

  it("goes to backing files outside the image's directory only with --allow", function()
    local inner = dir .. "/inner"
    sh.check({ "mkdir", inner })
    sh.check({ "qemu-img", "create", "-q", "-f", "qcow2", "-b", "../plain.qcow2", "-F", "qcow2", "top.qcow2" },
      { cwd = inner })
    local words = { "info", "--backing-chain", "top.qcow2" }
    local refused = sh.qcow2(words, { cwd = inner })
    assert.equal(1, refused.code)
    assert.truthy(refused.stderr:find("plain.qcow2", 1, true))
    assert.equal(0, sh.qcow2(words, { cwd = inner, env = { QCOW2_ALLOW = "/nowhere:" .. dir } }).code)
    assert.equal(0, sh.qcow2({ "info", "--backing-chain", "--allow", dir, "top.qcow2" }, { cwd = inner }).code)
    assert.equal(0, sh.qcow2({ "--allow=" .. dir, "info", "--backing-chain", "top.qcow2" }, { cwd = inner }).code)
  end)

  it("shows control characters in names by number to people and exactly in JSON", function()
    qemu.create(dir .. "/names.qcow2", { size = "1M", })
    qemu.rebase(dir .. "/names.qcow2", { unsafe = true, backing = "a\27[31mb", backing_format = "raw" })
    assert.truthy(info(dir, "names.qcow2"):find("backing file: a\\x1b[31mb\n", 1, true))
    assert.truthy(info(dir, "--output=json", "names.qcow2"):find('"backing-filename": "a\\u001B[31mb"', 1, true))
  end)

  it("takes --image-opts", function()
    assert.equal(info(dir, "plain.qcow2"), info(dir, "--image-opts", "driver=qcow2,file.filename=plain.qcow2"))
    assert.equal(info(dir, "-f", "raw", "plain.qcow2"),
      info(dir, "--image-opts", "driver=raw,file.driver=file,file.filename=plain.qcow2"))
  end)

  describe("refuses", function()
    local cases = {
      { "a missing operand", {}, "Expecting one image file name\nTry 'qcow2 info --help' for more info" },
      { "two operands", { "a", "b" }, "Expecting one image file name\nTry 'qcow2 info --help' for more info" },
      { "an unknown option", { "--bad" }, "unrecognized option '--bad'\nTry 'qcow2 info --help' for more info" },
      { "an option without its argument", { "-f" },
        "option requires an argument -- 'f'\nTry 'qcow2 info --help' for more info" },
      { "another output form", { "--output=xml", "plain.qcow2" },
        "--output expects 'human' or 'json' not 'xml'\nTry 'qcow2 info --help' for more info" },
      { "a file that is not there", { "nosuch" }, "Could not open 'nosuch': No such file or directory" },
      { "an unknown format", { "-f", "bad", "plain.qcow2" }, "Could not open 'plain.qcow2': Unknown driver 'bad'" },
      { "-f with --image-opts", { "--image-opts", "-f", "raw", "driver=raw" },
        "--image-opts and --format are mutually exclusive" },
      { "an unknown image option", { "--image-opts", "driver=qcow2,file.filename=plain.qcow2,x=y" },
        "Could not open 'driver=qcow2,file.filename=plain.qcow2,x=y': Block format 'qcow2' does not support the "
          .. "option 'x'" },
      { "a secret without id", { "--object", "secret,data=x", "plain.qcow2" }, "Parameter 'id' is missing" },
      { "an object that is no secret", { "--object", "foo,id=x", "plain.qcow2" },
        "Parameter 'qom-type' does not accept value 'foo'" },
    }
    for _, case in ipairs(cases) do
      it(case[1], function()
        local result = sh.qcow2({ "info", table.unpack(case[2]) }, { cwd = dir })
        assert.equal("qcow2: " .. case[3] .. "\n", (result.stderr:gsub("^qcow2 info: ", "qcow2: ")))
        assert.equal("", result.stdout)
        assert.equal(1, result.code)
      end)
    end
  end)
end)
