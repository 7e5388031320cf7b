-- SPDX-License-Identifier: MIT
-- A snapshot's VM state lies behind its disk; it, and extra data that nobody knows, are kept whatever is done to the
-- image.
local decoder = require "spec.support.decoder"
local poke = require "spec.support.poke"
local qemu = require "spec.support.qemu"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local OFFSET = 0x00fffffffffffe00

-- An image with snapshot "vm": a disk of `size` bytes, then, from the next L2 table's reach on, `state` bytes of VM
-- state; its record has 40 bytes of extra data that the specification does not name. gives: those extra data.
local function make(path, kind)
  local span = kind.cluster * (kind.cluster // (kind.extended and 16 or 8))
  local size, state = span * 2 + kind.cluster * 3, math.min(span * 2, 1 << 20)
  local first = -(-size // span) * span
  sh.check({ "qemu-img", "create", "-q", "-f", "qcow2", "-o", kind.options, path, first + state })
  qemu.io(path, { ("write -P 1 0 %d"):format(size // 2 // 512 * 512), ("write -P 0x77 %d %d"):format(first, state) })
  qemu.snapshot(path, "-c", "vm")
  local at = poke.get_u64(path, 64)
  local extra = string.pack(">i8i8i8", state, size, -1) .. ("unknown "):rep(5)
  local fixed, id, name = poke.read(path, at, 40), "1", "vm"
  local record = fixed:sub(1, 32) .. string.pack(">I4I4", state, #extra) .. extra .. id .. name
  poke.bytes(path, at, record .. ("\0"):rep(-#record % 8))
  poke.field(path, "size", size)
  return extra, size, state
end

-- The VM state as the snapshot's own tables map it.
local function state_of(path, snapshot, cluster, extended, size)
  local words, entry = {}, extended and 16 or 8
  local span = cluster * (cluster // entry)
  for index = -(-size // span), snapshot.l1_entries - 1 do
    local table_at = snapshot.l1[index] & OFFSET
    for at = table_at, table_at + cluster - entry, entry do
      local host = table_at ~= 0 and poke.get_u64(path, at) & OFFSET or 0
      words[#words + 1] = host ~= 0 and poke.read(path, host, cluster) or ""
    end
  end
  return table.concat(words)
end

local KINDS = {
  { cluster = 512, options = "cluster_size=512" },
  { cluster = 512, options = "cluster_size=512,compat=0.10", old = true },
  { cluster = 4096, options = "cluster_size=4096,refcount_bits=8" },
  { cluster = 16384, options = "cluster_size=16384,extended_l2=on,refcount_bits=64", extended = true },
}

for _, kind in ipairs(KINDS) do
  describe("With " .. kind.options .. ", VM state and extra data", function()
    local steps = {
      { "snapshot", "-c", "two" }, { "snapshot", "-a", "two" }, { "snapshot", "-d", "two" }, { "snapshot", "-a", "vm" },
      { "snapshot", "-c", "three" }, { "amend", "-o", "compat=1.1" }, { "amend", "-o", "refcount_bits=32" },
      { "check", "-r", "all" }, { "resize", "+1M", front = true }, { "snapshot", "-a", "vm" },
      { "snapshot", "-d", "three" },
    }

    it("stay as they are through " .. #steps .. " operations, then QEMU goes on", function()
      local path = tmp.path("vm.qcow2")
      local extra, size, state = make(path, kind)
      qemu.sound(path)
      local before = state_of(path, decoder.open(path).snapshots[1], kind.cluster, kind.extended, size)
      assert.is_true(#before >= state and before:find(("\x77"):rep(512), 1, true) ~= nil)
      for _, step in ipairs(steps) do
        local words = { table.unpack(step) }
        table.insert(words, step.front and 2 or #words + 1, path)
        local what = table.concat(step, " ")
        assert.equal(0, sh.qcow2(words).code, what)
        local snapshot = decoder.open(path).snapshots[1]
        assert.equal(extra, snapshot.extra_data, what)
        assert.same({ "1", "vm", state, size }, { snapshot.id, snapshot.name, snapshot.vm_state_size, snapshot.size },
          what)
        assert.is_true(before == state_of(path, snapshot, kind.cluster, kind.extended, size), what)
        qemu.sound(path)
      end
      qemu.snapshot(path, "-a", "vm")
      qemu.snapshot(path, "-d", "vm")
      qemu.sound(path)
    end)
  end)
end
