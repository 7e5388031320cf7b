-- SPDX-License-Identifier: MIT
-- Temporary folders that vanish when the process ends.

local lfs = require "lfs"

local tmp = {}

local function remove_tree(path)
  if lfs.symlinkattributes(path, "mode") == "directory" then
    local names = {}
    for name in lfs.dir(path) do
      if name ~= "." and name ~= ".." then names[#names + 1] = name end
    end
    for _, name in ipairs(names) do remove_tree(path .. "/" .. name) end
    lfs.rmdir(path)
  else
    os.remove(path)
  end
end

-- Holds the process's one folder; its finalizer runs when the Lua state closes.
local home = setmetatable({ count = 0 }, {
  __gc = function(self)
    if self.path and not os.getenv("Q2_KEEP_TMP") then remove_tree(self.path) end
  end,
})

local function unique(base)
  for _ = 1, 100 do
    local path = ("%s/q2-spec-%d-%06x"):format(base, os.time(), math.random(0, 0xffffff))
    if lfs.mkdir(path) then return path end
  end
  error("no temporary folder could be made in " .. base)
end

--- A new empty folder; absolute path. Kept when Q2_KEEP_TMP is set.
function tmp.dir(label)
  home.path = home.path or unique(os.getenv("TMPDIR") or "/tmp")
  home.count = home.count + 1
  local path = ("%s/%s%d"):format(home.path, label or "d", home.count)
  assert(lfs.mkdir(path))
  return path
end

--- A path in a new folder; the file is not made.
function tmp.path(name)
  return tmp.dir() .. "/" .. (name or "image")
end

tmp.remove = remove_tree

return tmp
