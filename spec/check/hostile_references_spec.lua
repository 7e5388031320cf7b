-- SPDX-License-Identifier: MIT
-- SAFETY rules 6 to 9: names in images are facts, not commands. What they may lead to, and what is refused.
local forge = require "spec.support.forge"
local hostile = require "spec.support.hostile"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local SIZE = 1 << 20

-- An overlay `top.qcow2` in a new folder that names `name`. gives: its path, the folder.
local function overlay(name, format, more)
  local dir = tmp.dir()
  local description = { backing_file = name, backing_format = format ~= false and (format or "raw") or nil }
  for key, value in pairs(more or {}) do description[key] = value end
  forge.write(dir .. "/top.qcow2", description)
  return dir .. "/top.qcow2", dir
end

local function data_image(name, more)
  local dir = tmp.dir()
  local description = { data_file = name, clusters = { [0] = { data = "x" } } }
  for key, value in pairs(more or {}) do description[key] = value end
  forge.write(dir .. "/top.qcow2", description)
  return dir .. "/top.qcow2", dir
end

-- Reading needs the referenced file and does not get it.
local function refused(path, kind, words, options)
  hostile.opened(path, function(img)
    local bytes, message, got = img:read(0, 512)
    assert.is_nil(bytes)
    assert.equal(kind, got, message)
    assert.is_truthy(message:find(words, 1, true), message)
    assert.is_falsy(message:find("[%c\127]"), "control characters in the message")
  end, options)
end

local function read_first(path, options)
  return hostile.opened(path, function(img) return (assert(img:read(0, 5))) end, options)
end

describe("A backing file", function()
  it("beside the image is opened", function()
    local path, dir = overlay("base.raw")
    sh.spit(dir .. "/base.raw", "hello")
    assert.equal("hello", read_first(path))
  end)

  it("below the image's directory is opened", function()
    local path, dir = overlay("sub/base.raw")
    sh.check { "mkdir", dir .. "/sub" }
    sh.spit(dir .. "/sub/base.raw", "below")
    assert.equal("below", read_first(path))
  end)

  it("named by an absolute path in the image's directory is opened", function()
    local dir = tmp.dir()
    sh.spit(dir .. "/base.raw", "there")
    forge.write(dir .. "/top.qcow2", { backing_file = dir .. "/base.raw", backing_format = "raw" })
    assert.equal("there", read_first(dir .. "/top.qcow2"))
  end)

  it("anywhere else is refused, naming the options that allow it", function()
    local other = tmp.dir()
    sh.spit(other .. "/base.raw", "other")
    local path = overlay(other .. "/base.raw")
    refused(path, "refused", "allow it with references = {...} (--allow " .. other .. "/)")
    assert.equal("other", read_first(path, { references = "any" }))
    assert.equal("other", read_first(path, { references = { other } }))
    assert.equal("other", read_first(path, { references = function(real, role)
      return real == other .. "/base.raw" and role == "backing"
    end }))
    refused(path, "refused", "references are not allowed", { references = {} })
    refused(path, "refused", "references are not allowed", { references = function() return false end })
    refused(path, "refused", "references are off", { references = "none" })
    local result = sh.qcow2 { "map", path }
    assert.equal(1, result.code)
    assert.is_truthy(result.stderr:find("--allow", 1, true), result.stderr)
    assert.equal(0, sh.qcow2({ "--allow", other, "map", path }).code)
    assert.equal(0, sh.qcow2({ "map", path }, { env = { QCOW2_ALLOW = "/nowhere:" .. other } }).code)
  end)

  it("above the image's directory is refused", function()
    local path, dir = overlay("../base.raw")
    sh.spit(dir .. "/../base.raw", "above")
    refused(path, "refused", "where references are not allowed")
    os.remove(dir .. "/../base.raw")
  end)

  it("in a directory whose name only begins like an allowed one is refused", function()
    local dir = tmp.dir()
    sh.check { "mkdir", dir .. "/a", dir .. "/ab" }
    sh.spit(dir .. "/ab/base.raw", "x")
    forge.write(dir .. "/a/top.qcow2", { backing_file = "../ab/base.raw", backing_format = "raw" })
    refused(dir .. "/a/top.qcow2", "refused", "where references are not allowed")
    refused(dir .. "/a/top.qcow2", "refused", "where references are not allowed", { references = { dir .. "/a" } })
  end)

  it("behind a symbolic link out of the directory is refused", function()
    local secret = tmp.path("secret")
    sh.spit(secret, "secret")
    local path, dir = overlay("base.raw")
    sh.check { "ln", "-s", secret, dir .. "/base.raw" }
    refused(path, "refused", "leads to '" .. secret .. "'")
    sh.check { "ln", "-sfn", secret:match("^(.*)/"), dir .. "/link" }
    forge.write(path, { backing_file = "link/secret", backing_format = "raw" })
    refused(path, "refused", "leads to '" .. secret .. "'")
  end)

  it("that is missing is reported, with a hint when it is in the current directory", function()
    local path = overlay("nobody-has-this.raw")
    refused(path, "missing", "No such file or directory")
    local here = overlay("README.md")
    refused(here, "missing", "names count from the image's directory")
  end)

  it("with an empty name is none", function()
    local path = overlay("", nil, { header = { backing_file_offset = 4096, backing_file_size = 0 } })
    hostile.opened(path, function(img)
      assert.is_nil(img.backing_file)
      assert.equal(("\0"):rep(5), img:read(0, 5))
    end)
  end)

  it("with a NUL in its name is refused", function()
    local path, dir = overlay("base.raw\0.txt")
    sh.spit(dir .. "/base.raw", "x")
    refused(path, "refused", "has a NUL in its name")
    assert.equal(0, sh.qcow2({ "info", path }).code)
  end)

  it("whose name looks like a protocol is a plain file name", function()
    for _, name in ipairs { 'json:{"driver":"raw"}', "nbd:localhost:10809", "file:base.raw", "fat:rw:/", "http://x/y",
      "raw:base.raw", "-rf", "~/x", "$(id)", "a;id" } do
      local path, dir = overlay(name)
      sh.spit(dir .. "/base.raw", "wrong")
      refused(path, "missing", "No such file or directory")
      if not name:find("/", 1, true) then
        sh.spit(dir .. "/" .. name, "plain")
        assert.equal("plain", read_first(path))
      end
    end
  end)

  it("whose name has control characters shows them escaped", function()
    local path = overlay("base\27[2J\n.raw")
    refused(path, "missing", [[base\x1b[2J\x0a.raw]])
    for _, words in ipairs { { "info", path }, { "explain", path, "0" }, { "dump", path }, { "map", path },
      { "info", "--backing-chain", path } } do
      local result = sh.qcow2(words)
      assert.is_falsy((result.stdout .. result.stderr):find("[\1-\8\11-\31\127]"), table.concat(words, " "))
    end
    local json = require("dkjson").decode(sh.qcow2({ "info", "--output=json", path }).stdout)
    assert.equal("base\27[2J\n.raw", json["backing-filename"])
  end)

  it("with an unknown stored format is refused", function()
    local path, dir = overlay("base.raw", "vmdk\27")
    sh.spit(dir .. "/base.raw", "x")
    refused(path, "unsupported", [[Unknown backing format 'vmdk\x1b']])
  end)

  it("of a stored raw format is never probed", function()
    local path, dir = overlay("base", "raw")
    forge.write(dir .. "/base", {})
    assert.equal("QFI\xfb\0", read_first(path))
  end)

  it("reached by probing gets no backing file and no data file of its own", function()
    local path, dir = overlay("middle.qcow2", false)
    forge.write(dir .. "/middle.qcow2", { backing_file = "base.raw", backing_format = "raw" })
    sh.spit(dir .. "/base.raw", "deep!")
    refused(path, "refused", "was reached by probing, so its own backing file 'base.raw' is not opened")
    forge.write(dir .. "/middle.qcow2", { data_file = "base.raw", clusters = { [0] = { data = "" } } })
    refused(path, "refused", "was reached by probing, so its own data file 'base.raw' is not opened")
    -- With its format stored, or named by the caller, it gets them.
    forge.write(path, { backing_file = "middle.qcow2", backing_format = "qcow2" })
    assert.equal("deep!", read_first(path))
    assert.equal("deep!", read_first(path, { backing = dir .. "/middle.qcow2" }))
  end)

  it("reached by probing is still read when it needs nothing", function()
    local path, dir = overlay("middle.qcow2", false)
    forge.write(dir .. "/middle.qcow2", { clusters = { [0] = { data = "fine!" } } })
    assert.equal("fine!", read_first(path))
  end)

  it("that is damaged is named in the message", function()
    local path, dir = overlay("base.qcow2", "qcow2")
    forge.write(dir .. "/base.qcow2", { header = { cluster_bits = 40 } })
    refused(path, "corrupt", "base.qcow2")
    forge.write(dir .. "/base.qcow2", { l1 = { [0] = 1 << 40 } })
    refused(path, "corrupt", "base.qcow2")
    sh.spit(dir .. "/base.qcow2", "")
    refused(path, "format", "base.qcow2")
  end)
end)

describe("A chain", function()
  it("from an image to itself is refused", function()
    local path = overlay("top.qcow2", "qcow2")
    refused(path, "corrupt", "comes back to")
  end)

  it("from a to b to a is refused", function()
    local path, dir = overlay("b.qcow2", "qcow2")
    forge.write(dir .. "/b.qcow2", { backing_file = "top.qcow2", backing_format = "qcow2" })
    refused(path, "corrupt", "comes back to")
    local result = sh.qcow2 { "info", "--backing-chain", path }
    assert.equal(1, result.code)
  end)

  it("to itself by a symbolic or a hard link is refused", function()
    for _, how in ipairs { "-s", "-L" } do
      local path, dir = overlay("other.qcow2", "qcow2")
      sh.check { "ln", how, dir .. "/top.qcow2", dir .. "/other.qcow2" }
      refused(path, "corrupt", "comes back to")
    end
  end)

  it("that comes back further down is refused", function()
    local path, dir = overlay("b.qcow2", "qcow2")
    forge.write(dir .. "/b.qcow2", { backing_file = "c.qcow2", backing_format = "qcow2" })
    forge.write(dir .. "/c.qcow2", { backing_file = "b.qcow2", backing_format = "qcow2" })
    refused(path, "corrupt", "comes back to")
  end)

  it("of 200 images is read, of more refused", function()
    local dir = tmp.dir()
    forge.write(dir .. "/i0", { header = { cluster_bits = 9, size = 4096 }, clusters = { [0] = { data = "base!" } } })
    local function link(i)
      forge.write(("%s/i%d"):format(dir, i), { header = { cluster_bits = 9, size = 4096 },
        backing_file = "i" .. i - 1, backing_format = "qcow2" })
    end
    for i = 1, 199 do link(i) end
    assert.equal("base!", read_first(dir .. "/i199"))
    link(200)
    refused(dir .. "/i200", "range", "longer than 200 images")
    hostile.opened(dir .. "/i200", function(img)
      local chain = img:chain()
      assert.equal(201, #chain)
      assert.is_truthy(chain[201].missing:find("longer than 200", 1, true))
    end)
  end)

  it("whose base is gone lists the layers above it", function()
    local path, dir = overlay("middle.qcow2", "qcow2")
    forge.write(dir .. "/middle.qcow2", { backing_file = "gone.raw", backing_format = "raw" })
    hostile.opened(path, function(img)
      local chain = img:chain()
      assert.equal(3, #chain)
      assert.equal(dir .. "/middle.qcow2", chain[2].path)
      assert.equal(dir .. "/gone.raw", chain[3].path)
      assert.equal("missing", chain[3].kind)
    end)
  end)
end)

describe("A file that is no file", function()
  it("never hangs us: a FIFO as image, backing file or data file is refused", function()
    local dir = tmp.dir()
    sh.check { "mkfifo", dir .. "/pipe" }
    forge.write(dir .. "/top.qcow2", { backing_file = "pipe", backing_format = "raw" })
    forge.write(dir .. "/data.qcow2", { data_file = "pipe", clusters = { [0] = { data = "x" } } })
    for _, words in ipairs { { "info", dir .. "/pipe" }, { "map", dir .. "/pipe" }, { "map", dir .. "/top.qcow2" },
      { "info", "--backing-chain", dir .. "/top.qcow2" },
      { "dd", "if=" .. dir .. "/data.qcow2", "of=" .. dir .. "/out" },
      { "dd", "if=" .. dir .. "/top.qcow2", "of=" .. dir .. "/out" } } do
      local result = sh.qcow2(words, { timeout = 10 })
      assert.equal(1, result.code, table.concat(words, " ") .. "\n" .. result.stderr)
      assert.is_truthy(result.stderr:find("pipe", 1, true), result.stderr)
    end
    refused(dir .. "/top.qcow2", "refused", "pipe")
    refused(dir .. "/data.qcow2", "refused", "pipe")
  end)

  it("is refused: directories, sockets, character devices", function()
    local qcow2 = require "qcow2"
    local dir = tmp.dir()
    for _, path in ipairs { dir, "/dev/null", "/dev/zero", "/dev/tty", "/proc/self/mem" } do
      local img, message, kind = qcow2.open(path)
      assert.is_nil(img, path)
      assert.is_truthy(({ refused = true, io = true, denied = true, missing = true, format = true })[kind],
        path .. ": " .. tostring(message))
    end
    for _, name in ipairs { ".", "/dev/zero", "/dev/null" } do
      local path = overlay(name)
      hostile.opened(path, function(img)
        local _, message, kind = img:read(0, 512)
        assert.equal("refused", kind, message)
      end, { references = "any" })
    end
  end)

  local device = sh.run("ls -d /dev/loop0 /dev/vda /dev/sda 2>/dev/null | head -n 1").stdout:match("%S+")
  local with_device = device and it or function() end
  with_device("is refused as a reference when it is a block device, even with references = any", function()
    for _, path in ipairs { (overlay(device)), (data_image(device)) } do
      hostile.opened(path, function(img)
        local bytes, message, kind = img:read(0, 512)
        assert.is_nil(bytes)
        assert.is_truthy(kind == "refused" or kind == "denied", message)
      end, { references = "any" })
    end
  end)
end)

describe("An external data file", function()
  it("outside the image's directory is refused, naming the option: /etc/passwd", function()
    local path = data_image("/etc/passwd")
    refused(path, "refused", "allow it with references = {...} (--allow /etc/)")
    local out = tmp.path("out")
    local result = sh.qcow2 { "dd", "if=" .. path, "of=" .. out }
    assert.equal(1, result.code)
    assert.is_truthy(result.stderr:find("--allow /etc/", 1, true), result.stderr)
    assert.equal(0, sh.qcow2({ "info", path }).code)
  end)

  it("behind a symbolic link out of the directory is refused", function()
    local path, dir = data_image("data.raw")
    sh.check { "ln", "-s", "/etc/passwd", dir .. "/data.raw" }
    refused(path, "refused", "leads to '/etc/passwd'")
  end)

  it("that is the image itself is refused", function()
    local path, dir = data_image("top.qcow2")
    refused(path, "conflict", "is the image file itself")
    path, dir = data_image("link")
    sh.check { "ln", path, dir .. "/link" }
    refused(path, "conflict", "is the image file itself")
  end)

  it("that is a layer of the backing chain is refused", function()
    local path, dir = data_image("base.raw", { backing_file = "base.raw", backing_format = "raw" })
    sh.spit(dir .. "/base.raw", ("b"):rep(4096))
    hostile.opened(path, function(img)
      local ok, message, kind = img:attach()
      assert.is_nil(ok)
      assert.equal("conflict", kind, message)
    end)
  end)

  it("that is missing leaves everything but the data readable", function()
    local path, dir = data_image("data.raw", { backing_file = "base.raw", backing_format = "raw" })
    sh.spit(dir .. "/base.raw", ("b"):rep(SIZE))
    hostile.opened(path, function(img)
      local kinds = {}
      for e in img:extents() do kinds[#kinds + 1] = e.kind .. e.depth end
      assert.same({ "data0", "data1" }, kinds)
      assert.equal("bbbbb", img:read(65536, 5))
      assert.equal("data", img:explain(0).kind)
      assert.equal("missing", (select(3, img:read(0, 5))))
      assert.is_nil(img.data_path)
      assert.equal(dir .. "/data.raw", img.data_file_path)
    end)
  end)

  it("without a name in the image has to be given", function()
    local path, dir = data_image("x")
    forge.write(path, { external_data = true, clusters = { [0] = { data = "x" } } })
    sh.spit(dir .. "/given.raw", "given")
    refused(path, "missing", "give it as data_file")
    assert.equal("given", read_first(path, { data_file = dir .. "/given.raw" }))
    refused(path, "missing", "was not to be attached", { data_file = false })
  end)

  it("with an empty name or a NUL is refused", function()
    refused((data_image("")), "refused", "has an empty name")
    refused((data_image("a\0b")), "refused", "has a NUL in its name")
  end)
end)

describe("Inspection without the referenced files", function()
  it("works: info, dump, explain, map --output=json of one layer's own data", function()
    local path = overlay("gone.raw", nil, { clusters = { [0] = { data = "x" } }, snapshots = { { name = "s" } },
      bitmaps = { { name = "b" } } })
    for _, words in ipairs { { "info", path }, { "info", "--output=json", path }, { "dump", path },
      { "explain", path, "0" } } do
      local result = sh.qcow2(words)
      assert.equal(0, result.code, table.concat(words, " ") .. "\n" .. result.stderr)
    end
    hostile.opened(path, function(img)
      assert.equal("gone.raw", img.backing_file)
      assert.equal(1, #img.snapshots)
      assert.equal(1, #img.bitmaps)
      local kinds = {}
      for e in img:extents({ layer = true, holes = false }) do kinds[#kinds + 1] = e.kind end
      assert.same({ "data", "unallocated" }, kinds)
      assert.equal("x", img:read(0, 1))
      assert.equal("data", img:explain(0).kind)
    end)
  end)

  it("opens no other file for info", function()
    local path, dir = overlay("base.raw", nil, { data_file = "data.raw" })
    sh.spit(dir .. "/base.raw", "x")
    sh.spit(dir .. "/data.raw", "x")
    local core, opened = require "qcow2.core", {}
    local store_file = core.store_file
    core.store_file = function(name, ...)
      opened[#opened + 1] = name
      return store_file(name, ...)
    end
    local _ <close> = setmetatable({}, { __close = function() core.store_file = store_file end })
    local img <close> = assert(require("qcow2").open(path))
    local facts = { tostring(img) }
    for key, value in pairs(img) do facts[#facts + 1] = key .. tostring(value) end
    facts[#facts + 1] = #img.snapshots + #img.bitmaps + #img.extensions + #img.features + #img.feature_names
    facts[#facts + 1] = tostring(img.l1[0]) .. img:refcount(0) .. img.backing_path .. img.data_file_path
    assert.same({ path }, opened)
    assert.equal("x", img:read(0, 1)) -- which needs them
    assert.is_true(#opened > 1)
  end)
end)
