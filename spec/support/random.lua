-- SPDX-License-Identifier: MIT
-- Numbers that look random and are the same on every machine: a spec prints its seed and repeats.

local random = {}
random.__index = random

--- A generator from a seed (integer or text). Q2_SEED, when set, is mixed in.
function random.new(seed)
  local state = tonumber(os.getenv("Q2_SEED") or 0) // 1
  for byte in tostring(seed):gmatch(".") do state = (state ~ byte:byte()) * 0x100000001b3 end
  return setmetatable({ state = state ~ 0x9e3779b97f4a7c15, seed = seed }, random)
end

--- 64 bits (splitmix64).
function random:bits()
  self.state = self.state + 0x9e3779b97f4a7c15
  local z = self.state
  z = (z ~ z >> 30) * 0xbf58476d1ce4e5b9
  z = (z ~ z >> 27) * 0x94d049bb133111eb
  return z ~ z >> 31
end

--- An integer in [low, high].
function random:int(low, high)
  return low + (self:bits() >> 1) % (high - low + 1)
end

--- One item of a list.
function random:pick(list)
  return list[self:int(1, #list)]
end

--- True `percent` times out of a hundred.
function random:chance(percent)
  return self:int(1, 100) <= percent
end

--- A string of `length` bytes that no compressor shortens.
function random:bytes(length)
  local out = {}
  for i = 1, (length + 7) // 8 do out[i] = string.pack("<i8", self:bits()) end
  return table.concat(out):sub(1, length)
end

return random
