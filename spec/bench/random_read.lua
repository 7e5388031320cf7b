-- SPDX-License-Identifier: MIT
-- random_read.lua IMAGE COUNT [LENGTH]: reads COUNT times LENGTH (4096) guest bytes at random multiples of LENGTH
-- through the library and prints how many reads a second that was.
local qcow2 = require("qcow2")

local path, count, length = arg[1], tonumber(arg[2]), tonumber(arg[3] or 4096)
local img <close> = assert(qcow2.open(path))
local places = img.size // length
local random = math.random

-- CPU seconds are not what is asked for, and os.time has none finer: the clock of /proc/uptime has 10 ms.
local function now()
  local file <close> = assert(io.open("/proc/uptime"))
  return file:read("n")
end

math.randomseed(1)
local begin = now()
for _ = 1, count do
  if #assert(img:read(random(0, places - 1) * length, length)) ~= length then
    error("short read")
  end
end
print(("%.0f"):format(count / (now() - begin)))
