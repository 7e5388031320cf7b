-- SPDX-License-Identifier: MIT
-- Runs programs: exit code, standard output and standard error, each apart, with a time limit.

local tmp = require "spec.support.tmp"

local sh = {}

local DEFAULT_TIMEOUT = 60 -- seconds

--- One word of a POSIX shell command line.
function sh.quote(word)
  word = tostring(word)
  if word:find("^[%w@%%_+=:,./-]+$") then return word end
  return "'" .. word:gsub("'", [['\'']]) .. "'"
end

--- A list of words as a command line.
function sh.join(words)
  local out = {}
  for i, word in ipairs(words) do out[i] = sh.quote(word) end
  return table.concat(out, " ")
end

local function slurp(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

sh.slurp = slurp

--- Writes a whole file.
function sh.spit(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(bytes))
end

local capture_dir, capture_count = nil, 0

local function capture_path()
  capture_dir = capture_dir or tmp.dir("capture")
  capture_count = capture_count + 1
  return ("%s/%d"):format(capture_dir, capture_count)
end

--- Runs a list of words (or a shell command as one string).
-- options: cwd, env (table), timeout (seconds), input (bytes for standard input), output (a file for standard output
-- instead of the answer).
-- gives: { code, signal, timed_out, stdout, stderr, command }. A program that a signal ended has code
-- 128 + signal.
function sh.run(command, options)
  options = options or {}
  local line = type(command) == "table" and sh.join(command) or ("sh -c " .. sh.quote(command))
  local base = capture_path()
  local parts = {}
  if options.cwd then parts[#parts + 1] = ("cd %s &&"):format(sh.quote(options.cwd)) end
  parts[#parts + 1] = "exec"
  if options.env then
    parts[#parts + 1] = "env"
    for name, value in pairs(options.env) do parts[#parts + 1] = sh.quote(name .. "=" .. value) end
  end
  parts[#parts + 1] = ("timeout -k 2 %g"):format(options.timeout or DEFAULT_TIMEOUT)
  parts[#parts + 1] = line
  if options.input then sh.spit(base .. ".in", options.input) end
  parts[#parts + 1] = ("<%s >%s 2>%s"):format(options.input and base .. ".in" or "/dev/null",
    sh.quote(options.output or base .. ".out"), base .. ".err")
  local _, how, code = os.execute(table.concat(parts, " "))
  local result = { command = line, code = code, stdout = options.output and "" or slurp(base .. ".out"),
    stderr = slurp(base .. ".err") }
  if how == "signal" then result.code = 128 + code end
  if result.code == 124 or result.code == 137 then result.timed_out = result.code == 124 end
  if result.code > 128 then result.signal = result.code - 128 end
  for _, ending in ipairs { ".in", ".out", ".err" } do os.remove(base .. ending) end
  return result
end

--- Runs and insists on exit code 0. gives: the result.
function sh.check(command, options)
  local result = sh.run(command, options)
  if result.code ~= 0 then
    error(("%s\nexit code %d\n%s%s"):format(result.command, result.code, result.stdout, result.stderr), 2)
  end
  return result
end

local root

--- The top of the source tree (specs run from there).
function sh.root()
  if not root then
    local pipe <close> = assert(io.popen("pwd", "r"))
    root = pipe:read("l")
  end
  return root
end

--- The folder with the built program and modules: Q2_BUILD, else build/ in the tree.
function sh.build()
  local build = os.getenv("Q2_BUILD") or "build"
  if build:sub(1, 1) ~= "/" then build = sh.root() .. "/" .. build end
  return build
end

--- Runs our program: sh.qcow2({ "info", path }). Options as sh.run.
function sh.qcow2(words, options)
  return sh.run({ sh.build() .. "/bin/qcow2", table.unpack(words) }, options)
end

return sh
