-- SPDX-License-Identifier: MIT
-- Ours beside QEMU's tools and beside the decoder, on one image. Each function gives a list of differences as
-- sentences: empty when all is the same. Sentences are short however large the disk.

local decoder = require "spec.support.decoder"
local qemu = require "spec.support.qemu"
local random = require "spec.support.random"
local sh = require "spec.support.sh"

local judge = {}

local MOST = 8 -- differences named of one kind

local function add(list, text, ...)
  if #list < MOST then list[#list + 1] = text:format(...) end
end

local function show(value)
  if type(value) == "string" then return ("%q"):format(#value > 60 and value:sub(1, 60) .. "..." or value) end
  return tostring(value)
end

--- Where two strings begin to differ, as a sentence; nil when they are equal.
function judge.bytes(ours, theirs, what)
  if ours == theirs then return nil end
  local low, high = 0, math.min(#ours, #theirs) -- equal up to low
  while low < high do
    local middle = (low + high + 1) // 2
    if ours:sub(low + 1, middle) == theirs:sub(low + 1, middle) then low = middle else high = middle - 1 end
  end
  return ("%s: %d bytes of ours, %d of theirs, different from byte %d on: %s beside %s"):format(what, #ours,
    #theirs, low, show(ours:sub(low + 1, low + 8)), show(theirs:sub(low + 1, low + 8)))
end

-- Members that ours has and qemu-img 7.2 has not: `children` and a raw image's `format-specific` came with
-- QEMU 8; the data file's are our own.
local NEW_MEMBERS = { ["children"] = true, ["data-file-path"] = true, ["data-file-note"] = true }

local function is_new(key, object)
  return NEW_MEMBERS[key] or key == "format-specific" and object.format == "raw"
end

local function compare_json(list, ours, theirs, where)
  if type(ours) ~= "table" or type(theirs) ~= "table" then
    if ours ~= theirs then add(list, "%s: ours says %s, qemu-img %s", where, show(ours), show(theirs)) end
    return
  end
  for key, value in pairs(theirs) do
    compare_json(list, ours[key], value, ("%s.%s"):format(where, key))
  end
  for key in pairs(ours) do
    if theirs[key] == nil and not is_new(key, ours) then add(list, "%s: only ours has %s", where, key) end
  end
end

local function our_json(words, image)
  local result = sh.run({ sh.build() .. "/bin/qcow2", table.unpack(words) }, { cwd = image.dir })
  if result.code ~= 0 then
    return nil, ("%s: exit code %d: %s"):format(table.concat(words, " ", 1, 2), result.code, result.stderr)
  end
  return qemu.decode(result.stdout)
end

-- The words that name the image to ours and to QEMU's tools alike.
local function operand(image, with_format)
  if image.qemu_options then return { "--image-opts", image.qemu } end
  return with_format and { "-f", "qcow2", image.path } or { image.path }
end

local function words_of(verb, image, ...)
  local words = { verb, ... }
  for _, word in ipairs(operand(image, true)) do words[#words + 1] = word end
  return words
end

local ATTEMPTS = 4

-- The host may still be giving space to a file written a moment ago, and tells a preallocated stretch as a hole until
-- somebody has read it: what differs in the first look is looked at again. A true difference stays.
local function look_again(look)
  local list
  for _ = 1, ATTEMPTS do
    list = look()
    if #list == 0 then break end
  end
  return list
end

local function compare_info(image, ...)
  local words = words_of("info", image, "--output=json", ...)
  return look_again(function()
    local list = {}
    local theirs = qemu.decode(sh.check({ "qemu-img", table.unpack(words) }, { cwd = image.dir }).stdout)
    local ours, message = our_json(words, image)
    if not ours then return { message } end
    compare_json(list, ours, theirs, "info")
    return list
  end)
end

--- `info --output=json`.
function judge.info(image)
  return compare_info(image)
end

--- `info --backing-chain --output=json`.
function judge.info_chain(image)
  return compare_info(image, "--backing-chain")
end

local MAP_MEMBERS = { "depth", "present", "zero", "data" }

-- Runs that say the same and go on where the last one ended become one. QEMU also tells the place kept for
-- subclusters that hold nothing, ours does not: where nothing is present, no place is compared.
local function merge(entries)
  local list = {}
  for _, e in ipairs(entries) do
    local last = list[#list]
    if not e.present then e.offset = nil end
    local same = last and last.start + last.length == e.start
      and (last.offset and last.offset + last.length) == e.offset
    for _, member in ipairs(MAP_MEMBERS) do same = same and last[member] == e[member] end
    if same then
      last.length = last.length + e.length
    else
      list[#list + 1] = { start = e.start, length = e.length, offset = e.offset, depth = e.depth,
        present = e.present, zero = e.zero, data = e.data }
    end
  end
  return list
end

local function say(e)
  if not e then return "nothing" end
  return ("[%d, +%d] depth %d%s%s%s%s"):format(e.start, e.length, e.depth, e.present and " present" or "",
    e.zero and " zero" or "", e.data and " data" or "", e.offset and " at " .. e.offset or "")
end

-- Where QEMU says "data" in an external data file, ours may say "zero" for a hole of the host's; the
-- contents decide elsewhere. Ours is then given QEMU's words, piece by piece.
local function excuse_holes(ours, theirs)
  local list, j = {}, 1
  for _, e in ipairs(ours) do
    local at, stop = e.start, e.start + e.length
    while at < stop do
      while theirs[j] and theirs[j].start + theirs[j].length <= at do j = j + 1 end
      local t = theirs[j]
      local to = t and math.min(stop, t.start + t.length) or stop
      local piece = { start = at, length = to - at, depth = e.depth, present = e.present, zero = e.zero,
        data = e.data, offset = e.offset and e.offset + at - e.start }
      local there = t and t.offset and t.offset + at - t.start
      if t and e.zero and not e.data and t.data and not t.zero and t.depth == e.depth
        and (piece.offset == nil or piece.offset == there)
      then
        piece.zero, piece.data, piece.offset = false, true, there
      end
      list[#list + 1] = piece
      at = to
    end
  end
  return merge(list)
end

local function compare_map(image, holes)
  local list = {}
  local words = words_of("map", image, "--output=json")
  local theirs = qemu.decode(sh.check({ "qemu-img", table.unpack(words) }, { cwd = image.dir }).stdout)
  local ours, message = our_json(words, image)
  if not ours then return { message } end
  for _, e in ipairs(ours) do
    if type(e.compressed) ~= "boolean" then add(list, "run at %s: no member `compressed`", e.start) end
  end
  ours, theirs = merge(ours), merge(theirs)
  if holes then ours = excuse_holes(ours, theirs) end
  for i = 1, math.max(#ours, #theirs) do
    if say(ours[i]) ~= say(theirs[i]) then
      add(list, "run %d: ours %s, qemu-img %s", i, say(ours[i]), say(theirs[i]))
      break
    end
  end
  return list
end

--- `map --output=json`, adjacent equal runs merged. holes: the documented difference of data files.
function judge.map(image, holes)
  return look_again(function() return compare_map(image, holes) end)
end

--- The human `map` of the whole disk or of a part (words: --start-offset=N, --max-length=N): the same text
-- and the same exit code.
function judge.map_text(image, ...)
  local words = words_of("map", image, ...)
  return look_again(function()
    local theirs = sh.run({ "qemu-img", table.unpack(words) }, { cwd = image.dir })
    local ours = sh.run({ sh.build() .. "/bin/qcow2", table.unpack(words) }, { cwd = image.dir })
    local list = { judge.bytes(ours.stdout, theirs.stdout, "the text of map") }
    if ours.code ~= theirs.code then add(list, "map: exit code %d, qemu-img's %d", ours.code, theirs.code) end
    if ours.stderr:gsub("^qcow2: ", "qemu-img: ") ~= theirs.stderr then
      add(list, "map: error %s, qemu-img's %s", show(ours.stderr), show(theirs.stderr))
    end
    return list
  end)
end

--- The whole disk by QEMU's convert.
function judge.truth(image)
  local scratch = image.dir .. "/truth.raw"
  return qemu.read_all(image.qemu, scratch, image.qemu_options and { image_opts = true, cwd = image.dir })
end

--- All bytes, and unaligned pieces, read through the Lua module (`img`: an open image).
function judge.reads(img, truth, seed)
  local list = {}
  if img.size ~= #truth then add(list, "the disk has %d bytes, theirs %d", img.size, #truth) end
  local all, message = img:read(0, #truth)
  if not all then return { ("read of the whole disk: %s"):format(message) } end
  local difference = judge.bytes(all, truth, "the whole disk")
  if difference then add(list, "%s", difference) end
  local rng = random.new(seed)
  for _ = 1, #truth > 0 and 60 or 0 do
    local offset = rng:int(0, #truth - 1)
    local length = math.min(rng:pick { 1, 7, 512, 4097, 70001, 300000 }, #truth - offset)
    local bytes, why = img:read(offset, length)
    if not bytes then
      add(list, "read of %d bytes at %d: %s", length, offset, why)
    else
      difference = judge.bytes(bytes, truth:sub(offset + 1, offset + length),
        ("%d bytes at %d"):format(length, offset))
      if difference then add(list, "%s", difference) end
    end
  end
  return list
end

--- Our `convert -O raw` beside the truth. words: more options.
function judge.convert(image, truth, ...)
  local target = image.dir .. "/ours.raw"
  local words = words_of("convert", image, "-O", "raw", ...)
  words[#words + 1] = target
  local result = sh.run({ sh.build() .. "/bin/qcow2", table.unpack(words) }, { cwd = image.dir })
  if result.code ~= 0 or result.stderr ~= "" then
    return { ("convert: exit code %d: %s"):format(result.code, result.stderr) }
  end
  local bytes = sh.slurp(target)
  os.remove(target)
  return { judge.bytes(bytes, truth, "the converted file") }
end

-- Beside the decoder.

local function runs(extents)
  local list = {}
  for _, e in ipairs(extents) do
    local last = list[#list]
    local host = e.kind ~= "unallocated" and e.host_offset or nil
    if last and e.kind ~= "compressed" and last.kind == e.kind and last.offset + last.length == e.offset
      and (last.host_offset and last.host_offset + last.length) == host
    then
      last.length = last.length + e.length
    else
      list[#list + 1] = { offset = e.offset, length = e.length, kind = e.kind, host_offset = host,
        host_length = e.kind == "compressed" and e.host_length or nil }
    end
  end
  return list
end

local function say_run(e)
  if not e then return "nothing" end
  return ("[%d, +%d] %s%s%s"):format(e.offset, e.length, e.kind, e.host_offset and " at " .. e.host_offset or "",
    e.host_length and " of " .. e.host_length or "")
end

--- The map of this image alone, beside the decoder's. snapshot: number of a snapshot in the table, when
-- `img` is the disk as that one has it.
function judge.layer(img, path, snapshot)
  local list, ours = {}, {}
  local theirs <close> = decoder.open(path)
  for e in img:extents({ layer = true }) do
    if e.hole then e.kind = "data" end -- the tables say data, the host has a hole there
    ours[#ours + 1] = e
  end
  ours = runs(ours)
  local expected = runs(theirs:map(snapshot and theirs.snapshots[snapshot]))
  for i = 1, math.max(#ours, #expected) do
    if say_run(ours[i]) ~= say_run(expected[i]) then
      add(list, "run %d: ours %s, the decoder %s", i, say_run(ours[i]), say_run(expected[i]))
      break
    end
  end
  return list
end

local function compare_fields(list, ours, theirs, names, where)
  for _, name in ipairs(names) do
    if ours[name] ~= theirs[name] then
      add(list, "%s.%s: ours %s, the decoder %s", where, name, show(ours[name]), show(theirs[name]))
    end
  end
end

local HEADER = { "magic", "version", "backing_file_offset", "backing_file_size", "cluster_bits", "size",
  "crypt_method", "l1_size", "l1_table_offset", "refcount_table_offset", "refcount_table_clusters",
  "nb_snapshots", "snapshots_offset", "incompatible_features", "compatible_features", "autoclear_features",
  "refcount_order", "header_length" }

local function compare_l2(list, ours, theirs, i)
  local offset = theirs.l1[i] & 0x00fffffffffffe00
  if ours.offset ~= offset then add(list, "l1[%d].offset: ours %s, the decoder %d", i, show(ours.offset), offset) end
  if offset == 0 then
    if ours.l2 ~= nil then add(list, "l1[%d] has an l2 and no offset", i) end
    return
  end
  local table, mine = theirs:l2(offset), ours.l2
  for j = 0, theirs.l2_entries - 1, math.max(1, theirs.l2_entries // 64) do
    local entry = mine[j]
    if entry.raw ~= table[j] or entry.bitmap ~= table.bitmaps[j] then
      add(list, "l1[%d].l2[%d]: ours %s %s, the decoder %d %s", i, j, show(entry.raw), show(entry.bitmap),
        table[j], show(table.bitmaps[j]))
    end
  end
end

--- Header, extensions, tables, reference counts, snapshots, bitmaps beside the decoder's.
function judge.tables(img, path)
  local list = {}
  local theirs <close> = decoder.open(path)
  compare_fields(list, img.header, theirs.header, HEADER, "header")
  compare_fields(list, img, theirs, { "cluster_size", "subcluster_size", "refcount_bits", "extended_l2",
    "backing_file", "backing_format", "data_file", "dirty", "corrupt", "external_data" }, "image")
  for i = 1, math.max(#img.extensions, #theirs.extensions) do
    compare_fields(list, img.extensions[i] or {}, theirs.extensions[i] or {},
      { "type", "name", "offset", "length", "data" }, ("extensions[%d]"):format(i))
  end
  if #img.l1 ~= theirs.header.l1_size then add(list, "l1 has %d entries", #img.l1) end
  for i = 0, theirs.header.l1_size - 1 do
    if img.l1[i].raw ~= theirs.l1[i] then add(list, "l1[%d]: %d, the decoder %d", i, img.l1[i].raw, theirs.l1[i]) end
    compare_l2(list, img.l1[i], theirs, i)
  end
  local clusters = (theirs.length + theirs.cluster_size - 1) // theirs.cluster_size
  for cluster = 0, clusters + 1, math.max(1, clusters // 3000) do
    local count = img:refcount(cluster)
    if count ~= theirs:refcount(cluster) then
      add(list, "refcount(%d): ours %s, the decoder %d", cluster, show(count), theirs:refcount(cluster))
    end
  end
  if #img.snapshots ~= #theirs.snapshots then add(list, "%d snapshots", #img.snapshots) end
  for i, s in ipairs(theirs.snapshots) do
    compare_fields(list, img.snapshots[i] or {}, s, { "id", "name", "size", "l1_offset", "l1_entries",
      "vm_state_size", "date_sec", "date_nsec", "vm_clock_nsec", "icount", "extra_data" }, "snapshots." .. i)
  end
  if #img.bitmaps ~= #theirs.bitmaps then add(list, "%d bitmaps", #img.bitmaps) end
  for i, b in ipairs(theirs.bitmaps) do
    compare_fields(list, img.bitmaps[i] or {}, b, { "name", "granularity", "auto", "in_use", "type",
      "table_offset", "table_entries", "extra_data" }, "bitmaps." .. i)
  end
  return list
end

--- The dirty ranges of every bitmap beside the decoder's.
function judge.bitmaps(img, path)
  local list = {}
  local theirs <close> = decoder.open(path)
  for _, b in ipairs(theirs.bitmaps) do
    local bitmap, message = img:bitmap(b.name)
    if not bitmap then
      add(list, "bitmap %s: %s", show(b.name), message)
    else
      local ours, expected = {}, {}
      for offset, length in bitmap:extents() do
        local last = ours[#ours]
        if last and last.offset + last.length == offset then
          last.length = last.length + length
        else
          ours[#ours + 1] = { offset = offset, length = length }
        end
      end
      for i, r in ipairs(ours) do ours[i] = ("%d+%d"):format(r.offset, r.length) end
      for i, r in ipairs(theirs:bitmap_ranges(b)) do expected[i] = ("%d+%d"):format(r.offset, r.length) end
      if table.concat(ours, " ") ~= table.concat(expected, " ") then
        add(list, "bitmap %s: ours %s, the decoder %s", show(b.name), show(table.concat(ours, " ")),
          show(table.concat(expected, " ")))
      end
    end
  end
  return list
end

return judge
