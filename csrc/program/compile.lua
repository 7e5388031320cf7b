-- SPDX-License-Identifier: MIT
-- compile.lua BUNDLE BASE FILE ...: compiles modules for the program, all into one file (main.c says how
-- they lie there). FILE counts from the folder BASE. Lines and names stay in, for tracebacks.
local bundle, base = arg[1], arg[2]

local parts = {}
for index = 3, #arg do
  local path = base .. "/" .. arg[index]
  local name = arg[index]:gsub("%.lua$", ""):gsub("/init$", ""):gsub("/", ".")
  local text <close> = assert(io.open(path, "rb"))
  local chunk = assert(load(assert(text:read("a")), "@" .. path, "t"))
  parts[#parts + 1] = string.pack("=s8s8", name, string.dump(chunk))
end

local file <close> = assert(io.open(bundle .. ".tmp", "wb"))
assert(file:write(table.concat(parts)))
assert(file:close())
assert(os.rename(bundle .. ".tmp", bundle))
