-- SPDX-License-Identifier: MIT
-- SAFETY rules 10 and 14: tables that lie in holes of a sparse file cost what the file really holds, whatever reads
-- them.
local cc = require("spec.support.cc")
local hollow = require("spec.support.hollow")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local PROGRAM_SECONDS <const> = 1.0

-- Processor time of a command, that a busy machine does not fail it.
local function within(words)
  local program = cc.program("measure")
  local report = tmp.path("cost")
  local result = sh.run({ "timeout", "60", program, report, sh.build() .. "/bin/qcow2", table.unpack(words) })
  assert.equal(0, result.code, table.concat(words, " ") .. "\n" .. result.stderr)
  local seconds, kib = sh.slurp(report):match("(%S+) (%S+)")
  if not cc.is_sanitized() then
    assert.is_true(tonumber(seconds) < PROGRAM_SECONDS, ("%s took %s s"):format(table.concat(words, " "), seconds))
    assert.is_true(tonumber(kib) < 64 << 10, ("%s took %s KiB"):format(table.concat(words, " "), kib))
  end
end

describe("Tables in holes of a sparse file are not read:", function()
  local path
  before_each(function() path = tmp.path() end)

  it("2,000 L2 tables of 2 MiB, by what reads", function()
    hollow.write(path, { cluster_bits = 21, tables = 2000 })
    within({ "map", path })
    within({ "compare", path, path })
    within({ "check", path })
    within({ "measure", "-O", "qcow2", path })
    within({ "convert", "-O", "qcow2", path, path .. ".qcow2" })
  end)

  it("20,000 L2 tables of 64 KiB, by what changes the image", function()
    hollow.write(path, { cluster_bits = 16, tables = 20000 })
    within({ "snapshot", "-c", "s", path })
    within({ "snapshot", "-a", "s", path })
    within({ "snapshot", "-d", "s", path })
    within({ "amend", "-o", "refcount_bits=32", path })
    within({ "resize", "-q", path, "+1G" })
    within({ "check", "-r", "all", path })
    within({ "check", path })
  end)

  it("the L1 tables of 200 snapshots, 32 MiB each", function()
    hollow.write(path, { cluster_bits = 16, tables = 10, snapshots = 200 })
    within({ "bitmap", "--add", path, "b" })
    within({ "snapshot", "-c", "s", path })
    within({ "snapshot", "-d", "s", path })
    within({ "resize", "-q", path, "+1M" })
    within({ "check", path })
  end)

  it("those of 20,000", function()
    if cc.is_sanitized() then return end -- so many buffers of 32 MiB take a minute there
    hollow.write(path, { cluster_bits = 21, tables = 10, snapshots = 20000 })
    within({ "bitmap", "--add", path, "b" })
    within({ "info", path })
  end)
end)
