-- SPDX-License-Identifier: MIT
-- A process that writes to an image until it is killed: lua killed.lua IMAGE LOG SEED. Every FLUSH operations it
-- flushes and adds the number of operations that are safe by then to the log. As a module it tells what operation
-- number n does, so that the one who kills knows what must be there.

local random = require "spec.support.random"

local killed = { FLUSH = 16 }

--- The operations in their order: next() gives verb, offset, bytes or length.
function killed.operations(seed, size)
  local rng = random.new(seed)
  return function()
    local offset = rng:int(0, size - 1)
    local length = math.min(size - offset, rng:int(1, 9000))
    if rng:chance(80) then return "write", offset, string.char(rng:int(97, 122)):rep(length) end
    return "zero", offset, length
  end
end

if arg and arg[0] and arg[0]:find("killed.lua", 1, true) then
  local qcow2 = require "qcow2"
  local log = assert(io.open(arg[2], "w"))
  local img = assert(qcow2.open(arg[1], { mode = "rw" }))
  local next_operation = killed.operations(arg[3], img.size)
  for n = 1, math.maxinteger do
    local verb, offset, value = next_operation()
    assert(img[verb](img, offset, value))
    if n % killed.FLUSH == 0 then
      assert(img:flush())
      log:write(n, "\n")
      log:flush()
    end
  end
end

return killed
