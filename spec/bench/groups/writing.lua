-- SPDX-License-Identifier: MIT
-- Writing: conversion into qcow2, creation, guest writes from Lua; and that memory does not grow with the disk.
local contenders = require("spec.bench.contenders")

local both, reading = contenders.both, contenders.reading

local MIB = 1 << 20

-- MiB by which the peak of one and the same work may differ from run to run.
local SAME_MEMORY = 4

-- Into a fresh image, from this program and qemu-io: as many writes, one flush.
local function written_in_order(bench)
  local bytes, length, list = bench.small and 64 * MIB or 1024 * MIB, MIB, {}
  local commands = {}
  for offset = 0, bytes - 1, length do
    table.insert(commands, "-c")
    table.insert(commands, ("write -q %d %d"):format(offset, length))
  end
  for index, label in ipairs({ "lua", "qemu-io" }) do
    local image = bench:output(label)
    local command = { "qemu-io", "-t", "writeback", "-f", "qcow2", image, table.unpack(commands) }
    table.move({ "-c", "flush" }, 1, 2, #command + 1, command)
    list[index] = {
      label = label,
      command = index == 1 and bench:script("sequential_write", image, bytes, length) or command,
      prepare = { { "qemu-img", "create", "-q", "-f", "qcow2", image, bytes } },
      format = "qcow2",
    }
  end
  return list
end

-- Into an allocated image that is in the page cache. qemu-img's places are not random, but as far apart.
local function written_at_random(bench)
  local source, count, list = bench.inputs:cached(), bench.small and 100000 or 500000, {}
  for index, label in ipairs({ "lua", "qemu-img" }) do
    local image = bench:output(label)
    list[index] = {
      label = label,
      prepare = { { "cp", source, image } },
      reads = { image },
      rate = true,
      command = index == 1 and bench:script("random_access", "write", image, count)
        or { "qemu-img", "bench", "-w", "-d", "1", "-t", "writeback", "-f", "qcow2", "-c", count, "-s", 4096,
          "-S", 4096 * 40503, image },
    }
  end
  list[2].rate = function(text)
    return count / tonumber(text:match("completed in ([%d.]+)"))
  end
  return list
end

-- One program at its work on disks of two sizes. `command(size, output)`.
local function of_two_sizes(bench, large, small, command)
  local list = {}
  for index, size in ipairs({ large, small }) do
    list[index] = { label = size.label, command = command(size, bench:output(size.label)), reads = { size.reads } }
  end
  return list
end

return function(bench)
  local inputs = bench.inputs
  local memory = { memory = "qemu-img" }

  local function convert(from, source)
    return {
      name = ("convert 4 GiB %s to qcow2"):format(from),
      runs = 5,
      same = true,
      targets = { { faster = 1.3, than = "qemu-img" }, { within = 1.25, of = "cp" }, memory },
      contenders = function()
        local list = contenders.converting(bench, { from = from, to = "qcow2" }, source())
        table.insert(list, contenders.cp(bench))
        return list
      end,
    }
  end

  local function compress(kind, targets)
    return {
      name = ("convert -c 4 GiB raw, %s"):format(kind),
      runs = 3,
      same = true,
      targets = targets,
      contenders = function()
        local options = { "-c", "-o", "compression_type=" .. kind }
        local list = contenders.converting(bench, { from = "raw", to = "qcow2" }, inputs:disk_raw(),
          table.unpack(options))
        -- Its own best: out of order, as many requests in flight as it allows.
        local best = { label = "qemu -W", format = "qcow2", reads = { inputs:disk_raw() } }
        best.command = { "qemu-img", "convert", "-W", "-m", "16", "-f", "raw", "-O", "qcow2", table.unpack(options) }
        table.insert(best.command, inputs:disk_raw())
        table.insert(best.command, bench:output(best.label))
        table.insert(list, best)
        return list
      end,
    }
  end

  return {
    convert("raw", function()
      return inputs:disk_raw()
    end),
    convert("qcow2", function()
      return inputs:disk_qcow2()
    end),
    compress("zlib", {
      { faster = 8, than = "qemu-img" },
      { faster = 4, than = "qemu -W" },
      { length = "qemu-img" },
      memory,
    }),
    compress("zstd", { { faster = 2, than = "qemu-img" }, { length = "qemu-img", over = 0.01 }, memory }),
    {
      name = "create 1 TiB of tables",
      runs = 3,
      targets = { { faster = 5, than = "qemu-img" }, memory },
      contenders = function()
        local list = both(bench, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata")
        for _, one in ipairs(list) do
          table.insert(one.command, bench:output(one.label))
          table.insert(one.command, inputs:tables_size())
        end
        return list
      end,
    },
    {
      name = "1 MiB writes from Lua, 1 GiB",
      runs = 5,
      same = true,
      targets = { { faster = 1, than = "qemu-io" }, { memory = "qemu-io" } },
      contenders = written_in_order,
    },
    {
      name = "random 4 KiB writes from Lua",
      targets = { { rate = 150000 }, { memory = "qemu-img" } },
      contenders = written_at_random,
    },
    {
      name = "memory, convert 4 GiB, 1 GiB",
      runs = 2,
      targets = { { memory = "1 GiB", plus = SAME_MEMORY } },
      contenders = function()
        return of_two_sizes(bench, { label = "4 GiB", reads = inputs:disk_raw() },
          { label = "1 GiB", reads = inputs:disk_part_raw() }, function(size, output)
            return { bench.program, "convert", "-f", "raw", "-O", "qcow2", size.reads, output }
          end)
      end,
    },
    {
      name = "memory, create 1 TiB, 64 GiB",
      runs = 1,
      targets = { { memory = "64 GiB", plus = SAME_MEMORY } },
      contenders = function()
        return of_two_sizes(bench, { label = "1 TiB", bytes = 1 << 40 }, { label = "64 GiB", bytes = 1 << 36 },
          function(size, output)
            return { bench.program, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", output, size.bytes }
          end)
      end,
    },
    {
      name = "measure, 4 GiB qcow2",
      targets = { memory },
      contenders = function()
        return reading(both(bench, "measure", "-O", "qcow2", inputs:disk_qcow2()), inputs:disk_qcow2())
      end,
    },
    {
      name = "measure, 1 TiB of tables",
      runs = 3,
      targets = { memory },
      contenders = function()
        return reading(both(bench, "measure", "-O", "qcow2", inputs:tables()), inputs:tables())
      end,
    },
  }
end
