-- SPDX-License-Identifier: MIT
-- Proves that lua/types/qcow2.lua and the module name the same functions, fields and methods.
local files = require("spec.lint.files")

local TYPES = "lua/types/qcow2.lua"

-- Reads the annotations: for each class its functions and methods, and the fields of the module itself.
local function declared()
  local classes, current, of_local = {}, nil, {}
  for number, line in files.lines(TYPES) do
    local class = line:match("^%-%-%-@class%s+([%w_.]+)")
    local name = line:match("^local%s+([%w_]+)%s*=")
    local owner, method = line:match("^function%s+([%w_]+)[.:]([%w_]+)")
    local field = line:match("^%-%-%-@field%s+([%w_]+)")
    if class then
      current = class
      classes[class] = classes[class] or { names = {}, fields = {} }
    elseif name and current then
      of_local[name] = current
    elseif owner then
      local target = classes[of_local[owner] or ""]
      if target then
        target.names[method] = number
      end
    elseif field and current then
      classes[current].fields[field] = number
    end
  end
  return classes
end

local function public(name)
  return type(name) == "string" and (name == "_VERSION" or not name:match("^_"))
end

local function compare(label, annotated, has, complain)
  for name, number in pairs(annotated) do
    if has[name] == nil then
      complain(TYPES, number, ("%s has no %s"):format(label, name))
    end
  end
  for name in pairs(has) do
    if public(name) and not annotated[name] then
      complain(TYPES, 1, ("%s.%s is not annotated"):format(label, name))
    end
  end
end

return function(complain)
  local found, qcow2 = pcall(require, "qcow2")
  if not found then
    complain("lua/qcow2/init.lua", 1, tostring(qcow2))
    return
  end
  local classes = declared()
  local module = {}
  for _, part in ipairs({ "names", "fields" }) do
    for name, number in pairs(classes["qcow2"][part]) do
      module[name] = number
    end
  end
  compare("qcow2", module, qcow2, complain)
  if type(qcow2._classes) ~= "table" then
    complain("lua/qcow2/init.lua", 1, "qcow2._classes is missing: name -> method table")
    return
  end
  for name, methods in pairs(qcow2._classes) do
    local class = classes["qcow2." .. name]
    if class then
      compare("qcow2." .. name, class.names, methods, complain)
    else
      complain(TYPES, 1, ("class qcow2.%s is not annotated"):format(name))
    end
  end
  for name, class in pairs(classes) do
    local short = name:match("^qcow2%.(.+)")
    if short and next(class.names) and not qcow2._classes[short] then
      complain(TYPES, 1, ("%s has methods here but is no class of the module"):format(name))
    end
  end
end
