-- SPDX-License-Identifier: MIT
-- What one run of a command knows: the name it was called by, where its words go, the secrets and the reference
-- policy that the command line gave.
local core = require("qcow2.core")

---@class qcow2.cli.context
---@field name string            the program's name, before every message
---@field verb? string
---@field failure? string        why writing to stdout failed
---@field secrets table<string, table>  objects of `--object secret`, by id
---@field allowed string[]       directories of --allow and QCOW2_ALLOW
local context = {}
context.__index = context

---@param name string
---@return qcow2.cli.context
function context.new(name)
  return setmetatable({ name = name, secrets = {}, allowed = {} }, context)
end

---Writes to stdout. A failure is kept and comes out at the end of the command.
---@param ... string|number
function context:write(...)
  local ok, why = io.stdout:write(...)
  if not ok then
    self.failure = self.failure or why
  end
end

---Writes to stdout by a format.
---@param format string
---@param ... any
function context:printf(format, ...)
  self:write(format:format(...))
end

---All of stdout is out, or why not.
---@return true?, string?
function context:flush()
  local ok, why = io.stdout:flush()
  if self.failure or not ok then
    return nil, self.failure or why
  end
  return true
end

---A message for people, on stderr.
---@param message string
function context:report(message)
  io.stderr:write(self.name, ": ", message, "\n")
end

-- The program and the verb, as the user called them.
local function command(self)
  return self.verb and self.name .. " " .. self.verb or self.name
end

---A mistake in the command line: says it, points to the help. gives: the exit code.
---@param message string
---@return integer
function context:misused(message)
  self:report(message)
  io.stderr:write(("Try '%s --help' for more info\n"):format(command(self)))
  return 1
end

---A mistake in the grammar of options, as getopt_long says it: begun with the program and the verb.
---@param message string
---@return integer
function context:misspelled(message)
  io.stderr:write(("%s: %s\nTry '%s --help' for more info\n"):format(command(self), message, command(self)))
  return 1
end

---Is this file descriptor a terminal?
---@param descriptor integer
---@return boolean
function context:is_terminal(descriptor) -- luacheck: no self
  return core.isatty(descriptor)
end

---Calls what may raise for the world's sake (iterators, properties read from tables): true and the results, or
---false and what was raised. The user's Ctrl-C goes on its way.
---@param call function
---@param ... any
---@return boolean fine, any ...
function context.try(call, ...)
  local results = table.pack(pcall(call, ...))
  if not results[1] and tostring(results[2]):find("interrupted!", 1, true) then
    error(results[2], 0)
  end
  return table.unpack(results, 1, results.n)
end

return context
