-- SPDX-License-Identifier: MIT
-- Proves that invariants and rules of safety are cited by numbers that csrc/README.md has, and that each rule of safety
-- is cited by a spec, which then is the place where it is tried.
local files = require("spec.lint.files")

local README = "csrc/README.md"

-- The numbers of the list below a heading.
local function numbered(heading)
  local numbers, inside = {}, false
  for _, line in files.lines(README) do
    if line:match("^## ") then
      inside = line == "## " .. heading
    end
    local number = inside and line:match("^(%d+)%. ")
    if number then
      numbers[tonumber(number)] = true
    end
  end
  return numbers
end

-- Calls `each` with every number that a citation names: "rule 4", "rules 2, 4 and 11", "rules 6 to 9".
local function cited(line, word, each)
  for list in line:gmatch(word .. "s? (%d[%d, andto]*)") do
    local from, to = list:match("^(%d+) to (%d+)")
    for number = tonumber(from or 1), tonumber(to or 0) do
      each(number)
    end
    for number in (from and "" or list):gmatch("%d+") do
      each(tonumber(number))
    end
  end
end

return function(complain)
  local rules, invariants = numbered("The rules of safety"), numbered("The invariants")
  local tried = {}
  for _, folder in ipairs({ "csrc", "lua", "spec" }) do
    for _, path in ipairs(files.find(folder, "all")) do
      for number, line in files.lines(path) do
        cited(line, "SAFETY rule", function(rule)
          if not rules[rule] then
            complain(path, number, ("%s has no rule of safety %d"):format(README, rule))
          end
          tried[rule] = tried[rule] or path:match("_spec%.lua$") ~= nil
        end)
        cited(line, "[Ii]nvariant", function(rule)
          if not invariants[rule] then
            complain(path, number, ("%s has no invariant %d"):format(README, rule))
          end
        end)
      end
    end
  end
  for rule in pairs(rules) do
    if not tried[rule] then
      complain(README, 1, ("no spec tries rule %d"):format(rule))
    end
  end
end
