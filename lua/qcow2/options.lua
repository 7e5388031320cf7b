-- SPDX-License-Identifier: MIT
-- Checking of option tables: unknown keys and wrong types raise, with the caller blamed.
local options = {}

---`known` maps each key to a type name, to several ("string|table"), or to a table of allowed words.
---@param given table?
---@param known table<string, string|string[]>
---@param level? integer  whom to blame: 2 the caller, 3 (default) the caller's caller, ...
---@return table
function options.check(given, known, level)
  level = level or 3
  if given == nil then
    return {}
  end
  if type(given) ~= "table" then
    error("options must be a table, not " .. type(given), level)
  end
  for key, value in pairs(given) do
    local want = known[key]
    if want == nil then
      local names = {}
      for name in pairs(known) do
        names[#names + 1] = name
      end
      table.sort(names)
      error(("unknown option '%s' (known: %s)"):format(tostring(key), table.concat(names, ", ")), level)
    end
    local fits = false
    if type(want) == "table" then
      for _, word in ipairs(want) do
        fits = fits or value == word
      end
      want = "one of \"" .. table.concat(want, "\", \"") .. "\""
    else
      for name in want:gmatch("[^|]+") do
        local is_size = name == "size" and (math.type(value) == "integer" or type(value) == "string")
        fits = fits or is_size or type(value) == name or math.type(value) == name
      end
    end
    if not fits then
      local shown = type(value) == "string" and ("'%s'"):format(value) or type(value)
      error(("option '%s' must be %s, not %s"):format(key, want, shown), level)
    end
  end
  return given
end

return options
