-- SPDX-License-Identifier: MIT
-- random_access.lua read|write IMAGE COUNT [LENGTH]: reads or writes COUNT times LENGTH (4096) guest bytes at random
-- multiples of LENGTH through the library and prints how many a second that was. The flush after the writes is not
-- counted.
local qcow2 = require("qcow2")

local what, path, count, length = arg[1], arg[2], tonumber(arg[3]), tonumber(arg[4] or 4096)
local img <close> = assert(qcow2.open(path, { mode = what == "write" and "rw" or "r" }))
local places = img.size // length
local random = math.random

-- CPU seconds are not what is asked for, and os.time has none finer: the clock of /proc/uptime has 10 ms.
local function now()
  local file <close> = assert(io.open("/proc/uptime"))
  return file:read("n")
end

local access = {}

function access.read()
  for _ = 1, count do
    if #assert(img:read(random(0, places - 1) * length, length)) ~= length then
      error("short read")
    end
  end
end

function access.write()
  local bytes = ("\xcd"):rep(length)
  for _ = 1, count do
    assert(img:write(random(0, places - 1) * length, bytes))
  end
end

math.randomseed(1)
local begin = now()
access[what]()
print(("%.0f"):format(count / (now() - begin)))
if what == "write" then
  assert(img:flush())
end
