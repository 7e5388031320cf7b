-- SPDX-License-Identifier: MIT
-- JSON as QEMU's tools print it: members in an order the caller states, four spaces a level, one value a line,
-- everything outside ASCII escaped, empty containers on two lines.
local json = {}

local OBJECT = {}

---An object whose members print in the order that `order` names them (words with spaces between); a member
---that is nil is left out, one that `order` does not name is a mistake of the caller.
---@param order string
---@param members table<string, any>
---@return table
function json.object(order, members)
  local names, known = {}, {}
  for name in order:gmatch("%S+") do
    known[name] = true
    if members[name] ~= nil then
      names[#names + 1] = name
    end
  end
  for name in pairs(members) do
    if not known[name] then
      error("JSON member without a place: " .. tostring(name), 2)
    end
  end
  return setmetatable({ names = names, members = members }, OBJECT)
end

local SHORT = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r",
  ["\t"] = "\\t" }

local function escape_ascii(char)
  return SHORT[char] or ("\\u%04X"):format(char:byte())
end

local function escape_point(point)
  if point > 0xffff then
    point = point - 0x10000
    return ("\\u%04X\\u%04X"):format(0xd800 + (point >> 10), 0xdc00 + (point & 0x3ff))
  end
  return ("\\u%04X"):format(point)
end

---A string in quotes. Bytes that are no UTF-8 become U+FFFD, one for each.
---@param value string
---@return string
function json.quote(value)
  if not value:find("[\x7f-\xff]") then
    return '"' .. value:gsub('[%c"\\]', escape_ascii) .. '"'
  end
  local out, position = {}, 1
  while position <= #value do
    if utf8.len(value, position, position) then
      local point = utf8.codepoint(value, position)
      out[#out + 1] = point < 0x7f and utf8.char(point):gsub('[%c"\\]', escape_ascii) or escape_point(point)
      position = utf8.offset(value, 2, position)
    else
      out[#out + 1] = "\\uFFFD"
      position = position + 1
    end
  end
  return '"' .. table.concat(out) .. '"'
end

local encode

local function encode_items(out, open, close, count, item, indent)
  local inner = indent .. "    "
  out[#out + 1] = open
  for index = 1, count do
    out[#out + 1] = (index > 1 and ",\n" or "\n") .. inner
    item(index, inner)
    if out.write and #out > 512 then
      out.write(table.concat(out))
      for piece = #out, 1, -1 do
        out[piece] = nil
      end
    end
  end
  out[#out + 1] = "\n" .. indent .. close
end

function encode(out, value, indent)
  local kind = math.type(value) or type(value)
  if kind == "string" then
    out[#out + 1] = json.quote(value)
  elseif kind == "integer" then
    out[#out + 1] = ("%d"):format(value)
  elseif kind == "float" then
    out[#out + 1] = ("%.17g"):format(value)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(value)
  elseif getmetatable(value) == OBJECT then
    encode_items(out, "{", "}", #value.names, function(index, inner)
      local name = value.names[index]
      out[#out + 1] = json.quote(name) .. ": "
      encode(out, value.members[name], inner)
    end, indent)
  elseif kind == "table" then
    encode_items(out, "[", "]", #value, function(index, inner)
      encode(out, value[index], inner)
    end, indent)
  else
    error("no JSON for a " .. kind, 2)
  end
end

---The text of a value: objects of `json.object`, lists, strings, numbers, booleans. No newline at the end.
---@param value any
---@return string
function json.pretty(value)
  local out = {}
  encode(out, value, "")
  return table.concat(out)
end

---The same text in pieces, each handed to `write`: what is long need not be in memory whole. Lists may be anything
---with a length and an index.
---@param value any
---@param write fun(piece:string)
function json.write(value, write)
  local out = { write = write }
  encode(out, value, "")
  write(table.concat(out))
end

---Iterates name, value of an object in printing order; nothing when `value` is no object.
---@param value any
---@return fun():string?, any
function json.members(value)
  local index, names = 0, getmetatable(value) == OBJECT and value.names or {}
  return function()
    index = index + 1
    if names[index] then
      return names[index], value.members[names[index]]
    end
  end
end

---@param value any
---@return boolean
function json.is_object(value)
  return getmetatable(value) == OBJECT
end

return json
