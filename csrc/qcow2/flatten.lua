-- SPDX-License-Identifier: MIT
-- flatten.lua HEADER OUT [cdef]: the public header as others get it, one file without tables of ours: parts and tables
-- are written out, and every enumerator has its number. With `cdef` only declarations are left, as LuaJIT's ffi.cdef
-- and its like read them.
local header, out, kind = arg[1], arg[2], arg[3]
local base = header:match("^(.*/)") or "./"

local function lines_of(path)
  local file <close> = assert(io.open(path, "rb"))
  local list = {}
  for line in file:lines() do
    list[#list + 1] = line
  end
  return list
end

-- The arguments of each `NAME(...)` in a table, in its order; commas inside strings are no separators.
local function entries(path, name)
  local text = table.concat(lines_of(path), "\n"):gsub("/%*.-%*/", "")
  local list, at = {}, 1
  while true do
    local from, to = text:find("%f[%w_]" .. name .. "%f[^%w_]%b()", at)
    if not from then
      return list
    end
    local args, word, quoted = {}, "", false
    for byte in text:sub(from + #name + 1, to - 1):gmatch(".") do
      quoted = quoted ~= (byte == '"')
      if byte == "," and not quoted then
        args[#args + 1], word = word:match("^%s*(.-)%s*$"), ""
      else
        word = word .. byte
      end
    end
    args[#args + 1] = word:match("^%s*(.-)%s*$")
    list[#list + 1], at = args, to + 1
  end
end

-- One entry of a table put into the body of its macro.
local function expand(body, parameters, args)
  local text = body
  for i, parameter in ipairs(parameters) do
    text = text:gsub("##" .. parameter .. "%f[^%w_]##", args[i]):gsub("##" .. parameter .. "%f[^%w_]", args[i])
      :gsub("%f[%w_]" .. parameter .. "%f[^%w_]##", args[i])
  end
  -- A macro's own name of a member, not part of a longer word.
  for i, parameter in ipairs(parameters) do
    text = text:gsub("%f[%w_]" .. parameter .. "%f[^%w_]", args[i])
  end
  return text
end

local result = {}
local function add(line)
  result[#result + 1] = line
end

local function take(path, inner)
  local macro
  for _, line in ipairs(lines_of(path)) do
    local part = line:match('^#include "([^"]+)"')
    local name, parameters, body = line:match("^#define (%u[%u_]*)%(([%w_, ]*)%) (.*)$")
    if part and part:match("%.def$") then
      for _, args in ipairs(entries(base .. part, macro.name)) do
        add("\t" .. expand(macro.body, macro.parameters, args))
      end
    elseif part and not inner then
      take(base .. part, true)
    elseif part or (inner and line:match("^#ifndef QCOW2_%u+_H$")) or (inner and line:match("^#define QCOW2_%u+_H$"))
      or (inner and line:match("^#endif$") and not macro) or line:match("^#undef ") then
      macro = macro and not line:match("^#undef ") and macro or nil
      if inner and line:match("^#endif$") and result.open then
        add(line)
        result.open = nil
      end
    elseif name and body then
      macro = { name = name, body = body, parameters = {} }
      for parameter in parameters:gmatch("[%w_]+") do
        table.insert(macro.parameters, parameter)
      end
    else
      if line:match("^#ifdef ") then
        result.open = true
      end
      if not (inner and line:match("^/%* SPDX")) then
        add(line)
      elseif inner then
        add("/*")
      end
    end
  end
end

take(header, false)

-- Every enumerator says its number.
local number
for i, line in ipairs(result) do
  if line:match("^enum [%w_]+ {") then
    number = 0
  elseif number and line:match("^}") then
    number = nil
  elseif number then
    local indent, name, rest = line:match("^(%s+)(QCOW2_[%w_]+)(.*)$")
    local value = rest and rest:match("^ = (%-?%d+)")
    if value then
      number = math.tointeger(value) + 1
    elseif name and rest:match("^,?%s*$") or name and rest:match("^,?%s*/%*") then
      result[i] = ("%s%s = %d%s"):format(indent, name, number, rest)
      number = number + 1
    end
  end
end

local text = table.concat(result, "\n") .. "\n"
if kind == "cdef" then
  text = text:gsub("/%*.-%*/", ""):gsub("\\\n", " "):gsub("\n#[^\n]*", "")
  text = text:gsub('\nextern "C" {', ""):gsub("\n}\n", "\n")
  text = text:gsub("QCOW2_API ", ""):gsub("QCOW2_CHECK ", ""):gsub("QCOW2_NONNULL ", "")
  text = text:gsub("[ \t]+\n", "\n"):gsub("\n\n+", "\n"):gsub("^\n+", "")
end
local file <close> = assert(io.open(out, "wb"))
assert(file:write(text))
