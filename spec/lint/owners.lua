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

-- Calls, and the only files that may make them: tables change by map_edit and refcount, by nobody else.
local CALLERS = {
  q2_cache_edit = { map_edit = true, refcount = true, cache = true },
  q2_cache_new = { map_edit = true, alloc = true, refcount = true, cache = true },
  q2_writeback_l1 = { map_edit = true, writeback = true, meta = true },
}

return function(complain)
  for _, path in ipairs(files.find("csrc", "ch")) do
    for number, line in files.lines(path) do
      for _, owner in ipairs(OWNERS) do
        if path ~= owner.file and line:find("[.>]" .. owner.member .. "%s*[-+|&]?=[^=]") then
          complain(path, number, ("only %s may set `%s`"):format(owner.file, (owner.member:gsub("%%", ""))))
        end
      end
      for call, names in pairs(CALLERS) do
        if line:find(call .. "%f[^%w_]%(") and not names[path:match("^csrc/meta/(.-)%.[ch]$") or ""] then
          complain(path, number, ("`%s` is not for this file"):format(call))
        end
      end
    end
  end
end
