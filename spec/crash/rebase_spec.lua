-- SPDX-License-Identifier: MIT
-- Power cuts and failing calls during a rebase: the disk over the backing file that the image names is the same at
-- every moment, and the name is the old one or the new one, whole.
local chain_crash = require("spec.support.chain_crash")
local core = require("qcow2.core")
local raw = require("qcow2.image").raw

local image, disk, store_of = chain_crash.image, chain_crash.disk, chain_crash.store_of

local long_name = ("n"):rep(700)

-- "old" and "new" are raw; the overlay's options, the new name (nil: none), and what else is asked for.
local flavours = {
  ["nothing below"] = { "-o cluster_size=512" },
  ["another file"] = { "-o cluster_size=512", name = "new" },
  ["a long name that needs two switches"] = { "-o cluster_size=8k", name = long_name },
  ["lazy counts"] = { "-o cluster_size=512,lazy_refcounts=on", name = "new" },
  ["version 2"] = { "-o cluster_size=1k,compat=0.10", name = "new" },
  ["compressed copies"] = { "-o cluster_size=512", compress = true },
  ["subclusters"] = { "-o cluster_size=16k,extended_l2=on", name = "new" },
  ["a snapshot"] = { "-o cluster_size=512", name = "same", snapshot = true },
}

local function scenario_of(flavour)
  local made = chain_crash.make(([[
qemu-img create -q -f raw old 24k
qemu-io -f raw -c 'write -P 1 0 9k' -c 'write -P 2 12k 10k' old >/dev/null
cp old same
qemu-img create -q -f raw new 40k
qemu-io -f raw -c 'write -P 1 0 5k' -c 'write -P 9 5k 9k' -c 'write -P 7 20k 20k' new >/dev/null
qemu-img create -q -f qcow2 -b old -F raw %s top 32k
qemu-io -f qcow2 -c 'write -P 3 2k 3k' -c 'write -z 8k 1k' -c 'write -P 4 27k 3k' top >/dev/null
%s]]):format(flavour[1], flavour.snapshot and "qemu-img snapshot -c one top" or ""), { "top", "old", "new", "same" })
  made[long_name] = made.new
  local scenario = { top = made.top }

  local function over(name, top)
    local below <close> = name and assert(image(store_of(made[name]), "raw")) or nil
    return assert(image(type(top) == "string" and store_of(top) or top, "qcow2", below))
  end

  local img <close> = over("old", made.top)
  local want = assert(disk(img))

  function scenario.work(top_store)
    local below <close> = assert(image(store_of(made.old), "raw"))
    local top = image(top_store, "qcow2", below)
    local ok, message = top and raw.begin(top), "does not open"
    if not ok then
      return nil, message
    end
    local new <close> = flavour.name and assert(image(store_of(made[flavour.name]), "raw")) or nil
    local job, why = core.rebase(top, new, flavour.name, flavour.name and "raw", flavour.compress or false, 1)
    return job, job and { top } or why
  end

  local seen = {}
  scenario.seen = seen

  function scenario.judge(top)
    local plain <close>, message = image(store_of(top), "qcow2")
    if not plain then
      return "does not open: " .. message
    end
    local name, format = raw.names(plain)
    if not (name == "old" or name == flavour.name) or format ~= (name and "raw") then
      return ("the backing file is '%s', '%s'"):format(name, format)
    end
    seen[name or false] = true
    local survivor <close> = over(name, top)
    if disk(survivor) ~= want then
      return "the disk has changed"
    end
    if flavour.snapshot then
      local view <close> = assert(raw.open_snapshot(survivor, 0))
      if disk(view) ~= want then
        return "the snapshot has changed"
      end
    end
  end
  return scenario
end

describe("Rebase with", function()
  for name, flavour in pairs(flavours) do
    it(name .. " survives power cuts", function()
      local scenario = scenario_of(flavour)
      assert.is_true(chain_crash.cuts(name, scenario) > 2)
      assert.is_true(scenario.seen.old and scenario.seen[flavour.name or false])
    end)

    it(name .. " survives failing calls, and says so", function()
      assert.is_true(chain_crash.faults(name, scenario_of(flavour)) > 1)
    end)
  end
end)
