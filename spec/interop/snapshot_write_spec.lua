-- SPDX-License-Identifier: MIT
-- Twins: the same steps on snapshots by qemu-img on one copy and by ours on another give the same disks.
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local STEPS = 14

local flavours = {
  ["clusters of 64 KiB"] = {},
  ["clusters of 512 bytes"] = { cluster_size = 512 },
  ["subclusters"] = { extended_l2 = true },
  ["counts of 64 bits"] = { refcount_bits = 64, cluster_size = 4096 },
  ["lazy counts"] = { lazy_refcounts = true },
  ["version 2"] = { compat = "0.10" },
}

local function state(path, scratch)
  local list = { qemu.read_all(path, scratch) }
  for _, s in ipairs(qemu.info(path).snapshots or {}) do
    list[#list + 1] = s.id
    list[#list + 1] = s.name
    list[#list + 1] = qemu.read_all(path, scratch, { snapshot = "snapshot.id=" .. s.id })
  end
  return list
end

describe("Snapshots", function()
  for name, options in pairs(flavours) do
    it(("are the same when QEMU takes the steps and when ours does: %s"):format(name), function()
      local dir, rng = tmp.dir(), random.new("snapshot_write " .. name)
      local ours, theirs = dir .. "/ours", dir .. "/theirs"
      options.size = 1 << 20
      for _, path in ipairs({ ours, theirs }) do
        qemu.create(path, options)
      end
      local names, taken = {}, 0
      for step = 1, STEPS do
        local what = rng:int(1, 10)
        if what <= 4 then
          local commands = {}
          for i = 1, 4 do
            local offset = rng:int(0, 2047) * 512
            local length = math.min(rng:int(1, 120) * 1024, (1 << 20) - offset)
            commands[i] = rng:chance(70) and ("write -P %d %d %d"):format(rng:int(1, 255), offset, length)
              or ("write -z %d %d"):format(offset, length)
          end
          qemu.io(ours, commands)
          qemu.io(theirs, commands)
        elseif what <= 7 or #names == 0 then
          taken = taken + 1
          names[#names + 1] = "s" .. taken
          qemu.snapshot(theirs, "-c", names[#names])
          local img <close> = assert(qcow2.open(ours, { mode = "rw" }))
          assert(img:snapshot_create(names[#names]))
        else
          local index = rng:int(1, #names)
          local img <close> = assert(qcow2.open(ours, { mode = "rw" }))
          if what == 8 then
            qemu.snapshot(theirs, "-a", names[index])
            assert(img:snapshot_apply(names[index]))
          else
            qemu.snapshot(theirs, "-d", names[index])
            assert(img:snapshot_delete(names[index]))
            table.remove(names, index)
          end
        end
        assert.is_true(qemu.sound(ours), "step " .. step)
      end
      assert.same(state(theirs, dir .. "/scratch"), state(ours, dir .. "/scratch"))
      -- QEMU goes on where ours left off.
      qemu.io(ours, { "write -P 77 0 1M" })
      assert.is_true(qemu.sound(ours))
      local after = state(ours, dir .. "/scratch")
      assert.equal(("\77"):rep(1 << 20), table.remove(after, 1))
      local before = state(theirs, dir .. "/scratch")
      table.remove(before, 1)
      assert.same(before, after)
    end)
  end

  it("do not grow the file when they are taken and deleted again and again", function()
    local path = tmp.path()
    qemu.create(path, { size = "4M" })
    qemu.io(path, { "write -P 1 0 4M" })
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:snapshot_create("x"))
    assert(img:snapshot_delete("x"))
    local length = img.file_length
    for _ = 1, 20 do
      assert(img:snapshot_create("x"))
      assert(img:snapshot_delete("x"))
    end
    assert.is_true(img.file_length <= length + (1 << 20))
    assert(img:close())
    assert.is_true(qemu.sound(path))
    sh.check({ "qemu-img", "check", path })
  end)

  it("take the space of the old counts again when one is taken after the other", function()
    local path, cluster = tmp.path(), 512
    qemu.create(path, { size = "1M", cluster_size = cluster })
    qemu.io(path, { "write -P 1 0 1M" })
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:snapshot_create("first"))
    -- The disk's L1 table and L2 tables, which each snapshot keeps.
    local kept = cluster + (1 << 20) // cluster * 8
    local length = img.file_length
    for number = 1, 8 do
      assert(img:snapshot_create("s" .. number))
    end
    assert.is_true(img.file_length <= length + 8 * (kept + 3 * cluster), img.file_length - length)
    assert(img:close())
    assert.is_true(qemu.sound(path))
  end)

  it("leave nothing behind that a later write would take for the disk's, with many L2 tables", function()
    local path, between = tmp.path(), 512 << 30 -- bytes of the disk that an L2 table covers
    do
      local img <close> = made(path, { size = "6T", cluster_size = "2M" })
      for number = 0, 9 do
        assert(img:write(number * between, "once"))
      end
    end
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:snapshot_create("x"))
    assert(img:snapshot_delete("x"))
    assert(img:discard(0, 3 * between))
    assert(img:flush())
    assert(img:write(between // 2, "again"))
    assert.equal("again", img:read(between // 2, 5))
    assert(img:close())
    assert.is_true(qemu.sound(path))
  end)
end)
