-- SPDX-License-Identifier: MIT
-- Reads a command line by a verb's description, in the grammar of getopt_long: options and operands in any order,
-- `-fqcow2`, `-pq`, `--output=json`, `--output json`, unambiguous prefixes of long options, `--` ends options.
--
-- An option is a table: `short` and `long` names without dashes (either may be missing; `hidden` lists further
-- spellings), `key` (where its value goes; default the long name with underscores), `arg` (the argument's
-- name; an option without is a flag), `optional` (the argument only counts when attached), `many` (collect all
-- values in a list; else the last one wins), `ordered` (with `many` and a `key` that options share: the list holds
-- { option = long name, value = value } in the order of the command line), `ours` (qemu-img has no such option: its
-- long name gives way where a beginning fits another one too).
-- A list of options with `negative` takes words like -1G for operands.
local getopt = {}

---Where an option's value is found in the result.
---@param option table
---@return string
function getopt.key(option)
  return option.key or (option.long or option.short):gsub("-", "_")
end

-- The option of that long name, or the only one that it begins; the options that it may mean when there are several.
local function find_long(options, name)
  local found, own = {}, {}
  for _, option in ipairs(options) do
    for _, long in ipairs({ option.long, table.unpack(option.hidden or {}) }) do
      -- Spellings of one letter are short options.
      if long == name and #long > 1 then
        return option
      end
      local into = option.ours and own or found
      if #long > 1 and long:sub(1, #name) == name and into[#into] ~= option then
        into[#into + 1] = option
      end
    end
  end
  found = #found > 0 and found or own
  if #found > 1 then
    return nil, found
  end
  return found[1]
end

local function ambiguous(word, found)
  local names = {}
  for index, option in ipairs(found) do
    names[index] = ("'--%s'"):format(option.long)
  end
  return ("option '%s' is ambiguous; possibilities: %s"):format(word, table.concat(names, " "))
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
      local option, several = find_long(options, name)
      if not option then
        return nil, several and ambiguous(word, several) or ("unrecognized option '%s'"):format(word)
      elseif not option.arg then
        if attached then
          return nil, ("option '--%s' doesn't allow an argument"):format(option.long)
        end
        value = true
      elseif not attached then
        if option.optional then
          value = true
        elseif index > #args then
          return nil, ("option '--%s' requires an argument"):format(option.long)
        else
          value, index = args[index], index + 1
        end
      end
      store(values, option, value)
    elseif word:sub(1, 1) == "-" and #word > 1 and not (options.negative and word:find("^%-%d")) then
      local position = 2
      while position <= #word do
        local letter = word:sub(position, position)
        local option = find_short(options, letter)
        position = position + 1
        if not option then
          return nil, ("invalid option -- '%s'"):format(letter)
        elseif not option.arg or option.optional then
          store(values, option, true)
        else
          local value = word:sub(position)
          if value == "" then
            if index > #args then
              return nil, ("option requires an argument -- '%s'"):format(letter)
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
