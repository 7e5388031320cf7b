-- SPDX-License-Identifier: MIT
-- Power cuts: records what an operation does to its stores, rebuilds what could be left of it at every point,
-- and judges each survivor: tables by the independent decoder, contents by what was promised, a sample of them
-- by qemu-img.
--
-- A *scenario* is a table: parts of session.make (create, backing, data, prepare), run = function(session), and
-- `whole` when the disk must be one of the marks' as a whole and not only sector by sector.

local core = require "qcow2.core"
local decoder = require "spec.support.decoder"
local random = require "spec.support.random"
local raw = require("qcow2.image").raw
local session = require "spec.support.session"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local crash = {}

local SECTOR = session.SECTOR
local COPIED, OFFSET_MASK = 1 << 63, 0x00fffffffffffe00

crash.long = os.getenv("Q2_LONG") ~= nil

local function add(list, text, ...)
  list[#list + 1] = text:format(...)
end

-- ---- tables ---------------------------------------------------------------------------------

local function bytes_of(store)
  return store:read(0, store:length())
end

--- What is corrupt (leaks are not) in the tables of an image, as sentences. While the dirty bit is set counts
-- may be wrong.
function crash.corruptions(bytes)
  local list = {}
  local ok, image = pcall(decoder.open, "memory", { bytes = bytes })
  if not ok then return { "does not open: " .. tostring(image) }, nil end
  if image.dirty then return list, image end
  local counts, who = image:references()
  local clusters = (#bytes + image.cluster_size - 1) // image.cluster_size
  for cluster, real in pairs(counts) do
    local stored = image:refcount(cluster)
    if stored < real then
      add(list, "cluster %d has count %d and %d references: %s", cluster, stored, real,
        table.concat(who[cluster], ", "))
    elseif cluster >= clusters then
      add(list, "cluster %d lies behind the end of the file: %s", cluster, table.concat(who[cluster], ", "))
    end
  end
  local function copied(word, offset, what, ...)
    if (word & COPIED ~= 0) ~= (image:refcount(offset // image.cluster_size) == 1) then
      add(list, what .. " has COPIED wrong", ...)
    end
  end
  for i = 0, image.header.l1_size - 1 do
    local offset = image.l1[i] & OFFSET_MASK
    if offset ~= 0 then
      copied(image.l1[i], offset, "L1 entry %d", i)
      local l2 = image:l2(offset)
      for j = 0, image.l2_entries - 1 do
        local compressed = l2[j] & 1 << 62 ~= 0
        if compressed and l2[j] & COPIED ~= 0 then
          add(list, "L2 entry %d of table %d is compressed and COPIED", j, i)
        elseif not compressed and not image.external_data and l2[j] & OFFSET_MASK ~= 0 then
          copied(l2[j], l2[j] & OFFSET_MASK, "L2 entry %d of table %d", j, i)
        end
      end
    end
  end
  return list, image
end

-- ---- contents -------------------------------------------------------------------------------

-- A sector of a mark's disk; behind its end zeros.
local function sector(disk, at)
  local bytes = disk:sub(at + 1, at + SECTOR)
  return #bytes == SECTOR and bytes or bytes .. ("\0"):rep(SECTOR - #bytes)
end

--- Is `got` what one of the marks has, as a whole or (not `whole`) sector by sector? gives: nil or a sentence.
function crash.disk_problem(got, marks, whole)
  local size_known = false
  for _, mark in ipairs(marks) do
    if mark.disk == got then return nil end
    size_known = size_known or #mark.disk == #got
  end
  if not size_known then return ("the disk has %d bytes"):format(#got) end
  if whole then return "the disk is neither the old nor the new one" end
  for at = 0, #got - 1, SECTOR do
    local here, known = sector(got, at), false
    for i = #marks, 1, -1 do
      if sector(marks[i].disk, at) == here then
        known = true
        break
      end
    end
    if not known then
      return ("sector %d at %d is neither old nor new: %q"):format(at // SECTOR, at, here:sub(1, 8))
    end
  end
end

local function sorted_names(map)
  local names = {}
  for name in pairs(map) do names[#names + 1] = name end
  table.sort(names)
  return table.concat(names, ",")
end

-- Every snapshot that is listed holds what it held; none that stood before and after is lost.
local function snapshot_problems(list, img, marks)
  local count, message = raw.snapshot_count(img)
  if not count then return add(list, "snapshots cannot be listed: %s", message) end
  local listed = {}
  for i = 0, count - 1 do
    local entry = raw.snapshot_entry(img, i)
    local view, why = raw.open_snapshot(img, i)
    local got
    if view then
      got, why = raw.read(view, 0, raw.disk_bytes(view))
      view:close()
    end
    if not got then
      add(list, "snapshot %s cannot be read: %s", entry.name, why)
      got = false
    end
    listed[entry.name] = got
  end
  for _, mark in ipairs(marks) do
    if sorted_names(mark.snapshots) == sorted_names(listed) then
      for name, disk in pairs(mark.snapshots) do
        if listed[name] and listed[name] ~= disk then add(list, "snapshot %s has changed", name) end
      end
      return
    end
  end
  add(list, "the list of snapshots is neither the old nor the new one: %s", sorted_names(listed))
end

-- Is every sector set in the bitmap that is not as it was at `start`? gives: nil, or where one is not.
local function missed(image, bitmap, start, got)
  local dirty = {}
  for _, range in ipairs(image:bitmap_ranges(bitmap)) do
    for at = range.offset // SECTOR, (range.offset + range.length - 1) // SECTOR do dirty[at] = true end
  end
  for at = 0, #got - 1, SECTOR do
    if got:sub(at + 1, at + SECTOR) ~= start:sub(at + 1, at + SECTOR) and not dirty[at // SECTOR] then return at end
  end
end

-- The bitmaps are those of one of the marks. Each that follows writes is marked in use or true about every sector
-- that changed; after the end of writing it is true.
local function bitmap_problems(list, image, got, parts, marks)
  if not parts.bitmaps then return end
  local listed, ended = {}, #marks == 1 and marks[1].verb == "finish"
  for _, bitmap in ipairs(image.bitmaps) do listed[bitmap.name] = true end
  if next(listed) and image.header.autoclear_features & 1 == 0 then add(list, "the bitmaps' autoclear bit is off") end
  local last
  for _, mark in ipairs(marks) do
    if sorted_names(mark.bitmaps) == sorted_names(listed) then
      local problems = {}
      for name, start in pairs(mark.bitmaps) do
        local bitmap = image.bitmaps[name]
        if bitmap.in_use then
          if ended or not start then add(problems, "bitmap %s is marked in use", name) end
        elseif start then
          local at = missed(image, bitmap, start, got)
          if at then add(problems, "bitmap %s misses the change at %d", name, at) end
        end
      end
      if #problems == 0 then return end
      last = problems
    end
  end
  last = last or { "the list of bitmaps is neither the old nor the new one: " .. sorted_names(listed) }
  table.move(last, 1, #last, #list + 1, list)
end

--- Judges one survivor. `image`, `data`: its bytes; marks: what it may hold; parts: of session.make.
-- gives: list of sentences, the disk's bytes, and whether the image is dirty.
function crash.judge(image_bytes, data_bytes, marks, parts, whole)
  local list, image
  if parts.raw then
    local problem = crash.disk_problem(session.cut(image_bytes, (#image_bytes + SECTOR - 1) // SECTOR * SECTOR),
      marks, whole)
    return { problem }, image_bytes, false
  end
  list, image = crash.corruptions(image_bytes)
  if not image then return list end
  local store <close> = assert(core.store_memory(image_bytes))
  local img <close>, message = core.image_open(store, "qcow2")
  if not img then
    add(list, "does not open: %s", message)
    return list
  end
  local data <close> = data_bytes and assert(core.store_memory(data_bytes)) or nil
  if data then assert(raw.attach_data(img, data)) end
  local below = image.backing_file and (parts.backings and parts.backings[image.backing_file] or parts.backing)
  if below then
    local backing <close> = session.raw_image(below)
    assert(raw.attach_backing(img, backing))
  end
  local got
  got, message = raw.read(img, 0, raw.disk_bytes(img))
  if not got then
    add(list, "cannot be read: %s", message)
    return list, nil, image.dirty
  end
  list[#list + 1] = crash.disk_problem(got, marks, whole)
  snapshot_problems(list, img, marks)
  bitmap_problems(list, image, got, parts, marks)
  if image.backing_file and image.backing_format ~= "raw" then add(list, "the backing file has lost its format") end
  if image.data_file_raw and session.cut(data_bytes, #got) ~= got then
    list[#list + 1] = "the raw data file is not the disk"
  end
  return list, got, image.dirty
end

-- ---- qemu-img -------------------------------------------------------------------------------

local judge_dir

--- What qemu-img says: no corruption (a dirty image: none after a repair), and the same contents.
function crash.ask_qemu(image_bytes, data_bytes, parts, got, dirty)
  judge_dir = judge_dir or tmp.dir("qemu")
  local path = judge_dir .. "/image"
  sh.spit(path, image_bytes)
  if data_bytes then sh.spit(judge_dir .. "/data", data_bytes) end
  if parts.backing then
    sh.spit(judge_dir .. "/backing", parts.backing)
    sh.spit(judge_dir .. "/backing elsewhere", parts.backing)
  end
  for name, bytes in pairs(parts.backings or {}) do sh.spit(judge_dir .. "/" .. name, bytes) end
  sh.spit(judge_dir .. "/want", got)
  local script = [[
qemu-img check -f qcow2 $repair image >report 2>&1; code=$?
if [ -n "$repair" ]; then qemu-img check -f qcow2 image >report 2>&1; code=$?; fi
[ $code = 0 ] || [ $code = 3 ] || { cat report; exit 1; }
qemu-img compare -f qcow2 -F raw image want]]
  local result = sh.run("repair='" .. (dirty and "-r all" or "") .. "'; " .. script, { cwd = judge_dir })
  if result.code ~= 0 then return "qemu-img: " .. result.stdout .. result.stderr end
end

-- ---- survivors ------------------------------------------------------------------------------

-- All operations of both stores in the order they were done: list of { store, index, kind, offset, length }.
local function record_of(stores)
  local list = {}
  for _, name in ipairs { "image", "data" } do
    local store = stores[name]
    for i = 0, store and store:power_count() - 1 or -1 do
      local kind, offset, length, sequence = store:power_op(i)
      list[#list + 1] = { store = name, index = i, kind = kind, offset = offset, length = length,
        sequence = sequence }
    end
  end
  table.sort(list, function(a, b) return a.sequence < b.sequence end)
  return list
end

-- Indices into the record of what is not flushed when the power goes after `count` operations.
local function unflushed(record, count)
  local flushed, list = {}, {}
  for i = count, 1, -1 do
    local op = record[i]
    if op.kind == "f" then
      flushed[op.store] = true
    elseif not flushed[op.store] then
      table.insert(list, 1, i)
    end
  end
  return list
end

-- Bytes after which a torn write may stop: the sector's end that lies in the middle of it, nil when it has none.
local function tear(rng, op)
  local first = SECTOR - op.offset % SECTOR
  if op.kind ~= "w" or op.length <= first then return nil end
  return first + rng:int(0, (op.length - first - 1) // SECTOR) * SECTOR
end

-- Does `op` write only a part of a sector that `earlier` changed too?
local function shares_sector(op, earlier)
  if op.kind == "r" or op.store ~= earlier.store or earlier.kind == "r" then return false end
  local first, last = op.offset // SECTOR, (op.offset + op.length - 1) // SECTOR
  local function in_part(at)
    return at * SECTOR < earlier.offset + earlier.length and earlier.offset < (at + 1) * SECTOR
  end
  return op.offset % SECTOR ~= 0 and in_part(first) or (op.offset + op.length) % SECTOR ~= 0 and in_part(last)
end

-- Disks write whole sectors: who wrote a part of one also wrote what stood there, so that what came before it
-- is not lost when it is kept. gives: whether `torn` may still be torn.
local function keep_sectors(record, loose, dropped, torn)
  for n = #loose, 1, -1 do
    local i = loose[n]
    for m = not dropped[i] and n - 1 or 0, 1, -1 do
      local j = loose[m]
      if (dropped[j] or j == torn) and shares_sector(record[i], record[j]) then
        dropped[j] = nil
        if j == torn then torn = nil end
      end
    end
  end
  return torn
end

-- Calls yield(dropped, torn, torn_bytes) for the survivors of a cut after `count` operations, at most `most`:
-- every subset when there are few enough, else samples. The last operation is always there, whole or torn:
-- without it the survivor is one of an earlier cut.
local function each_survivor(record, count, most, rng, yield)
  local loose = unflushed(record, count)
  local last = loose[#loose]
  yield({})
  if count == 0 or last ~= count then return end
  local others = #loose - 1
  local every = others <= 20 and 1 << others <= most
  for n = 1, every and (1 << others) - 1 or most - 1 do
    local dropped = {}
    local percent = rng:pick { 10, 50, 90, 100 }
    for i = 1, others do
      if every and n >> (i - 1) & 1 == 1 or not every and rng:chance(percent) then dropped[loose[i]] = true end
    end
    local torn, torn_bytes
    if rng:chance(25) then
      torn = rng:pick(loose)
      torn_bytes = not dropped[torn] and tear(rng, record[torn]) or nil
      torn = torn_bytes and torn
    end
    torn = keep_sectors(record, loose, dropped, torn)
    yield(dropped, torn, torn and torn_bytes)
  end
  local torn_bytes = tear(rng, record[last])
  if torn_bytes then yield({}, last, torn_bytes) end
end

-- The bytes of one store as such a survivor has them.
local function rebuild(stores, name, record, count, dropped, torn, torn_bytes)
  local store, keep, total, torn_index = stores[name], {}, 0, nil
  if not store then return nil end
  for i = 1, count do
    local op = record[i]
    if op.store == name then
      total = total + 1
      keep[total] = dropped[i] and "\0" or "\1"
      if i == torn then torn_index = op.index end
    end
  end
  local left <close> = assert(store:power_replay(total, table.concat(keep), torn_index, torn_index and torn_bytes))
  return bytes_of(left)
end

-- For those who judge other things by the same cuts.
crash.record_of, crash.each_survivor, crash.rebuild, crash.bytes_of = record_of, each_survivor, rebuild, bytes_of

-- The marks that a survivor of a cut after `count` operations may show: from the last one that was flushed by
-- then up to the operation that was under way.
function crash.marks_at(marks, count)
  local first = 1
  for i, mark in ipairs(marks) do
    if mark.flushed and mark.at <= count then first = i end
  end
  local out = {}
  for i = first, #marks do
    out[#out + 1] = marks[i]
    if marks[i].at >= count and i > first and not (marks[i + 1] and marks[i + 1].at == marks[i].at) then break end
  end
  return out
end

local function describe_survivor(record, count, dropped, torn, torn_bytes)
  local out = { ("power cut after %d of %d operations; not flushed:"):format(count, #record) }
  for _, i in ipairs(unflushed(record, count)) do
    local op = record[i]
    add(out, "  %d: %s %s %#x+%d %s", i, op.store, op.kind, op.offset, op.length,
      dropped[i] and "lost" or i == torn and ("torn at %d"):format(torn_bytes) or "kept")
  end
  return table.concat(out, "\n")
end

--- Records scenario.run over power stores. gives: the session and the stores.
function crash.record(parts, run)
  local inner = assert(core.store_memory(parts.image))
  local stores = { image = assert(inner:power()) }
  if parts.data then stores.data = assert(assert(core.store_memory(parts.data)):power(stores.image)) end
  local s, message = session.open(stores, parts)
  if not s then error(message) end
  run(s)
  s:finish()
  s:close()
  return s, stores
end

-- Raises the report of a survivor that breaks a promise.
local function report(name, record, count, dropped, torn, torn_bytes, during, problems)
  error(("%s (Q2_SEED=%s)\n%s\nduring: %s\n%s"):format(name, os.getenv("Q2_SEED") or 0,
    describe_survivor(record, count, dropped, torn, torn_bytes), during, table.concat(problems, "\n")), 0)
end

--- Cuts the power at every point of what `stores` (image, data: joined power stores) have recorded.
-- judge(count, image bytes, data bytes, is_end) gives a list of sentences and what happens then, in words.
-- gives: how many survivors were judged.
function crash.cut(name, stores, rng, judge)
  local record = record_of(stores)
  local most, cuts = crash.long and 200 or 6, crash.long and math.huge or 60
  local share = #record > cuts and 100 * cuts // #record or 100
  local judged = 0
  for count = 0, #record do
    if count == #record or rng:chance(share) then
      each_survivor(record, count, most, rng, function(dropped, torn, torn_bytes)
        local image = rebuild(stores, "image", record, count, dropped, torn, torn_bytes)
        local data = rebuild(stores, "data", record, count, dropped, torn, torn_bytes)
        judged = judged + 1
        local problems, during = judge(count, image, data, count == #record)
        if #problems > 0 then report(name, record, count, dropped, torn, torn_bytes, during, problems) end
      end)
    end
  end
  return judged
end

--- Plays a scenario through: every cut, and of what was not flushed every subset or a sample of them. Raises on
-- the first survivor that breaks a promise. gives: how many survivors were judged.
function crash.play(name, scenario)
  local parts = session.make(scenario)
  local s, stores = crash.record(parts, scenario.run)
  local rng = random.new(name)
  local judged = crash.cut(name, stores, rng, function(count, image, data, is_end)
    local marks, verbs = crash.marks_at(s.marks, count), {}
    local problems, got, dirty = crash.judge(image, data, marks, parts, scenario.whole)
    local ask = rng:int(1, 1000) <= (is_end and (crash.long and 1000 or 100) or 5)
    if #problems == 0 and not parts.raw and ask then
      problems[1] = crash.ask_qemu(image, data, parts, got, dirty)
    end
    for i, mark in ipairs(marks) do verbs[i] = mark.verb end
    return problems, table.concat(verbs, ", ")
  end)
  for _, store in pairs(stores) do store:close() end
  return judged
end

--- Cuts the power while an image is made. case: create (options of core.create), old (bytes that the store holds
-- before), data (bytes of the data file before). Each survivor is no qcow2 image yet, or the whole new one;
-- with create.keep_data_file the data file is never written.
function crash.play_create(name, case)
  local stores = { image = assert(core.store_memory(case.old or 0)):power() }
  if case.data then stores.data = assert(core.store_memory(case.data)):power(stores.image) end
  assert(core.create(stores.image, stores.data, case.create))
  local kept, parts = case.create.keep_data_file, { backing = case.backing }
  local disk = session.cut(kept and case.data or case.backing or "", case.create.size)
  local rng = random.new(name)
  local judged = crash.cut(name, stores, rng, function(count, image, data, is_end)
    local list = {}
    if kept and data ~= case.data then add(list, "the data file was written to") end
    if count > 0 and image == case.old then return list, "nothing" end
    if image:sub(1, 4) == "QFI\xfb" and not (count == 0 and case.old) then
      local problems, got, dirty = crash.judge(image, data, { { disk = disk, snapshots = {} } }, parts, true)
      table.move(problems, 1, #problems, #list + 1, list)
      if #list == 0 and is_end then list[1] = crash.ask_qemu(image, data, parts, got, dirty) end
    elseif is_end then
      add(list, "there is no image at the end")
    end
    return list, "create"
  end)
  for _, store in pairs(stores) do store:close() end
  return judged
end

--- Cuts the power while an overlay is committed into its base. case: create (options of both), keep, base and
-- overlay: functions that write to a session. The overlay never shows anything else; the base's sectors are old or
-- new.
function crash.play_commit(name, case)
  local base = session.make({ create = case.create, prepare = case.base })
  local over = { backing_file = "base", backing_format = "qcow2" }
  for key, value in pairs(case.create) do over[key] = value end
  local top <close> = assert(core.store_memory(0))
  assert(core.create(top, nil, over))
  local stores = { image = assert(core.store_memory(base.image)):power() }
  -- The overlay's own contents are written before anything is recorded.
  local function open_over(top_store, base_store)
    local below = assert(core.image_open(base_store, "qcow2"))
    local img = assert(core.image_open(top_store, "qcow2"))
    assert(raw.attach_backing(img, below))
    return img, below
  end
  local img, below = open_over(top, stores.image)
  assert(raw.begin(img))
  case.overlay(img)
  assert(raw.finish(img))
  local view = assert(raw.read(img, 0, raw.disk_bytes(img)))
  img:close()
  below:close()
  stores.data = top:power(stores.image)
  img, below = open_over(stores.data, stores.image)
  assert(raw.begin(below))
  if not case.keep then assert(raw.begin(img)) end
  assert(session.run_job(core.commit(img, below, case.keep or false, 0, 1)))
  assert(raw.finish(below))
  assert(raw.finish(img))
  img:close()
  below:close()
  local marks = { { disk = base.disk, snapshots = {} }, { disk = view, snapshots = {} } }
  local judged = crash.cut(name, stores, random.new(name), function(_, image, data, is_end)
    local list = crash.judge(image, nil, is_end and { marks[2] } or marks, {}, false)
    local problems = crash.corruptions(data)
    for _, problem in ipairs(problems) do add(list, "overlay: %s", problem) end
    local base_store <close> = assert(core.store_memory(image))
    local top_store <close> = assert(core.store_memory(data))
    local over_img <close>, base_img = open_over(top_store, base_store)
    if raw.read(over_img, 0, raw.disk_bytes(over_img)) ~= view then add(list, "the overlay shows something else") end
    base_img:close()
    return list, "commit"
  end)
  for _, store in pairs(stores) do store:close() end
  return judged
end

return crash
