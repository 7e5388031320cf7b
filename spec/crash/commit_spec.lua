-- SPDX-License-Identifier: MIT
-- Power cuts and failing calls during a commit: what the overlay shows never changes, sectors of the base are old or
-- new, and neither image is ever corrupt.
local chain_crash = require("spec.support.chain_crash")
local core = require("qcow2.core")
local raw = require("qcow2.image").raw

local SECTOR = 512

local image, disk, store_of = chain_crash.image, chain_crash.disk, chain_crash.store_of

-- Scripts that make "base" and "top"; base is of the format that the name says.
local fills = [[
qemu-io -f FORMAT -c 'write -P 1 0 6k' -c 'write -P 2 10k 9k' BASE >/dev/null
qemu-io -f qcow2 -c 'write -P 3 1k 4k' -c 'write -z 12k 3k' -c 'write -P 4 18k 5k' -c 'write -P 5 29k 2k' top >/dev/null
]]

local function script(base_format, base, top)
  return ("qemu-img create -q -f %s %s\nqemu-img create -q -f qcow2 -b base -F %s %s\n%s"):format(base_format, base,
    base_format, top, fills:gsub("FORMAT", base_format):gsub("BASE", "base"))
end

local flavours = {
  ["clusters of 512 bytes"] = { script("qcow2", "-o cluster_size=512 base 32k", "-o cluster_size=512 top 32k") },
  ["a base that has to grow"] = { script("qcow2", "-o cluster_size=512 base 20k", "-o cluster_size=1k top 32k") },
  ["a base of larger clusters"] = { script("qcow2", "-o cluster_size=4k base 32k", "-o cluster_size=512 top 32k") },
  ["lazy counts"] = { script("qcow2", "-o cluster_size=512,lazy_refcounts=on base 32k",
    "-o cluster_size=512,lazy_refcounts=on top 32k") },
  ["version 2"] = { script("qcow2", "-o cluster_size=512,compat=0.10 base 32k",
    "-o cluster_size=512,compat=0.10 top 32k") },
  ["a base with a snapshot"] = { script("qcow2", "-o cluster_size=512 base 32k", "-o cluster_size=512 top 32k")
    .. "qemu-img snapshot -c one base\n" },
  ["a raw base that has to grow"] = { script("raw", "base 20k", "-o cluster_size=512 top 32k"), "raw" },
  ["an overlay that is kept"] = { script("qcow2", "-o cluster_size=512 base 32k", "-o cluster_size=512 top 32k"),
    keep = true },
  ["an overlay with a snapshot"] = { script("qcow2", "-o cluster_size=512 base 32k", "-o cluster_size=512 top 32k")
    .. "qemu-img snapshot -c one top\n" },
}

local function scenario_of(flavour)
  local made = chain_crash.make(flavour[1], { "top", "base" })
  local format = flavour[2] or "qcow2"
  local scenario = { top = made.top, base = made.base, base_format = format }
  local function chain(top, base)
    local below <close> = assert(image(store_of(base), format))
    return assert(image(store_of(top), "qcow2", below)), assert(disk(below))
  end
  local img <close>, old = chain(made.top, made.base)
  local want = assert(disk(img))

  function scenario.work(top_store, base_store)
    local base = image(base_store, format)
    local top = base and image(top_store, "qcow2", base)
    local ok, message = top and raw.begin(base), "does not open"
    if ok and not flavour.keep then
      ok, message = raw.begin(top)
    end
    if not ok then
      return nil, message
    end
    local job, why = core.commit(top, base, flavour.keep or false, 0, 1)
    return job, job and { base, top } or why
  end

  function scenario.judge(top, base)
    local survivor <close>, below = chain(top, base)
    local got, message = disk(survivor)
    if got ~= want then
      return "the overlay shows something else: " .. (message or "other bytes")
    end
    for i = 0, raw.snapshot_count(survivor) - 1 do
      local view <close> = assert(raw.open_snapshot(survivor, i))
      if disk(view) ~= want then
        return "the overlay's snapshot shows something else"
      end
    end
    if #below ~= #old and #below ~= math.max(#old, #want) then
      return ("the base has %d bytes"):format(#below)
    end
    for at = 1, #below, SECTOR do
      local sector = below:sub(at, at + SECTOR - 1)
      local was = old:sub(at, at + SECTOR - 1)
      if sector ~= (was == "" and ("\0"):rep(SECTOR) or was) and sector ~= want:sub(at, at + SECTOR - 1) then
        return ("sector at %d of the base is neither old nor new"):format(at - 1)
      end
    end
  end

  -- At the end the base is the disk, and the overlay has nothing of its own.
  function scenario.check_end()
    local stores = { store_of(made.top), store_of(made.base) }
    local job, images = scenario.work(table.unpack(stores))
    repeat
      local done, why, more = job:step()
      assert(done, why)
    until not more
    job:close()
    assert.is_true(disk(images[1]):sub(1, #want) == want)
    local own = 0
    for _, e in ipairs(raw.extent_batch(images[2], 0, #want, 1000, false, true)) do
      own = own + (e.kind ~= "unallocated" and e.length or 0)
    end
    assert.equal(flavour.keep and true or false, own > 0)
    for _, one in ipairs(images) do
      assert(raw.finish(one))
      one:close()
    end
  end
  return scenario
end

describe("Commit with", function()
  for name, flavour in pairs(flavours) do
    it(name .. " survives power cuts", function()
      local scenario = scenario_of(flavour)
      scenario.check_end()
      assert.is_true(chain_crash.cuts(name, scenario) > 20)
    end)

    it(name .. " survives failing calls, and says so", function()
      assert.is_true(chain_crash.faults(name, scenario_of(flavour)) > 3)
    end)
  end
end)
