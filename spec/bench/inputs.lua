-- SPDX-License-Identifier: MIT
-- The files that the workloads read: made once under build/bench by qemu-img and mke2fs, used again after.
--
-- inputs.open{ dir =, small = } gives a table of functions, one a file; each makes its file when it is not
-- there and answers its absolute path. A file gets its name when it is complete.
local shell = require("spec.bench.shell")

local inputs = {}

local KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

local Inputs = {}
Inputs.__index = Inputs

---@param options {dir:string, small:boolean?}
function inputs.open(options)
  assert(shell.run({ "mkdir", "-p", options.dir }))
  return setmetatable({ dir = options.dir, small = options.small }, Inputs)
end

-- Makes `name` by `make(temporary)` unless it is there.
function Inputs:once(name, make)
  local path = self.dir .. "/" .. name
  if not shell.exists(path) then
    io.stderr:write("making ", name, " ...\n")
    local temporary = path .. ".part"
    os.remove(temporary)
    make(temporary)
    assert(os.rename(temporary, path))
  end
  return path
end

-- The same at both sizes and the one that goes with --size.
function Inputs:sized(name)
  return (self.small and "small-" or "full-") .. name
end

local function create(path, size, options)
  shell.run({ "qemu-img", "create", "-q", "-f", "qcow2", "-o", options or "cluster_size=64k", path, size })
end

---64 MiB disk, a few clusters written, one snapshot.
function Inputs:little()
  return self:once("little.qcow2", function(path)
    create(path, "64M")
    shell.run({ "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "write -z 8M 1M", path })
    shell.run({ "qemu-img", "snapshot", "-c", "first", path })
  end)
end

---So many TiB with nothing in them.
function Inputs:empty(tib)
  return self:once(("empty-%d.qcow2"):format(tib), function(path)
    create(path, tib .. "T")
  end)
end

function Inputs:tables_size()
  return self.small and 64 * GIB or 1024 * GIB
end

---All tables there, no data: preallocation=metadata.
function Inputs:tables()
  return self:once(self:sized("tables.qcow2"), function(path)
    create(path, self:tables_size(), "preallocation=metadata")
  end)
end

---The same with an internal snapshot, "first".
function Inputs:tables_snapshot()
  return self:once(self:sized("tables-snapshot.qcow2"), function(path)
    shell.run({ "cp", "--sparse=always", self:tables(), path })
    shell.run({ "qemu-img", "snapshot", "-c", "first", path })
  end)
end

---As large, empty but for bitmaps "from", which has bits in 4096 places, and "into", which has none.
function Inputs:bitmaps()
  return self:once(self:sized("bitmaps.qcow2"), function(path)
    create(path, self:tables_size())
    shell.run({ "qemu-img", "bitmap", "--add", path, "from" })
    local step, lines = self:tables_size() // 4096, {}
    for i = 0, 4095 do
      lines[#lines + 1] = ("write -q -z %d 64k\n"):format(i * step)
    end
    shell.feed({ "qemu-io", "-f", "qcow2", "-t", "writeback", path }, table.concat(lines))
    shell.run({ "qemu-img", "bitmap", "--disable", path, "from" })
    shell.run({ "qemu-img", "bitmap", "--add", path, "into" })
  end)
end

---The same with an external data file.
function Inputs:tables_data_file()
  local data = self.dir .. "/" .. self:sized("tables-side.raw")
  return self:once(self:sized("tables-side.qcow2"), function(path)
    create(path, self:tables_size(), "preallocation=metadata,data_file=" .. data)
  end)
end

---A sparse raw data file (data_file_raw=on) of 64 GiB with 64 MiB of data in 1024 places.
function Inputs:sparse_data_file()
  local data = self:sparse_data()
  return self:once("sparse-side.qcow2", function(path)
    create(path, "64G", "data_file=" .. data .. ",data_file_raw=on")
    local lines = {}
    for i = 0, 1023 do
      lines[#lines + 1] = ("write -q -P %d %d 64k\n"):format(i % 255 + 1, i * 64 * MIB + i % 7 * 64 * KIB)
    end
    shell.feed({ "qemu-io", "-f", "qcow2", "-n", path }, table.concat(lines))
  end)
end

---The data file of that.
function Inputs:sparse_data()
  return self.dir .. "/sparse-side.raw"
end

function Inputs:cached_size()
  return self.small and 64 * MIB or 512 * MIB
end

---Random bytes in every cluster, to be read from the page cache.
function Inputs:cached()
  return self:once(self:sized("cached.qcow2"), function(path)
    local raw = path .. ".raw"
    shell.run({ "dd", "status=none", "if=/dev/urandom", "of=" .. raw, "bs=1M", "count=" .. self:cached_size() // MIB })
    shell.run({ "qemu-img", "convert", "-O", "qcow2", raw, path })
    os.remove(raw)
  end)
end

-- What a machine has in /usr, spread over all of it, in copies until it is enough.
local function fill_tree(tree, wanted)
  local files, total = {}, 0
  for line in shell.lines("find /usr -xdev -type f -size -65536k -printf '%k %p\\n' | LC_ALL=C sort -k 2") do
    local length, path = line:match("^(%d+) (.*)$")
    -- Whole blocks, as the file system will spend them.
    files[#files + 1] = { tonumber(length) * KIB, path }
    total = total + tonumber(length) * KIB
  end
  local left, copy = wanted, 0
  while left > 0 do
    local seen, taken, names, share = 0, 0, {}, math.min(1, left / total)
    for _, file in ipairs(files) do
      seen = seen + file[1]
      if taken + file[1] <= seen * share then
        taken = taken + file[1]
        names[#names + 1] = file[2] .. "\0"
      end
    end
    local into = ("%s/%d"):format(tree, copy)
    shell.run({ "mkdir", "-p", into })
    shell.feed("xargs -0 cp -f --parents -t " .. shell.quote(into), table.concat(names))
    left, copy = left - taken, copy + 1
    if taken < MIB then
      break
    end
  end
end

function Inputs:disk_size()
  return self.small and 256 * MIB or 4 * GIB
end

---An ext4 file system, about 42 % full, as a sparse raw file.
function Inputs:disk_raw()
  return self:once(self:sized("disk.raw"), function(path)
    local tree = path .. ".tree"
    shell.run({ "rm", "-rf", tree })
    fill_tree(tree, self:disk_size() // 100 * 42)
    shell.run({ "truncate", "-s", self:disk_size(), path })
    shell.run({ "mke2fs", "-q", "-F", "-t", "ext4", "-U", "6a1cbf1e-2b55-4d5c-93a4-1a6a9c1f0c11",
      "-E", "hash_seed=6a1cbf1e-2b55-4d5c-93a4-1a6a9c1f0c12", "-d", tree, path })
    shell.run({ "rm", "-rf", tree })
  end)
end

---The same disk as qcow2.
function Inputs:disk_qcow2()
  return self:once(self:sized("disk.qcow2"), function(path)
    shell.run({ "qemu-img", "convert", "-f", "raw", "-O", "qcow2", self:disk_raw(), path })
  end)
end

---The first quarter of that file system's bytes.
function Inputs:disk_part_raw()
  return self:once(self:sized("disk-part.raw"), function(path)
    shell.run({ "cp", "--sparse=always", self:disk_raw(), path })
    shell.run({ "truncate", "-s", self:disk_size() // 4, path })
  end)
end

---Changes of a quarter of that disk, in 256 KiB of every MiB: an image whose backing file it is.
function Inputs:overlay()
  local base = self:disk_qcow2()
  return self:once(self:sized("overlay.qcow2"), function(path)
    shell.run({ "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, path })
    local lines = {}
    for i = 0, self:disk_size() // MIB - 1 do
      lines[#lines + 1] = ("write -q -P %d %d 256k\n"):format(i % 255 + 1, i * MIB + i % 13 * 64 * KIB)
    end
    shell.feed({ "qemu-io", "-f", "qcow2", "-t", "writeback", path }, table.concat(lines))
  end)
end

---The same disk compressed: `kind` is "zlib" or "zstd".
function Inputs:disk_compressed(kind)
  return self:once(self:sized("disk-" .. kind .. ".qcow2"), function(path)
    shell.run({ "qemu-img", "convert", "-c", "-W", "-m", "4", "-f", "raw", "-O", "qcow2", "-o",
      "compression_type=" .. kind, self:disk_raw(), path })
  end)
end

return inputs
