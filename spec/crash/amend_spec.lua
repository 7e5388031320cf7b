-- SPDX-License-Identifier: MIT
-- Power cuts while an image is amended: at every instant the same disk and the same snapshots, in a sound image that
-- is the old one or the new one.
local core = require("qcow2.core")
local crash = require("spec.support.crash")
local scenarios = require("spec.support.scenarios")

local function amend(options)
  return function(s)
    local task <close> = assert(core.amend(s.img, options))
    repeat
      local _, message, more = assert(task:step())
      assert(type(message) == "number", message)
    until not more
    s:mark("amend", true, true)
  end
end

local function fill(s)
  s:write(0, ("a"):rep(3000))
  s:write(8192, ("b"):rep(9000))
  s:zero(9000, 4096)
end

local function snapshots(s)
  fill(s)
  s:snapshot_take("one")
  s:write(4096, ("c"):rep(2000))
  s:zero(0, 2048)
  s:snapshot_take("two")
  s:write(500, ("d"):rep(1000))
end

local cases = {
  ["counts of 64 bits"] = { options = { refcount_bits = 64 }, prepare = snapshots },
  ["counts of 2 bits"] = { options = { refcount_bits = 2 }, prepare = snapshots },
  ["lazy counts on"] = { options = { lazy_refcounts = true }, prepare = snapshots },
  ["lazy counts off"] = { options = { lazy_refcounts = false }, create = { lazy_refcounts = true }, prepare = fill },
  ["version 2"] = { options = { version = 2 }, prepare = snapshots },
  ["version 2 of lazy counts"] = { options = { version = 2 }, create = { lazy_refcounts = true }, prepare = snapshots },
  ["version 2 over a backing file"] = { options = { version = 2 }, prepare = snapshots,
    backing = scenarios.patterned(20480, 65) },
  ["version 3"] = { options = { version = 3 }, create = { version = 2 }, prepare = snapshots },
  ["version 3 and all that it allows"] = { options = { version = 3, refcount_bits = 32, lazy_refcounts = true },
    create = { version = 2 }, prepare = snapshots },
  ["a raw data file"] = { options = { data_file_raw = true }, data = true, prepare = fill },
  ["a raw data file, extended L2"] = { options = { data_file_raw = true }, data = true, prepare = fill,
    create = { extended_l2 = true, cluster_size = 16384 } },
  ["no raw data file"] = { options = { data_file_raw = false }, data = true, create = { data_file_raw = true },
    prepare = fill },
  ["another data file's name"] = { options = { data_file = ("./"):rep(180) .. "data" }, data = true,
    create = { cluster_size = 1024 }, prepare = fill },
}

describe("A power cut while an image is amended:", function()
  for name, case in pairs(cases) do
    it(name, function()
      local create = { size = 20480 + 512, cluster_size = 512 }
      for key, value in pairs(case.create or {}) do create[key] = value end
      local judged = crash.play("amend " .. name, { create = create, prepare = case.prepare, backing = case.backing,
        data = case.data, run = amend(case.options) }, { cuts = math.huge })
      assert.is_true(judged > 1)
    end)
  end
end)
