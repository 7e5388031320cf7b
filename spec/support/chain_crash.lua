-- SPDX-License-Identifier: MIT
-- Power cuts and failing calls while a job works on an overlay and its base: what is left of both is judged together.
local core = require("qcow2.core")
local crash = require("spec.support.crash")
local random = require("spec.support.random")
local raw = require("qcow2.image").raw
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local chain_crash = {}

--- A memory image of these bytes, with `below` attached.
function chain_crash.image(store, format, below)
  local img, message = core.image_open(store, format)
  if img and below then
    assert(raw.attach_backing(img, below))
  end
  return img, message
end

--- Bytes of an image that is opened over `store`, and closed again; nil and a message.
function chain_crash.disk(img)
  return raw.read(img, 0, raw.disk_bytes(img))
end

-- Runs a job to its end. gives: true, or nil and a message.
local function run(job, message)
  if not job then
    return nil, message
  end
  local done, why, more
  repeat
    done, why, more = job:step()
  until not done or not more
  job:close()
  return done and true, why
end

-- One go of the operation over these stores. `scenario.work(top store, base store)` gives the job and the images to
-- finish and to close, the lowest last.
local function work(scenario, stores)
  local job, images = scenario.work(stores.image, stores.data)
  local ok, message = run(job, images)
  for _, img in ipairs(job and images or {}) do
    if ok then
      ok, message = raw.finish(img)
    end
    img:close()
  end
  return ok, message
end

local function store_of(bytes)
  return assert(core.store_memory(bytes))
end

local function sound(bytes, what)
  local problems = crash.corruptions(bytes)
  return problems[1] and ("%s: %s"):format(what, table.concat(problems, "\n"))
end

--- What is wrong with a survivor; nil when nothing is. scenario.judge(top bytes, base bytes) adds its own.
local function judge(scenario, top, base)
  return sound(top, "the overlay")
    or base and scenario.base_format == "qcow2" and sound(base, "the base")
    or scenario.judge(top, base)
end

--- Every cut of the operation, with what was not flushed lost, kept and torn in many ways. gives: survivors judged.
function chain_crash.cuts(name, scenario)
  local stores = { image = assert(store_of(scenario.top):power()) }
  stores.data = scenario.base and assert(store_of(scenario.base):power(stores.image)) or nil
  assert(work(scenario, stores))
  local record = crash.record_of(stores)
  local rng, judged = random.new(name), 0
  for count = 0, #record do
    crash.each_survivor(record, count, crash.long and 100 or 8, rng, function(dropped, torn, torn_bytes)
      local top = crash.rebuild(stores, "image", record, count, dropped, torn, torn_bytes)
      local base = crash.rebuild(stores, "data", record, count, dropped, torn, torn_bytes)
      local problem = judge(scenario, top, base)
      judged = judged + 1
      if problem then
        local lost = {}
        for i = 1, count do
          local op = record[i]
          local fate = dropped[i] and "lost" or torn == i and "torn" or "there"
          lost[#lost + 1] = ("%d %s %s %#x+%d %s"):format(i, op.store, op.kind, op.offset, op.length, fate)
        end
        error(("%s: cut after %d of %d\n%s\n%s"):format(name, count, #record, table.concat(lost, "\n"), problem), 0)
      end
    end)
  end
  return judged
end

--- Every call that writes or flushes fails once: the operation says so, and what is there is as after a cut.
-- gives: how many calls failed.
function chain_crash.faults(name, scenario)
  local failed = 0
  for _, which in ipairs(scenario.base and { "image", "data" } or { "image" }) do
    for _, kinds in ipairs({ "w", "f", "s", "p" }) do
      for nth = 1, math.huge do
        local inner = { image = store_of(scenario.top), data = scenario.base and store_of(scenario.base) }
        local stores = { image = inner.image, data = inner.data }
        stores[which] = assert(inner[which]:fault(kinds, nth, 5, false))
        local ok = work(scenario, stores)
        if stores[which]:fault_calls() < nth then
          assert(ok)
          break
        end
        failed = failed + 1
        local top = crash.bytes_of(inner.image)
        local problem = judge(scenario, top, inner.data and crash.bytes_of(inner.data))
        -- Space that could not be given back is no reason to fail.
        if ok and kinds ~= "p" then
          problem = "nobody was told"
        end
        if problem then
          error(("%s: call %d of kind '%s' to the %s failed\n%s"):format(name, nth, kinds, which, problem), 0)
        end
      end
    end
  end
  return failed
end

--- The bytes of images that qemu-img and qemu-io make by `script` in a folder of their own: name -> bytes.
function chain_crash.make(script, names)
  local dir = tmp.dir()
  sh.check("set -e\n" .. script, { cwd = dir })
  local bytes = {}
  for _, one in ipairs(names) do
    bytes[one] = sh.slurp(dir .. "/" .. one)
  end
  return bytes
end

chain_crash.store_of = store_of

return chain_crash
