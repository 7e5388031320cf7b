-- SPDX-License-Identifier: MIT
-- Compiles a helper program of the specs against the library, as the build at hand was compiled.

local sh = require "spec.support.sh"

local cc = {}

local flags

local function build_flags()
  flags = flags or sh.slurp(sh.build() .. "/flags")
  return flags
end

--- Is the build at hand a sanitized one, or one that counts its lines? Then neither time nor memory mean anything.
function cc.is_sanitized()
  return build_flags():find("-fsanitize=", 1, true) ~= nil or build_flags():find("--coverage", 1, true) ~= nil
end

--- Compiles spec/support/<name>.c into the build folder, when it is newer than what is there. wraps: names of
-- functions whose calls the program catches. gives: the program's path.
function cc.program(name, wraps)
  local source, target = "spec/support/" .. name .. ".c", sh.build() .. "/test/" .. name
  local words = { build_flags():match("^%S+"), "-std=c11", "-D_GNU_SOURCE", "-Icsrc", "-O1", "-g", "-pthread",
    "-Wall", "-Wextra", "-Werror" }
  for option in build_flags():gmatch("%-fsanitize=%S+") do words[#words + 1] = option end
  if build_flags():find("--coverage", 1, true) then words[#words + 1] = "--coverage" end
  words[#words + 1] = source
  for _, wrap in ipairs(wraps or {}) do words[#words + 1] = "-Wl,--wrap=" .. wrap end
  words[#words + 1] = sh.build() .. "/lib/libqcow2.a"
  for option in build_flags():gmatch("%s(%-l%S+)") do words[#words + 1] = option end
  -- Under another name first: several spec files may want the program at once.
  local temporary = ("%s.%06x"):format(target, math.random(0, 0xffffff))
  words[#words + 1] = "-o"
  words[#words + 1] = temporary
  sh.check { "mkdir", "-p", sh.build() .. "/test" }
  sh.check(words)
  sh.check { "mv", temporary, target }
  return target
end

--- Compiles spec/support/<name>.c into a shared object to be loaded before a program. gives: its path.
function cc.shared(name)
  local target = ("%s/test/%s.so"):format(sh.build(), name)
  local temporary = ("%s.%06x"):format(target, math.random(0, 0xffffff))
  sh.check { "mkdir", "-p", sh.build() .. "/test" }
  sh.check { build_flags():match("^%S+"), "-std=c11", "-D_GNU_SOURCE", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra",
    "-Werror", "-o", temporary, "spec/support/" .. name .. ".c", "-ldl" }
  sh.check { "mv", temporary, target }
  return target
end

return cc
