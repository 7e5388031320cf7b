-- SPDX-License-Identifier: MIT
-- Runs every lint from the top of the checkout and ends with the line "N passed, N failed".
--
--   lua5.4 spec/lint/run.lua [NAME ...]
local build = os.getenv("Q2_BUILD") or "build"
package.path = "./?.lua;./lua/?.lua;./lua/?/init.lua;" .. package.path
package.cpath = "./" .. build .. "/lib/lua/5.4/?.so;" .. package.cpath

local shape = require("spec.lint.shape")

local passed, failed = 0, 0

local function report(name, fine, text)
  io.write(fine and "ok     " or "FAILED ", name, "\n", text)
  io.flush()
  if fine then
    passed = passed + 1
  else
    failed = failed + 1
  end
end

-- Lints in Lua get two functions: complain(path, line, text) fails, warn(path, line, text) only speaks.
local function ours(lint)
  return function(name)
    local lines, fine = {}, true
    local function say(word)
      return function(path, number, text)
        fine = fine and word ~= "error"
        lines[#lines + 1] = ("%s:%d: %s: %s\n"):format(path, number, word, text)
      end
    end
    local ran, message = xpcall(lint, debug.traceback, say("error"), say("warning"))
    if not ran then
      lines[#lines + 1], fine = message .. "\n", false
    end
    table.sort(lines)
    report(name, fine, table.concat(lines))
  end
end

-- Tools fail by their exit status; what they say is shown then. A tool that is not there is a failure.
local function tool(command)
  return function(name)
    local pipe = assert(io.popen("{ " .. command .. "; } 2>&1"))
    local text = pipe:read("a")
    local fine = pipe:close() == true
    report(name, fine, fine and "" or text)
  end
end

local C_FILES = "$(find csrc spec -name '*.[ch]' | LC_ALL=C sort)"

local lints = {
  { "floors", ours(require("spec.lint.floors")) },
  { "circles", ours(require("spec.lint.circles")) },
  { "abi", ours(require("spec.lint.abi")) },
  { "owners", ours(require("spec.lint.owners")) },
  { "rules", ours(require("spec.lint.rules")) },
  { "names", ours(require("spec.lint.names")) },
  { "sizes", ours(shape.sizes) },
  { "heads", ours(shape.heads) },
  { "types", ours(require("spec.lint.types")) },
  { "luacheck", tool("luacheck -q --no-color lua spec rockspec .busted .luacheckrc") },
  { "clang-format", tool("clang-format --dry-run -Werror " .. C_FILES .. " && echo fine") },
  {
    "cppcheck",
    tool(("mkdir -p %s/cppcheck && cppcheck --quiet -j $(nproc) --cppcheck-build-dir=%s/cppcheck --std=c11 "
      .. "--enable=warning,portability --inline-suppr --suppress=missingIncludeSystem "
      .. "--error-exitcode=1 -Icsrc -D_GNU_SOURCE -DQ2_HAVE_LIBDEFLATE -DQ2_HAVE_LIBZSTD "
      .. "-DQ2_HAVE_LIBCRYPTO csrc"):format(build, build)),
  },
}

local wanted = {}
for _, name in ipairs(arg) do
  wanted[name] = true
end
for _, lint in ipairs(lints) do
  if #arg == 0 or wanted[lint[1]] then
    lint[2](lint[1])
  end
end
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0 and passed > 0, true)
