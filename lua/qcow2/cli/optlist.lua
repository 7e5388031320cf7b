-- SPDX-License-Identifier: MIT
-- Lists of the form `key=value,key=value` (-o, -l, --object, --image-opts); a doubled comma is a comma.
local optlist = {}

---May this text be joined to others with a comma? Not when empty, begun by a comma, or ended by an odd run of
---commas.
---@param list string
---@return boolean
function optlist.joinable(list)
  return list ~= "" and list:sub(1, 1) ~= "," and #list:match(",*$") % 2 == 0
end

---Splits a list. A word without `=` is `key=on` (`nokey` is `key=off`), but the first one is the value of
---`implied` when that is given.
---@param list string
---@param implied? string
---@return {key:string, value:string, flag:boolean}[]
function optlist.parse(list, implied)
  local entries, position = {}, 1
  while position <= #list do
    local entry = { flag = false }
    local equals = list:find("[=,]", position)
    if equals and list:sub(equals, equals) == "=" then
      entry.key = list:sub(position, equals - 1)
      position = equals + 1
    elseif implied and #entries == 0 then
      entry.key = implied
    else
      entry.flag = true
    end
    local value = {}
    while true do
      local comma = list:find(",", position, true) or #list + 1
      value[#value + 1] = list:sub(position, comma - 1)
      position = comma + 1
      if list:sub(position, position) ~= "," then
        break
      end
      value[#value + 1] = ","
      position = position + 1
    end
    entry.value = table.concat(value)
    if entry.flag then
      local negated = entry.value:match("^no(.+)")
      entry.key, entry.value = negated or entry.value, negated and "off" or "on"
    end
    entries[#entries + 1] = entry
  end
  return entries
end

---Does the list ask for help (`help` or `?` alone between commas)?
---@param list string
---@return boolean
function optlist.wants_help(list)
  for _, entry in ipairs(optlist.parse(list)) do
    if entry.flag and (entry.key == "help" or entry.key == "?") then
      return true
    end
  end
  return false
end

return optlist
