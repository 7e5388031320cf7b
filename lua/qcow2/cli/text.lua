-- SPDX-License-Identifier: MIT
-- How values look to people: sizes, names from images, tables of snapshots.
local text = {}

local UNITS = { "", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei" }

---Bytes with three significant digits and a unit: "197 KiB", "1.5 GiB". The next unit starts at 1000 of the
---last, so that four digits never show.
---@param bytes integer
---@return string
function text.size(bytes)
  local value, unit = bytes + 0.0, 1
  while value >= 1000 and unit < #UNITS do
    value, unit = value / 1024, unit + 1
  end
  return ("%.3g %sB"):format(value, UNITS[unit])
end

local function escape_byte(byte)
  return ("\\x%02x"):format(byte:byte())
end

---A name for a terminal: control characters and bytes that are no UTF-8 become \xNN.
---@param name string
---@return string
function text.escape(name)
  if not name:find("[%c\x7f-\xff]") then
    return name
  end
  local out, position = {}, 1
  while position <= #name do
    local stop = utf8.len(name, position, position) and utf8.offset(name, 2, position) or position + 1
    local char = name:sub(position, stop - 1)
    -- C0 and DEL are one byte; C1 is U+0080..U+009F, which terminals obey too.
    if char:find("^[%c\x7f]") or char:find("^\xc2[\x80-\x9f]$") or (#char == 1 and char:byte() >= 0x80) then
      char = char:gsub(".", escape_byte)
    end
    out[#out + 1] = char
    position = stop
  end
  return table.concat(out)
end

---Column heads of a snapshot list, without the newline.
---@return string
function text.snapshot_heads()
  return ("%-7s %-16s %8s %19s %15s %10s"):format("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")
end

---One line of a snapshot list, without the newline.
---@param snapshot qcow2.snapshot
---@return string
function text.snapshot_line(snapshot)
  local clock = snapshot.vm_clock_nsec
  local seconds = clock // 1000000000
  return ("%-7s %-16s %8s %19s %15s %10s"):format(
    text.escape(snapshot.id),
    text.escape(snapshot.name),
    text.size(snapshot.vm_state_size),
    os.date("%Y-%m-%d %H:%M:%S", snapshot.date_sec),
    ("%04d:%02d:%02d.%03d"):format(seconds // 3600, seconds // 60 % 60, seconds % 60, clock // 1000000 % 1000),
    snapshot.icount and ("%d"):format(snapshot.icount) or "--"
  )
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
