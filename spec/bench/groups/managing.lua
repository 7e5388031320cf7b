-- SPDX-License-Identifier: MIT
-- Managing: check, snapshots, commit, rebase, amend, bitmaps. What is changed is a fresh copy before every run.
local contenders = require("spec.bench.contenders")

local both, reading = contenders.both, contenders.reading

local function copy(from, to)
  return { "cp", "--sparse=always", from, to }
end

-- Both programs change a copy of `source`: "..." is the command line, the image's name stands behind it.
local function changing(bench, source, ...)
  local list = both(bench, ...)
  for _, one in ipairs(list) do
    local image = bench:output(one.label)
    one.prepare = { copy(source, image) }
    one.reads = { image }
    one.format = "qcow2"
    table.insert(one.command, image)
  end
  return list
end

-- The same with an overlay. `changes` says whose copy is the output: "base" or "overlay"; the base is copied when it
-- changes.
local function changing_overlay(bench, changes, ...)
  local list, base, overlay = both(bench, ...), bench.inputs:disk_qcow2(), bench.inputs:overlay()
  for _, one in ipairs(list) do
    one.format = "qcow2"
    if changes == "base" then
      local below = bench:output(one.label)
      local above = bench:output(one.label, "overlay")
      one.prepare = {
        copy(base, below),
        copy(overlay, above),
        { "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, above },
      }
      one.reads = { below, above }
      table.insert(one.command, above)
    else
      local above = bench:output(one.label)
      one.prepare = { copy(overlay, above) }
      one.reads = { base, above }
      table.insert(one.command, above)
    end
  end
  return list
end

return function(bench)
  local inputs = bench.inputs
  local memory = { memory = "qemu-img" }

  -- A change of 1 TiB of tables: `source` is made when it is needed.
  local function tables_row(name, targets, source, ...)
    local words = { ... }
    return {
      name = name .. ", 1 TiB of tables",
      runs = 3,
      targets = targets,
      contenders = function()
        return changing(bench, source(), table.unpack(words))
      end,
    }
  end

  local function tables()
    return inputs:tables()
  end

  local function tables_snapshot()
    return inputs:tables_snapshot()
  end

  return {
    {
      name = "check, 1 TiB of tables",
      targets = { { faster = 4, than = "qemu-img" }, memory },
      contenders = function()
        return reading(both(bench, "check", inputs:tables()), inputs:tables())
      end,
    },
    {
      name = "check, 4 GiB qcow2",
      targets = { { faster = 1, than = "qemu-img" }, memory },
      contenders = function()
        return reading(both(bench, "check", inputs:disk_qcow2()), inputs:disk_qcow2())
      end,
    },
    tables_row("snapshot -c", { { faster = 8, than = "qemu-img" }, memory }, tables, "snapshot", "-c", "new"),
    tables_row("snapshot -a", { memory }, tables_snapshot, "snapshot", "-a", "first"),
    tables_row("snapshot -d", { memory }, tables_snapshot, "snapshot", "-d", "first"),
    tables_row("amend width", { memory }, tables, "amend", "-o", "refcount_bits=64"),
    {
      name = "commit, 1 of 4 GiB",
      runs = 3,
      same = true,
      targets = { { faster = 1.3, than = "qemu-img" }, memory },
      contenders = function()
        return changing_overlay(bench, "base", "commit", "-q", "-f", "qcow2")
      end,
    },
    {
      name = "rebase onto nothing, 4 GiB",
      runs = 3,
      same = true,
      targets = { { faster = 1.3, than = "qemu-img" }, memory },
      contenders = function()
        return changing_overlay(bench, "overlay", "rebase", "-f", "qcow2", "-b", "")
      end,
    },
    {
      name = "convert chain to one, 4 GiB",
      runs = 3,
      same = true,
      targets = { { faster = 1.3, than = "qemu-img" }, memory },
      contenders = function()
        local list = contenders.converting(bench, { from = "qcow2", to = "qcow2" }, inputs:overlay())
        return reading(list, inputs:overlay(), inputs:disk_qcow2())
      end,
    },
    {
      name = "bitmap --merge, 1 TiB",
      targets = { memory },
      contenders = function()
        local list = changing(bench, inputs:bitmaps(), "bitmap", "--merge", "from", "-f", "qcow2")
        for _, one in ipairs(list) do
          table.insert(one.command, "into")
        end
        return list
      end,
    },
  }
end
