-- SPDX-License-Identifier: MIT
-- An image's structures as they lie in its file, for `dump`: header, extensions, tables, field by field.
--
-- A *structure* is a header or a table: `name`, `offset`, `length`, rows, and `problem` when it is damaged. A *row*
-- is one field or a run of alike entries: `offset`, `length`, `name`, `meaning`, and `value` where that is a number
-- or a text. Rows are made when they are asked for: a table has millions of entries, and a hostile one no two alike.
local core = require("qcow2.core")
local decode = require("qcow2.image").raw.l2_decode
local text = require("qcow2.cli.text")
local try = require("qcow2.cli.context").try

local structures = {}

-- The offset in an entry of the L1 table or of a bitmap's table (specification, "L1 table entry").
local OFFSET = 0x00fffffffffffe00
local COMPRESSED = 1 << 62

local function hex(value)
  return ("0x%x"):format(value)
end

-- Table entries use all 64 bits: as a number many would be negative.
local function raw_word(word)
  return ("0x%016x"):format(word)
end

local function named_bits(image, type)
  local names = {}
  for _, feature in ipairs(image.features) do
    if feature.type == type then
      names[#names + 1] = ("bit %d %s"):format(feature.bit, feature.name)
    end
  end
  return #names > 0 and table.concat(names, ", ") or "none"
end

local MEANINGS = {
  magic = function()
    return "a qcow2 image"
  end,
  version = function(image)
    return image.version == 2 and "compat 0.10" or "compat 1.1"
  end,
  backing_file_offset = function(image, value)
    return value == 0 and "no backing file" or ("the name %q is at %s"):format(image.backing_file or "", hex(value))
  end,
  backing_file_size = function(_, value)
    return ("%d bytes of name"):format(value)
  end,
  cluster_bits = function(image)
    return ("clusters of %s"):format(text.size(image.cluster_size))
  end,
  size = function(_, value)
    return "a disk of " .. text.size(value)
  end,
  crypt_method = function(_, value)
    return ({ [0] = "not encrypted", "AES-CBC", "LUKS" })[value] or "unknown"
  end,
  l1_size = function(_, value)
    return ("%d entries in the L1 table"):format(value)
  end,
  refcount_order = function(_, value)
    return ("refcounts of %d bits"):format(1 << value)
  end,
  incompatible_features = function(image)
    return named_bits(image, "incompatible")
  end,
  compatible_features = function(image)
    return named_bits(image, "compatible")
  end,
  autoclear_features = function(image)
    return named_bits(image, "autoclear")
  end,
  header_length = function(_, value)
    return ("%d bytes of header"):format(value)
  end,
  compression_type = function(image)
    return image.compression_type
  end,
}

local function header_structure(image)
  local header = image.header
  local length = image.version == 2 and 72 or header.header_length
  local rows = {}
  for _, field in ipairs(core.header_fields) do
    local name, offset, width = field.name, field.offset, field.bits // 8
    local value = header[name]
    if offset + width <= length then
      local meaning = MEANINGS[name] and MEANINGS[name](image, value) or hex(value)
      if name:find("_features$") then
        value = raw_word(value)
      end
      rows[#rows + 1] = { offset = offset, length = width, name = name, meaning = meaning, value = value }
    end
  end
  return { name = "header", offset = 0, length = length, rows = rows }
end

local function extension_meaning(extension)
  if extension.name == "backing_format" or extension.name == "data_file" then
    return ("%q"):format(text.escape(extension.data))
  elseif extension.name == "feature_name_table" then
    return ("%d names"):format(extension.length // 48)
  elseif extension.name == "bitmaps" and extension.length >= 24 then
    local count, _, size, offset = (">I4I4I8I8"):unpack(extension.data)
    return ("%d bitmaps, directory at %s, %d bytes"):format(count, hex(offset), size)
  elseif extension.name == "encryption" and extension.length >= 16 then
    local offset, size = (">I8I8"):unpack(extension.data)
    return ("encryption header at %s, %d bytes"):format(hex(offset), size)
  end
  return ("type 0x%08x, %d bytes"):format(extension.type, extension.length)
end

local function extensions_structure(image)
  local rows = {}
  for _, extension in ipairs(image.extensions) do
    rows[#rows + 1] = {
      offset = extension.offset - 8,
      length = 8 + extension.length,
      name = extension.name,
      meaning = extension_meaning(extension),
    }
    if extension.name == "feature_name_table" then
      for index, feature in ipairs(image.feature_names) do
        rows[#rows + 1] = {
          offset = extension.offset + (index - 1) * 48,
          length = 48,
          name = ("%s bit %d"):format(feature.type, feature.bit),
          meaning = text.escape(feature.name),
        }
      end
    end
  end
  if #rows > 0 then
    local first, last = rows[1], image.extensions[#image.extensions]
    return { name = "header extensions", offset = first.offset, length = last.offset + last.length - first.offset,
      rows = rows }
  end
end

local function backing_structure(image)
  local header = image.header
  if not image.backing_file then
    return
  end
  local offset, length = header.backing_file_offset, #image.backing_file
  return { name = "backing file name", offset = offset, length = length, rows = {
    { offset = offset, length = length, name = "name", meaning = ("%q"):format(text.escape(image.backing_file)),
      value = image.backing_file },
  } }
end

-- Tables of a sound image lie on one another only where snapshots share them. A hostile one names the same place
-- without end, so what is read is bounded by what the file really holds, with room for one L1 table that is a hole.
local LARGEST_L1 = 32 << 20

local function reader_of(image, file)
  return { file = file, length = image.file_length, left = 2 * image.disk_size + LARGEST_L1, spent = false }
end

-- The bytes of a table; the reading stops where the file does, and for good when it has read too much. A table
-- that lies elsewhere counts like one that is there: of those, too, a hostile image names millions.
local function read_at(reader, offset, length)
  reader.left = reader.left - math.min(length, reader.length)
  reader.spent = reader.spent or reader.left < 0
  if reader.spent or offset < 0 or offset >= reader.length or not reader.file:seek("set", offset) then
    return ""
  end
  return reader.file:read(math.min(length, reader.length - offset)) or ""
end

-- What is wrong with a table of `length` bytes of which `bytes` could be read; nil: nothing.
local function problem_of(reader, offset, length, bytes, unit)
  if reader.spent then
    return "the tables lie on one another too often; what is left is not shown"
  elseif offset % unit ~= 0 then
    return "the table does not begin at a cluster"
  end
  return #bytes < length and "the table does not lie wholly in the file" or nil
end

-- Rows of a table of `count` entries, to be read from the first to the last. `at(index)` gives an entry's word (and
-- a second one, its bitmap); `next_word(word)` the word that would continue a run, nil when none can; `row(first,
-- last, word, bitmap)` makes a row. A run of words that are 0 is left out where `sparse`.
local function runs(count, at, next_word, row, sparse)
  -- The run that begins at `first`, or behind what is left out there; nil: there is none.
  local function run(first)
    while first < count do
      local word, bitmap = at(first)
      local last, expected = first, next_word(word)
      while expected and last + 1 < count do
        local following, following_bitmap = at(last + 1)
        if following ~= expected or following_bitmap ~= bitmap then
          break
        end
        last, expected = last + 1, next_word(following)
      end
      if not sparse or word ~= 0 or (bitmap or 0) ~= 0 then
        return first, last, word, bitmap
      end
      first = last + 1
    end
  end
  local length, first, last = 0, run(0)
  while first do
    length = length + 1
    first, last = run(last + 1)
  end
  local given, following = 0, 0
  return setmetatable({}, {
    __len = function()
      return length
    end,
    __index = function(_, index)
      if index > length then
        return nil
      end
      assert(index == given + 1, "rows are read in their order")
      local from, to, word, bitmap = run(following)
      given, following = index, to + 1
      return row(from, to, word, bitmap)
    end,
  })
end

local function span(first, last)
  return first == last and ("%d"):format(first) or ("%d-%d"):format(first, last)
end

local function same(word)
  return word
end

-- Refcounts narrower than a byte lie in it from its low bits on.
local function refcount_at(bytes, bits)
  if bits >= 8 then
    local format, width = (">I%d"):format(bits // 8), bits // 8
    return function(index)
      return (format:unpack(bytes, 1 + index * width))
    end
  end
  local per_byte, mask = 8 // bits, (1 << bits) - 1
  return function(index)
    return bytes:byte(1 + index // per_byte) >> (index % per_byte * bits) & mask
  end
end

local function refcount_block(image, reader, index, offset)
  local bits = image.refcount_bits
  local per_block = image.cluster_size * 8 // bits
  local clusters = (image.file_length + image.cluster_size - 1) // image.cluster_size
  local bytes = read_at(reader, offset % image.cluster_size == 0 and offset or -1, image.cluster_size)
  local first = index * per_block
  local count = math.min(per_block, math.max(clusters - first, 0), #bytes * 8 // bits)
  return {
    name = ("refcount block %d"):format(index),
    offset = offset,
    length = image.cluster_size,
    rows = runs(count, refcount_at(bytes, bits), same, function(from, to, value)
      return {
        offset = offset + from * bits // 8,
        length = math.max((to - from + 1) * bits // 8, 1),
        name = ("clusters %s"):format(span(first + from, first + to)),
        meaning = ("refcount %d"):format(value),
        value = value,
      }
    end),
    problem = problem_of(reader, offset, image.cluster_size, bytes, image.cluster_size),
  }
end

-- No two entries of a table of tables are one row.
local function alone()
  return nil
end

local function refcount_structures(image, reader, put)
  local start, entries = image.header.refcount_table_offset, image.refcount_table
  put({ name = "refcount table", offset = start, length = 8 * #entries, rows = runs(#entries, function(index)
    return entries[index].raw
  end, alone, function(index, _, word)
    return {
      offset = start + 8 * index,
      length = 8,
      name = ("entry %d"):format(index),
      meaning = "refcount block at " .. hex(entries[index].offset),
      value = raw_word(word),
    }
  end, true) })
  local seen = {}
  for index = 0, #entries - 1 do
    local entry = entries[index]
    if entry.raw ~= 0 and not seen[entry.offset] then
      seen[entry.offset] = true
      put(refcount_block(image, reader, index, entry.offset))
      if reader.spent then
        break
      end
    end
  end
end

local function entry_meaning(image, guest, count, word, bitmap)
  local entry = decode(image, word, bitmap or 0)
  local what = entry.kind
  if what == "data" or (what == "zero" and entry.host_offset) then
    local where = image.external_data and "data file" or "host"
    what = ("%s at %s %s"):format(what == "data" and "data" or "zeros, space kept", where, hex(entry.host_offset))
  elseif what == "compressed" then
    what = ("compressed, %d bytes of sectors at host %s"):format(entry.host_length, hex(entry.host_offset))
  elseif what == "mixed" then
    what = ("subclusters 0x%016x%s"):format(bitmap,
      entry.host_offset and (" at host %s"):format(hex(entry.host_offset)) or "")
  elseif what == "zero" then
    what = "zeros"
  end
  return ("guest %s, %s: %s%s%s"):format(hex(guest), text.size(count * image.cluster_size), what,
    entry.copied and ", copied" or "",
    (entry.reserved or 0) ~= 0 and (", reserved bits 0x%x"):format(entry.reserved) or "")
end

local function l2_structure(image, reader, owner, l1_index, offset)
  local cluster_size, width = image.cluster_size, image.extended_l2 and 16 or 8
  local format = width == 16 and ">i8i8" or ">i8"
  local bytes = read_at(reader, offset % cluster_size == 0 and offset or -1, cluster_size)
  local per_table = cluster_size // width
  local rows = runs(#bytes // width, function(index)
    local word, bitmap = format:unpack(bytes, 1 + index * width)
    return word, width == 16 and bitmap or nil
  end, function(word)
    if word & COMPRESSED ~= 0 then
      return nil
    end
    return (word & OFFSET ~= 0 or word < 0) and word + cluster_size or word
  end, function(from, to, word, bitmap)
    return {
      offset = offset + from * width,
      length = (to - from + 1) * width,
      name = ("entry %s"):format(span(from, to)),
      meaning = entry_meaning(image, (l1_index * per_table + from) * cluster_size, to - from + 1, word, bitmap),
      value = raw_word(word),
    }
  end, true)
  return {
    name = ("%sL2 table %d"):format(owner, l1_index),
    offset = offset,
    length = cluster_size,
    rows = rows,
    problem = problem_of(reader, offset, cluster_size, bytes, cluster_size),
  }
end

-- Tables are read from the file itself, entry by entry: the library refuses one as a whole when it is damaged.
-- One that an L1 table names again is shown where it was named first.
local function l1_structures(image, reader, owner, offset, count, put)
  local bytes = read_at(reader, offset, math.min(8 * count, LARGEST_L1))
  local entries = #bytes // 8
  local function at(index)
    return ((">i8"):unpack(bytes, 1 + 8 * index)) -- and no second value
  end
  put({ name = owner .. "L1 table", offset = offset, length = 8 * count,
    rows = runs(entries, at, alone, function(index, _, word)
      local place = word & OFFSET
      return {
        offset = offset + 8 * index,
        length = 8,
        name = ("entry %d"):format(index),
        meaning = (place ~= 0 and "L2 table at " .. hex(place) or "no L2 table") .. (word < 0 and ", copied" or ""),
        value = raw_word(word),
      }
    end, true),
    problem = 8 * count > LARGEST_L1 and "the table is larger than the format allows"
      or problem_of(reader, offset, 8 * count, bytes, image.cluster_size) })
  local seen = {}
  for index = 0, entries - 1 do
    local place = at(index) & OFFSET
    if place ~= 0 and not seen[place] then
      seen[place] = true
      put(l2_structure(image, reader, owner, index, place))
      if reader.spent then
        break
      end
    end
  end
end

local function round_up(value, unit)
  return (value + unit - 1) // unit * unit
end

local function snapshot_structures(image, reader, put)
  local snapshots = image.snapshots
  if #snapshots == 0 then
    return
  end
  local rows, offset = {}, image.header.snapshots_offset
  for _, snapshot in ipairs(snapshots) do
    local length = 40 + #snapshot.extra_data + #snapshot.id + #snapshot.name
    rows[#rows + 1] = {
      offset = offset,
      length = length,
      name = "snapshot " .. text.escape(snapshot.id),
      meaning = ("%q, disk %s, VM state %s, L1 table at %s with %d entries"):format(text.escape(snapshot.name),
        text.size(snapshot.size), text.size(snapshot.vm_state_size), hex(snapshot.l1_offset), snapshot.l1_entries),
      value = snapshot.name,
    }
    offset = offset + round_up(length, 8)
  end
  local start = image.header.snapshots_offset
  put({ name = "snapshot table", offset = start, length = offset - start, rows = rows })
  for _, snapshot in ipairs(snapshots) do
    local owner = ("snapshot %s "):format(text.escape(snapshot.id))
    l1_structures(image, reader, owner, snapshot.l1_offset, snapshot.l1_entries, put)
    if reader.spent then
      break
    end
  end
end

local function bitmap_table(image, reader, bitmap)
  local bytes = read_at(reader, bitmap.table_offset, 8 * bitmap.table_entries)
  local rows = runs(#bytes // 8, function(index)
    return (">i8"):unpack(bytes, 1 + 8 * index), nil
  end, function(word)
    return word & OFFSET ~= 0 and word + image.cluster_size or word
  end, function(from, to, word)
    local offset = word & OFFSET
    local meaning = offset ~= 0 and "bits at " .. hex(offset) or word & 1 == 1 and "all ones" or "all zeros"
    return { offset = bitmap.table_offset + 8 * from, length = 8 * (to - from + 1),
      name = ("entry %s"):format(span(from, to)), meaning = meaning, value = raw_word(word) }
  end)
  return { name = ("bitmap %q table"):format(text.escape(bitmap.name)), offset = bitmap.table_offset,
    length = 8 * bitmap.table_entries, rows = rows,
    problem = problem_of(reader, bitmap.table_offset, 8 * bitmap.table_entries, bytes, image.cluster_size) }
end

local function bitmap_structures(image, reader, put)
  local directory
  for _, extension in ipairs(image.extensions) do
    if extension.name == "bitmaps" and extension.length >= 24 then
      directory = (">I8"):unpack(extension.data, 17)
    end
  end
  local bitmaps = image.bitmaps
  if not directory or #bitmaps == 0 then
    return
  end
  local rows, offset = {}, directory
  for _, bitmap in ipairs(bitmaps) do
    local length = 24 + #bitmap.extra_data + #bitmap.name
    rows[#rows + 1] = {
      offset = offset,
      length = length,
      name = "bitmap",
      meaning = ("%q, granularity %s%s%s, table at %s with %d entries"):format(text.escape(bitmap.name),
        text.size(bitmap.granularity), bitmap.auto and ", auto" or "", bitmap.in_use and ", in use" or "",
        hex(bitmap.table_offset), bitmap.table_entries),
      value = bitmap.name,
    }
    offset = offset + round_up(length, 8)
  end
  put({ name = "bitmap directory", offset = directory, length = offset - directory, rows = rows })
  for _, bitmap in ipairs(bitmaps) do
    put(bitmap_table(image, reader, bitmap))
    if reader.spent then
      break
    end
  end
end

---Hands every structure of an image to `put`, in the order of reading. `file` is the image's file, open.
---@param image qcow2.image
---@param file file*
---@param put fun(structure:table)
function structures.each(image, file, put)
  -- A damaged table raises when it is read; what can be shown of the others is shown.
  local function part(name, make, ...)
    local fine, problem = try(make, ...)
    if not fine then
      put({ name = name, offset = 0, length = 0, rows = {}, problem = tostring(problem) })
    end
  end
  local reader = reader_of(image, file)
  put(header_structure(image))
  for _, structure in ipairs({ extensions_structure(image) or false, backing_structure(image) or false }) do
    if structure then
      put(structure)
    end
  end
  part("refcount table", refcount_structures, image, reader, put)
  part("L1 table", l1_structures, image, reader, "", image.header.l1_table_offset, image.header.l1_size, put)
  part("snapshot table", snapshot_structures, image, reader, put)
  part("bitmap directory", bitmap_structures, image, reader, put)
end

return structures
