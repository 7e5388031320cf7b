-- SPDX-License-Identifier: MIT
-- `shell`: a Lua prompt with an image in `img`. Without a terminal it runs what it reads and stops at the first
-- mistake.
local core = require("qcow2.core")
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

local MAX_ITEMS = 40
local MAX_DEPTH = 3

local shell = {
  name = "shell",
  summary = "Open a Lua prompt with an image in `img`",
  details = {
    "What a line yields is printed. `img` is the image, `qcow2` the library. Lines that are not complete go on with "
      .. "the next one. At a terminal the tabulator completes names. Read from a file or a pipe, the first "
      .. "mistake ends it with exit code 1.",
  },
  options = {
    options.format,
    options.image_opts,
    options.force_share,
    { short = "e", long = "eval", arg = "CODE", many = true, help = "run CODE and do not read from the input" },
    options.object,
  },
  operands = { { name = "FILE", usage = "[FILE]", help = "the image" } },
}

local show

local function show_table(value, depth, indent)
  local lines, inner = {}, indent .. "  "
  local names = {}
  for name in pairs(value) do
    if math.type(name) ~= "integer" or name < 1 or name > #value then
      names[#names + 1] = name
    end
  end
  table.sort(names, function(a, b)
    return tostring(a) < tostring(b)
  end)
  for index = 1, math.min(#value, MAX_ITEMS) do
    lines[#lines + 1] = inner .. show(value[index], depth - 1, inner)
  end
  for index = 1, math.min(#names, MAX_ITEMS) do
    local name = names[index]
    local label = type(name) == "string" and text.escape(name) or ("[%s]"):format(tostring(name))
    lines[#lines + 1] = ("%s%s = %s"):format(inner, label, show(value[name], depth - 1, inner))
  end
  local more = math.max(#value - MAX_ITEMS, 0) + math.max(#names - MAX_ITEMS, 0)
  if more > 0 then
    lines[#lines + 1] = ("%s... %d more"):format(inner, more)
  end
  if #lines == 0 then
    return "{}"
  end
  return ("{\n%s\n%s}"):format(table.concat(lines, "\n"), indent)
end

-- A value for people: strings in quotes, integers as they are, tables unfolded a few levels deep.
function show(value, depth, indent)
  if type(value) == "string" then
    return '"' .. text.escape(value:gsub('["\\]', "\\%0")) .. '"'
  elseif type(value) == "table" then
    local meta = getmetatable(value)
    if type(meta) == "table" and meta.__tostring then
      return tostring(value)
    end
    return depth == 0 and "{...}" or show_table(value, depth, indent)
  end
  return tostring(value)
end

-- Offsets are easier to place in hexadecimal.
local function show_result(value)
  if math.type(value) == "integer" and value >= 4096 then
    return ("%d (0x%x)"):format(value, value)
  end
  return show(value, MAX_DEPTH, "")
end

-- Compiles an expression or statements; the third result says that more lines may complete it.
local function compile(code, name, environment)
  local chunk = load("return " .. code, name, "t", environment)
  if chunk then
    return chunk
  end
  local message
  chunk, message = load(code, name, "t", environment)
  return chunk, message, message and message:find("<eof>", -5, true) ~= nil
end

local function position_of(message)
  return type(message) == "string" and text.escape(message) or tostring(message)
end

local INTERRUPTED = {}

-- What a chunk raised, as a sentence; INTERRUPTED when Ctrl-C was it.
local function describe(raised)
  if tostring(raised):find("interrupted!", 1, true) then
    return INTERRUPTED
  end
  return position_of(raised)
end

-- After an interrupt: the shell listens for the next one and goes on, if it was Ctrl-C and not the wish that it ends.
local function go_on()
  local found, program = pcall(require, "qcow2.program")
  if not found or not program.go_on() then
    error("interrupted!", 0)
  end
end

-- Runs a chunk and prints what it yields. false after a mistake, which has been reported.
local function run_chunk(context, chunk)
  local results = table.pack(xpcall(chunk, describe))
  if not results[1] then
    io.stdout:flush()
    if results[2] == INTERRUPTED then
      go_on()
      context:report("interrupted")
    else
      context:report(results[2])
    end
    return false
  end
  -- Functions that may fail end their answer in nils when they did not.
  local last = results.n
  while last > 2 and results[last] == nil do
    last = last - 1
  end
  for index = 2, last do
    context:write(show_result(results[index]), index < last and "\t" or "\n")
  end
  io.stdout:flush()
  return true
end

-- Names of the image in `img`, which may be closed by now or anything else.
local function image_words(img, list)
  for name in pairs(img) do
    list[#list + 1] = "img." .. name
  end
  for name in pairs(qcow2._classes.image) do
    list[#list + 1] = "img:" .. name .. "("
  end
  for _, name in ipairs({ "header", "extensions", "features", "l1", "refcount_table", "snapshots", "bitmaps" }) do
    list[#list + 1] = "img." .. name
  end
end

-- What the tabulator completes: names of the library and of the image, and what was set at the prompt.
local function words(environment)
  local list = {}
  for name in pairs(qcow2) do
    list[#list + 1] = "qcow2." .. name
  end
  if type(environment.img) == "userdata" then
    pcall(image_words, environment.img, list)
  end
  for name in next, environment do
    list[#list + 1] = name
  end
  return list
end

local function read_chunks(context, environment, interactive)
  local number, edited = 0, interactive
  local function ask(prompt)
    if edited then
      io.stdout:flush()
      local line = core.read_line(prompt, words(environment))
      if line ~= false then
        return line and line .. "\n"
      end
      edited = false
    end
    if interactive then
      context:write(prompt)
      io.stdout:flush()
    end
    return io.read("L")
  end
  -- A line; nil at the end of the input, false when Ctrl-C ended it.
  local function ask_or_not(prompt)
    local asked, line = xpcall(ask, describe, prompt)
    if asked then
      return line
    elseif line ~= INTERRUPTED then
      error(line, 0)
    end
    go_on()
    context:write("\n")
    return false
  end
  -- The lines of one chunk and what it compiles to; nil at the end of the input, false when Ctrl-C ended it.
  local function read_chunk()
    local line = ask_or_not("qcow2> ")
    if not line then
      return line
    end
    number = number + 1
    -- Empty lines in front make the line numbers of messages right.
    local code = ("\n"):rep(number - 1) .. line
    local chunk, message, incomplete = compile(code, "=stdin", environment)
    while not chunk and incomplete do
      line = ask_or_not("    >> ")
      if line == false then
        return false
      elseif not line then
        break
      end
      number = number + 1
      code = code .. line
      chunk, message, incomplete = compile(code, "=stdin", environment)
    end
    return code, chunk, message
  end
  while true do
    local code, chunk, message = read_chunk()
    if code == nil then
      break
    end
    if code and not chunk then
      context:report(position_of(message))
    end
    if code and not (chunk and run_chunk(context, chunk)) and not interactive then
      return 1
    end
  end
  if interactive then
    context:write("\n")
  end
  return 0
end

function shell.run(context, values)
  if #values.operands > 1 then
    return context:misused("Expecting one image file name")
  end
  local image, message
  if values.operands[1] then
    image, message = images.open(context, values.operands[1],
      { format = values.format, image_opts = values.image_opts, force_share = values.force_share })
    if not image then
      return nil, message
    end
  end
  local _ <close> = image
  local environment = setmetatable({ qcow2 = qcow2, img = image }, { __index = _G })
  if values.eval then
    for index, code in ipairs(values.eval) do
      local chunk, why = compile(code, ("=eval %d"):format(index), environment)
      if not chunk then
        return nil, position_of(why)
      elseif not run_chunk(context, chunk) then
        return 1
      end
    end
    return 0
  end
  local interactive = context:is_terminal(0)
  if interactive and image then
    context:write(tostring(image), "\n")
  end
  return read_chunks(context, environment, interactive)
end

return shell
