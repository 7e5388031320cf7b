-- SPDX-License-Identifier: MIT
-- compile.lua DIRECTORY FILE ...: compiles modules for the launcher. What stands in DIRECTORY for lua/qcow2/x.lua is
-- qcow2/x.lua: the text it was made of, as string.pack("<s4") has it, and the compiled chunk. Lines and names
-- stay in, for tracebacks.
local directory = arg[1]

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

local made = {}
for index = 2, #arg do
  local path = arg[index]
  local text = read(path)
  local chunk = assert(load(text, "@" .. path, "t"))
  local target = directory .. "/" .. path:gsub("^lua/", "")
  local folder = target:match("^(.*)/")
  if not made[folder] then
    assert(os.execute("mkdir -p '" .. folder:gsub("'", "'\\''") .. "'"))
    made[folder] = true
  end
  local file = assert(io.open(target, "wb"))
  assert(file:write(string.pack("<s4", text), string.dump(chunk)))
  assert(file:close())
end
