-- SPDX-License-Identifier: MIT
-- Programs run on behalf of the bench: a failure ends it, naming the command.
local shell = {}

---One word of a POSIX shell command line.
---@param word string|number
function shell.quote(word)
  return "'" .. tostring(word):gsub("'", "'\\''") .. "'"
end

---A list of words as a command line; a string is one already.
---@param command string|(string|number)[]
function shell.line(command)
  if type(command) == "string" then
    return command
  end
  local quoted = {}
  for index, word in ipairs(command) do
    quoted[index] = shell.quote(word)
  end
  return table.concat(quoted, " ")
end

local function failed(line, how, code)
  error(("%s\nfailed (%s %s)"):format(line, how, code), 3)
end

---Runs a command; what it prints is not wanted.
function shell.run(command)
  local line = shell.line(command)
  local fine, how, code = os.execute(line .. " >/dev/null")
  if not fine then
    failed(line, how, code)
  end
  return true
end

---Runs a command with `input` on its standard input.
function shell.feed(command, input)
  local line = shell.line(command)
  local pipe = assert(io.popen(line .. " >/dev/null", "w"))
  pipe:write(input)
  local fine, how, code = pipe:close()
  if not fine then
    failed(line, how, code)
  end
end

---What a command prints.
function shell.read(command)
  local line = shell.line(command)
  local pipe = assert(io.popen(line))
  local text = pipe:read("a")
  local fine, how, code = pipe:close()
  if not fine then
    failed(line, how, code)
  end
  return text
end

---Iterates the lines that a command prints.
function shell.lines(command)
  return shell.read(command):gmatch("[^\n]+")
end

---Is there a file of this name?
function shell.exists(path)
  local file = io.open(path, "rb")
  return file and file:close() or false
end

return shell
