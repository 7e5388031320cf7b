-- SPDX-License-Identifier: MIT
-- The command line: finds the verb, reads its options by its description, runs it, turns what happened into an
-- exit code.
--
-- A verb is a file of lua/qcow2/cmd with `name`, `summary`, `options` and `operands` (see cli/getopt.lua; an
-- operand has `name`, `help`, and `usage` when its place in the synopsis looks otherwise), `details` (paragraphs
-- for help), `cannot_begin` (the exit code when an --object is refused, if it is not 1), and `run(context, values)`,
-- which answers an exit code, or nil and a message (exit code 1). What it raises is a mistake of ours: traceback,
-- exit code 99.
local getopt = require("qcow2.cli.getopt")
local make_context = require("qcow2.cli.context").new
local options = require("qcow2.cli.options")

local cli = {}

-- Modules that few commands need are loaded by those alone: most commands are over in milliseconds.
local function help()
  return require("qcow2.cli.help")
end

-- In the order in which help lists them.
local VERBS = { "create", "info", "check", "map", "measure", "convert", "commit", "rebase", "snapshot",
  "bitmap", "amend", "resize", "compare", "dd", "bench", "adopt", "externalize", "internalize", "verify", "dump",
  "explain", "shell" }

local BUG = 99
local INTERRUPTED = 130

-- The qemu-img whose grammar and texts ours are, for scripts that ask.
local AS_QEMU = "10.0.2"

local STANDARD = {
  options.help,
  { short = "V", long = "version" },
  { short = "T", long = "trace", arg = "TRACE" },
  options.allow,
}

---The description of a verb with the options that all have; nil when there is none of that name.
---@param name string
---@return table?
function cli.verb(name)
  for _, known in ipairs(VERBS) do
    if known == name then
      local verb = require("qcow2.cmd." .. name)
      if not verb.complete then
        table.insert(verb.options, options.allow)
        table.insert(verb.options, options.help)
        verb.complete = true
      end
      return verb
    end
  end
end

---All verbs, in the order of help.
---@return table[]
function cli.verbs()
  local all = {}
  for index, name in ipairs(VERBS) do
    all[index] = cli.verb(name)
  end
  return all
end

local function version_line(context)
  local version = require("qcow2")._VERSION
  if context.name == "qemu-img" then
    return ("qemu-img version %s (qcow2 %s, which takes its grammar)"):format(AS_QEMU, version)
  end
  return ("%s version %s"):format(context.name, version)
end

-- `qcow2 help [VERB]`, `qcow2 help --man [VERB]`, `qcow2 help --completion=SHELL`.
local HELP = {
  { long = "man", help = "a manual page in roff" },
  { long = "completion", arg = "SHELL", help = "the completion script of bash, zsh or fish" },
  options.help,
}

local function run_help(context, args, first)
  local values, message = getopt.parse(HELP, args, first)
  if not values then
    return context:misspelled(message)
  end
  if values.completion then
    local script, why = help().completion(values.completion, cli.verbs())
    if not script then
      return nil, why
    end
    context:write(script)
    return 0
  end
  local verb
  if values.operands[1] then
    verb = cli.verb(values.operands[1])
    if not verb then
      return context:misused("Command not found: " .. values.operands[1])
    end
  end
  if values.man then
    context:write(help().man(require("qcow2")._VERSION, cli.verbs(), verb))
  elseif verb then
    context:write(help().verb(context.name, verb))
  else
    context:write(help().program(context.name, version_line(context), cli.verbs()))
  end
  return 0
end

local function allow(context, directories)
  for _, directory in ipairs(directories or {}) do
    table.insert(context.allowed, directory)
  end
end

local function run_verb(context, verb, args, first)
  local values, message = getopt.parse(verb.options, args, first)
  if not values then
    return context:misspelled(message)
  elseif values.help then
    context:write(help().verb(context.name, verb))
    return 0
  end
  allow(context, values.allow)
  if values.object then
    local fine
    fine, message = require("qcow2.cli.secrets").take(context, values.object)
    if not fine then
      context:report(message)
      return verb.cannot_begin or 1
    end
  end
  if values.output and values.output ~= "human" and values.output ~= "json" then
    return context:misused(("--output expects 'human' or 'json' not '%s'"):format(values.output))
  end
  collectgarbage("restart") -- the program stopped it
  return verb.run(context, values)
end

local function run(context, args)
  local values, at = getopt.parse(STANDARD, args, 1, true)
  if not values then
    return context:misspelled(at)
  elseif values.help then
    return run_help(context, {}, 1)
  elseif values.version then
    context:write(version_line(context), "\n")
    return 0
  end
  if os.getenv("QCOW2_TRACE") then
    require("qcow2.trace").from_environment()
  end
  if values.trace then
    local fine, message = require("qcow2.trace").option(values.trace)
    if message then
      context:report(message)
    end
    if not fine then
      return 1
    end
  end
  allow(context, values.allow)
  for directory in (os.getenv("QCOW2_ALLOW") or ""):gmatch("[^:]+") do
    table.insert(context.allowed, directory)
  end
  local name = args[at]
  if not name then
    return context:misused("Not enough arguments")
  elseif name == "help" then
    return run_help(context, args, at + 1)
  end
  local verb = cli.verb(name)
  if not verb then
    return context:misused("Command not found: " .. name)
  end
  context.verb = name
  return run_verb(context, verb, args, at + 1)
end

local function describe_bug(raised)
  if tostring(raised):find("interrupted!", 1, true) then
    return { interrupted = true }
  end
  return { traceback = debug.traceback(tostring(raised), 2) }
end

---Runs one command line. gives: the exit code.
---@param name string    what the program was called by
---@param args string[]
---@return integer
function cli.main(name, args)
  local context = make_context(name)
  local fine, code, message = xpcall(run, describe_bug, context, args)
  if not fine then
    context:flush()
    if code.interrupted then
      return INTERRUPTED
    end
    context:report("this is a mistake in the program, not in what you gave it:\n" .. code.traceback)
    return BUG
  end
  if not code then
    context:report(message)
    code = 1
  end
  local written, why = context:flush()
  if not written then
    context:report("Could not write to the standard output: " .. why)
    code = code == 0 and 1 or code
  end
  return code
end

return cli
