-- SPDX-License-Identifier: MIT
-- Holds the library's binary interface: functions, enumerators and struct layouts of the installed header against
-- spec/lint/abi.txt. A change of the interface is a decision: `make abi` writes the list anew, and what went or moved
-- needs another soname (SO_VERSION in the Makefile).
local build = os.getenv("Q2_BUILD") or "build"

local KEPT = "spec/lint/abi.txt"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("a")
  file:close()
  return text
end

-- A C program that prints what the declarations mean on this machine.
local function program(cdef)
  local out = { "#include <stdio.h>", "#include <qcow2.h>", "int main(void) {" }
  local function print_line(format, value)
    out[#out + 1] = ('printf("%s\\n", (long long)(%s));'):format(format, value)
  end
  for _, name, body in cdef:gmatch("\n(enum) ([%w_]+) (%b{})") do
    for value in body:gmatch("QCOW2_[%w_]+%f[%s=,}]") do
      if not body:find("%-%s*" .. value .. "%f[^%w_]") then
        print_line(("enum %s %s %%lld"):format(name, value), value)
      end
    end
  end
  for name, body in cdef:gmatch("\nstruct ([%w_]+) (%b{})") do
    print_line(("struct %s size %%lld"):format(name), "sizeof(struct " .. name .. ")")
    for declaration in body:sub(2, -2):gmatch("([^;]+);") do
      local pointer = declaration:match("%(%*([%w_]+)%)")
      local words = declaration:gsub("%b()", ""):gsub("%b[]", "")
      for member in (pointer or words):gmatch("([%w_]+)%s*%f[,%z]") do
        print_line(("struct %s.%s at %%lld"):format(name, member), ("offsetof(struct %s, %s)"):format(name, member))
      end
    end
  end
  out[#out + 1] = "return 0; }"
  return table.concat(out, "\n") .. "\n"
end

local function list()
  local cdef = "\n" .. read(build .. "/include/qcow2.cdef")
  local source = os.tmpname()
  local file = assert(io.open(source, "wb"))
  assert(file:write(program(cdef)))
  assert(file:close())
  local pipe = assert(io.popen(("cc -x c -std=c11 -I%s/include -o %s.out %s && %s.out; rm -f %s %s.out"):format(build,
    source, source, source, source, source)))
  local lines = {}
  for line in pipe:lines() do
    lines[#lines + 1] = line
  end
  assert(pipe:close(), "the header could not be measured")
  for name in cdef:gmatch("\n[^\n{};]-%f[%w_](qcow2_[%w_]+)%(") do
    lines[#lines + 1] = "function " .. name
  end
  table.sort(lines)
  return lines
end

local function lint(complain)
  local kept, now = {}, {}
  for line in read(KEPT):gmatch("[^\n]+") do
    kept[line] = true
  end
  for _, line in ipairs(list()) do
    now[line] = true
    if not kept[line] then
      complain(KEPT, 1, "new: " .. line)
    end
  end
  for line in pairs(kept) do
    if not now[line] then
      complain(KEPT, 1, "gone or moved: " .. line)
    end
  end
end

if arg and arg[0] and arg[0]:match("abi%.lua$") then
  local file = assert(io.open(KEPT, "wb"))
  assert(file:write(table.concat(list(), "\n"), "\n"))
  assert(file:close())
end

return lint
