-- SPDX-License-Identifier: MIT
-- One damage a spec: a recipe, what check finds, what qemu-img says of the same file.

local core = require "qcow2.core"
local damages = require "spec.support.damages"
local poke = require "spec.support.poke"
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local CLUSTER, L1, L2, COPIED = damages.CLUSTER, damages.L1, damages.L2, damages.COPIED
local two, refcount_at, snapshots = damages.two, damages.refcount_at, damages.snapshots

describe("Check finds", function()
  local dir
  lazy_setup(function() dir = tmp.dir() end)
  lazy_teardown(function() tmp.remove(dir) end)

  for number, damage in ipairs(damages.list) do
    local title, recipe, found, theirs, ours = table.unpack(damage, 1, 5)
    it(title, function()
      local path = ("%s/%d.qcow2"):format(dir, number)
      recipe(path)
      local img <close> = assert(qcow2.open(path, { damaged = true }))
      local report = assert(img:check())
      assert.are.same(found, report.found)
      local judged = qemu.img({ "check", "-f", "qcow2", path }, { cwd = dir })
      assert.are.equal(theirs or 1, judged.code, judged.stderr)
      local said = sh.qcow2({ "check", path }, { cwd = dir })
      assert.are.equal(ours or theirs, said.code, said.stderr)
    end)
  end

  it("every kind of problem that the table names, but for what the host cannot read", function()
    local seen = { unreadable = true, ["snapshot-surplus"] = true } -- spec/check/surplus_spec.lua
    for _, damage in ipairs(damages.list) do
      for kind in pairs(damage[3]) do
        assert.is_truthy(qcow2.problems[kind], kind)
        seen[kind] = true
      end
    end
    for _, problem in ipairs(qcow2.problems) do assert.is_true(seen[problem.kind], problem.kind) end
  end)

  -- The findings of one recipe.
  local function findings_of(name, recipe)
    local path = dir .. "/" .. name .. ".qcow2"
    recipe(path)
    local img <close> = assert(qcow2.open(path, { damaged = true }))
    return assert(img:check())
  end

  it("where it is: entry, host range, guest range, counts", function()
    local report = findings_of("where", function(path)
      two(path)
      poke.u64(path, L2 + 8, 6 * CLUSTER | 2)
    end)
    assert.are.same({ "l2-reserved", "copied-data" }, { report.findings[1].kind, report.findings[2].kind })
    local finding = report.findings[2]
    assert.are.same({ CLUSTER, CLUSTER, 6 * CLUSTER, CLUSTER }, { finding.guest_offset, finding.guest_length,
      finding.host_offset, finding.host_length })
    assert.are.same({ 6 * CLUSTER | 2, L2 + 8, 1, 1 }, { finding.entry, finding.entry_offset, finding.index,
      finding.refcount })
    assert.are.equal(qcow2.problems["copied-data"].meaning, finding.meaning)
    assert.is_true(finding.repairable)
    assert.is_truthy(tostring(finding):find("guest range 0x10000+0x10000", 1, true))
  end)

  it("runs of leaked clusters as one record each", function()
    local report = findings_of("runs", function(path)
      two(path, { length = 20 * CLUSTER })
      for cluster = 7, 9 do poke.u16(path, refcount_at(cluster), 1) end
      for cluster = 10, 12 do poke.u16(path, refcount_at(cluster), 2) end
      for cluster = 15, 16 do poke.u16(path, refcount_at(cluster), 2) end
    end)
    local runs = {}
    for i, f in ipairs(report.findings) do runs[i] = { f.host_offset // CLUSTER, f.count, f.refcount, f.references } end
    assert.are.same({ { 7, 3, 1, 0 }, { 10, 3, 2, 0 }, { 15, 2, 2, 0 } }, runs)
    assert.are.equal(8, report.leaks)
  end)

  it("which two overlap", function()
    local report = findings_of("overlap", function(path) two(path, { refcount_table = { [1] = L2 } }) end)
    for _, finding in ipairs(report.findings) do
      if finding.kind == "overlap" then
        local pair = { finding.first, finding.second }
        table.sort(pair)
        assert.are.same({ "L2 table", "refcount block" }, pair)
        assert.are.equal(L2, finding.host_offset)
      end
    end
    assert.are.equal(1, report.found.overlap)
  end)

  it("and says that leaks may be none when a table cannot be followed", function()
    local lost = findings_of("lost", function(path)
      two(path)
      poke.u64(path, L1, COPIED | 1 << 30)
    end)
    assert.is_true(lost.incomplete)
    assert.is_false(findings_of("whole", two).incomplete)
  end)

  it("no more records than it was asked for, and counts the rest", function()
    local path = dir .. "/most.qcow2"
    two(path, { length = 60 * CLUSTER })
    for cluster = 8, 58, 2 do poke.u16(path, refcount_at(cluster), 1) end
    local img <close> = assert(qcow2.open(path))
    local report = assert(img:check { most = 10 })
    assert.are.same({ 10, 16, 26 }, { #report.findings, report.omitted, report.leaks })
    assert.has_error(function() img:check { most = 0 } end)
    assert.has_error(function() img:check { mist = 1 } end)
  end)

  it("structures that the host cannot read, and goes on", function()
    local path = dir .. "/unread.qcow2"
    two(path)
    local store = assert(core.store_file(path, {}))
    local reads = 0
    for nth = 1, 50 do
      local fault = assert(store:fault("r", nth, 5, false))
      local img, _, kind = core.image_open(fault, "qcow2")
      if not img then
        assert.are.equal("io", kind)
      else
        local job <close> = assert(core.check(img, { threads = 1 }))
        local more
        repeat
          local done
          done, _, more = job:step()
          assert.is_truthy(done)
        until not more
        local result = job:result()
        if not result.found.unreadable then break end
        reads = reads + 1
        assert.are.same({ 1, true }, { result.check_errors, result.incomplete })
        local reasons = {}
        for _, finding in ipairs(job:findings(0, 100)) do
          reasons[#reasons + 1] = finding.reason
        end
        assert.are.same({ "Input/output error" }, reasons)
      end
    end
    -- The L1 table, the L2 table, the refcount table, the refcount block.
    assert.are.equal(4, reads)
  end)

  it("nothing to check in raw images and views of snapshots", function()
    local path = dir .. "/kinds.qcow2"
    snapshots(path, { { name = "one" } })
    local raw <close> = assert(qcow2.open(path, { format = "raw" }))
    local _, _, kind = raw:check()
    assert.are.equal("conflict", kind)
    local view <close> = assert(qcow2.open(path, { snapshot = "one" }))
    _, _, kind = view:check()
    assert.are.equal("conflict", kind)
  end)
end)
