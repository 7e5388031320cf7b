-- SPDX-License-Identifier: MIT
-- SAFETY rule 5, writing: memory runs out while more tables are changed than the cache has room for.
local cc = require("spec.support.cc")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("When memory runs out while much is changed", function()
  it("a write answers nomem, and goes on when there is memory again", function()
    local program = cc.program("write_alloc_faults", { "malloc", "calloc", "realloc", "posix_memalign" })
    local path = tmp.path()
    local failed, nth = 0, 1
    local result
    repeat
      os.remove(path)
      assert(qcow2.create(path, { size = 300 * 32768, cluster_size = 512 }))
      result = sh.run({ "timeout", "20", program, path, tostring(nth) })
      assert.equal(0, result.code, ("allocation %d: %s"):format(nth, result.stderr))
      failed = failed + (result.stdout == "failed\n" and 1 or 0)
      if nth % 10 == 0 then assert.equal(0, qemu.img({ "check", path }).code) end
      -- All of the first ones, where tables and cache come to be, then here and there.
      nth = nth + (nth < 60 and 1 or nth // 8)
    until result.stdout == "through\n"
    assert.is_true(failed > 50, failed)
  end)
end)
