-- SPDX-License-Identifier: MIT
-- `dump`: every structure of an image with its place in the file, its bytes and what they mean.
--
-- A *structure* is a header or a table: `name`, `offset`, `length`, and rows. A *row* is one field or a run of alike
-- entries: `offset`, `length`, `name`, `meaning`, and `value` where that is a number or a text.
local core = require("qcow2.core")
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local options = require("qcow2.cli.options")
local text = require("qcow2.cli.text")

-- Bytes of a row that people see, and programs.
local SHOWN, GIVEN = 8, 512

-- The offset in an entry of the L1 table or of a bitmap's table (specification, "L1 table entry").
local OFFSET = 0x00fffffffffffe00

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

-- Joins neighbours that `alike` accepts; `close` makes a row of each run.
local function runs(first, last, at, alike, close)
  local rows, begin, head, previous = {}, nil, nil, nil
  for index = first, last do
    local item = at(index)
    if begin and not (item and alike(head, previous, item)) then
      rows[#rows + 1] = close(begin, index - 1, head)
      begin = nil
    end
    if item and not begin then
      begin, head = index, item
    end
    previous = item
  end
  if begin then
    rows[#rows + 1] = close(begin, last, head)
  end
  return rows
end

local function span(first, last)
  return first == last and ("%d"):format(first) or ("%d-%d"):format(first, last)
end

local function refcount_structures(image, put)
  local header, entries = image.header, image.refcount_table
  local rows, blocks = {}, {}
  for index = 0, #entries - 1 do
    local entry = entries[index]
    if entry.raw ~= 0 then
      rows[#rows + 1] = {
        offset = header.refcount_table_offset + 8 * index,
        length = 8,
        name = ("entry %d"):format(index),
        meaning = "refcount block at " .. hex(entry.offset),
        value = raw_word(entry.raw),
      }
      blocks[#blocks + 1] = { index = index, offset = entry.offset }
    end
  end
  put({ name = "refcount table", offset = header.refcount_table_offset, length = 8 * #entries, rows = rows })
  local bits = image.refcount_bits
  local per_block = image.cluster_size * 8 // bits
  local clusters = (image.file_length + image.cluster_size - 1) // image.cluster_size
  for _, block in ipairs(blocks) do
    local first = block.index * per_block
    local last = math.min(first + per_block, math.max(clusters, first + 1)) - 1
    local problem
    local found = runs(first, last, function(cluster)
      local count, message = image:refcount(cluster)
      if not count then
        problem = problem or message
        return
      end
      return count
    end, function(head, _, count)
      return head == count
    end, function(from, to, count)
      return {
        offset = block.offset + (from - first) * bits // 8,
        length = math.max((to - from + 1) * bits // 8, 1),
        name = ("clusters %s"):format(span(from, to)),
        meaning = ("refcount %d"):format(count),
        value = count,
      }
    end)
    put({ name = ("refcount block %d"):format(block.index), offset = block.offset, length = image.cluster_size,
      rows = found, problem = problem })
  end
end

-- The bytes of a stretch; a run of entries that hold offsets one cluster apart is one row.
local function entry_meaning(image, head, count)
  local what = head.kind
  if head.kind == "data" or (head.kind == "zero" and head.host_offset) then
    local where = image.external_data and "data file" or "host"
    what = ("%s at %s %s"):format(head.kind == "data" and "data" or "zeros, space kept", where, hex(head.host_offset))
  elseif head.kind == "compressed" then
    what = ("compressed, %d bytes of sectors at host %s"):format(head.host_length, hex(head.host_offset))
  elseif head.kind == "mixed" then
    what = ("subclusters %s%s"):format(hex(head.bitmap),
      head.host_offset and (" at host %s"):format(hex(head.host_offset)) or "")
  elseif head.kind == "zero" then
    what = "zeros"
  end
  if head.copied then
    what = what .. ", copied"
  end
  return ("guest %s, %s: %s"):format(hex(head.guest_offset), text.size(count * image.cluster_size), what)
end

local function follows(image, previous, entry)
  return previous.kind == entry.kind and previous.copied == entry.copied and previous.bitmap == entry.bitmap
    and entry.kind ~= "compressed"
    and (previous.host_offset and previous.host_offset + image.cluster_size) == entry.host_offset
end

local function l2_structure(image, owner, l1_index, offset, table_of_entries)
  local width = image.extended_l2 and 16 or 8
  local rows = runs(0, #table_of_entries - 1, function(index)
    local entry = table_of_entries[index]
    return (entry.raw ~= 0 or (entry.bitmap or 0) ~= 0) and entry or nil
  end, function(_, previous, entry)
    return follows(image, previous, entry)
  end, function(from, to, head)
    return {
      offset = offset + from * width,
      length = (to - from + 1) * width,
      name = ("entry %s"):format(span(from, to)),
      meaning = entry_meaning(image, head, to - from + 1),
      value = raw_word(head.raw),
    }
  end)
  return { name = ("%sL2 table %d"):format(owner, l1_index), offset = offset, length = width * #table_of_entries,
    rows = rows }
end

-- The L1 table is read from the file itself: the library refuses a table as a whole when one entry is damaged.
local function l1_structures(image, file, owner, offset, count, put)
  local rows, tables = {}, {}
  file:seek("set", offset)
  for index = 0, count - 1 do
    local bytes = file:read(8)
    if not bytes or #bytes < 8 then
      break
    end
    local word = (">I8"):unpack(bytes)
    if word ~= 0 then
      local place = word & OFFSET
      rows[#rows + 1] = {
        offset = offset + 8 * index,
        length = 8,
        name = ("entry %d"):format(index),
        meaning = (place ~= 0 and "L2 table at " .. hex(place) or "no L2 table") .. (word < 0 and ", copied" or ""),
        value = raw_word(word),
      }
      if place ~= 0 then
        tables[#tables + 1] = { index = index, offset = place }
      end
    end
  end
  put({ name = owner .. "L1 table", offset = offset, length = 8 * count, rows = rows })
  for _, l2 in ipairs(tables) do
    local fine, structure = pcall(function()
      return l2_structure(image, owner, l2.index, l2.offset, image.l1[l2.index].l2)
    end)
    put(fine and structure or { name = ("%sL2 table %d"):format(owner, l2.index), offset = l2.offset, length = 0,
      rows = {}, problem = tostring(structure) })
  end
end

local function round_up(value, unit)
  return (value + unit - 1) // unit * unit
end

local function snapshot_structures(image, file, put)
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
    local disk <close>, message = image:snapshot(snapshot.id)
    if disk then
      l1_structures(disk, file, owner, snapshot.l1_offset, snapshot.l1_entries, put)
    else
      put({ name = owner .. "L1 table", offset = snapshot.l1_offset, length = 8 * snapshot.l1_entries, rows = {},
        problem = message })
    end
  end
end

local function bitmap_table(image, file, bitmap)
  local rows = runs(0, bitmap.table_entries - 1, function(index)
    file:seek("set", bitmap.table_offset + 8 * index)
    local bytes = file:read(8)
    return bytes and #bytes == 8 and (">I8"):unpack(bytes) or nil
  end, function(_, previous, raw)
    local offset = previous & OFFSET
    return offset == 0 and raw == previous or (offset ~= 0 and raw == previous + image.cluster_size)
  end, function(from, to, raw)
    local offset = raw & OFFSET
    local meaning = offset ~= 0 and "bits at " .. hex(offset) or raw & 1 == 1 and "all ones" or "all zeros"
    return { offset = bitmap.table_offset + 8 * from, length = 8 * (to - from + 1),
      name = ("entry %s"):format(span(from, to)), meaning = meaning, value = raw_word(raw) }
  end)
  return { name = ("bitmap %q table"):format(text.escape(bitmap.name)), offset = bitmap.table_offset,
    length = 8 * bitmap.table_entries, rows = rows }
end

local function bitmap_structures(image, file, put)
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
    put(bitmap_table(image, file, bitmap))
  end
end

local function bytes_of(file, row, most)
  local count = math.min(row.length, most)
  if not file:seek("set", row.offset) then
    return ""
  end
  local bytes = file:read(count) or ""
  return (bytes:gsub(".", function(char)
    return ("%02x "):format(char:byte())
  end):gsub(" $", "")) .. (row.length > most and " .." or "")
end

local function print_human(context, file, structure)
  context:write(("%s at %s, %d bytes\n"):format(structure.name, hex(structure.offset), structure.length))
  for _, row in ipairs(structure.rows) do
    context:write(("  0x%010x  %-26s  %-23s  %s\n"):format(row.offset, bytes_of(file, row, SHOWN), row.name,
      row.meaning))
  end
  if structure.problem then
    context:write("  ! ", text.escape(structure.problem), "\n")
  end
end

local function json_of(file, structure)
  local rows = {}
  for index, row in ipairs(structure.rows) do
    rows[index] = json.object("offset length bytes name value meaning", {
      offset = row.offset,
      length = row.length,
      bytes = bytes_of(file, row, GIVEN),
      name = row.name,
      value = row.value,
      meaning = row.meaning,
    })
  end
  return json.object("structure offset length rows problem", { structure = structure.name, offset = structure.offset,
    length = structure.length, rows = rows, problem = structure.problem })
end

local dump = {
  name = "dump",
  summary = "Print every structure of an image: place, bytes, meaning",
  details = {
    "Header, header extensions, refcount table and blocks, L1 and L2 tables, snapshots and bitmaps. Neighbouring "
      .. "entries of a table that differ only by one cluster are one line.",
  },
  options = {
    options.format,
    options.image_opts,
    options.force_share,
    { long = "json", help = "the same as --output=json" },
    options.output,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

function dump.run(context, values)
  if #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  local image <close>, message = images.open(context, values.operands[1],
    { format = values.format, image_opts = values.image_opts, force_share = values.force_share })
  if not image then
    return nil, message
  elseif image.format ~= "qcow2" then
    return nil, ("'%s' is a %s image, it has no structures"):format(text.escape(image.path), image.format)
  end
  local file <close>, why = io.open(image.path, "rb")
  if not file then
    return nil, images.could_not_open(image.path, why)
  end
  local count, as_json = 0, values.json or values.output == "json"
  local function put(structure)
    if not structure then
      return
    end
    count = count + 1
    if as_json then
      local object = json.pretty(json_of(file, structure)):gsub("\n", "\n    ")
      context:write(count > 1 and ",\n    " or "[\n    ", object)
    else
      context:write(count > 1 and "\n" or "")
      print_human(context, file, structure)
    end
  end
  -- A damaged table raises when it is read; what can be shown of the others is shown.
  local function part(name, make, ...)
    local fine, problem = pcall(make, ...)
    if not fine then
      put({ name = name, offset = 0, length = 0, rows = {}, problem = tostring(problem) })
    end
  end
  put(header_structure(image))
  put(extensions_structure(image))
  put(backing_structure(image))
  part("refcount table", refcount_structures, image, put)
  part("L1 table", l1_structures, image, file, "", image.header.l1_table_offset, image.header.l1_size, put)
  part("snapshot table", snapshot_structures, image, file, put)
  part("bitmap directory", bitmap_structures, image, file, put)
  if as_json then
    context:write("\n]\n")
  end
  return 0
end

return dump
