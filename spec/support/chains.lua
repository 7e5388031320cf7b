-- SPDX-License-Identifier: MIT
-- Backing chains of random contents that qemu-img made: "base" <- "mid" <- "top" in one folder.
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")

local chains = {}

local KB = 1024

--- Flavours: options of the three images; sizes in KiB. A base of format "raw" is plain.
chains.flavours = {
  ["one size"] = { base = { size = 3072 }, mid = { size = 3072 }, top = { size = 3072 } },
  ["growing disks, clusters of many sizes"] = {
    base = { size = 1500, cluster_size = 512 },
    mid = { size = 2300, cluster_size = 4096 },
    top = { size = 3072, cluster_size = 65536 },
  },
  ["shrinking disks, clusters of many sizes"] = {
    base = { size = 4096, cluster_size = "2M" },
    mid = { size = 3100, cluster_size = 65536 },
    top = { size = 2050, cluster_size = 1024 },
  },
  ["subclusters"] = {
    base = { size = 3072, extended_l2 = true },
    mid = { size = 2048, extended_l2 = true, cluster_size = "16k" },
    top = { size = 3072, extended_l2 = true },
  },
  ["raw base"] = { base = { size = 1600, format = "raw" }, mid = { size = 2048 }, top = { size = 3072 } },
  ["version 2"] = {
    base = { size = 2048, compat = "0.10" },
    mid = { size = 2048, compat = "0.10", cluster_size = 4096 },
    top = { size = 2560, compat = "0.10" },
  },
  ["lazy counts, other widths"] = {
    base = { size = 2048, lazy_refcounts = true },
    mid = { size = 2048, refcount_bits = 64 },
    top = { size = 2048, lazy_refcounts = true, refcount_bits = 8, cluster_size = 2048 },
  },
}

local function fill(rng, path, options)
  local commands, grain = {}, 512
  -- QEMU compresses only where there is nothing yet.
  if options.format ~= "raw" and options.cluster_size ~= "2M" then
    for at = 0, options.size * KB - 65536, rng:int(5, 9) * 65536 do
      commands[#commands + 1] = ("write -c -P %d %d 64k"):format(rng:int(1, 255), at)
    end
  end
  for _ = 1, 20 do
    local what = rng:int(1, 10)
    local length = rng:int(1, rng:chance(30) and 500 or 40) * KB
    local offset = rng:int(0, options.size * KB // grain - 1) * grain
    length = math.min(length, options.size * KB - offset)
    if what <= 5 then
      commands[#commands + 1] = ("write -P %d %d %d"):format(rng:int(1, 255), offset, length)
    elseif what <= 7 then
      commands[#commands + 1] = ("write -z %d %d"):format(offset, length)
    elseif what == 8 then
      commands[#commands + 1] = ("write -P 0 %d %d"):format(offset, length)
    else
      commands[#commands + 1] = ("discard %d %d"):format(offset, length)
    end
  end
  qemu.io(path, commands, { format = options.format })
end

--- Makes the three images of a flavour in `dir`.
function chains.make(dir, name)
  local flavour, rng = chains.flavours[name], random.new("chain " .. name)
  local below
  for _, layer in ipairs({ "base", "mid", "top" }) do
    local options = {}
    for key, value in pairs(flavour[layer]) do
      options[key] = value
    end
    options.size = options.size * KB
    if below then
      options.backing_file = below
      options.backing_fmt = flavour[below].format or "qcow2"
    end
    qemu.create(dir .. "/" .. layer, options)
    fill(rng, dir .. "/" .. layer, flavour[layer])
    below = layer
  end
  return flavour
end

--- Names of the flavours, sorted.
function chains.names()
  local names = {}
  for name in pairs(chains.flavours) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

return chains
