-- SPDX-License-Identifier: MIT
-- Proves that what one file keeps in order is set by that file alone: the order of writes is a call, not a habit.
local files = require("spec.lint.files")

-- Members, and the only file that may give them a value.
local OWNERS = {
  { member = "lazy", file = "csrc/meta/writeback.c" },
  { member = "synced", file = "csrc/meta/writeback.c" },
  { member = "data_synced", file = "csrc/meta/writeback.c" },
  { member = "pending_punch%.count", file = "csrc/meta/writeback.c" },
}

return function(complain)
  for _, path in ipairs(files.find("csrc", "ch")) do
    for number, line in files.lines(path) do
      for _, owner in ipairs(OWNERS) do
        if path ~= owner.file and line:find("[.>]" .. owner.member .. "%s*[-+|&]?=[^=]") then
          complain(path, number, ("only %s may set `%s`"):format(owner.file, (owner.member:gsub("%%", ""))))
        end
      end
    end
  end
end
