-- SPDX-License-Identifier: MIT
-- `qcow2 check`: texts, JSON, exit codes and refusals, qemu-img's word for word.

local forge = require "spec.support.forge"
local poke = require "spec.support.poke"
local qemu = require "spec.support.qemu"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local CLUSTER = 65536

describe("qcow2 check", function()
  local dir

  lazy_setup(function()
    dir = tmp.dir()
    qemu.create(dir .. "/sound.qcow2", { size = "1G" })
    qemu.io(dir .. "/sound.qcow2", { "write -q 0 1M", "write -q -c 2M 64k", "write -q 4M 128k" })
    qemu.create(dir .. "/empty.qcow2", { size = 0 })
    sh.check({ "cp", "sound.qcow2", "low.qcow2" }, { cwd = dir })
    poke.u16(dir .. "/low.qcow2", 2 * CLUSTER + 7 * 2, 0)
    poke.u16(dir .. "/low.qcow2", 2 * CLUSTER + 8 * 2, 3)
    sh.check({ "cp", "sound.qcow2", "leak.qcow2" }, { cwd = dir })
    poke.truncate(dir .. "/leak.qcow2", 40 * CLUSTER)
    for cluster = 30, 33 do poke.u16(dir .. "/leak.qcow2", 2 * CLUSTER + cluster * 2, 1) end
    forge.write(dir .. "/dirty.qcow2", { header = { incompatible_features = 1 } })
    sh.spit(dir .. "/disk.raw", ("x"):rep(4096))
  end)
  lazy_teardown(function() tmp.remove(dir) end)

  local function ours(...)
    return sh.qcow2({ "check", ... }, { cwd = dir })
  end

  for name, code in pairs { ["sound.qcow2"] = 0, ["empty.qcow2"] = 0, ["low.qcow2"] = 2, ["leak.qcow2"] = 3 } do
    for _, output in ipairs { "human", "json" } do
      it(("says of %s what qemu-img says, as %s"):format(name, output), function()
        local said = ours("--output=" .. output, name)
        local theirs = qemu.img({ "check", "--output=" .. output, name }, { cwd = dir })
        assert.are.same({ theirs.code, theirs.stdout, theirs.stderr }, { said.code, said.stdout, said.stderr })
        assert.are.equal(code, said.code)
      end)
    end
  end

  it("is quiet with -q about everything but what is wrong", function()
    local said = ours("-q", "low.qcow2")
    local theirs = qemu.img({ "check", "-q", "low.qcow2" }, { cwd = dir })
    assert.are.same({ theirs.code, theirs.stdout, theirs.stderr }, { said.code, said.stdout, said.stderr })
    assert.are.equal("", ours("-q", "dirty.qcow2").stderr)
  end)

  it("tells notes apart from errors", function()
    local said = ours("dirty.qcow2")
    assert.are.equal(0, said.code)
    assert.is_truthy(said.stdout:find("^No errors were found on the image%.\n"))
    assert.is_truthy(said.stderr:find("^Note: The dirty bit is set"))
  end)

  it("answers 63 for raw images", function()
    for _, words in ipairs { { "-f", "raw", "sound.qcow2" }, { "disk.raw" }, { "--output=json", "disk.raw" } } do
      local said = ours(table.unpack(words))
      assert.are.same({ 63, "", "qcow2: This image format does not support checks\n" },
        { said.code, said.stdout, said.stderr })
    end
  end)

  it("checks through --image-opts and beside a writer with -U", function()
    assert.are.equal(0, ours("--image-opts", "driver=qcow2,file.filename=sound.qcow2").code)
    local lock <close> = assert(require "qcow2".open(dir .. "/sound.qcow2", { mode = "rw" }))
    local said = ours("sound.qcow2")
    assert.are.equal(1, said.code)
    assert.is_truthy(said.stderr:find("lock", 1, true))
    assert.are.equal(0, ours("-U", "sound.qcow2").code)
    lock:close()
  end)

  it("opens no file that the image names but its data file", function()
    qemu.create(dir .. "/base.qcow2", { size = "1M" })
    qemu.create(dir .. "/top.qcow2", { backing_file = "base.qcow2", backing_fmt = "qcow2" })
    qemu.create(dir .. "/side.qcow2", { size = "1M", data_file = "side.raw" })
    os.remove(dir .. "/base.qcow2")
    os.remove(dir .. "/side.raw")
    local top, side = ours("top.qcow2"), ours("side.qcow2")
    assert.are.same({ 0, "" }, { top.code, top.stderr })
    assert.are.equal(0, side.code)
    assert.is_truthy(side.stderr:find("^Note: The external data file was not opened"))
  end)

  describe("-r", function()
    -- The same words by both on copies of one file. gives: ours and theirs, and the copies' paths.
    local function both(name, ...)
      local words = { "check", ... }
      words[#words + 1] = "copy.qcow2"
      local results, copies = {}, {}
      for i, who in ipairs { "ours", "theirs" } do
        os.execute(("mkdir -p %s/%s"):format(dir, who))
        copies[i] = ("%s/%s/copy.qcow2"):format(dir, who)
        sh.check({ "cp", name, copies[i] }, { cwd = dir })
        results[i] = (who == "ours" and sh.qcow2 or qemu.img)(words, { cwd = ("%s/%s"):format(dir, who) })
      end
      return results[1], results[2], copies
    end

    -- Counts too high and too low, and flags that follow or do not.
    local function recipe(name, poke_it)
      sh.check({ "cp", "sound.qcow2", name }, { cwd = dir })
      poke_it(dir .. "/" .. name)
      return name
    end

    local function count(path, cluster, value) poke.u16(path, 2 * CLUSTER + cluster * 2, value) end
    local damaged = {
      ["leaked clusters"] = function() return "leak.qcow2" end,
      ["a count that is too high"] = function()
        return recipe("high.qcow2", function(path) count(path, 8, 3) end)
      end,
      ["COPIED lost"] = function()
        return recipe("copied.qcow2", function(path) poke.flip(path, 4 * CLUSTER + 8, 1 << 63) end)
      end,
      ["two references and a count of one"] = function()
        return recipe("twice.qcow2", function(path) poke.u64(path, 4 * CLUSTER + 8, 1 << 63 | 5 * CLUSTER) end)
      end,
      ["nothing at all"] = function() return "sound.qcow2" end,
    }

    for title, make in pairs(damaged) do
      for _, what in ipairs { "leaks", "all" } do
        for _, output in ipairs { "human", "json" } do
          it(("%s says of %s what qemu-img says, as %s"):format(what, title, output), function()
            local said, theirs, copies = both(make(), "-r", what, "--output=" .. output)
            assert.are.same({ theirs.code, theirs.stdout }, { said.code, said.stdout })
            if what == "all" then
              assert.are.equal(theirs.stderr, said.stderr)
              local checked = qemu.img({ "check", copies[1] })
              assert.are.equal(0, checked.code, checked.stdout .. checked.stderr)
            end
            assert.are.equal(0, qemu.img({ "compare", copies[1], copies[2] }).code)
          end)
        end
      end
    end

    it("is quiet with -q about everything but what it does", function()
      local said, theirs = both("leak.qcow2", "-q", "-r", "leaks")
      assert.are.same({ theirs.code, theirs.stdout, theirs.stderr }, { said.code, said.stdout, said.stderr })
    end)

    it("all leaves alone what costs something, and --repair-kind names it", function()
      local name = recipe("cost.qcow2", function(path)
        poke.u64(path, 4 * CLUSTER + 8, 1 << 63 | 6 * CLUSTER + 512)
      end)
      local said = ours("-r", "all", name)
      assert.are.equal(2, said.code)
      assert.is_truthy(said.stderr:find("ERROR An L2 entry points between two clusters", 1, true))
      said = ours("--repair-kind", "data-unaligned", "-r", "all", name)
      assert.are.equal(0, said.code, said.stderr)
      assert.is_truthy(said.stderr:find("Repairing An L2 entry points between two clusters", 1, true))
      assert.is_truthy(said.stdout:find("Double checking the fixed image now...\nNo errors were found", 1, true))
    end)

    it("lists the kinds and what repairing them loses", function()
      local said = ours("--repair-kind=help")
      assert.are.equal(0, said.code)
      assert.is_truthy(said.stdout:find("\ndata%-file%-offset +An L2 entry.-\n +repairing loses: .- %(only on"))
      assert.is_truthy(said.stdout:find("\nleak +A cluster counts more"))
      assert.is_nil(said.stdout:find("crypto-outside", 1, true))
    end)

    it("takes the marks off a sound image", function()
      local name = "marked.qcow2"
      forge.write(dir .. "/" .. name, { header = { incompatible_features = 3 } })
      assert.are.equal(0, ours("-r", "leaks", name).code)
      assert.are.equal(0, poke.get_u64(dir .. "/" .. name, 72))
      assert.are.same({ 0, "" }, { ours(name).code, ours(name).stderr })
    end)

    it("refuses what another process holds, and raw files", function()
      sh.check({ "cp", "leak.qcow2", "held.qcow2" }, { cwd = dir })
      local bytes = sh.slurp(dir .. "/held.qcow2")
      local lock <close> = assert(require "qcow2".open(dir .. "/held.qcow2"))
      local said = ours("-r", "leaks", "held.qcow2")
      assert.are.equal(1, said.code)
      assert.is_truthy(said.stderr:find('Failed to get "write" lock', 1, true))
      lock:close()
      assert.are.equal(1, ours("-U", "-r", "leaks", "held.qcow2").code)
      assert.is_true(bytes == sh.slurp(dir .. "/held.qcow2"))
      assert.are.equal(63, ours("-r", "all", "disk.raw").code)
      assert.are.equal(63, ours("-r", "all", "-f", "raw", "disk.raw").code)
    end)

    it("refuses leaks alone when a table cannot be followed", function()
      local name = recipe("cut.qcow2", function(path) poke.u64(path, 3 * CLUSTER, 1 << 63 | 1 << 40) end)
      local said = ours("-r", "leaks", name)
      assert.are.equal(1, said.code)
      assert.is_truthy(said.stderr:find("A table of the image cannot be followed", 1, true))
    end)
  end)

  it("changes no byte of the image", function()
    local before = sh.slurp(dir .. "/low.qcow2")
    ours("low.qcow2")
    assert.is_true(before == sh.slurp(dir .. "/low.qcow2"))
  end)

  it("checks what qcow2.open finds too damaged to open", function()
    sh.check({ "cp", "sound.qcow2", "lost.qcow2" }, { cwd = dir })
    poke.field(dir .. "/lost.qcow2", "refcount_table_clusters", 0)
    assert.is_nil((require "qcow2".open(dir .. "/lost.qcow2")))
    local said = ours("lost.qcow2")
    assert.are.equal(2, said.code)
    assert.is_truthy(said.stderr:find("ERROR The refcount table is missing", 1, true))
  end)

  it("prints a bounded number of lines", function()
    local path = dir .. "/lines.qcow2"
    local at = forge.write(path, { header = { cluster_bits = 16, refcount_order = 0 } })
    poke.bytes(path, at.refcount_blocks[1], ("\255"):rep(CLUSTER))
    poke.truncate(path, 200000 * CLUSTER)
    local said = ours("lines.qcow2")
    assert.are.equal(3, said.code)
    local _, lines = said.stderr:gsub("\n", "")
    assert.are.equal(100001, lines)
    assert.is_truthy(said.stderr:find("There is more of this; the sums below count it.\n$"))
    assert.is_truthy(said.stdout:find("\n524284 leaked clusters were found on the image.\n", 1, true))
  end)

  it("prints the largest counts without a sign, as qemu-img does", function()
    local path = dir .. "/widest.qcow2"
    local at = forge.write(path, { header = { cluster_bits = 16, refcount_order = 6 }, length = 6 * CLUSTER })
    poke.u64(path, at.refcount_blocks[1] + 4 * 8, -1)
    poke.u64(path, at.refcount_blocks[1] + 5 * 8, 1 << 63)
    local said, theirs = ours("widest.qcow2"), qemu.img({ "check", path })
    assert.are.equal("Leaked cluster 4 refcount=18446744073709551615 reference=0\n"
      .. "Leaked cluster 5 refcount=9223372036854775808 reference=0\n", said.stderr)
    assert.are.equal(theirs.stderr, said.stderr)
    assert.are.equal(0, ours("-r", "all", "widest.qcow2").code)
  end)

  describe("refuses", function()
    local help = "\nTry 'qcow2 check --help' for more info"
    local cases = {
      { "a missing operand", {}, "Expecting one image file name" .. help },
      { "two operands", { "a", "b" }, "Expecting one image file name" .. help },
      { "another repair", { "-r", "bad", "sound.qcow2" },
        "--repair (-r) expects 'leaks' or 'all' not 'bad'" .. help },
      { "a kind that there is not", { "--repair-kind", "lek", "sound.qcow2" },
        "Unknown kind of problem 'lek' (--repair-kind=help lists those that can be repaired)" .. help },
      { "another output form", { "--output=xml", "sound.qcow2" },
        "--output expects 'human' or 'json' not 'xml'" .. help },
      { "another cache mode", { "-T", "bad", "sound.qcow2" }, "Invalid source cache option: bad" },
      { "a file that is not there", { "nosuch" }, "Could not open 'nosuch': No such file or directory" },
    }
    for _, case in ipairs(cases) do
      it(case[1], function()
        local said = ours(table.unpack(case[2]))
        assert.are.same({ 1, "", "qcow2: " .. case[3] .. "\n" }, { said.code, said.stdout, said.stderr })
      end)
    end
  end)
end)
