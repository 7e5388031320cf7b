-- SPDX-License-Identifier: MIT
-- An image's tables as live values: each entry is read from the image when it is asked for.
local core = require("qcow2.core")
local references = require("qcow2.references")

local tables = {}

local raw = core.classes.image.__index

local function check(value, message, ...)
  if value == nil then
    error(message, 0)
  end
  return value, message, ...
end

-- A read-only sequence of `length` values from index `first` on; `get(index)` makes the value.
local function sequence(name, first, length, get)
  return setmetatable({}, {
    __name = name,
    __len = function() return length end,
    __index = function(_, index)
      if math.type(index) ~= "integer" or index < first or index >= first + length then
        return nil
      end
      return get(index)
    end,
    __newindex = function() error(name .. " is read-only", 2) end,
    __pairs = function(self)
      local index = first - 1
      return function()
        index = index + 1
        if index < first + length then
          return index, self[index]
        end
      end
    end,
    __tostring = function() return ("%s of %d entries"):format(name, length) end,
  })
end

local function entry(fields, describe)
  return setmetatable(fields, { __tostring = describe })
end

-- A list that shows its items, one a line.
local list_meta = {
  __tostring = function(self)
    local lines = {}
    for index, item in ipairs(self) do
      lines[index] = tostring(item)
    end
    return #lines > 0 and table.concat(lines, "\n") or "none"
  end,
}

local function list_of(items, describe)
  local meta = { __tostring = describe }
  for _, item in ipairs(items) do
    setmetatable(item, meta)
  end
  return setmetatable(items, list_meta)
end

local header_meta = {
  __tostring = function(self)
    local lines = {}
    for index, field in ipairs(core.header_fields) do
      local is_hex = field.name == "magic" or field.name:find("offset$") or field.name:find("features$")
      lines[index] = (is_hex and "%-24s 0x%x" or "%-24s %d"):format(field.name, self[field.name])
    end
    return table.concat(lines, "\n")
  end,
}

---The header's fields; nil for a raw image.
---@return qcow2.header?
function tables.header(image)
  local fields = raw.header_fields(image)
  return fields and setmetatable(fields, header_meta)
end

---@return qcow2.extension[]
function tables.extensions(image)
  return list_of(raw.extension_list(image), function(self)
    return ("extension 0x%08x %s, %d bytes at 0x%x"):format(self.type, self.name or "(unknown)", self.length,
      self.offset)
  end)
end

local OFFSET = 0x00fffffffffffe00

local function l2_table(image, l1_index)
  local g = raw.geometry(image)
  return sequence("L2 table", 0, g.l2_entries, function(index)
    local word, bitmap, at = check(raw.l2_entry(image, l1_index, index))
    local e = raw.l2_decode(image, word, bitmap)
    e.index, e.raw, e.file_offset = index, word, at ~= 0 and at or nil
    e.bitmap = g.subclusters > 1 and bitmap or nil
    e.guest_offset = (l1_index * g.l2_entries + index) * g.cluster_size
    return entry(e, function(self)
      local text = ("L2[%d] = 0x%016x %s"):format(index, word, self.kind)
      if self.host_offset then
        text = text .. (" at 0x%x"):format(self.host_offset)
      end
      return text .. (self.copied and " copied" or "")
    end)
  end)
end

---@return qcow2.l1_table
function tables.l1(image)
  local g = raw.geometry(image)
  return sequence("L1 table", 0, g.l1_entries, function(index)
    local word = check(raw.l1_entry(image, index))
    local e = { index = index, raw = word, offset = word & OFFSET, copied = word < 0 }
    if e.offset ~= 0 then
      e.l2 = l2_table(image, index)
    end
    return entry(e, function()
      return ("L1[%d] = 0x%016x%s"):format(index, word, e.offset ~= 0 and (" L2 table at 0x%x"):format(e.offset) or "")
    end)
  end)
end

function tables.refcount_table(image)
  local g = raw.geometry(image)
  return sequence("refcount table", 0, g.reftable_entries, function(index)
    local word = check(raw.reftable_entry(image, index))
    local e = { index = index, raw = word, offset = word & ~0x1ff }
    return entry(e, function(self)
      return ("refcount table[%d] = 0x%016x%s"):format(index, word, self.offset ~= 0
        and (" block at 0x%x"):format(self.offset) or "")
    end)
  end)
end

-- Snapshots and bitmaps count from 1, as lists in Lua do. An image may hold tens of thousands of them.

local snapshot_meta = {
  __tostring = function(self)
    return ("snapshot %s '%s' of %s, %d bytes"):format(references.escape(self.id), references.escape(self.name),
      os.date("%Y-%m-%d %H:%M:%S", self.date_sec), self.size)
  end,
}

---@return qcow2.snapshot[]
function tables.snapshots(image)
  return sequence("snapshot table", 1, check(raw.snapshot_count(image)), function(index)
    return setmetatable(check(raw.snapshot_entry(image, index - 1)), snapshot_meta)
  end)
end

local function describe_bitmap(self)
  return ("bitmap '%s', granularity %d%s%s"):format(references.escape(self.name), self.granularity,
    self.auto and ", enabled" or "", self.in_use and ", in use" or "")
end

local bitmap_info_meta = { __tostring = describe_bitmap }

---@return qcow2.bitmap_info[]
function tables.bitmaps(image)
  return sequence("bitmap directory", 1, check(raw.bitmap_count(image)), function(index)
    return setmetatable(check(raw.bitmap_entry(image, index - 1)), bitmap_info_meta)
  end)
end

local types = { "incompatible", "compatible", "autoclear" }

---Every feature bit that is set.
---@return qcow2.feature_bit[]?
function tables.features(image)
  local header = raw.header_fields(image)
  if not header then
    return nil
  end
  local list = {}
  for type_index, type_name in ipairs(types) do
    local bits = header[type_name .. "_features"]
    for bit = 0, 63 do
      if bits >> bit & 1 == 1 then
        local name, known = raw.feature_name(image, type_index - 1, bit)
        list[#list + 1] = { type = type_name, bit = bit, name = name or "unknown", known = known }
      end
    end
  end
  return list_of(list, function(self)
    return ("%s bit %d, %s"):format(self.type, self.bit, references.escape(self.name))
  end)
end

---The image's own feature name table.
---@return qcow2.feature_name[]?
function tables.feature_names(image)
  local list = {}
  for _, extension in ipairs(raw.extension_list(image)) do
    if extension.name == "feature_name_table" then
      for at = 1, #extension.data - 47, 48 do
        local kind, bit, name = ("BBc46"):unpack(extension.data, at)
        list[#list + 1] = { type = types[kind + 1] or kind, bit = bit, name = name:match("^[^\0]*") }
      end
    end
  end
  return list
end

---How an extent shows itself.
tables.extent_meta = {
  __tostring = function(self)
    local text = ("0x%x +0x%x %s"):format(self.offset, self.length, self.kind)
    if self.host_offset then
      text = text .. (" at 0x%x"):format(self.host_offset)
    end
    return self.depth > 0 and ("%s, depth %d"):format(text, self.depth) or text
  end,
}

-- ---- bitmaps -------------------------------------------------------------------------------

local bitmap_methods = {}

function bitmap_methods:extents()
  local image, offset = self.image, 0
  local size = raw.disk_bytes(image)
  return function()
    while offset < size do
      local start = offset
      -- Others may have been removed since, or this one.
      self.index = check(raw.bitmap_find(image, self.serial, self.index))
      local dirty, length = raw.bitmap_extent(image, self.index, offset, size - offset)
      if dirty == nil then
        error(length, 0)
      end
      offset = offset + length
      if dirty then
        return start, length
      end
    end
  end
end

function tables.bitmap(image, index, fields)
  fields.image, fields.index, fields.serial = image, index, check(raw.bitmap_serial(image, index))
  return setmetatable(fields, {
    __name = "qcow2.bitmap",
    __index = bitmap_methods,
    __tostring = describe_bitmap,
  })
end

tables.bitmap_methods = bitmap_methods

return tables
