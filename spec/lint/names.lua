-- SPDX-License-Identifier: MIT
-- Proves that no name of a struct or an enum stands for two things in csrc: whoever searches for it finds one.
local files = require("spec.lint.files")

return function(complain)
  local seen = {}
  for _, path in ipairs(files.find("csrc", "ch")) do
    for number, line in files.lines(path) do
      local kind, name = line:match("^(%l+) ([%w_]+) {")
      if kind == "struct" or kind == "enum" or kind == "union" then
        if seen[name] then
          complain(path, number, ("%s %s is at %s, too"):format(kind, name, seen[name]))
        end
        seen[name] = ("%s:%d"):format(path, number)
      end
    end
  end
end
