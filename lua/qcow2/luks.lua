-- SPDX-License-Identifier: MIT
-- What the LUKS header of an encrypted image says about its cipher and its key slots; no key is needed for that.
local core = require("qcow2.core")

local luks = {}

local ENCRYPTION = 0x0537be77 -- the header extension that says where the LUKS header lies
local HEADER = ">c6 I2 c32 c32 c32 I4 I4 c20 c32 I4 c40"
local SLOT = ">I4 I4 c32 I4 I4"
local SLOTS, SLOTS_AT, SLOT_BYTES = 8, 208, 48
local LENGTH = SLOTS_AT + SLOTS * SLOT_BYTES
local ACTIVE = 0x00ac71f3
local SECTOR = 512

local function text(field)
  return (field:match("^[^\0]*"))
end

-- "aes" and a key of 64 bytes in mode "xts", which has two keys: "aes-256".
local function cipher_name(name, mode, key_bytes)
  if name == "des3" or name == "des3_ede" then
    return "3des"
  elseif name == "des" then
    return name
  end
  return ("%s-%d"):format(name, (mode == "xts" and key_bytes // 2 or key_bytes) * 8)
end

---The fields of a LUKS header (version 1) given as bytes; nil when they are none.
---@param bytes string
---@return table?
function luks.parse(bytes)
  if #bytes < LENGTH or bytes:sub(1, 8) ~= "LUKS\xba\xbe\0\1" then
    return nil
  end
  local _, _, cipher, mode, hash, payload, key_bytes, _, _, iterations, uuid = HEADER:unpack(bytes)
  local block_mode, generator = text(mode):match("^([^-]*)-(.*)$")
  local ivgen, ivgen_hash = (generator or ""):match("^([^:]*):?(.*)$")
  local slots = {}
  for index = 1, SLOTS do
    local active, slot_iterations, _, key_at, stripes = SLOT:unpack(bytes, SLOTS_AT + (index - 1) * SLOT_BYTES + 1)
    slots[index] = { active = active == ACTIVE, iterations = slot_iterations, key_offset = key_at * SECTOR,
      stripes = stripes }
  end
  return {
    cipher = cipher_name(text(cipher), block_mode, key_bytes),
    mode = block_mode or text(mode),
    ivgen = ivgen,
    ivgen_hash = ivgen_hash ~= "" and ivgen_hash or nil,
    hash = text(hash),
    uuid = text(uuid),
    payload_offset = payload * SECTOR,
    iterations = iterations,
    slots = slots,
  }
end

---The fields of the image's LUKS header; nil when it has none that can be read.
---@param image qcow2.image
---@return table?
function luks.of(image)
  for _, extension in ipairs(image.extensions) do
    if extension.type == ENCRYPTION and extension.length >= 16 then
      local offset, length = (">I8 I8"):unpack(extension.data)
      local store <close> = core.store_file(image.path, { force_share = true })
      local room = store and store:length() or 0
      if offset < 0 or math.ult(length, LENGTH) or offset > room - LENGTH then
        return nil
      end
      local bytes = store:read(offset, LENGTH)
      return bytes and luks.parse(bytes)
    end
  end
end

return luks
