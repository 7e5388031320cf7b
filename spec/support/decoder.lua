-- SPDX-License-Identifier: MIT
-- A second opinion: a qcow2 decoder in plain Lua, written from the specification alone, sharing no
-- code with the project. Slow, small, and strict only about what it needs to find its way.
--
--   local image <close> = decoder.open(path)
--   image.header.cluster_bits, image.extensions, image.snapshots, image.bitmaps
--   image:map()            list of { offset, length, kind, host_offset }, maximal runs of one kind
--   image:refcount(n)      stored count of host cluster n
--   image:references()     cluster -> count that the tables really make
--   image:problems()       list of sentences; empty for a sound image
--   image:stream(entry)    the bytes of a compressed cluster
--
-- Kinds: "data", "zero" (host_offset when space is kept), "unallocated", "compressed".

local decoder = {}

local Image = {}
Image.__index = Image

local OFFSET_MASK = 0x00fffffffffffe00 -- bits 9-55
local COPIED = 1 << 63
local COMPRESSED = 1 << 62

local EXTENSION_NAMES = {
  [0xe2792aca] = "backing_format", [0x6803f857] = "feature_name_table", [0x23852875] = "bitmaps",
  [0x0537be77] = "encryption", [0x44415441] = "data_file",
}

local function pread(file, offset, length)
  assert(file:seek("set", offset))
  local bytes = length > 0 and file:read(length) or ""
  if #bytes < length then bytes = bytes .. ("\0"):rep(length - #bytes) end
  return bytes
end

--- Bytes of the image file; past its end zeros.
function Image:pread(offset, length)
  return pread(self.file, offset, length)
end

local function read_header(image)
  local h = {}
  local head = image:pread(0, 112)
  h.magic, h.version, h.backing_file_offset, h.backing_file_size, h.cluster_bits, h.size, h.crypt_method,
    h.l1_size, h.l1_table_offset, h.refcount_table_offset, h.refcount_table_clusters, h.nb_snapshots,
    h.snapshots_offset = string.unpack(">I4I4i8I4I4i8I4I4i8i8I4I4i8", head)
  assert(h.magic == 0x514649fb, "not a qcow2 file")
  if h.version >= 3 then
    h.incompatible_features, h.compatible_features, h.autoclear_features, h.refcount_order, h.header_length =
      string.unpack(">i8i8i8I4I4", head, 73)
    h.compression_type = h.header_length > 104 and head:byte(105) or 0
  else
    h.incompatible_features, h.compatible_features, h.autoclear_features = 0, 0, 0
    h.refcount_order, h.header_length, h.compression_type = 4, 72, 0
  end
  return h
end

local function read_extensions(image)
  local list, at, limit = {}, image.header.header_length, image.cluster_size
  if image.header.backing_file_offset ~= 0 then limit = image.header.backing_file_offset end
  while at + 8 <= limit do
    local kind, length = string.unpack(">I4I4", image:pread(at, 8))
    if kind == 0 then break end
    local name = EXTENSION_NAMES[kind] or "unknown"
    local extension = { type = kind, name = name, offset = at + 8, length = length,
      data = image:pread(at + 8, length) }
    list[#list + 1] = extension
    list[name] = extension
    at = at + 8 + ((length + 7) & ~7)
  end
  return list
end

local function read_table(image, offset, count)
  local entries, bytes = {}, image:pread(offset, count * 8)
  for i = 0, count - 1 do entries[i] = string.unpack(">i8", bytes, i * 8 + 1) end
  return entries
end

local function read_snapshots(image)
  local list, at = {}, image.header.snapshots_offset
  for i = 1, image.header.nb_snapshots do
    local s = {}
    local id_length, name_length, extra_length
    s.l1_offset, s.l1_entries, id_length, name_length, s.date_sec, s.date_nsec, s.vm_clock_nsec,
      s.vm_state_size, extra_length = string.unpack(">i8I4I2I2I4I4i8I4I4", image:pread(at, 40))
    local rest = image:pread(at + 40, extra_length + id_length + name_length)
    s.extra_data = rest:sub(1, extra_length)
    s.id = rest:sub(extra_length + 1, extra_length + id_length)
    s.name = rest:sub(extra_length + id_length + 1)
    s.size = image.header.size
    if extra_length >= 8 then s.vm_state_size = string.unpack(">i8", s.extra_data) end
    if extra_length >= 16 then s.size = string.unpack(">i8", s.extra_data, 9) end
    if extra_length >= 24 then
      local icount = string.unpack(">i8", s.extra_data, 17)
      if icount ~= -1 then s.icount = icount end
    end
    s.l1 = read_table(image, s.l1_offset, s.l1_entries)
    list[i] = s
    at = at + ((40 + extra_length + id_length + name_length + 7) & ~7)
  end
  image.snapshots_length = at - image.header.snapshots_offset
  return list
end

local function read_bitmaps(image)
  local list, extension = {}, image.extensions.bitmaps
  if not extension then return list end
  local count, _, size, at = string.unpack(">I4I4i8i8", extension.data)
  list.directory_offset, list.directory_size = at, size
  for i = 1, count do
    local b = {}
    local name_length, extra_length
    b.table_offset, b.table_entries, b.flags, b.type, b.granularity_bits, name_length, extra_length =
      string.unpack(">i8I4I4BBI2I4", image:pread(at, 24))
    local rest = image:pread(at + 24, extra_length + name_length)
    b.extra_data, b.name = rest:sub(1, extra_length), rest:sub(extra_length + 1)
    b.granularity = 1 << b.granularity_bits
    b.in_use, b.auto = b.flags & 1 ~= 0, b.flags & 2 ~= 0
    b.table = read_table(image, b.table_offset, b.table_entries)
    list[i], list[b.name] = b, b
    at = at + ((24 + extra_length + name_length + 7) & ~7)
  end
  return list
end

-- A string with the methods of a file that the decoder needs.
local function text_file(bytes)
  local at = 0
  return {
    seek = function(_, whence, offset)
      at = whence == "end" and #bytes or offset
      return at
    end,
    read = function(_, length)
      return bytes:sub(at + 1, at + length)
    end,
    close = function() end,
  }
end

--- Opens an image. options.data_file: path of the external data file, when it is not the stored name
-- in the image's folder. options.bytes: the image itself, instead of a file. Raises when it is no qcow2.
function decoder.open(path, options)
  options = options or {}
  local file = options.bytes and text_file(options.bytes) or assert(io.open(path, "rb"))
  local image = setmetatable({ path = path, file = file }, Image)
  local h = read_header(image)
  image.header, image.size = h, h.size
  image.length = image.file:seek("end")
  image.cluster_size = 1 << h.cluster_bits
  image.dirty, image.corrupt = h.incompatible_features & 1 ~= 0, h.incompatible_features & 2 ~= 0
  image.external_data = h.incompatible_features & 4 ~= 0
  image.extended_l2 = h.incompatible_features & 16 ~= 0
  image.data_file_raw = image.external_data and h.autoclear_features & 2 ~= 0
  image.subclusters = image.extended_l2 and 32 or 1
  image.subcluster_size = image.cluster_size // image.subclusters
  image.l2_entry_size = image.extended_l2 and 16 or 8
  image.l2_entries = image.cluster_size // image.l2_entry_size
  image.refcount_bits = 1 << h.refcount_order
  image.extensions = read_extensions(image)
  if h.backing_file_offset ~= 0 then
    image.backing_file = image:pread(h.backing_file_offset, h.backing_file_size)
  end
  image.backing_format = (image.extensions.backing_format or {}).data
  image.data_file = (image.extensions.data_file or {}).data
  image.data_path = options.data_file or image.data_file
  if image.data_path and image.data_path:sub(1, 1) ~= "/" and not options.data_file then
    image.data_path = (path:match("^(.*/)") or "") .. image.data_path
  end
  image.l1 = read_table(image, h.l1_table_offset, h.l1_size)
  image.refcount_table =
    read_table(image, h.refcount_table_offset, h.refcount_table_clusters * image.cluster_size // 8)
  image.blocks, image.l2_cache = {}, {}
  image.snapshots = read_snapshots(image)
  image.bitmaps = read_bitmaps(image)
  return image
end

function Image:close()
  if self.file then self.file:close() end
  if self.data then self.data:close() end
  self.file, self.data = nil, nil
end
Image.__close = Image.close

--- The stored reference count of a host cluster. Counts of 2^63 and more come out negative.
function Image:refcount(cluster)
  local bits = self.refcount_bits
  local per_block = self.cluster_size * 8 // bits
  local offset = (self.refcount_table[cluster // per_block] or 0) & ~511
  if offset == 0 then return 0 end
  local block = self.blocks[offset]
  if not block then
    block = self:pread(offset, self.cluster_size)
    self.blocks[offset] = block
  end
  local index = cluster % per_block
  if bits >= 8 then
    local bytes = bits // 8
    return (string.unpack((bytes == 8 and ">i8" or ">I%d"):format(bytes), block, index * bytes + 1))
  end
  local byte = block:byte(index * bits // 8 + 1)
  return (byte >> (index * bits % 8)) & ((1 << bits) - 1) -- first count in the lowest bits
end

--- The raw words of one L2 table: index from 0 -> word, and a second table of the bitmaps.
function Image:l2(offset)
  local l2 = self.l2_cache[offset]
  if l2 then return l2 end
  l2 = { offset = offset, bitmaps = {} }
  local bytes = self:pread(offset, self.cluster_size)
  for i = 0, self.l2_entries - 1 do
    l2[i] = string.unpack(">i8", bytes, i * self.l2_entry_size + 1)
    if self.extended_l2 then l2.bitmaps[i] = string.unpack(">i8", bytes, i * 16 + 9) end
  end
  self.l2_cache[offset] = l2
  return l2
end

--- Takes a compressed descriptor apart: host offset of the first byte, bytes to the end of its sectors.
function Image:compressed(word)
  local offset_bits = 62 - (self.header.cluster_bits - 8)
  local offset = word & ((1 << offset_bits) - 1)
  local more_sectors = (word & (COMPRESSED - 1)) >> offset_bits
  return offset, (offset & ~511) + (more_sectors + 1) * 512 - offset
end

--- Bytes of a compressed cluster, to the end of its last sector or of the file.
function Image:stream(word)
  local offset, length = self:compressed(word)
  return self:pread(offset, math.max(0, math.min(length, self.length - offset)))
end

local function add(list, offset, length, kind, host, host_length)
  local last = list[#list]
  if last and last.kind == kind and kind ~= "compressed" and last.offset + last.length == offset
    and (host and last.host_offset and last.host_offset + last.length == host or not host and not last.host_offset)
  then
    last.length = last.length + length
  else
    list[#list + 1] = { offset = offset, length = length, kind = kind, host_offset = host,
      host_length = host_length }
  end
end

local function add_cluster(self, list, guest, word, bitmap)
  local length = math.min(self.cluster_size, self.map_size - guest)
  if word & COMPRESSED ~= 0 then
    local offset, bytes = self:compressed(word)
    return add(list, guest, length, "compressed", offset, bytes)
  end
  local host = word & OFFSET_MASK
  -- With a data file, offset 0 is a real place when COPIED is set.
  if host == 0 and not (self.external_data and word & COPIED ~= 0) then host = nil end
  if not self.extended_l2 then
    if word & 1 ~= 0 and self.header.version >= 3 then return add(list, guest, length, "zero", host) end
    return add(list, guest, length, host and "data" or "unallocated", host)
  end
  for i = 0, 31 do
    local at = i * self.subcluster_size
    if at >= length then break end
    local part = math.min(self.subcluster_size, length - at)
    local here = host and host + at
    if bitmap & (1 << (32 + i)) ~= 0 then
      add(list, guest + at, part, "zero", here)
    elseif host and bitmap & (1 << i) ~= 0 then
      add(list, guest + at, part, "data", here)
    else
      add(list, guest + at, part, "unallocated", here)
    end
  end
end

--- The disk of this image alone as maximal runs. `snapshot`: an item of image.snapshots instead of
-- the active disk. `kept`: tell the host offset of unallocated subclusters in allocated clusters too.
function Image:map(snapshot, kept)
  local list, l1 = {}, snapshot and snapshot.l1 or self.l1
  self.map_size = snapshot and snapshot.size or self.size
  local guest, l2_span = 0, self.l2_entries * self.cluster_size
  while guest < self.map_size do
    local offset = (l1[guest // l2_span] or 0) & OFFSET_MASK
    if offset == 0 then
      add(list, guest, math.min(l2_span, self.map_size - guest), "unallocated")
    else
      local l2 = self:l2(offset)
      for i = 0, self.l2_entries - 1 do
        local at = guest + i * self.cluster_size
        if at >= self.map_size then break end
        add_cluster(self, list, at, l2[i], l2.bitmaps[i])
      end
    end
    guest = guest + l2_span
  end
  if kept then return list end
  local merged = {}
  for _, e in ipairs(list) do
    add(merged, e.offset, e.length, e.kind, e.kind ~= "unallocated" and e.host_offset or nil, e.host_length)
  end
  return merged
end

--- Guest bytes of this image alone, of runs that need no codec: data and zeros; unallocated reads as
-- zeros. Raises on a compressed run.
function Image:read(offset, length, snapshot)
  local out = {}
  for _, e in ipairs(self:map(snapshot)) do
    local from, to = math.max(e.offset, offset), math.min(e.offset + e.length, offset + length)
    if from < to then
      if e.kind == "data" then
        local file = self.file
        if self.external_data then
          self.data = self.data or assert(io.open(self.data_path, "rb"))
          file = self.data
        end
        out[#out + 1] = pread(file, e.host_offset + from - e.offset, to - from)
      else
        assert(e.kind ~= "compressed", "the decoder has no codec")
        out[#out + 1] = ("\0"):rep(to - from)
      end
    end
  end
  return table.concat(out)
end

local function count_l1(self, count, l1, entries, what)
  for i = 0, entries - 1 do
    local l2_offset = l1[i] & OFFSET_MASK
    if l2_offset ~= 0 then
      count(l2_offset, self.cluster_size, what .. " L2 table")
      local l2 = self:l2(l2_offset)
      for j = 0, self.l2_entries - 1 do
        local word = l2[j]
        if word & COMPRESSED ~= 0 then
          local offset, length = self:compressed(word)
          count(offset, length, what .. " compressed cluster")
        elseif word & OFFSET_MASK ~= 0 and not self.external_data then
          count(word & OFFSET_MASK, self.cluster_size, what .. " data cluster")
        end
      end
    end
  end
end

--- Every reference the tables make to clusters of the image file: cluster -> count, and cluster ->
-- list of who refers to it.
function Image:references()
  local counts, who = {}, {}
  local h, size = self.header, self.cluster_size
  local function count(offset, length, what)
    if length <= 0 then return end
    for cluster = offset // size, (offset + length - 1) // size do
      counts[cluster] = (counts[cluster] or 0) + 1
      who[cluster] = who[cluster] or {}
      table.insert(who[cluster], what)
    end
  end
  count(0, size, "header")
  count(h.refcount_table_offset, h.refcount_table_clusters * size, "refcount table")
  for _, entry in pairs(self.refcount_table) do
    if entry & ~511 ~= 0 then count(entry & ~511, size, "refcount block") end
  end
  count(h.l1_table_offset, h.l1_size * 8, "L1 table")
  count_l1(self, count, self.l1, h.l1_size, "active")
  if h.nb_snapshots > 0 then count(h.snapshots_offset, self.snapshots_length, "snapshot table") end
  for _, s in ipairs(self.snapshots) do
    local what = ("snapshot %q"):format(s.name)
    count(s.l1_offset, s.l1_entries * 8, what .. " L1 table")
    count_l1(self, count, s.l1, s.l1_entries, what)
  end
  if self.bitmaps.directory_offset then
    count(self.bitmaps.directory_offset, self.bitmaps.directory_size, "bitmap directory")
  end
  for _, b in ipairs(self.bitmaps) do
    count(b.table_offset, b.table_entries * 8, ("bitmap %q table"):format(b.name))
    for i = 0, b.table_entries - 1 do
      if b.table[i] & OFFSET_MASK ~= 0 then
        count(b.table[i] & OFFSET_MASK, size, ("bitmap %q data"):format(b.name))
      end
    end
  end
  if self.extensions.encryption then
    local offset, length = string.unpack(">i8i8", self.extensions.encryption.data)
    count(offset, length, "encryption header")
  end
  return counts, who
end

--- Clusters in which the stored and the real counts can differ: up to the end of the file and of the
-- highest reference.
function Image:host_clusters(counts)
  local last = (self.length + self.cluster_size - 1) // self.cluster_size - 1
  for cluster in pairs(counts) do last = math.max(last, cluster) end
  return last + 1
end

--- What a checker would complain about, as sentences: counts that are wrong, COPIED that lies.
function Image:problems()
  local out = {}
  local counts, who = self:references()
  for cluster = 0, self:host_clusters(counts) - 1 do
    local stored, real = self:refcount(cluster), counts[cluster] or 0
    if stored ~= real then
      out[#out + 1] = ("cluster %d has count %d, %d references (%s)"):format(cluster, stored, real,
        table.concat(who[cluster] or {}, ", "))
    end
  end
  local function copied(word, offset, what)
    local one = self:refcount(offset // self.cluster_size) == 1
    if (word & COPIED ~= 0) ~= one then out[#out + 1] = what .. " has COPIED wrong" end
  end
  for i = 0, self.header.l1_size - 1 do
    local offset = self.l1[i] & OFFSET_MASK
    if offset ~= 0 then
      copied(self.l1[i], offset, ("L1 entry %d"):format(i))
      local l2 = self:l2(offset)
      for j = 0, self.l2_entries - 1 do
        local host = l2[j] & OFFSET_MASK
        local what = ("L2 entry %d of table %d"):format(j, i)
        if l2[j] & COMPRESSED ~= 0 then
          if l2[j] & COPIED ~= 0 then out[#out + 1] = what .. " is compressed and COPIED" end
        elseif self.external_data then
          if host ~= 0 and l2[j] & COPIED == 0 then out[#out + 1] = what .. " lacks COPIED" end
          local guest = (i * self.l2_entries + j) * self.cluster_size
          if (host ~= 0 or l2[j] & COPIED ~= 0) and host ~= guest then
            out[#out + 1] = what .. " is not at its guest offset"
          end
        elseif host ~= 0 then
          copied(l2[j], host, what)
        end
      end
    end
  end
  return out
end

--- Dirty guest ranges of a bitmap (an item of image.bitmaps): list of { offset, length }.
function Image:bitmap_ranges(bitmap)
  local list = {}
  local bits_per_cluster = self.cluster_size * 8
  local total = (self.size + bitmap.granularity - 1) // bitmap.granularity
  for i = 0, bitmap.table_entries - 1 do
    local entry = bitmap.table[i]
    local offset = entry & OFFSET_MASK
    local bytes = offset ~= 0 and self:pread(offset, self.cluster_size)
    if bytes or entry & 1 ~= 0 then
      for j = 0, math.min(bits_per_cluster, total - i * bits_per_cluster) - 1 do
        if not bytes or bytes:byte(j // 8 + 1) >> (j % 8) & 1 ~= 0 then
          local at = (i * bits_per_cluster + j) * bitmap.granularity
          local length = math.min(bitmap.granularity, self.size - at)
          local last = list[#list]
          if last and last.offset + last.length == at then
            last.length = last.length + length
          else
            list[#list + 1] = { offset = at, length = length }
          end
        end
      end
    end
  end
  return list
end

return decoder
