-- SPDX-License-Identifier: MIT
-- `snapshot`: qemu-img's grammar, words and exit codes.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("snapshot", function()
  local made, dir

  lazy_setup(function()
    dir = tmp.dir()
    qemu.create(dir .. "/s.qcow2", { size = "1M" })
    qemu.io(dir .. "/s.qcow2", { "write -P 1 0 128k" })
    qemu.snapshot(dir .. "/s.qcow2", "-c", "first")
    qemu.io(dir .. "/s.qcow2", { "write -P 2 64k 128k" })
    qemu.snapshot(dir .. "/s.qcow2", "-c", "1")
    qemu.snapshot(dir .. "/s.qcow2", "-c", "twice")
    qemu.snapshot(dir .. "/s.qcow2", "-c", "twice")
    qemu.create(dir .. "/none.qcow2", { size = "1M" })
    sh.spit(dir .. "/r.raw", ("x"):rep(4096))
    made = dir
  end)

  before_each(function()
    dir = tmp.dir()
    sh.check(("cp %s/* %s"):format(made, dir))
  end)

  local function both(words)
    local twin = tmp.dir()
    sh.check(("cp %s/* %s"):format(dir, twin))
    local theirs = qemu.img({ "snapshot", table.unpack(words) }, { cwd = twin })
    local ours = sh.qcow2({ "snapshot", table.unpack(words) }, { cwd = dir })
    return theirs, ours, twin
  end

  -- The table as newer QEMUs lay it out: compared without its spaces, and with longer clocks.
  local function squeeze(text)
    return (text:gsub("VM SIZE", "VM_SIZE"):gsub("VM CLOCK", "VM_CLOCK"):gsub(" (%d%d:%d%d:%d%d%.%d%d%d) ", " 00%1 ")
      :gsub(" +", " "))
  end

  -- Everything but the dates.
  local function snapshots_of(path)
    local list = {}
    for _, s in ipairs(qemu.info(path).snapshots or {}) do
      list[#list + 1] = { s.id, s.name, s["vm-state-size"], qemu.read_all(path, path .. ".scratch",
        { snapshot = "snapshot.id=" .. s.id }) }
    end
    return list
  end

  for _, words in ipairs({
    { "-l", "s.qcow2" },
    { "-U", "-l", "s.qcow2" },
    { "-q", "-l", "s.qcow2" },
    { "-l", "none.qcow2" },
    { "-l", "r.raw" },
    { "-l", "--image-opts", "driver=qcow2,file.filename=s.qcow2" },
    { "-c", "new", "s.qcow2" },
    { "-c", "first", "s.qcow2" },
    { "-c", "new", "none.qcow2" },
    { "-c", "", "s.qcow2" },
    { "-q", "-c", "日本", "s.qcow2" },
    { "-a", "first", "s.qcow2" },
    { "-a", "1", "s.qcow2" },
    { "-a", "nosuch", "s.qcow2" },
    { "-d", "first", "s.qcow2" },
    { "-d", "1", "s.qcow2" },
    { "-d", "4", "s.qcow2" },
    { "-d", "twice", "s.qcow2" },
    { "-d", "nosuch", "s.qcow2" },
    { "-c", "x", "-a", "y", "s.qcow2" },
    { "-c", "x", "-c", "y", "s.qcow2" },
    { "-l", "-l", "s.qcow2" },
    { "-U", "-c", "x", "s.qcow2" },
    {},
    { "-l" },
    { "-l", "s.qcow2", "none.qcow2" },
    { "-z", "s.qcow2" },
  }) do
    it(("does and says what qemu-img does: %s"):format(table.concat(words, " ")), function()
      local theirs, ours, twin = both(words)
      local place = "Could not open 's.qcow2': "
      assert.equal(squeeze(theirs.stdout), squeeze(ours.stdout))
      assert.equal((qemu.plain(theirs.stderr):gsub(place .. place, place)), qemu.plain(ours.stderr))
      assert.equal(theirs.code, ours.code)
      for _, name in ipairs({ "/s.qcow2", "/none.qcow2" }) do
        if sh.slurp(dir .. name) ~= sh.slurp(made .. name) or sh.slurp(twin .. name) ~= sh.slurp(made .. name) then
          assert.same(snapshots_of(twin .. name), snapshots_of(dir .. name))
          assert.is_true(qemu.compare(twin .. name, dir .. name))
          assert.is_true(qemu.sound(dir .. name))
        end
      end
    end)
  end

  it("lists when nothing else is asked for", function()
    local list = sh.qcow2({ "snapshot", "-l", "s.qcow2" }, { cwd = dir })
    assert.equal(list.stdout, sh.qcow2({ "snapshot", "s.qcow2" }, { cwd = dir }).stdout)
    assert.equal(list.stdout, sh.qcow2({ "snapshot", "--list", "-f", "qcow2", "s.qcow2" }, { cwd = dir }).stdout)
    assert.truthy(list.stdout:find("twice", 1, true))
  end)

  it("knows the long options", function()
    assert.equal(0, sh.qcow2({ "snapshot", "--create", "long", "s.qcow2" }, { cwd = dir }).code)
    assert.equal(0, sh.qcow2({ "snapshot", "--apply=first", "s.qcow2" }, { cwd = dir }).code)
    qemu.io(dir .. "/s.qcow2", { "read -P 1 0 128k", "read -P 0 128k 64k" })
    assert.equal(0, sh.qcow2({ "snapshot", "--delete", "long", "s.qcow2" }, { cwd = dir }).code)
    assert.equal(4, #qemu.info(dir .. "/s.qcow2").snapshots)
  end)

  it("says what cannot be done, and changes nothing", function()
    qemu.create(dir .. "/narrow.qcow2", { size = "1M", refcount_bits = 1 })
    qemu.io(dir .. "/narrow.qcow2", { "write 0 64k" })
    qemu.create(dir .. "/outside.qcow2", { size = "1M", data_file = "outside.raw" })
    for _, name in ipairs({ "narrow.qcow2", "outside.qcow2" }) do
      local path, before = dir .. "/" .. name, tmp.dir() .. "/" .. name
      sh.check({ "cp", path, before })
      local result = sh.qcow2({ "snapshot", "-c", "new", name }, { cwd = dir })
      assert.equal(1, result.code)
      assert.equal("", result.stdout)
      assert.truthy(result.stderr:find("^qcow2: Could not create snapshot 'new': "))
      assert.is_true(qemu.sound(path))
      assert.is_nil(qemu.info(path).snapshots)
      assert.equal(sh.slurp(before), sh.slurp(path))
    end
    local result = sh.qcow2({ "snapshot", "-f", "raw", "-c", "new", "r.raw" }, { cwd = dir })
    assert.equal("qcow2: Could not create snapshot 'new': Operation not supported\n", result.stderr)
    assert.equal(1, result.code)
  end)
end)
