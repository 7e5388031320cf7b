-- SPDX-License-Identifier: MIT
-- Reading: info, map, conversion to raw, expansion, random reads from Lua.
local contenders = require("spec.bench.contenders")

local both, reading = contenders.both, contenders.reading

local TIB = 1 << 40

local function to_raw(bench, source, dir)
  return contenders.converting(bench, { from = "qcow2", to = "raw", dir = dir }, source)
end

-- The largest sparse file that can be made here, up to 64 TiB: ext4 ends at 16 TiB.
local function largest(bench)
  for tib = 64, 1, -1 do
    local dir = bench:room(tib * TIB)
    if dir then
      return tib, dir
    end
  end
  error("no file of 1 TiB can be made here")
end

return function(bench)
  local inputs = bench.inputs
  local memory = { memory = "qemu-img" }

  local function expand(kind)
    return {
      name = "convert " .. kind .. " to raw",
      runs = 3,
      same = true,
      targets = { { faster = 2, than = "qemu-img" }, memory },
      contenders = function()
        return to_raw(bench, inputs:disk_compressed(kind))
      end,
    }
  end

  return {
    {
      name = "info, little image",
      targets = { { faster = 2, than = "qemu-img" }, memory },
      contenders = function()
        return both(bench, "info", inputs:little())
      end,
    },
    {
      name = "info, empty 64 TiB",
      targets = { { seconds = 0.05 }, memory },
      contenders = function()
        return both(bench, "info", inputs:empty(64))
      end,
    },
    {
      name = "map, empty 64 TiB",
      targets = { { seconds = 0.05 }, memory },
      contenders = function()
        return both(bench, "map", "--output=json", inputs:empty(64))
      end,
    },
    {
      name = "convert, empty 64 TiB to raw",
      same = true,
      targets = { { seconds = 0.05 }, memory },
      contenders = function()
        local tib, dir = largest(bench)
        return to_raw(bench, inputs:empty(tib), dir)
      end,
      note = function()
        local tib, dir = largest(bench)
        return ("a disk of %d TiB, raw file in %s"):format(tib, dir)
      end,
    },
    {
      name = "map, 1 TiB of tables",
      targets = { { faster = 10, than = "qemu-img" }, memory },
      contenders = function()
        return reading(both(bench, "map", "--output=json", inputs:tables()), inputs:tables())
      end,
    },
    {
      name = "map, 1 TiB of tables, data file",
      targets = { { faster = 10, than = "qemu-img" }, memory },
      contenders = function()
        return reading(both(bench, "map", "--output=json", inputs:tables_data_file()), inputs:tables_data_file())
      end,
    },
    {
      name = "convert 64 GiB data file to raw",
      runs = 3,
      same = true,
      targets = { { seconds = 0.2 }, memory },
      contenders = function()
        local list = to_raw(bench, inputs:sparse_data_file())
        return reading(list, inputs:sparse_data_file(), inputs:sparse_data())
      end,
    },
    {
      name = "convert 4 GiB qcow2 to raw",
      runs = 5,
      same = true,
      targets = { { within = 1.15, of = "cp" }, { faster = 1, than = "qemu-img" }, memory },
      contenders = function()
        local list = to_raw(bench, inputs:disk_qcow2())
        table.insert(list, contenders.cp(bench))
        return list
      end,
    },
    expand("zlib"),
    expand("zstd"),
    {
      name = "random 4 KiB reads from Lua",
      targets = { { rate = 300000, share = 0.6, of = "pread" } },
      contenders = function()
        local image, count = inputs:cached(), bench.small and 200000 or 1000000
        return {
          {
            label = "lua",
            rate = true,
            reads = { image },
            command = bench:script("random_access", "read", image, count),
          },
          {
            label = "pread",
            rate = true,
            reads = { image },
            command = { bench.pread, image, inputs:cached_size(), count },
          },
        }
      end,
    },
  }
end
