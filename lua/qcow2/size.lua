-- SPDX-License-Identifier: MIT
-- Sizes as people write them: "64K", "1.5G", powers of 1024.
local size = {}

local powers = { B = 0, K = 1, M = 2, G = 3, T = 4, P = 5, E = 6 }

---Parses a size: bytes, or nil, a message and "range".
---@param text qcow2.size
function size.parse(text)
  if math.type(text) == "integer" then
    if text < 0 then
      return nil, "Size must not be negative", "range"
    end
    return text
  end
  if type(text) ~= "string" then
    error("size must be an integer or a string, not " .. type(text), 2)
  end
  local hex = text:match("^%s*0[xX](%x+)$")
  if hex then
    if #hex > 15 then
      return nil, ("Size '%s' is too large"):format(text), "range"
    end
    return math.tointeger(tonumber(hex, 16))
  end
  if text:find("^%s*%-%d") then
    return nil, ("Size '%s' must not be negative"):format(text), "range"
  end
  local whole, fraction, suffix = text:match("^%s*%+?(%d*)%.?(%d*)([BbKkMmGgTtPpEe]?)$")
  if not whole or whole .. fraction == "" then
    return nil, ("Invalid size '%s'"):format(text), "range"
  end
  whole = whole == "" and "0" or whole
  local power = powers[suffix:upper()] or 0
  if power == 0 then
    if fraction:find("[^0]") then
      return nil, ("Invalid size '%s': a fraction of a byte"):format(text), "range"
    end
    fraction = ""
  end
  -- Digits are counted in integers: a float would lose bytes from 8 PiB on.
  local unit = 1 << (10 * power)
  local number = #whole <= 19 and math.tointeger(tonumber(whole))
  if not number or number > math.maxinteger // unit then
    return nil, ("Size '%s' is too large"):format(text), "range"
  end
  local bytes = number * unit
  if fraction ~= "" then
    bytes = bytes + math.tointeger(math.floor(tonumber("0." .. fraction) * unit + 0.5))
    if bytes < 0 then
      return nil, ("Size '%s' is too large"):format(text), "range"
    end
  end
  return bytes
end

---Digits of a number of 64 bits without sign, which Lua takes for negative from 2^63 on.
---@param number integer
---@return string
function size.unsigned(number)
  if number >= 0 then
    return ("%d"):format(number)
  end
  local tens = (number >> 1) // 5
  return ("%d%d"):format(tens, number - tens * 10)
end

---`parse` for arguments of functions: raises with the argument named.
---@param value qcow2.size?
---@param name string
function size.argument(value, name)
  if value == nil then
    return nil
  end
  if math.type(value) ~= "integer" and type(value) ~= "string" then
    error(("%s must be a size (an integer or text like \"64K\"), not %s"):format(name, type(value)), 3)
  end
  local bytes, message = size.parse(value)
  if not bytes then
    error(("%s: %s"):format(name, message), 3)
  end
  return bytes
end

return size
