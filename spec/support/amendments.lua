-- SPDX-License-Identifier: MIT
-- What power cuts and failing calls are tried on besides scenarios.lua: amending an image in every way, and moving
-- its data out into a data file and back in. Scenarios of crash.lua, by name.

local core = require "qcow2.core"
local scenarios = require "spec.support.scenarios"
local session = require "spec.support.session"

local amendments = {}

-- ---- amend -----------------------------------------------------------------------------------

local function fill(s)
  s:write(0, ("a"):rep(3000))
  s:write(8192, ("b"):rep(9000))
  s:zero(9000, 4096)
end

local function snapshots(s)
  fill(s)
  s:snapshot_create("one")
  s:write(4096, ("c"):rep(2000))
  s:zero(0, 2048)
  s:snapshot_create("two")
  s:write(500, ("d"):rep(1000))
end

-- A data file that ends where the disk's last bytes that are not zero do.
local function cut_off(s)
  fill(s)
  s:flush()
  assert(s.stores.data:resize(17408))
end

-- The header's sector has no room for it.
local LONG_NAME = ("./"):rep(220) .. "backing"

-- Version 2 has no zeros that hide a backing file.
local function fill_plainly(s)
  s:write(0, ("a"):rep(3000))
  s:write(8192, ("b"):rep(9000))
end

local cases = {
  ["counts of 64 bits"] = { options = { refcount_bits = 64 }, prepare = snapshots },
  ["counts of 2 bits"] = { options = { refcount_bits = 2 }, prepare = snapshots },
  ["lazy counts on"] = { options = { lazy_refcounts = true }, prepare = snapshots },
  ["lazy counts off"] = { options = { lazy_refcounts = false }, create = { lazy_refcounts = true }, prepare = fill },
  ["version 2"] = { options = { version = 2 }, prepare = snapshots },
  ["version 2 of lazy counts"] = { options = { version = 2 }, create = { lazy_refcounts = true }, prepare = snapshots },
  ["version 2 while counts wait for the close"] = { options = { version = 2 }, create = { lazy_refcounts = true },
    prepare = fill_plainly, before = function(s) s:write(12000, ("e"):rep(8000)) end },
  ["version 2 over a backing file"] = { options = { version = 2 }, prepare = snapshots,
    backing = scenarios.patterned(20480, 65) },
  ["version 2 under a long name"] = { options = { version = 2 }, prepare = snapshots,
    backing = scenarios.patterned(20480, 65), backing_name = LONG_NAME, create = { cluster_size = 2048 } },
  ["version 3 under a long name"] = { options = { version = 3 }, create = { version = 2, cluster_size = 1024 },
    prepare = fill_plainly, backing = scenarios.patterned(20480, 65), backing_name = LONG_NAME },
  ["version 3"] = { options = { version = 3 }, create = { version = 2 }, prepare = snapshots },
  ["version 3 and all that it allows"] = { options = { version = 3, refcount_bits = 32, lazy_refcounts = true },
    create = { version = 2 }, prepare = snapshots },
  ["a raw data file"] = { options = { data_file_raw = true }, data = true, prepare = fill },
  ["a raw data file that was too short"] = { options = { data_file_raw = true }, data = true, prepare = cut_off },
  ["a raw data file, extended L2"] = { options = { data_file_raw = true }, data = true, prepare = fill,
    create = { extended_l2 = true, cluster_size = 16384 } },
  ["no raw data file"] = { options = { data_file_raw = false }, data = true, create = { data_file_raw = true },
    prepare = fill },
  ["another data file's name"] = { options = { data_file = ("./"):rep(180) .. "data" }, data = true,
    create = { cluster_size = 1024 }, prepare = fill },
}

local function with(create, more)
  for key, value in pairs(more or {}) do create[key] = value end
  return create
end

--- name -> scenario: amending.
function amendments.amend()
  local all = {}
  for name, case in pairs(cases) do
    all[name] = { create = with({ size = 20480 + 512, cluster_size = 512 }, case.create), prepare = case.prepare,
      backing = case.backing, backing_name = case.backing_name, data = case.data,
      run = function(s)
        if case.before then case.before(s) end
        s:amend(case.options)
      end }
  end
  return all
end

-- ---- data files ------------------------------------------------------------------------------

-- Raises what the session's own operations raise.
local function insist(verb, ok, message, kind, errno)
  if not ok then
    error(setmetatable({ verb = verb, message = message, kind = kind, errno = errno }, session.Failure), 0)
  end
end

local function operate(s, verb, ...)
  local ok = ...
  s:mark(verb, ok ~= nil, ok ~= nil)
  insist(verb, ...)
end

-- `new_store(s)` makes the store that the data goes to.
local function outward(raw, new_store)
  return function(s)
    local store = new_store(s)
    -- Not flushed: that is for who lets the image name it.
    insist("copy", session.run_job(core.copy({ s.img }, store, { sparse_size = 512 })))
    operate(s, "externalize", core.externalize(s.img, store, "data", raw))
    operate(s, "gather", core.gather(s.img))
  end
end

local function inward(s)
  operate(s, "internalize", session.run_job(core.internalize(s.img)))
end

local LARGE = { extended_l2 = true, cluster_size = 16384, size = 16384 * 9 + 512 }

local moves = {
  ["out"] = {},
  ["out, raw"] = { raw = true },
  ["out, compressed clusters"] = { compressed = true },
  ["out, extended L2"] = { create = LARGE },
  ["out, lazy counts"] = { raw = true, create = { lazy_refcounts = true } },
  ["in"] = { data = true },
  ["in, raw"] = { data = true, create = { data_file_raw = true } },
  ["in, extended L2"] = { data = true, create = LARGE },
}

--- name -> scenario: moving data. `new_store` as above.
function amendments.moves(new_store)
  local all = {}
  for name, case in pairs(moves) do
    all[name] = { create = with({ size = 512 * 40 + 512, cluster_size = 512 }, case.create), data = case.data,
      run = case.data and inward or outward(case.raw or false, new_store), prepare = function(s)
        local step = s.cluster_size
        s:write(0, ("a"):rep(3 * step))
        s:write(5 * step + 100, ("b"):rep(step))
        s:zero(step, step)
        s:write(#s.disk - 700, ("c"):rep(700))
        if case.compressed then s:write_compressed(8 * step, ("d"):rep(step)) end
      end }
  end
  return all
end

--- Does the image have an external data file?
function amendments.is_external(image)
  return string.unpack(">I8", image, 73) & 4 ~= 0
end

return amendments
