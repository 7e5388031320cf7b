-- SPDX-License-Identifier: MIT
-- Damage as a recipe: reads and writes bytes and big-endian integers inside a file.
--
--   poke.u64(path, 40, 0xffff)                 -- header field l1_table_offset
--   poke.bytes(path, 0, "QFI\xfb")
--   poke.field(path, "cluster_bits", 31)       -- header field by the specification's name
--   poke.flip(path, l2_offset, 1 << 63)        -- exclusive-or into a 64-bit word

local poke = {}

--- Header fields: name -> { offset, string.pack format }.
poke.fields = {
  magic = { 0, ">I4" }, version = { 4, ">I4" }, backing_file_offset = { 8, ">I8" },
  backing_file_size = { 16, ">I4" }, cluster_bits = { 20, ">I4" }, size = { 24, ">I8" },
  crypt_method = { 32, ">I4" }, l1_size = { 36, ">I4" }, l1_table_offset = { 40, ">I8" },
  refcount_table_offset = { 48, ">I8" }, refcount_table_clusters = { 56, ">I4" },
  nb_snapshots = { 60, ">I4" }, snapshots_offset = { 64, ">I8" },
  incompatible_features = { 72, ">I8" }, compatible_features = { 80, ">I8" },
  autoclear_features = { 88, ">I8" }, refcount_order = { 96, ">I4" }, header_length = { 100, ">I4" },
  compression_type = { 104, "B" },
}

--- string.pack that takes negative numbers as their two's complement bits.
local function pack(format, value)
  local size = string.packsize(format)
  if size < 8 then value = value & ((1 << (size * 8)) - 1) end
  return string.pack(size == 8 and ">i8" or format, value)
end

poke.pack = pack

function poke.bytes(path, offset, bytes)
  local file <close> = assert(io.open(path, "r+b"))
  assert(file:seek("set", offset))
  assert(file:write(bytes))
end

function poke.read(path, offset, length)
  local file <close> = assert(io.open(path, "rb"))
  assert(file:seek("set", offset))
  return file:read(length) or ""
end

function poke.u8(path, offset, value) poke.bytes(path, offset, pack("B", value)) end
function poke.u16(path, offset, value) poke.bytes(path, offset, pack(">I2", value)) end
function poke.u32(path, offset, value) poke.bytes(path, offset, pack(">I4", value)) end
function poke.u64(path, offset, value) poke.bytes(path, offset, pack(">I8", value)) end

function poke.get_u16(path, offset) return (string.unpack(">I2", poke.read(path, offset, 2))) end
function poke.get_u32(path, offset) return (string.unpack(">I4", poke.read(path, offset, 4))) end
function poke.get_u64(path, offset) return (string.unpack(">i8", poke.read(path, offset, 8))) end

--- Exclusive-or into the 64-bit word at `offset`; gives the new value.
function poke.flip(path, offset, mask)
  local value = poke.get_u64(path, offset) ~ mask
  poke.u64(path, offset, value)
  return value
end

--- Sets a header field by name.
function poke.field(path, name, value)
  local field = assert(poke.fields[name], "no header field is named " .. tostring(name))
  poke.bytes(path, field[1], pack(field[2], value))
end

--- Cuts the file to `length` bytes, or makes it longer with zeros.
function poke.truncate(path, length)
  local quoted = "'" .. path:gsub("'", [['\'']]) .. "'"
  assert(os.execute(("truncate -s %d %s"):format(length, quoted)))
end

--- Length of the file in bytes.
function poke.length(path)
  local file <close> = assert(io.open(path, "rb"))
  return assert(file:seek("end"))
end

return poke
