-- SPDX-License-Identifier: MIT
-- Finds and reads the project's files for the lints.
local files = {}

---Paths below a folder, sorted; `kind` is "ch", "lua", "def" or "all" (C, tables and Lua).
function files.find(folder, kind)
  local patterns = {
    ch = "-name '*.[ch]'",
    lua = "-name '*.lua'",
    def = "-name '*.def'",
    all = "-name '*.[ch]' -o -name '*.def' -o -name '*.lua'",
  }
  local list = {}
  local pipe = assert(io.popen(("find %s -type f \\( %s \\) | LC_ALL=C sort"):format(folder, patterns[kind])))
  for path in pipe:lines() do
    list[#list + 1] = path
  end
  pipe:close()
  return list
end

---Iterates `number, line`.
function files.lines(path)
  local file = assert(io.open(path, "rb"))
  local number = 0
  return function()
    local line = file:read("l")
    if not line then
      file:close()
      return nil
    end
    number = number + 1
    return number, line
  end
end

return files
