-- SPDX-License-Identifier: MIT
-- How values look to people: sizes, names from images, tables of snapshots.
local core = require("qcow2.core")

local text = {}

---Bytes with three significant digits and a unit: "197 KiB", "1.5 GiB". The next unit starts at 1000 of the
---last, so that four digits never show.
---@type fun(bytes:integer):string
text.size = core.size_text

---A name for a terminal: control characters and bytes that are no UTF-8 become \xNN.
---@type fun(name:string):string
text.escape = core.escape

---Column heads of a snapshot list, without the newline.
---@return string
function text.snapshot_heads()
  return ("%-7s %-16s %8s %19s %15s %10s"):format("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")
end

---Breaks words into lines of at most `width` columns, each begun with `indent`.
---@param words string[]
---@param indent string
---@param width integer
---@return string
function text.wrap(words, indent, width)
  local lines, line = {}, nil
  for _, word in ipairs(words) do
    if line and #line + 1 + #word <= width then
      line = line .. " " .. word
    else
      lines[#lines + 1] = line
      line = indent .. word
    end
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n")
end

return text
