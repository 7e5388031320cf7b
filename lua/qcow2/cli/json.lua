-- SPDX-License-Identifier: MIT
-- JSON as QEMU's tools print it: members in an order the caller states, four spaces a level, one value a line,
-- everything outside ASCII escaped, empty containers on two lines.
local core = require("qcow2.core")

local json = {}

local OBJECT, ROWS = {}, {}

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

---A list whose items come as text, since there may be very many: `write_items(indent, json, write)` hands their text
---to `write`, each item begun with `indent`; between the items of the JSON form are commas.
---@param write_items fun(indent:string, json:boolean, write:fun(text:string))
---@return table
function json.rows(write_items)
  return setmetatable({ write_items = write_items }, ROWS)
end

---A string in quotes. Bytes that are no UTF-8 become U+FFFD, one for each broken sequence, as QEMU has it.
---@type fun(value:string):string
json.quote = core.quote

local encode

-- What is there goes out; nothing without a writer.
local function hand_on(out)
  if out.write then
    out.write(table.concat(out))
    for piece = #out, 1, -1 do
      out[piece] = nil
    end
  end
end

local function encode_rows(out, rows, indent)
  out[#out + 1] = "[\n"
  rows.write_items(indent .. "    ", true, function(text)
    out[#out + 1] = text
    hand_on(out)
  end)
  out[#out + 1] = indent .. "]"
end

local function encode_items(out, open, close, count, item, indent)
  local inner = indent .. "    "
  out[#out + 1] = open
  for index = 1, count do
    out[#out + 1] = (index > 1 and ",\n" or "\n") .. inner
    item(index, inner)
    if #out > 512 then
      hand_on(out)
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
  elseif getmetatable(value) == ROWS then
    encode_rows(out, value, indent)
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

---@param value any
---@return boolean
function json.is_rows(value)
  return getmetatable(value) == ROWS
end

return json
