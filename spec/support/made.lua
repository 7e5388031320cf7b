-- SPDX-License-Identifier: MIT
-- A new image, made and opened for reading and writing at once; raises when either fails.
local qcow2 = require("qcow2")

---@param path string
---@param options qcow2.create_options
---@param opening? qcow2.open_options  more of them
return function(path, options, opening)
  assert(qcow2.create(path, options))
  local o = { mode = "rw", format = options.format, references = options.references }
  for key, value in pairs(opening or {}) do
    o[key] = value
  end
  return assert(qcow2.open(path, o))
end
