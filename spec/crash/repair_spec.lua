-- SPDX-License-Identifier: MIT
-- Power cuts and failing calls during a repair: what could be read stays as it was, and a second repair makes of
-- every survivor what the first one would have made.

local core = require "qcow2.core"
local crash = require "spec.support.crash"
local damages = require "spec.support.damages"
local mending = require "spec.support.mending"
local qcow2 = require "qcow2"
local random = require "spec.support.random"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

-- The bytes of a damaged image and of its data file.
local function damaged(dir, number, recipe)
  local path = ("%s/%d.qcow2"):format(dir, number)
  recipe(path)
  local has_data = io.open(path .. ".data", "rb")
  if has_data then has_data:close() end
  return sh.slurp(path), has_data and sh.slurp(path .. ".data") or nil
end

local function store_of(bytes)
  return bytes and assert(core.store_memory(bytes))
end

-- Where a table is lost nobody knows what is leaked: what the file grew by may look so.
local function found_words(report)
  local words = {}
  for kind, count in pairs(report.found) do
    if kind ~= "leak" or not report.incomplete then words[#words + 1] = kind .. "=" .. count end
  end
  table.sort(words)
  return table.concat(words, " ")
end

-- What is wrong with a survivor: list of sentences.
local function judge(case, image, data)
  local contents, message = mending.contents_of(image, data)
  if not contents then return { "does not open: " .. message } end
  local lost = mending.lost(case.before, contents)
  -- What a repair gives back is there or not yet.
  if lost and mending.lost(case.after, contents) then return { lost } end
  local left, left_data, report = mending.repair(image, data, nil, case.want)
  if not left then return { "cannot be repaired: " .. left_data } end
  local words = found_words(report)
  if words ~= case.left then return { ("a second repair leaves [%s], not [%s]"):format(words, case.left) } end
  lost = mending.lost(case.before, mending.contents_of(left, left_data))
  if lost and mending.lost(case.after, mending.contents_of(left, left_data)) then return { "repaired: " .. lost } end
  return {}
end

local function case_of(image, data, want)
  local case = { image = image, data = data, want = want, before = assert(mending.contents_of(image, data)) }
  local left, left_data, report = assert(mending.repair(image, data, nil, want))
  case.left, case.after = found_words(report), mending.contents_of(left, left_data)
  return case
end

local function repair(stores, want)
  local img <close>, message, kind = mending.open(stores)
  if not img then return nil, message, kind end
  return img:repair(want)
end

local function cut(name, case)
  local stores = { image = assert(store_of(case.image):power()) }
  stores.data = case.data and assert(store_of(case.data):power(stores.image)) or nil
  assert(repair(stores, case.want))
  return crash.cut(name, stores, random.new(name), function(_, image, data)
    return judge(case, image, data), "repair"
  end)
end

-- Every call that writes fails once: the repair says so, and what is there is as after a cut.
local function fail(case)
  local failed = 0
  for _, kinds in ipairs { "w", "f", "s", "p" } do
    for nth = 1, math.huge do
      local inner = { image = store_of(case.image), data = store_of(case.data) }
      local stores = { image = assert(inner.image:fault(kinds, nth, 5, false)), data = inner.data }
      local report = repair(stores, case.want)
      if stores.image:fault_calls() < nth then
        assert(report)
        break
      end
      failed = failed + 1
      -- Space that the host keeps is no reason to fail.
      assert(not report or kinds == "p", "nobody was told")
      local problems = judge(case, crash.bytes_of(inner.image), inner.data and crash.bytes_of(inner.data))
      assert(#problems == 0, ("call %d of kind '%s' failed\n%s"):format(nth, kinds, table.concat(problems, "\n")))
    end
  end
  return failed
end

-- Everything that can be repaired of what the recipe makes.
local function wanted(found)
  local kinds = {}
  for kind in pairs(found) do
    if qcow2.problems[kind].repairable then kinds[#kinds + 1] = kind end
  end
  return { all = true, kinds = kinds, threads = 1 }
end

describe("A repair of", function()
  local dir
  lazy_setup(function() dir = tmp.dir() end)
  lazy_teardown(function() tmp.remove(dir) end)

  for number, damage in ipairs(damages.list) do
    local title, recipe, found = table.unpack(damage, 1, 3)
    it(title .. " survives power cuts and failing calls", function()
      local image, data = damaged(dir, number, recipe)
      local case = case_of(image, data, wanted(found))
      assert.is_true(cut(title, case) > 0)
      fail(case)
    end)
  end

  it("random damage survives power cuts and failing calls", function()
    local judged = 0
    for seed = 1, crash.long and 300 or 12 do
      local image = mending.harmed(random.new("cut " .. seed), dir .. "/random.qcow2")
      if mending.contents_of(image) and mending.repair(image, nil, nil, { all = true }) then
        local case = case_of(image, nil, { all = true, threads = 1 })
        judged = judged + cut("random damage " .. seed, case)
        fail(case)
      end
    end
    assert.is_true(judged > 20)
  end)
end)
