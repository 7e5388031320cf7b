-- SPDX-License-Identifier: MIT
-- Makes qcow2 images by hand from a description, for shapes that no tool would write.
--
-- Without any description: a sound, empty version 3 image, 1 MiB, 64 KiB clusters. Everything can be
-- set, and everything can be set wrong. forge.write gives the layout, so that recipes can poke on:
--
--   local at = forge.write(path, {
--     header = { cluster_bits = 12, size = 1 << 20, refcount_order = 4 },   -- any field, raw
--     clusters = {                                  -- by guest cluster index; see below
--       [0] = { data = "hello" }, [3] = "zero", [5] = 0x4000000000050000,
--     },
--     extensions = { { type = 0x12345678, data = "abc" } },
--     backing_file = "base.raw", backing_format = "raw",
--     refcounts = { [7] = 0 },                      -- by host cluster: stored instead of the right one
--   })
--   at.l1, at.l2[0], at.data[0], at.refcount_table, at.refcount_blocks[1], at.length ...
--
-- A cluster is one of
--   a number                             the raw L2 entry
--   "zero"                               zero flag (extended L2: all zero bits), no space
--   { raw =, bitmap = }                  raw words of an extended entry
--   { data = "bytes" }                   a new host cluster holding them; zero = true: zero with space kept
--   { data =, alloc = mask, zero = mask} extended L2: the subclusters' bits (default alloc all)
--   { host = offset }                    points there, no space taken
--   { compressed = "stream", sectors =, slack = } compressed; packed at the next free byte;
--                                        sectors: the descriptor's count field, else the right one;
--                                        slack: bytes left free before it
-- and each may have copied = true/false, else the right one (count exactly one).
--
-- Also: l1 = { [i] = raw }, l2 = { [l1 index] = { [j] = raw } } (last word over `clusters`),
-- refcount_table = { [i] = raw }, external_data = true, data_file = "name" (sets the feature bit, entries
-- then go 1:1 and bytes into `data_bytes` = path), snapshots and bitmaps (see those functions), feature_names =
-- { { type, bit, name } }, extension_bytes = raw bytes after the header instead of extensions,
-- poke = { { offset, bytes } }, length = cut or extend the file.

local poke = require "spec.support.poke"

local forge = {}

local COPIED = 1 << 63
local COMPRESSED = 1 << 62

forge.extension = {
  backing_format = 0xe2792aca, feature_names = 0x6803f857, bitmaps = 0x23852875,
  encryption = 0x0537be77, data_file = 0x44415441,
}

local HEADER = {
  "magic", "version", "backing_file_offset", "backing_file_size", "cluster_bits", "size", "crypt_method",
  "l1_size", "l1_table_offset", "refcount_table_offset", "refcount_table_clusters", "nb_snapshots",
  "snapshots_offset", "incompatible_features", "compatible_features", "autoclear_features",
  "refcount_order", "header_length", "compression_type",
}

--- A raw deflate stream of stored blocks: no compressor needed. `open`: without an end mark.
function forge.deflate(bytes, open)
  local out, at = {}, 1
  repeat
    local part = bytes:sub(at, at + 0xfffe)
    at = at + #part
    local last = at > #bytes and not open
    out[#out + 1] = string.pack("<BI2I2", last and 1 or 0, #part, ~#part & 0xffff) .. part
  until at > #bytes
  return table.concat(out)
end

--- A zstd frame of raw blocks.
function forge.zstd(bytes)
  local out = { "\x28\xb5\x2f\xfd", string.pack("<BI4", 0xa0, #bytes) } -- single segment, 4-byte size
  local at = 1
  repeat
    local part = bytes:sub(at, at + 0x1ffff)
    at = at + #part
    out[#out + 1] = string.pack("<I3", #part << 3 | (at > #bytes and 1 or 0)) .. part
  until at > #bytes
  return table.concat(out)
end

local function up(value, unit) return (value + unit - 1) // unit * unit end

local function extension(kind, data, length)
  return string.pack(">I4I4", kind, length or #data) .. data .. ("\0"):rep(-#data % 8)
end

-- The work in progress: chunks of bytes at offsets, the next free cluster, references counted.
local Work = {}
Work.__index = Work

function Work:put(offset, bytes)
  self.chunks[#self.chunks + 1] = { offset, bytes }
  self.length = math.max(self.length, offset + #bytes)
end

function Work:refer(offset, length, times)
  for cluster = offset // self.cluster_size, (offset + math.max(length, 1) - 1) // self.cluster_size do
    self.counts[cluster] = (self.counts[cluster] or 0) + (times or 1)
  end
end

--- Takes whole clusters for `length` bytes; gives their offset.
function Work:take(length, times)
  local offset = self.free
  self.free = offset + up(math.max(length, 1), self.cluster_size)
  self:refer(offset, self.free - offset, times)
  self.length = math.max(self.length, self.free)
  return offset
end

--- Takes `length` bytes for a stream, next to the last one when it fits there.
function Work:take_bytes(length, slack, times)
  if not self.byte or self.byte_end ~= self.free or self.byte + slack >= self.free then
    self.byte, self.byte_end = self.free, self.free
  end
  local offset = self.byte + slack
  self.byte = offset + length
  while self.byte_end < self.byte do
    self.byte_end = self.byte_end + self.cluster_size
    self.free = self.byte_end
  end
  self:refer(offset & ~511, up(offset + length, 512) - (offset & ~511), times)
  self.length = math.max(self.length, self.byte)
  return offset
end

local function compressed_entry(work, spec, times)
  local stream, slack = spec.compressed, spec.slack or 0
  local offset = work:take_bytes(#stream, slack, times)
  work:put(offset, stream)
  local sectors = spec.sectors or (offset % 512 + #stream + 511) // 512 - 1
  return COMPRESSED | sectors << (62 - (work.cluster_bits - 8)) | offset
end

--- gives: word, bitmap. `times` = how many L1 tables reach it.
local function entry(work, guest_cluster, spec, times)
  if math.type(spec) == "integer" then return spec, 0 end
  if spec == "zero" then return work.extended and 0 or 1, 0xffffffff << 32 end
  if spec.raw then return spec.raw, spec.bitmap or 0 end
  if spec.compressed then return compressed_entry(work, spec, times), 0 end
  local host
  if spec.host then
    host = spec.host
  elseif work.external then
    host = guest_cluster * work.cluster_size
    if work.data_bytes then work.data_bytes[#work.data_bytes + 1] = { host, spec.data or "" } end
  else
    host = work:take(work.cluster_size, times)
    work:put(host, spec.data or "")
  end
  work.at.data[guest_cluster] = host
  local copied = spec.copied
  if copied == nil then copied = work.external or times == 1 end
  local word = host | (copied and COPIED or 0)
  if not work.extended then return word | (spec.zero and 1 or 0), 0 end
  local zero = spec.zero == true and 0xffffffff or spec.zero or 0
  local alloc = spec.alloc or 0xffffffff & ~zero
  return word, zero << 32 | alloc
end

--- Lays out L2 tables and data for `clusters`; gives the L1 words (from 0) and their highest index.
local function lay_tree(work, clusters, overrides, times, at_l2)
  local tables, top = {}, -1
  local indexes = {}
  for index in pairs(clusters) do indexes[#indexes + 1] = index end
  table.sort(indexes)
  local function l2_of(i)
    if not tables[i] then
      tables[i] = { offset = work:take(work.cluster_size, times), words = {} }
      at_l2[i], top = tables[i].offset, math.max(top, i)
    end
    return tables[i].words
  end
  for _, index in ipairs(indexes) do
    local words = l2_of(index // work.l2_entries)
    local word, bitmap = entry(work, index, clusters[index], times)
    words[index % work.l2_entries] = { word, bitmap }
  end
  for i, list in pairs(overrides or {}) do
    for j, word in pairs(list) do
      l2_of(i)[j] = type(word) == "table" and { word.raw, word.bitmap or 0 } or { word, 0 }
    end
  end
  local l1 = {}
  for i, t in pairs(tables) do
    for j, pair in pairs(t.words) do
      if work.extended then
        work:put(t.offset + j * 16, string.pack(">i8i8", pair[1], pair[2]))
      else
        work:put(t.offset + j * 8, string.pack(">i8", pair[1]))
      end
    end
    l1[i] = t.offset | (times == 1 and COPIED or 0)
  end
  return l1, top
end

local function pack_l1(l1, count)
  local out = {}
  for i = 0, count - 1 do out[#out + 1] = string.pack(">i8", l1[i] or 0) end
  return table.concat(out)
end

--- snapshots = { { id = "1", name = "one", size =, clusters = { own tree }, l1_offset =, l1_size =,
-- extra = "bytes", date_sec =, vm_state_size = } }: without `clusters` a snapshot shares the active tables.
local function lay_snapshots(work, list, l1, l1_size)
  local out, at = {}, work.at
  for i, s in ipairs(list) do
    local own, size, l2 = l1, l1_size, {}
    if s.clusters then
      local top
      own, top = lay_tree(work, s.clusters, nil, 1, l2)
      for k, v in pairs(own) do own[k] = v & ~COPIED end
      size = math.max(top + 1, l1_size)
    end
    local offset = work:take(size * 8)
    work:put(offset, pack_l1(own, size))
    at.snapshots[i] = { l1 = offset, l2 = l2 }
    local extra = s.extra or string.pack(">i8i8", s.vm_state_size or 0, s.size or work.size)
    local id, name = s.id or tostring(i), s.name or ("snapshot " .. i)
    local body = string.pack(">i8I4I2I2I4I4i8I4I4", s.l1_offset or offset, s.l1_size or size,
      s.id_length or #id, s.name_length or #name, s.date_sec or 0, s.date_nsec or 0, s.vm_clock_nsec or 0,
      s.vm_state_size or 0, s.extra_length or #extra) .. extra .. id .. name
    out[i] = body .. ("\0"):rep(-#body % 8)
  end
  local bytes = table.concat(out)
  at.snapshot_table, at.snapshot_table_length = work:take(#bytes), #bytes
  work:put(at.snapshot_table, bytes)
end

--- bitmaps = { { name =, granularity_bits = 16, flags = 0, type = 1, extra =, table_offset =, table_size =,
-- entries = { [0] = "bytes of a bitmap cluster" | "ones" | raw } } }, with bitmaps.header = { count =,
-- directory_size =, directory_offset = } to lie in the header extension.
local function lay_bitmaps(work, list)
  local out, at = {}, work.at
  for i, b in ipairs(list) do
    local bits = b.granularity_bits or 16
    local per_entry = work.cluster_size * 8
    local count = b.table_size or (((work.size + (1 << bits) - 1) >> bits) + per_entry - 1) // per_entry
    local offset = b.table_offset or work:take(math.min(count, 1 << 16) * 8)
    at.bitmaps[i] = { table = offset, clusters = {} }
    for j, e in pairs(b.entries or {}) do
      local word = e
      if e == "ones" then
        word = 1
      elseif type(e) == "string" then
        word = work:take(work.cluster_size)
        work:put(word, e)
        at.bitmaps[i].clusters[j] = word
      end
      work:put(offset + j * 8, string.pack(">i8", word))
    end
    local name, extra = b.name or ("bitmap " .. i), b.extra or ""
    at.bitmaps[i].entry = #table.concat(out)
    local body = string.pack(">i8I4I4BBI2I4", offset, count, b.flags or 0, b.type or 1, bits,
      b.name_length or #name, b.extra_length or #extra) .. extra .. name
    out[i] = body .. ("\0"):rep(-#body % 8)
  end
  local bytes = table.concat(out)
  at.bitmap_directory = work:take(#bytes)
  for i in ipairs(list) do at.bitmaps[i].entry = at.bitmap_directory + at.bitmaps[i].entry end
  work:put(at.bitmap_directory, bytes)
  local h = list.header or {}
  return extension(forge.extension.bitmaps, string.pack(">I4I4i8i8", h.count or #list, h.reserved or 0,
    h.directory_size or #bytes, h.directory_offset or at.bitmap_directory))
end

local function feature_names(list)
  local out = {}
  for i, f in ipairs(list) do out[i] = string.pack("BBc46", f.type or f[1], f.bit or f[2], f.name or f[3]) end
  return table.concat(out)
end

local function lay_header(work, d, h, bitmap_extension)
  local out = {}
  if d.backing_format then out[#out + 1] = extension(forge.extension.backing_format, d.backing_format) end
  if d.data_file then out[#out + 1] = extension(forge.extension.data_file, d.data_file) end
  if d.feature_names then
    out[#out + 1] = extension(forge.extension.feature_names, feature_names(d.feature_names))
  end
  out[#out + 1] = bitmap_extension
  for _, e in ipairs(d.extensions or {}) do out[#out + 1] = extension(e.type, e.data or "", e.length) end
  out[#out + 1] = string.pack(">I4I4", 0, 0)
  local bytes = d.extension_bytes or table.concat(out)
  local length = h.version >= 3 and math.min(math.max(h.header_length, 104), 4096) or 72
  work.at.extensions = length
  work:put(length, bytes)
  if d.backing_file then
    h.backing_file_offset = h.backing_file_offset or length + #bytes
    h.backing_file_size = h.backing_file_size or #d.backing_file
    work:put(h.backing_file_offset, d.backing_file)
  end
  for _, name in ipairs(HEADER) do
    local field = poke.fields[name]
    if field[1] < length then work:put(field[1], poke.pack(field[2], h[name] or 0)) end
  end
end

local function lay_refcounts(work, d, h, table_clusters)
  local order = math.min(math.max(h.refcount_order, 0), 6)
  local bits = 1 << order
  local per_block = work.cluster_size * 8 // bits
  local blocks = work.at.refcount_blocks
  -- The first block lies behind the table; more of them at the end, counting themselves too.
  while #blocks * per_block < work.free // work.cluster_size do
    blocks[#blocks + 1] = work:take(work.cluster_size)
  end
  assert(#blocks <= table_clusters * work.cluster_size // 8, "forge: the refcount table is too small")
  for i, offset in ipairs(blocks) do
    work:put(work.at.refcount_table + (i - 1) * 8, string.pack(">i8", offset))
  end
  for cluster, count in pairs(d.refcounts or {}) do work.counts[cluster] = count end
  local bytes = {}
  for cluster, count in pairs(work.counts) do
    local block = blocks[cluster // per_block + 1]
    local index = cluster % per_block
    if block and bits >= 8 then
      work:put(block + index * bits // 8, string.pack(">I8", count):sub(-(bits // 8)))
    elseif block then
      local where = block + index * bits // 8
      bytes[where] = (bytes[where] or 0) | (count & ((1 << bits) - 1)) << (index * bits % 8)
    end
  end
  for where, byte in pairs(bytes) do work:put(where, string.char(byte)) end
  for i, word in pairs(d.refcount_table or {}) do
    work:put(work.at.refcount_table + i * 8, string.pack(">i8", word))
  end
end

--- The image as chunks of bytes. gives: the layout, the chunks and the file's length.
function forge.build(description)
  local d = description or {}
  local given, h = d.header or {}, {}
  h.magic, h.version, h.cluster_bits, h.size = 0x514649fb, 3, 16, 1 << 20
  h.refcount_order, h.header_length = 4, 112
  for name, value in pairs(given) do
    assert(poke.fields[name], "forge: no header field is named " .. tostring(name))
    h[name] = value
  end
  -- What the layout is made by; differs from the header only when the header lies beyond reason.
  local cluster_bits = d.cluster_bits or math.min(math.max(h.cluster_bits, 9), 21)
  local external = d.external_data or d.data_file ~= nil
  local extended = d.extended_l2 or (h.incompatible_features or 0) & 16 ~= 0
  local size = d.size or h.size
  h.incompatible_features = given.incompatible_features or
    (external and 4 or 0) | (extended and 16 or 0) | (h.compression_type and h.compression_type ~= 0 and 8 or 0)
  h.autoclear_features = given.autoclear_features or
    (d.bitmaps and 1 or 0) | (d.data_file_raw and 2 or 0)
  local work = setmetatable({
    chunks = {}, counts = {}, free = 0, length = 0, size = size, external = external, extended = extended,
    cluster_bits = cluster_bits, cluster_size = 1 << cluster_bits, data_bytes = d.data_bytes and {},
    l2_entries = (1 << cluster_bits) // (extended and 16 or 8),
    at = { cluster_size = 1 << cluster_bits, l2 = {}, data = {}, snapshots = {}, bitmaps = {},
      refcount_blocks = {} },
  }, Work)
  local at = work.at

  work:take(work.cluster_size) -- header
  local table_clusters = d.refcount_table_clusters or 1
  at.refcount_table = work:take(table_clusters * work.cluster_size)
  at.refcount_blocks[1] = work:take(work.cluster_size)
  local span = work.l2_entries * work.cluster_size
  local l1_size = d.l1_size or math.max(1, (size + span - 1) // span)
  for i in pairs(d.l1 or {}) do l1_size = math.max(l1_size, i + 1) end
  at.l1 = work:take(l1_size * 8)

  local sharing = 0
  for _, s in ipairs(d.snapshots or {}) do sharing = sharing + (s.clusters and 0 or 1) end
  local l1 = lay_tree(work, d.clusters or {}, d.l2, 1 + sharing, at.l2)
  for i, word in pairs(d.l1 or {}) do l1[i] = word end
  work:put(at.l1, pack_l1(l1, l1_size))
  if d.snapshots then lay_snapshots(work, d.snapshots, l1, l1_size) end
  local bitmap_extension = d.bitmaps and lay_bitmaps(work, d.bitmaps) or ""

  h.l1_size, h.l1_table_offset = given.l1_size or l1_size, given.l1_table_offset or at.l1
  h.refcount_table_offset = given.refcount_table_offset or at.refcount_table
  h.refcount_table_clusters = given.refcount_table_clusters or table_clusters
  if d.snapshots then
    h.nb_snapshots = given.nb_snapshots or #d.snapshots
    h.snapshots_offset = given.snapshots_offset or at.snapshot_table
  end
  lay_header(work, d, h, bitmap_extension)
  lay_refcounts(work, d, h, table_clusters)
  for _, p in ipairs(d.poke or {}) do work:put(p[1], p[2]) end
  at.length = d.length or work.length
  return at, work.chunks, work.data_bytes
end

local function write_chunks(path, chunks)
  local file <close> = assert(io.open(path, "wb"))
  for _, chunk in ipairs(chunks) do
    if #chunk[2] > 0 then
      assert(file:seek("set", chunk[1]))
      assert(file:write(chunk[2]))
    end
  end
end

--- Writes the image (and, with data_bytes = path, its data file). gives: the layout.
function forge.write(path, description)
  local at, chunks, data = forge.build(description)
  write_chunks(path, chunks)
  poke.truncate(path, at.length)
  if data then write_chunks(description.data_bytes, data) end
  return at
end

return forge
