-- SPDX-License-Identifier: MIT
-- Help, man pages and shell completions, all made from the verbs' descriptions.
local text = require("qcow2.cli.text")

local help = {}

local function spelled(option)
  local long = option.long and "--" .. option.long
  if long and option.arg then
    long = long .. (option.optional and ("[=%s]"):format(option.arg) or "=" .. option.arg)
  end
  local short = option.short and "-" .. option.short
  if short and not long and option.arg then
    short = short .. " " .. option.arg
  end
  return (short or "") .. (short and long and ", " or "") .. (long or "")
end

local function synopsis_words(verb)
  local words = {}
  for _, option in ipairs(verb.options) do
    local word = option.short and "-" .. option.short or "--" .. option.long
    if option.arg and not option.optional then
      word = word .. (option.short and " " or "=") .. option.arg
    end
    words[#words + 1] = option.required and word or "[" .. word .. "]" .. (option.many and "..." or "")
  end
  for _, operand in ipairs(verb.operands) do
    words[#words + 1] = operand.usage or operand.name
  end
  return words
end

local function described(out, name, sentence)
  out[#out + 1] = "  " .. name
  local words = {}
  for word in sentence:gmatch("%S+") do
    words[#words + 1] = word
  end
  out[#out + 1] = text.wrap(words, "      ", 80)
end

---Help of one verb.
---@param name string
---@param verb table
---@return string
function help.verb(name, verb)
  local out = { "Usage:" }
  local words = synopsis_words(verb)
  words[1] = ("%s %s %s"):format(name, verb.name, words[1] or "")
  out[#out + 1] = text.wrap(words, "    ", 80):gsub("^    ", "  ")
  out[#out + 1] = verb.summary .. "."
  for _, paragraph in ipairs(verb.details or {}) do
    local all = {}
    for word in paragraph:gmatch("%S+") do
      all[#all + 1] = word
    end
    out[#out + 1] = "\n" .. text.wrap(all, "", 80)
  end
  out[#out + 1] = "\nArguments:"
  for _, option in ipairs(verb.options) do
    described(out, spelled(option), option.help)
  end
  for _, operand in ipairs(verb.operands) do
    described(out, operand.usage or operand.name, operand.help)
  end
  return table.concat(out, "\n") .. "\n"
end

---Help of the program.
---@param name string
---@param version string
---@param verbs table[]
---@return string
function help.program(name, version, verbs)
  local out = {
    version,
    ("Usage: %s [standard options] COMMAND [--help | command options]"):format(name),
    "Look into, make, change and convert qcow2 and raw disk images.",
    "",
    "Standard options:",
    "  -h, --help",
    "      display this help and exit",
    "  -V, --version",
    "      display version information and exit",
    "  -T, --trace [[enable=]PATTERN][,events=FILE][,file=FILE]",
    "      tell of the calls whose names match (store_read, store_write, store_flush, store_punch, store_resize,",
    "      store_allocate, store_extent; * and ? may be used), in FILE or on the standard error; also QCOW2_TRACE=FILE",
    "  --allow=DIR",
    "      open files that images name under DIR too; without it only those in the image's directory or below",
    "",
    ("Commands (%s COMMAND --help says more):"):format(name),
  }
  for _, verb in ipairs(verbs) do
    out[#out + 1] = ("  %-9s %s"):format(verb.name, verb.summary)
  end
  out[#out + 1] = "\nSupported formats: qcow2 raw\n"
  return table.concat(out, "\n")
end

local function roff(line)
  line = line:gsub("\\", "\\e"):gsub("%-", "\\-")
  return line:sub(1, 1):find("[.']") and "\\&" .. line or line
end

local function roff_options(out, list, label)
  for _, item in ipairs(list) do
    out[#out + 1] = ".TP"
    out[#out + 1] = ".B " .. roff(label(item))
    out[#out + 1] = roff(item.help)
  end
end

---A man page: of one verb, or of the program when `verb` is nil.
---@param version string
---@param verbs table[]
---@param verb? table
---@return string
function help.man(version, verbs, verb)
  local title = verb and "qcow2-" .. verb.name or "qcow2"
  local out = {
    (".TH %s 1 \"\" \"qcow2 %s\" \"qcow2\""):format(roff(title:upper()), version),
    ".SH NAME",
    roff(("%s - %s"):format(title, verb and verb.summary:gsub("^%u", string.lower)
      or "look into, make, change and convert disk images")),
    ".SH SYNOPSIS",
  }
  if verb then
    out[#out + 1] = ".B qcow2 " .. verb.name
    out[#out + 1] = roff(table.concat(synopsis_words(verb), " "))
    out[#out + 1] = ".SH DESCRIPTION"
    out[#out + 1] = roff(verb.summary .. ".")
    for _, paragraph in ipairs(verb.details or {}) do
      out[#out + 1] = ".PP"
      out[#out + 1] = roff((paragraph:gsub("%s+", " ")))
    end
    out[#out + 1] = ".SH OPTIONS"
    roff_options(out, verb.options, spelled)
    roff_options(out, verb.operands, function(operand)
      return operand.usage or operand.name
    end)
  else
    out[#out + 1] = ".B qcow2"
    out[#out + 1] = roff("[-T TRACE] [--allow=DIR] COMMAND [ARGUMENT...]")
    out[#out + 1] = ".SH COMMANDS"
    roff_options(out, verbs, function(item)
      return item.name
    end)
  end
  out[#out + 1] = ".SH SEE ALSO"
  local others = {}
  for _, other in ipairs(verbs) do
    if other ~= verb then
      others[#others + 1] = (".BR %s (1)"):format(roff("qcow2-" .. other.name))
    end
  end
  out[#out + 1] = table.concat(others, "\n")
  return table.concat(out, "\n") .. "\n"
end

---The completion script for "bash", "zsh" or "fish", by argparse.
---@param shell string
---@param verbs table[]
---@return string? script, string? message
function help.completion(shell, verbs)
  if shell ~= "bash" and shell ~= "zsh" and shell ~= "fish" then
    return nil, ("no completions for '%s'; there are bash, zsh and fish"):format(shell)
  end
  local found, argparse = pcall(require, "argparse")
  if not found then
    return nil, "completions are made by the Lua module argparse, which is not installed"
  end
  local parser = argparse("qcow2"):add_help("-h --help")
  for _, verb in ipairs(verbs) do
    local command = parser:command(verb.name, verb.summary):add_help(false)
    for _, option in ipairs(verb.options) do
      local spelling = (option.short and "-" .. option.short or "") .. (option.long and " --" .. option.long or "")
      local made = option.arg and command:option(spelling, option.help) or command:flag(spelling, option.help)
      if option.choices then
        made:choices(option.choices)
      end
    end
    for _, operand in ipairs(verb.operands) do
      command:argument(operand.name:lower(), operand.help)
    end
  end
  return parser["get_" .. shell .. "_complete"](parser)
end

return help
