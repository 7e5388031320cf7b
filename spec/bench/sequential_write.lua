-- SPDX-License-Identifier: MIT
-- sequential_write.lua IMAGE BYTES LENGTH: writes the first BYTES of the disk in pieces of LENGTH, then flushes.
local qcow2 = require("qcow2")

local path, bytes, length = arg[1], tonumber(arg[2]), tonumber(arg[3])
local piece = ("\xcd"):rep(length)
local img <close> = assert(qcow2.open(path, { mode = "rw" }))
for offset = 0, bytes - 1, length do
  assert(img:write(offset, piece))
end
assert(img:flush())
