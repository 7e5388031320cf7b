-- SPDX-License-Identifier: MIT
-- Images made by qemu-img and qemu-io, one recipe each, to read with ours: every create option, chains,
-- snapshots, bitmaps, data files, odd sizes. Contents are pseudo-random and repeatable.
--
--   for _, recipe in ipairs(fixtures.of("options")) do
--     local image = recipe:make(dir)     -- makes the files in `dir`
--     image.path, image.size             -- size: as QEMU sees it
--     image.open                         -- options for qcow2.open, when it needs any
--     image.qemu, image.qemu_options     -- what to hand to spec.support.qemu's readers instead of path
--     image.snapshots, image.bitmaps     -- names, when the image has any
--     image.chain                        -- paths of the layers below
--   end

local poke = require "spec.support.poke"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"

local fixtures = {}

local KIB, MIB = 1 << 10, 1 << 20
local NOISE = 65521 -- a prime: repeated noise never lines up with clusters

local recipes = {}

local Recipe = {}
Recipe.__index = Recipe

local function recipe(group, name, build, fields)
  local item = setmetatable({ group = group, name = name, build = build }, Recipe)
  for key, value in pairs(fields or {}) do item[key] = value end
  recipes[#recipes + 1] = item
end

--- Makes the image in `dir`.
function Recipe:make(dir)
  local noise = dir .. "/noise"
  local probe = io.open(noise, "rb")
  if probe then
    probe:close()
  else
    sh.spit(noise, random.new("noise"):bytes(NOISE))
  end
  local stem = self.name:gsub("[^%w]+", "-"):gsub("%-+$", "")
  local image = { name = self.name, dir = dir, path = ("%s/%s.qcow2"):format(dir, stem), stem = stem, chain = {} }
  image = self.build(image, random.new(self.name)) or image
  image.qemu = image.qemu or image.path
  if not image.size then image.size = qemu.info(image.path)["virtual-size"] end
  return image
end

--- qemu-io commands that leave `size` bytes in a mixture of every kind.
-- what: cluster, count, compress (false: none), discard (false: none); the same table again for more
-- commands on the same image: QEMU refuses a compressed write where a cluster is, so what is taken is remembered
-- in it.
local function commands(rng, size, what)
  local list = {}
  if size == 0 then return list end
  local cluster = what.cluster or 64 * KIB
  local taken = what.taken or {}
  what.taken = taken
  local longest = math.max(512, math.min(size // 6, 6 * cluster, 512 * KIB))
  local function range(unit)
    local offset = rng:int(0, (size - 1) // unit) * unit
    local length = (rng:int(1, longest) + unit - 1) // unit * unit
    return offset, math.min(length, size - offset)
  end
  local function free(offset, length)
    for i = offset // cluster, (offset + length - 1) // cluster do
      if taken[i] then return false end
    end
    return true
  end
  local function take(offset, length)
    for i = offset // cluster, (offset + length - 1) // cluster do taken[i] = true end
  end
  local function source()
    return rng:chance(50) and "-P " .. rng:int(1, 255) or "-s noise"
  end
  local function write(unit)
    local offset, length = range(unit)
    take(offset, length)
    list[#list + 1] = ("write -q %s %d %d"):format(source(), offset, length)
  end
  for _ = 1, what.count or 16 do
    local dice = rng:int(1, 100)
    if dice <= 30 and what.compress ~= false then
      local offset, length = range(cluster)
      if free(offset, length) then
        take(offset, length)
        list[#list + 1] = ("write -q -c %s %d %d"):format(source(), offset, length)
      end
    elseif dice > 88 then
      local offset, length = range(rng:pick { 1, 512, cluster })
      take(offset, length)
      list[#list + 1] = ("write -q %s %d %d"):format(rng:pick { "-z", "-zu" }, offset, length)
    elseif dice > 78 and what.discard ~= false then
      list[#list + 1] = ("discard -q %d %d"):format(range(rng:pick { 512, cluster }))
    else
      write(rng:pick { 1, 512, 4096, cluster })
    end
  end
  return list
end

fixtures.commands = commands

--- A raw file of `size` bytes with data here and there.
local function make_raw(path, size, rng, noise_path)
  local noise = sh.slurp(noise_path)
  sh.spit(path, "")
  local file <close> = assert(io.open(path, "r+b"))
  for _ = 1, 6 do
    local offset = rng:int(0, math.max(0, size - 1))
    assert(file:seek("set", offset))
    assert(file:write((noise:sub(1, math.min(size - offset, rng:int(1, 60000))))))
  end
  file:close()
  poke.truncate(path, size)
end

local function layer(image, name)
  local path = ("%s/%s.%s"):format(image.dir, image.stem, name)
  image.chain[#image.chain + 1] = path
  return path
end

-- Options: every value of every option, cycled so that neighbours differ in all of them.

local CLUSTERS = { 512, KIB, 2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB,
  512 * KIB, MIB, 2 * MIB }
local REFCOUNTS = { 1, 2, 4, 8, 16, 32, 64 }
local PREALLOCATIONS = { "off", "metadata", "off", "falloc", "off", "full" }

local function disk_size(cluster)
  if cluster <= KIB then return MIB + 512 end
  return math.min(math.max(cluster * 40, 2 * MIB), 16 * MIB) + 512
end

for i = 0, 45 do
  local options = { cluster_size = CLUSTERS[i % #CLUSTERS + 1], preallocation = PREALLOCATIONS[i // 2 % 6 + 1] }
  local v2 = i % 11 == 7
  options.compat = v2 and "0.10" or "1.1"
  if not v2 then
    options.refcount_bits = REFCOUNTS[i % #REFCOUNTS + 1]
    options.compression_type = i % 3 == 1 and "zstd" or "zlib"
    options.lazy_refcounts = i % 5 == 2
    options.extended_l2 = options.cluster_size >= 16 * KIB and i % 4 ~= 1
  end
  local name = qemu.option_list(options)
  recipe("options", name, function(image, rng)
    local size = disk_size(options.cluster_size)
    options.size = size
    qemu.create(image.path, options)
    qemu.io(image.path, commands(rng, size, { cluster = options.cluster_size,
      compress = options.preallocation == "off" }))
  end, { long = i >= 26, options = options })
end

-- Sizes: what QEMU makes of odd ones, and images whose header holds a size it would not write.

for _, case in ipairs { { 0 }, { 1 }, { 512 }, { 513 }, { 65536 - 512 }, { 65537 }, { MIB + 512 },
  { 3 * 65536 + 1024, 4096 }, { 2 * MIB - 512, 2 * MIB }, { 5 * MIB + 512, 2 * MIB, true },
  { 65536 + 1536, 65536, true }, { 16384 - 512, 16384, true }, { 32768 + 512, 512 } }
do
  local size, cluster, extended = case[1], case[2] or 65536, case[3] or false
  local name = ("size %d, clusters of %d%s"):format(size, cluster, extended and ", extended L2" or "")
  recipe("sizes", name, function(image, rng)
    qemu.create(image.path, { size = size, cluster_size = cluster, extended_l2 = extended })
    local rounded = (size + 511) // 512 * 512
    local list = commands(rng, rounded, { cluster = cluster, count = 6 })
    if rounded > 0 then -- the last byte holds something
      list[#list + 1] = ("write -q -P 77 %d %d"):format(rounded - 100, 100)
    end
    if #list > 0 then qemu.io(image.path, list) end
  end)
end

for _, size in ipairs { 1, 511, 513, 65535, 65537, MIB - 1, MIB + 1 } do
  recipe("odd", ("a header size of %d bytes"):format(size), function(image, rng)
    local rounded = (size + 511) // 512 * 512
    qemu.create(image.path, { size = rounded })
    local list = commands(rng, rounded, { count = 6 })
    list[#list + 1] = ("write -q -P 78 %d %d"):format(math.max(0, size - 100), math.min(size, 100))
    qemu.io(image.path, list)
    image.whole = { path = image.path .. ".whole", size = rounded }
    sh.check { "cp", image.path, image.whole.path }
    poke.field(image.path, "size", size)
    image.size = size
  end)
end

-- Chains.

local function chain(name, top, layers, fields)
  recipe("chains", name, function(image, rng)
    local below, format
    for i = #layers, 1, -1 do
      local l = layers[i]
      local path = layer(image, ("%d.%s"):format(i, l.format or "qcow2"))
      if l.format == "raw" then
        make_raw(path, l.size, rng, image.dir .. "/noise")
      else
        local options = { size = l.size, cluster_size = l.cluster, extended_l2 = l.extended, compat = l.compat,
          data_file = l.data_file and path:match("[^/]+$") .. ".data" or nil,
          backing_file = below and below:match("[^/]+$"), backing_fmt = format }
        qemu.create(path, options)
        qemu.io(path, commands(rng, l.size, { cluster = l.cluster, count = 8, compress = l.compress }))
      end
      below, format = path, l.format or "qcow2"
    end
    local reversed = {} -- nearest first
    for i = #image.chain, 1, -1 do reversed[#reversed + 1] = image.chain[i] end
    image.chain = reversed
    qemu.create(image.path, { size = top.size, cluster_size = top.cluster, extended_l2 = top.extended,
      compat = top.compat, backing_file = top.absolute and below or below:match("[^/]+$"), backing_fmt = format,
      data_file = top.data_file and image.stem .. ".data" or nil, preallocation = top.preallocation })
    qemu.io(image.path, commands(rng, top.size, { cluster = top.cluster, count = top.count or 8,
      compress = top.compress }))
    if top.no_format then
      local at = poke.read(image.path, 0, 4096):find("\xe2\x79\x2a\xca", 1, true)
      poke.u32(image.path, at - 1, 0x13572468)
    end
  end, fields)
end

chain("an overlay on a raw file", { size = 2 * MIB }, { { format = "raw", size = 2 * MIB } })
chain("an overlay on a raw file of odd length", { size = 2 * MIB }, { { format = "raw", size = MIB + 12345 } })
chain("an overlay on an image with compressed clusters", { size = 2 * MIB, count = 5 },
  { { size = 2 * MIB, cluster = 4096 } })
chain("three layers, raw at the bottom", { size = 2 * MIB, cluster = 32768 },
  { { size = 2 * MIB, cluster = 4096 }, { format = "raw", size = 2 * MIB } })
chain("a longer backing file", { size = MIB + 512 }, { { size = 3 * MIB, cluster = 512 } })
chain("a shorter backing file", { size = 3 * MIB, cluster = 4096 }, { { size = MIB + 512 } })
chain("a shorter file in the middle", { size = 3 * MIB, count = 4 },
  { { size = MIB + 1536, cluster = 2048 }, { size = 3 * MIB } })
chain("a shorter file at the bottom, nothing written above", { size = 3 * MIB, count = 1 },
  { { size = 2 * MIB, count = 1 }, { format = "raw", size = MIB + 1 } })
chain("an empty backing file", { size = MIB }, { { size = 0 } })
chain("an overlay with extended L2", { size = 4 * MIB, cluster = 65536, extended = true },
  { { size = 4 * MIB } })
chain("extended L2 over extended L2 of other clusters", { size = 4 * MIB, cluster = 131072, extended = true },
  { { size = 4 * MIB, cluster = 16384, extended = true }, { format = "raw", size = 3 * MIB + 7 } })
chain("an overlay of version 2 on version 3", { size = 2 * MIB, compat = "0.10" }, { { size = 2 * MIB } })
chain("an overlay of version 3 on version 2", { size = 2 * MIB }, { { size = 2 * MIB, compat = "0.10" } })
chain("an absolute backing name", { size = MIB, absolute = true }, { { size = MIB } })
chain("a raw file below, without a stored format", { size = MIB, no_format = true },
  { { format = "raw", size = MIB } })
chain("an image below, without a stored format", { size = MIB, no_format = true }, { { size = MIB } })
chain("an overlay with a data file", { size = 2 * MIB, data_file = true, compress = false }, { { size = 2 * MIB } },
  { data_file = true })
chain("a backing file with a data file", { size = 2 * MIB },
  { { size = 2 * MIB, data_file = true, compress = false } }, { data_file = true })
chain("preallocated metadata over a backing file", { size = 2 * MIB, extended = true, preallocation = "metadata",
  compress = false },
  { { size = 2 * MIB } })
chain("six layers", { size = MIB, count = 3 }, { { size = MIB, cluster = 512 }, { size = MIB, cluster = 2048 },
  { size = MIB, cluster = 8192 }, { size = MIB, cluster = 32768 }, { format = "raw", size = MIB } })

-- Snapshots: taken between writes, with names in every taste.

local function snapshots(name, options, fields)
  recipe("snapshots", name, function(image, rng)
    local size = options.size
    qemu.create(image.path, options)
    image.snapshots = {}
    local write = { cluster = options.cluster_size, count = 5 }
    for _, snapshot in ipairs(fields and fields.names or { "first", "two words", "d\u{e9}j\u{e0} vu" }) do
      qemu.io(image.path, commands(rng, size, write))
      qemu.snapshot(image.path, "-c", snapshot)
      image.snapshots[#image.snapshots + 1] = snapshot
      if fields and fields.grow then
        size = size + fields.grow
        qemu.resize(image.path, size)
      end
    end
    qemu.io(image.path, commands(rng, size, write))
    if fields and fields.drop then
      qemu.snapshot(image.path, "-d", table.remove(image.snapshots, fields.drop))
    end
    if fields and fields.apply then qemu.snapshot(image.path, "-a", image.snapshots[fields.apply]) end
  end)
end

snapshots("snapshots", { size = 2 * MIB })
snapshots("snapshots in version 2", { size = 2 * MIB, compat = "0.10", cluster_size = 4096 })
snapshots("snapshots with refcounts of 8 bits", { size = MIB, refcount_bits = 8, cluster_size = 8192 })
snapshots("snapshots with refcounts of 64 bits", { size = MIB, refcount_bits = 64, cluster_size = 512 })
snapshots("snapshots with extended L2", { size = 4 * MIB, extended_l2 = true, cluster_size = 32768,
  compression_type = "zstd" })
snapshots("snapshots of other sizes", { size = MIB, cluster_size = 1024 }, { grow = 700 * KIB })
snapshots("a snapshot applied, another dropped", { size = 2 * MIB, lazy_refcounts = true },
  { drop = 1, apply = 1 })
snapshots("two snapshots of one name", { size = MIB }, { names = { "same", "same" } })
snapshots("many snapshots", { size = MIB, cluster_size = 2048, refcount_bits = 32 },
  { names = { "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l" } })

-- Bitmaps: writes before, between and after; disabled, merged, of every granularity.

local function bitmaps(name, options, list, fields)
  recipe("bitmaps", name, function(image, rng)
    options.data_file = options.data_file and image.stem .. ".data" or nil
    local write = { cluster = options.cluster_size, count = 5, compress = not options.data_file }
    qemu.create(image.path, options)
    image.bitmaps = {}
    for _, b in ipairs(list) do
      qemu.io(image.path, commands(rng, options.size, write))
      qemu.bitmap(image.path, b.name, "--add", "-g", tostring(b.granularity or 65536))
      image.bitmaps[#image.bitmaps + 1] = b.name
      if b.disable then
        qemu.io(image.path, commands(rng, options.size, write))
        qemu.bitmap(image.path, b.name, "--disable")
      end
      if b.merge then qemu.bitmap(image.path, b.name, "--merge", b.merge) end
    end
    qemu.io(image.path, commands(rng, options.size, write))
    if fields and fields.snapshot then qemu.snapshot(image.path, "-c", fields.snapshot) end
  end)
end

bitmaps("one bitmap", { size = 4 * MIB }, { { name = "b0" } })
bitmaps("bitmaps of every granularity", { size = MIB + 512, cluster_size = 512 },
  { { name = "g512", granularity = 512 }, { name = "g4k", granularity = 4096 },
    { name = "g2M", granularity = 2 * MIB }, { name = "g1G", granularity = 1 << 30 } })
bitmaps("bitmaps disabled and merged", { size = 3 * MIB, cluster_size = 16384, extended_l2 = true },
  { { name = "old", granularity = 4096, disable = true }, { name = "new", granularity = 32768 },
    { name = "sum", granularity = 32768, merge = "old" } })
bitmaps("a bitmap with a long name and a snapshot", { size = MIB }, { { name = ("n"):rep(1000) } },
  { snapshot = "s" })
bitmaps("bitmaps beside a data file", { size = 2 * MIB, data_file = true },
  { { name = "b", granularity = 8192 }, { name = "c", granularity = 65536, disable = true } })
bitmaps("a bitmap of many clusters", { size = 16 * MIB, cluster_size = 1024 }, { { name = "fine", granularity = 512 } })

-- External data files.

local function data_file(name, options, fields)
  fields = fields or {}
  recipe("data_files", name, function(image, rng)
    local data = image.stem .. ".data"
    image.data_path = image.dir .. "/" .. data
    options.data_file = fields.absolute and image.data_path or data
    if fields.backing then
      options.backing_file, options.backing_fmt = image.stem .. ".base", "raw"
      make_raw(layer(image, "base"), options.size, rng, image.dir .. "/noise")
    end
    qemu.create(image.path, options)
    if not fields.untouched then
      qemu.io(image.path, commands(rng, options.size, { cluster = options.cluster_size, compress = false,
        discard = fields.discard }))
    end
    if fields.guest_zero then qemu.io(image.path, { "write -q -P 1 0 65536" }) end
    if fields.truncate then poke.truncate(image.data_path, fields.truncate) end
    if fields.longer then poke.truncate(image.data_path, options.size + fields.longer) end
    if fields.nameless then
      local at = poke.read(image.path, 0, 4096):find("\x44\x41\x54\x41", 1, true)
      poke.u32(image.path, at - 1, 0x13572469)
      image.open = { data_file = image.data_path }
      image.qemu = ("driver=qcow2,file.driver=file,file.filename=%s,data-file.driver=file,data-file.filename=%s")
        :format(image.path, image.data_path)
      image.qemu_options = { image_opts = true }
      image.size = options.size
    end
  end, { data_file = true, raw = options.data_file_raw })
end

data_file("a data file", { size = 2 * MIB })
data_file("a data file by absolute name", { size = 2 * MIB, cluster_size = 4096 }, { absolute = true })
data_file("a data file that stays raw", { size = 2 * MIB + 512, data_file_raw = true })
data_file("a raw data file, clusters of 512", { size = MIB, cluster_size = 512, data_file_raw = true })
data_file("a raw data file, clusters of 2M", { size = 9 * MIB, cluster_size = 2 * MIB, data_file_raw = true })
data_file("a raw data file without discards", { size = 2 * MIB, data_file_raw = true }, { discard = false })
data_file("a data file with extended L2", { size = 4 * MIB, extended_l2 = true, cluster_size = 131072 })
data_file("a data file, lazy refcounts of 1 bit",
  { size = 2 * MIB, lazy_refcounts = true, refcount_bits = 1, cluster_size = 16384 })
data_file("a data file with preallocated metadata", { size = 2 * MIB, preallocation = "metadata" })
data_file("a data file preallocated in full", { size = 2 * MIB, preallocation = "full", cluster_size = 8192 })
data_file("a data file preallocated by falloc", { size = 2 * MIB, preallocation = "falloc" })
data_file("an untouched data file", { size = 2 * MIB }, { untouched = true })
data_file("an untouched raw data file", { size = 2 * MIB, data_file_raw = true }, { untouched = true })
data_file("a data file over a backing file", { size = 2 * MIB }, { backing = true })
data_file("a data file without a stored name", { size = 2 * MIB }, { nameless = true })
data_file("a raw data file without a stored name", { size = 2 * MIB, data_file_raw = true }, { nameless = true })
data_file("a data file with guest cluster 0 written", { size = MIB }, { guest_zero = true })
data_file("a data file cut short", { size = 2 * MIB }, { truncate = MIB + 1000 })
data_file("a data file that is too long", { size = 2 * MIB, data_file_raw = true }, { longer = 300000 })

-- Encrypted images: image.secret is the passphrase, image.object the words that give it to QEMU's tools.

for _, case in ipairs { { "aes", {} }, { "luks", { ["encrypt.iter-time"] = 10 } },
  { "aes", { cluster_size = 512, compat = "0.10" } },
  { "luks", { compat = "0.10", ["encrypt.iter-time"] = 10 } } }
do
  local options = case[2]
  options["encrypt.format"], options["encrypt.key-secret"] = case[1], "s"
  recipe("encrypted", qemu.option_list(options), function(image, rng)
    local size = 2 * MIB
    image.secret, image.object, image.size = "open sesame", { "--object", "secret,id=s,data=open sesame" }, size
    local create = { "qemu-img", "create", "-q", image.object[1], image.object[2], "-f", "qcow2", "-o",
      qemu.option_list(options), image.path, tostring(size) }
    -- QEMU times its key derivation and gives up on a busy machine: "Unable to get accurate CPU usage".
    local made
    for _ = 1, 10 do
      made = sh.run(create)
      if not made.stderr:find("accurate CPU usage", 1, true) then break end
    end
    assert(made.code == 0, made.stderr)
    image.qemu = ("driver=qcow2,encrypt.key-secret=s,file.filename=%s"):format(image.path)
    image.qemu_options = { image_opts = true }
    local words = { "qemu-io", "-t", "unsafe", image.object[1], image.object[2], "--image-opts", image.qemu }
    for _, command in ipairs(commands(rng, size, { cluster = options.cluster_size, compress = false })) do
      words[#words + 1], words[#words + 2] = "-c", command
    end
    sh.check(words, { cwd = image.dir })
  end, { encryption = case[1] })
end

--- The recipes of a group ("options" "sizes" "odd" "chains" "snapshots" "bitmaps" "data_files" "encrypted"),
-- or all.
function fixtures.of(group)
  local list = {}
  for _, item in ipairs(recipes) do
    if not group or item.group == group then list[#list + 1] = item end
  end
  return list
end

--- The title of a recipe's spec: its name, and the tag of the breadth that `make test` leaves out.
function Recipe:title()
  return self.long and self.name .. " #long" or self.name
end

return fixtures
