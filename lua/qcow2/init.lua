-- SPDX-License-Identifier: MIT
-- The library as users require it: opening images and the operations on whole disks.
local core = require("qcow2.core")
local image = require("qcow2.image")
local size = require("qcow2.size")

if os.getenv("QCOW2_TRACE") then
  require("qcow2.trace").from_environment()
end

local qcow2 = {
  _VERSION = core._VERSION,
  features = core.features,
  open = image.open,
  probe = image.probe,
  size = size.parse,
}

-- The rest is loaded when it is first asked for: most programs need little of it.
local late = {
  create = function() return require("qcow2.create").create end,
  adopt = function() return require("qcow2.adopt").adopt end,
  measure = function() return require("qcow2.measure").measure end,
  problems = function() return require("qcow2.check").problems end,
  convert = function() return require("qcow2.convert") end,
  compare = function() return require("qcow2.compare") end,
  commit = function() return require("qcow2.commit") end,
  externalize = function() return require("qcow2.datafile").externalize end,
  internalize = function() return require("qcow2.datafile").internalize end,
  rebase = function() return require("qcow2.rebase") end,
  -- Class name -> table of methods, for those who list or extend them.
  _classes = function()
    image.complete()
    return { image = image.methods, bitmap = image.bitmap_methods, job = require("qcow2.job").methods }
  end,
}

return setmetatable(qcow2, {
  __index = function(self, name)
    local load_it = late[name]
    if load_it then
      self[name] = load_it()
      return self[name]
    end
  end,
  __pairs = function(self)
    for name in next, late do
      local _ = self[name]
    end
    return next, self
  end,
})
