-- SPDX-License-Identifier: MIT
-- SAFETY rules 8, 9 and 13 for every verb: a path that is no disk never hangs us and leaves nothing behind, a disk that
-- somebody writes is refused with QEMU's words, and --allow means the directories that it names.
local forge = require "spec.support.forge"
local qemu = require "spec.support.qemu"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local MIB = 1 << 20

-- Every verb with the file `name` in its place: as what is read, changed, made, or named as backing or data file.
local function verbs(name)
  return {
    { "info", name }, { "map", name }, { "check", name }, { "check", "-r", "all", name }, { "dump", name },
    { "measure", "-O", "qcow2", name }, { "measure", "-f", "raw", "-O", "qcow2", name }, { "explain", name, "0" },
    { "compare", name, "good.qcow2" }, { "compare", "-f", "raw", name, "good.qcow2" }, { "verify", name },
    { "convert", name, "new" }, { "convert", "-f", "raw", name, "new" }, { "convert", "good.qcow2", name },
    { "convert", "-n", "-O", "raw", "good.qcow2", name }, { "convert", "-O", "qcow2", "good.qcow2", name },
    { "snapshot", "-l", name }, { "snapshot", "-c", "s", name }, { "bitmap", "--add", name, "b" },
    { "resize", name, "+1M" }, { "resize", "-f", "raw", name, "+1M" }, { "amend", "-o", "compat=1.1", name },
    { "commit", name }, { "rebase", "-u", "-b", "", name }, { "dd", "if=" .. name, "of=new" },
    { "dd", "-f", "raw", "if=" .. name, "of=new" }, { "dd", "if=good.qcow2", "of=" .. name },
    { "bench", "-f", "raw", "-c", "1", name }, { "create", "-f", "qcow2", name, "1M" },
    { "create", "-f", "raw", name, "1M" }, { "create", "-f", "qcow2", "-b", name, "-F", "raw", "new", "1M" },
    { "create", "-f", "qcow2", "-o", "data_file=" .. name, "new", "1M" }, { "adopt", name, "new" },
  }
end

describe("A path that is no disk, as any verb's file, is refused at once and by its kind:", function()
  local dir

  lazy_setup(function()
    dir = tmp.dir()
    forge.write(dir .. "/good.qcow2", { clusters = { [0] = { data = "x" } } })
    sh.check("mkfifo " .. dir .. "/pipe && mkdir " .. dir .. "/folder")
  end)

  for name, what in pairs { pipe = "a FIFO", folder = "a directory", ["/dev/zero"] = "a character device" } do
    it(what, function()
      local before = sh.slurp(dir .. "/good.qcow2")
      for _, words in ipairs(verbs(name)) do
        local line = table.concat(words, " ")
        local result = sh.qcow2(words, { cwd = dir, timeout = 10 })
        assert.is_true(result.code == 1 or words[1] == "compare" and result.code == 2, line .. " " .. result.code)
        assert.is_truthy(result.stderr:find(("Could not open '%s': It is %s"):format(name, what), 1, true),
          line .. "\n" .. result.stderr)
        assert.is_nil(io.open(dir .. "/new"), line)
      end
      assert.equal(before, sh.slurp(dir .. "/good.qcow2"))
    end)
  end
end)

describe("A disk that QEMU writes", function()
  local dir, machine

  lazy_setup(function()
    dir = tmp.dir()
    for _, name in ipairs { "disk", "good" } do
      sh.check { "qemu-img", "create", "-q", "-f", "qcow2", ("%s/%s.qcow2"):format(dir, name), "1M" }
    end
    machine = qemu.holds(dir .. "/disk.qcow2", "qcow2")
  end)

  lazy_teardown(function() machine:close() end)

  local function locked(lock, list)
    for _, words in ipairs(list) do
      local line = table.concat(words, " ")
      local result = sh.qcow2(words, { cwd = dir })
      assert.is_true(result.code == 1 or words[1] == "compare" and result.code == 2, line .. " " .. result.code)
      assert.is_truthy(result.stderr:find(("Failed to get %s lock. Is another process using the image [disk.qcow2]?")
        :format(lock), 1, true), line .. "\n" .. result.stderr)
    end
  end

  it("is read by no verb, but with -U", function()
    local list = { { "info", "disk.qcow2" }, { "map", "disk.qcow2" }, { "check", "disk.qcow2" },
      { "measure", "-O", "qcow2", "disk.qcow2" }, { "snapshot", "-l", "disk.qcow2" }, { "dump", "disk.qcow2" },
      { "explain", "disk.qcow2", "0" }, { "compare", "disk.qcow2", "good.qcow2" },
      { "convert", "disk.qcow2", "out" }, { "dd", "if=disk.qcow2", "of=out" } }
    locked('shared "write"', list)
    for _, words in ipairs(list) do
      table.insert(words, 2, "-U")
      assert.equal(0, sh.qcow2(words, { cwd = dir }).code, table.concat(words, " "))
    end
    locked('shared "write"', { { "bench", "-c", "1", "disk.qcow2" } })
  end)

  it("is changed by no verb", function()
    local before = sh.slurp(dir .. "/disk.qcow2")
    locked('"write"', { { "check", "-r", "all", "disk.qcow2" }, { "snapshot", "-c", "s", "disk.qcow2" },
      { "bitmap", "--add", "disk.qcow2", "b" }, { "resize", "disk.qcow2", "2M" }, { "commit", "disk.qcow2" },
      { "amend", "-o", "compat=0.10", "disk.qcow2" }, { "rebase", "-u", "-b", "", "disk.qcow2" },
      { "convert", "-O", "qcow2", "good.qcow2", "disk.qcow2" }, { "create", "-f", "qcow2", "disk.qcow2", "1M" },
      { "externalize", "disk.qcow2", "data.raw" } })
    assert.equal(before, sh.slurp(dir .. "/disk.qcow2"))
  end)

  it("gets overlays, with its size found or given", function()
    for _, size in ipairs { false, "2M" } do
      assert.equal(0, sh.run({ "qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2",
        "theirs.qcow2", size or nil }, { cwd = dir }).code)
      local result = sh.qcow2({ "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "ours.qcow2",
        size or nil }, { cwd = dir })
      assert.same({ 0, "" }, { result.code, result.stderr })
      assert.equal((size and 2 or 1) * MIB, tonumber(sh.qcow2({ "info", "ours.qcow2" }, { cwd = dir })
        .stdout:match("virtual size: .- %((%d+) bytes%)")))
    end
  end)
end)

describe("Directories of --allow and QCOW2_ALLOW", function()
  local dir

  lazy_setup(function()
    dir = tmp.dir()
    sh.check("mkdir -p " .. dir .. "/images " .. dir .. "/bases/deep")
    sh.spit(dir .. "/bases/deep/base.raw", ("b"):rep(MIB))
    forge.write(dir .. "/images/top.qcow2", { backing_file = "../bases/deep/base.raw", backing_format = "raw" })
  end)

  local function map(option, variable)
    local words = option and { "--allow", option, "map", "images/top.qcow2" } or { "map", "images/top.qcow2" }
    local result = sh.qcow2(words, { cwd = dir, env = { QCOW2_ALLOW = variable or "" } })
    assert.equal(result.code == 1, result.stderr:find("references are not allowed", 1, true) ~= nil)
    return result.code
  end

  it("may be relative, end in slashes, go up and come back, or be the root", function()
    for _, name in ipairs { "bases", "./bases", "bases//", "bases/deep/", "images/../bases", ".", "/", dir } do
      assert.equal(0, map(name), name)
      assert.equal(0, map(nil, name), name)
      assert.equal(0, map(nil, ":nowhere:" .. name .. ":"), name)
    end
  end)

  it("allow nothing when they are empty, missing, or others", function()
    for _, name in ipairs { "", "nowhere", "images", "bases/deep/none", "base" } do
      assert.equal(1, map(name), name)
      assert.equal(1, map(nil, name), name)
    end
    assert.equal(1, map(nil, ":"))
    assert.equal(1, map(nil, "::images::"))
  end)
end)
