-- SPDX-License-Identifier: MIT
-- Targets of the bench. A target is one of
--   { faster = 2, than = "qemu-img" }               its median takes at least twice as long as ours
--   { within = 1.15, of = "cp" }                    ours takes at most 1.15 times as long
--   { seconds = 0.05 }                              our median
--   { memory = "qemu-img", plus = 4 }               our peak is at most its peak, and so many MiB (0)
--   { length = "qemu-img", over = 0.01 }            our output is at most as long as its, and that share of it (0)
--   { rate = 300000, share = 0.6, of = "pread" }    so many a second, or that share of its rate when there is one
local judge = {}

-- Of the medians, which decides; and of the fastest runs, which other work on the machine disturbs least.
local RATIO = "%.2fx (fastest %.2fx)"

local function verdict(text, value, met)
  return { text = text, value = value, met = met }
end

local function one(target, ours, others)
  if target.faster then
    local theirs = others[target.than].wall
    local ratio = theirs.median / ours.wall.median
    return verdict(("at least %gx as fast as %s"):format(target.faster, target.than),
      RATIO:format(ratio, theirs.min / ours.wall.min), ratio >= target.faster)
  elseif target.within then
    local theirs = others[target.of].wall
    local ratio = ours.wall.median / theirs.median
    return verdict(("at most %gx the time of %s"):format(target.within, target.of),
      RATIO:format(ratio, ours.wall.min / theirs.min), ratio <= target.within)
  elseif target.seconds then
    return verdict(("at most %g s"):format(target.seconds), ("%.4f s"):format(ours.wall.median),
      ours.wall.median <= target.seconds)
  elseif target.memory then
    local theirs, plus = others[target.memory].memory.median, target.plus or 0
    local more = plus > 0 and (" and %g MiB"):format(plus) or ""
    return verdict(("peak memory at most %s's%s"):format(target.memory, more),
      ("%.0f%%"):format(ours.memory.median / theirs * 100), ours.memory.median <= theirs + plus * 1024)
  elseif target.length then
    local share, over = ours.length.median / others[target.length].length.median, target.over or 0
    local more = over > 0 and (" and %g%% more"):format(over * 100) or ""
    return verdict(("file at most %s's%s"):format(target.length, more), ("%.2f%%"):format(share * 100),
      share <= 1 + over)
  elseif target.rate then
    local share = target.of and ours.rate.median / others[target.of].rate.median or 0
    local text = target.of and (", or %g%% of %s"):format(target.share * 100, target.of) or ""
    return verdict(("%d/s%s"):format(target.rate, text),
      target.of and ("%.0f%%"):format(share * 100) or ("%.0f/s"):format(ours.rate.median),
      ours.rate.median >= target.rate or (target.of and share >= target.share) or false)
  end
  error("a target of no known kind")
end

---Judges the first contender by a list of targets.
---@param targets table[]
---@param contenders table  by number and by label
---@return {text:string, value:string, met:boolean}[]
function judge.all(targets, contenders)
  local verdicts = {}
  for index, target in ipairs(targets) do
    verdicts[index] = one(target, contenders[1], contenders)
  end
  return verdicts
end

return judge
