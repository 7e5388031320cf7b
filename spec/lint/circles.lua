-- SPDX-License-Identifier: MIT
-- Proves that the files of a folder of csrc form no circle: what one object file uses, asked of `nm`, against what the
-- others define. A file can then be read, and tried, with those below it alone.
local files = require("spec.lint.files")

-- gives: file -> set of the files that it uses, each with one symbol that shows it.
local function uses(folder, build)
  local defined, wanted = {}, {}
  for _, path in ipairs(files.find("csrc/" .. folder, "ch")) do
    local name = path:match("([^/]+)%.c$")
    if name then
      local pipe = assert(io.popen(("nm -P %s/obj/%s/%s.o"):format(build, folder, name)))
      wanted[name] = {}
      for line in pipe:lines() do
        local symbol, kind = line:match("^(%S+) (%a)")
        if kind == "U" then
          table.insert(wanted[name], symbol)
        elseif kind and kind:match("[TDRBVW]") then
          defined[symbol] = name
        end
      end
      assert(pipe:close(), "nm has no answer for " .. path)
    end
  end
  local graph = {}
  for name, symbols in pairs(wanted) do
    graph[name] = {}
    for _, symbol in ipairs(symbols) do
      local other = defined[symbol]
      if other and other ~= name then
        graph[name][other] = symbol
      end
    end
  end
  return graph
end

-- The first circle that a walk meets, as a list of files; nil: there is none.
local function find_circle(graph)
  local done, path, at = {}, {}, {}
  local function walk(name)
    if at[name] then
      return table.move(path, at[name], #path, 1, {})
    elseif done[name] then
      return nil
    end
    path[#path + 1], at[name] = name, #path + 1
    for other in pairs(graph[name]) do
      local circle = walk(other)
      if circle then
        return circle
      end
    end
    path[#path], at[name], done[name] = nil, nil, true
  end
  local names = {}
  for name in pairs(graph) do
    names[#names + 1] = name
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local circle = walk(name)
    if circle then
      return circle
    end
  end
end

return function(complain)
  local build = os.getenv("Q2_BUILD") or "build"
  local folders = assert(io.popen("ls csrc"))
  for folder in folders:lines() do
    if not folder:find("%.") and folder ~= "qcow2" and folder ~= "program" then
      local graph = uses(folder, build)
      local circle = find_circle(graph)
      for i, name in ipairs(circle or {}) do
        local other = circle[i % #circle + 1]
        complain(("csrc/%s/%s.c"):format(folder, name), 1,
          ("a circle: it uses %s of %s.c"):format(graph[name][other], other))
      end
    end
  end
  folders:close()
end
