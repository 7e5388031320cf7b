-- SPDX-License-Identifier: MIT
-- Proves the floors: a file includes, or requires, only from floors below its own and from its own folder.
local files = require("spec.lint.files")

-- What each folder of csrc may include besides itself, qcow2.h, tables (.def) and the system's headers.
local FLOORS = {
  base = {},
  store = { "base", "qcow2" },
  format = { "base" },
  data = { "base" },
  meta = { "base", "store", "format", "data" },
  image = { "base", "store", "format", "data", "meta" },
  check = { "base", "store", "format", "data", "meta", "image" },
  copy = { "base", "store", "format", "data", "image" },
  bind = { "qcow2" },
  program = {},
  qcow2 = {}, -- the parts of qcow2.h
}

-- Folders that do no I/O may not even see the calls for it.
local PURE = { format = true, data = true }
local IO_HEADERS = { ["unistd.h"] = true, ["fcntl.h"] = true }

local LUA_HEADERS = { ["lua.h"] = true, ["lauxlib.h"] = true, ["lualib.h"] = true, ["luaconf.h"] = true }

-- What the command line may use of other people's.
local ROCKS = { argparse = true, dkjson = true }

local function allowed(folder, target)
  for _, name in ipairs(FLOORS[folder]) do
    if name == target then
      return true
    end
  end
  return folder == target
end

local function check_c(path, complain)
  local folder = path:match("^csrc/([^/]+)/")
  if folder and not FLOORS[folder] then
    complain(path, 1, ("csrc/%s is no floor"):format(folder))
    return
  end
  for number, line in files.lines(path) do
    local open, name = line:match('^%s*#%s*include%s*([<"])([^>"]+)[>"]')
    local target = name and name:match("^([^/]+)/")
    if open == "<" and LUA_HEADERS[name] then
      if folder ~= "bind" and folder ~= "program" then
        complain(path, number, "only csrc/bind and csrc/program may see Lua")
      end
    elseif open == "<" then
      if PURE[folder] and (IO_HEADERS[name] or target == "sys") then
        complain(path, number, ("csrc/%s does no I/O, but includes <%s>"):format(folder, name))
      end
    elseif open and not name:match("%.def$") and not folder and target ~= "qcow2" then
      complain(path, number, ('qcow2.h may not include "%s"'):format(name))
    elseif open and not name:match("%.def$") and folder and name ~= "qcow2.h" then
      if not target then
        complain(path, number, ('write "%s/%s" instead of "%s"'):format(folder, name, name))
      elseif not allowed(folder, target) then
        complain(path, number, ('%s may not include "%s"'):format(folder, name))
      end
    end
  end
end

local function lua_floor(name)
  return name:match("^qcow2[./](cmd)[./]") or name:match("^qcow2%.(cmd)$") or name:match("^qcow2[./](cli)[./]")
    or name:match("^qcow2%.(cli)$") or (name == "qcow2.core" and "core") or (name:match("^qcow2") and "library")
    or "other"
end

-- Which floors, and for "other" which modules, each floor may require.
local REQUIRES = {
  cmd = { cmd = true, cli = true, library = true, core = true },
  cli = { cli = true, library = true, core = true },
  library = { library = true, core = true },
}

local function check_lua(path, complain)
  local floor = lua_floor((path:gsub("^lua/", "")))
  for number, line in files.lines(path) do
    local code = line:gsub("^%s*%-%-.*$", "")
    for name in code:gmatch("require%s*%(?%s*[\"']([^\"']+)[\"']") do
      local target = lua_floor(name)
      -- A name that goes on after a dot is a verb looked up by its name: the command line's own dispatch.
      local dispatch = floor == "cli" and name == "qcow2.cmd."
      local fine = dispatch or REQUIRES[floor][target] or (floor ~= "library" and ROCKS[name])
      if not fine then
        complain(path, number, ("%s modules may not require %s"):format(floor, name))
      end
    end
  end
end

return function(complain)
  for _, path in ipairs(files.find("csrc", "ch")) do
    check_c(path, complain)
  end
  for _, path in ipairs(files.find("lua/qcow2", "lua")) do
    check_lua(path, complain)
  end
end
