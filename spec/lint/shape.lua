-- SPDX-License-Identifier: MIT
-- Proves the shape of files: their length, their licence line, and a first sentence that says what they own.
local files = require("spec.lint.files")

local WARN, FAIL = 600, 800
local COLUMNS = { lua = 120 } -- C's are clang-format's business

local shape = {}

local function everything()
  local list = {}
  for _, folder in ipairs({ "csrc", "lua", "spec" }) do
    for _, path in ipairs(files.find(folder, "all")) do
      list[#list + 1] = path
    end
  end
  return list
end

function shape.sizes(complain, warn)
  for _, path in ipairs(everything()) do
    local count, long = 0, nil
    -- An annotation cannot be broken over two lines.
    local columns = not path:match("^lua/types/") and COLUMNS[path:match("%.(%w+)$")]
    for number, line in files.lines(path) do
      count = number
      if columns and not long and (utf8.len(line) or #line) > columns then
        long = number
      end
    end
    if count > FAIL then
      complain(path, count, ("%d lines; %d is the most"):format(count, FAIL))
    elseif count > WARN then
      warn(path, count, ("%d lines; over %d needs a reason"):format(count, WARN))
    end
    if long then
      complain(path, long, ("the line is longer than %d columns"):format(columns))
    end
  end
end

function shape.heads(complain)
  for _, path in ipairs(everything()) do
    local head, done = {}, false
    for number, line in files.lines(path) do
      if number > 12 then
        break
      end
      done = done or (number > 1 and not line:match("^#!") and not line:match("^%s*[-/*]"))
      if not done then
        head[#head + 1] = line
      end
    end
    local text = table.concat(head, "\n"):gsub("^#![^\n]*\n", ""):gsub("^%-%-%-@meta[^\n]*\n", "")
    local rest = text:match("^/%* SPDX%-License%-Identifier: MIT\n(.*)") or
      text:match("^%-%- SPDX%-License%-Identifier: MIT\n(.*)")
    if not rest then
      complain(path, 1, "begins without the line SPDX-License-Identifier: MIT")
    else
      local words = rest:gsub("^%s*[-*]+%s*", ""):gsub("\n%s*[-*]+%s?", " ")
      local sentence = words:match("^%s*(%S+ .-%.)%f[%s\0]")
      if not sentence then
        complain(path, 2, "says in no sentence what it owns")
      end
    end
  end
end

return shape
