-- SPDX-License-Identifier: MIT
-- Reads a command line by a verb's description, in the grammar of getopt_long: options and operands in any order,
-- `-fqcow2`, `-pq`, `--output=json`, `--output json`, unambiguous prefixes of long options, `--` ends options.
--
-- An option is a table: `short` and `long` names without dashes (either may be missing; `hidden` lists further
-- spellings), `key` (where its value goes; default the long name with underscores), `arg` (the argument's
-- name; an option without is a flag), `optional` (the argument only counts when attached), `many` (collect all
-- values in a list; else the last one wins), `ordered` (with `many` and a `key` that options share: the list holds
-- { option = long name, value = value } in the order of the command line).
-- A list of options with `negative` takes words like -1G for operands.
local getopt = {}

---Where an option's value is found in the result.
---@param option table
---@return string
function getopt.key(option)
  return option.key or (option.long or option.short):gsub("-", "_")
end

local function find_long(options, name)
  local found, several
  for _, option in ipairs(options) do
    for _, long in ipairs({ option.long, table.unpack(option.hidden or {}) }) do
      -- Spellings of one letter are short options.
      if long == name and #long > 1 then
        return option
      elseif #long > 1 and long:sub(1, #name) == name then
        several = several or (found and found ~= option)
        found = option
      end
    end
  end
  if several then
    return nil, "ambiguous"
  end
  return found
end

local function find_short(options, char)
  for _, option in ipairs(options) do
    if option.short == char then
      return option
    end
    for _, other in ipairs(option.hidden or {}) do
      if other == char then
        return option
      end
    end
  end
end

local function store(values, option, value)
  local key = getopt.key(option)
  if option.ordered then
    value = { option = option.long, value = value }
  end
  if option.many then
    values[key] = values[key] or {}
    table.insert(values[key], value)
  else
    values[key] = value
  end
end

---Reads `args[first..]`. Gives the values by key, with the operands in `.operands`; nil and a message when
---the line does not fit. With `stop` the first operand ends the reading; the second result says where it is.
---@param options table[]
---@param args string[]
---@param first integer
---@param stop? boolean
---@return table? values, string|integer message_or_next
function getopt.parse(options, args, first, stop)
  local values, operands = {}, {}
  values.operands = operands
  local index = first
  while index <= #args do
    local word = args[index]
    index = index + 1
    if word == "--" then
      table.move(args, index, #args, #operands + 1, operands)
      index = #args + 1
    elseif word:sub(1, 2) == "--" then
      local name, value = word:match("^%-%-([^=]*)=?(.*)$")
      local attached = word:find("=", 1, true) ~= nil
      local option, why = find_long(options, name)
      if not option then
        return nil, why and ("option '%s' is ambiguous"):format(word) or ("unrecognized option '%s'"):format(word)
      elseif not option.arg then
        if attached then
          return nil, ("unrecognized option '%s'"):format(word)
        end
        value = true
      elseif not attached then
        if option.optional then
          value = true
        elseif index > #args then
          return nil, ("missing argument for option '%s'"):format(word)
        else
          value, index = args[index], index + 1
        end
      end
      store(values, option, value)
    elseif word:sub(1, 1) == "-" and #word > 1 and not (options.negative and word:find("^%-%d")) then
      local position = 2
      while position <= #word do
        local option = find_short(options, word:sub(position, position))
        position = position + 1
        if not option then
          return nil, ("unrecognized option '%s'"):format(word)
        elseif not option.arg or option.optional then
          store(values, option, true)
        else
          local value = word:sub(position)
          if value == "" then
            if index > #args then
              return nil, ("missing argument for option '%s'"):format(word)
            end
            value, index = args[index], index + 1
          end
          store(values, option, value)
          position = #word + 1
        end
      end
    elseif stop then
      return values, index - 1
    else
      operands[#operands + 1] = word
    end
  end
  return values, index
end

return getopt
