-- SPDX-License-Identifier: MIT
-- A writing process is killed at a random moment: what it had flushed is there, the rest is old or new.

local crash = require "spec.support.crash"
local killed = require "spec.support.killed"
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local KILLS = crash.long and 40 or 5
local SIZE = 1 << 20

local kinds = {
  { name = "small clusters", options = { size = SIZE, cluster_size = 512 } },
  { name = "usual clusters", options = { size = SIZE } },
  { name = "lazy counts", options = { size = SIZE, lazy_refcounts = true, cluster_size = 4096 } },
  { name = "extended L2", options = { size = SIZE, extended_l2 = true, cluster_size = 16384 } },
}

-- Disks that a survivor may show: after `safe` operations and after each of the next two rounds.
local function marks_of(seed, safe)
  local disk, marks = ("\0"):rep(SIZE), {}
  local next_operation = killed.operations(seed, SIZE)
  for n = 0, safe + 2 * killed.FLUSH do
    if n > 0 then
      local verb, offset, value = next_operation()
      local bytes = verb == "write" and value or ("\0"):rep(value)
      disk = disk:sub(1, offset) .. bytes .. disk:sub(offset + #bytes + 1)
    end
    if n >= safe then marks[#marks + 1] = { disk = disk } end
  end
  return marks
end

describe("A killed writer", function()
  for _, kind in ipairs(kinds) do
    it(("leaves a sound image with all that was flushed, %s"):format(kind.name), function()
      local rng = random.new("kill " .. kind.name)
      local flushes = 0
      for round = 1, KILLS do
        local path = tmp.path()
        local log, seed = path .. ".log", kind.name .. round
        assert(qcow2.create(path, kind.options))
        -- In the foreground it waits until the killed one is gone, and with it its locks.
        local result = sh.run({ "timeout", "--foreground", "-s", "KILL", ("%.3f"):format(rng:int(30, 300) / 1000),
          os.getenv("Q2_LUA") or "lua5.4", "spec/support/killed.lua", path, log, seed },
          { env = { LUA_PATH = package.path, LUA_CPATH = package.cpath } })
        assert.are.equal("", result.stderr)
        assert.are.equal(137, result.code)
        local lines = io.open(log) and sh.slurp(log) or ""
        local safe = tonumber(lines:match("(%d+)\n$") or 0)
        flushes = flushes + safe // killed.FLUSH
        local problems, image = crash.corruptions(sh.slurp(path))
        assert.are.same({}, problems)
        if image.dirty then qemu.check(path, { repair = "all" }) end
        local report, code = qemu.check(path)
        assert.is_true(code == 0 or code == 3, tostring(report.corruptions))
        local img <close> = assert(qcow2.open(path))
        assert.is_nil(crash.disk_problem(assert(img:read(0, SIZE)), marks_of(seed, safe)))
      end
      assert.is_true(flushes > 0)
    end)
  end
end)
