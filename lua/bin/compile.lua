-- SPDX-License-Identifier: MIT
-- compile.lua BUNDLE BASE LIBRARY FILE ...: compiles modules for the launcher, all into one file. FILE counts from
-- the folder BASE; LIBRARY is where qcow2/core.so lies. The bundle begins with its own length; an entry holds the
-- file's name, its length and time of change when it was compiled, and the chunk: what the launcher needs to see
-- that it still fits. Lines and names stay in, for tracebacks.
local bundle, base, library = arg[1], arg[2], arg[3]
package.cpath = library .. "/?.so"
local core = require("qcow2.core")

local parts = {}
for index = 4, #arg do
  local path = base .. "/" .. arg[index]
  local length, changed = assert(core.stat(path))
  local file <close> = assert(io.open(path, "rb"))
  local chunk = assert(load(assert(file:read("a")), "@" .. path, "t"))
  parts[#parts + 1] = string.pack("<s2i8i8s4", arg[index], length, changed, string.dump(chunk))
end

local file <close> = assert(io.open(bundle .. ".tmp", "wb"))
local entries = table.concat(parts)
assert(file:write(string.pack("<i8", #entries + 8), entries))
assert(file:close())
assert(os.rename(bundle .. ".tmp", bundle))
