-- SPDX-License-Identifier: MIT
-- An image in memory together with what its disk must hold: every operation is done twice, by the core and on a
-- string. Each operation leaves a *mark*: the disk and the snapshots after it, and how far the stores' records
-- had got, so that a survivor of a power cut can be told what it may contain.
--
-- Operations work on the core's handles, without files: session.make() builds image, data file and backing file
-- as strings; session.open() opens them over stores of the caller's choice.

local core = require "qcow2.core"
local raw = require("qcow2.image").raw

local session = {}

local Session = {}
Session.__index = Session

session.SECTOR = 512

local function zeros(length)
  return ("\0"):rep(length)
end

local function cut(disk, size)
  return #disk >= size and disk:sub(1, size) or disk .. zeros(size - #disk)
end

session.cut = cut

local function copy(map)
  local out = {}
  for key, value in pairs(map) do out[key] = value end
  return out
end

--- A raw disk in memory as an image.
local function raw_image(bytes)
  local store <close> = assert(core.store_memory(bytes))
  return assert(core.image_open(store, "raw"))
end

session.raw_image = raw_image

--- The bitmaps of an image before it is written to: name -> the disk that its bits tell the changes of, false when
-- it does not follow writes.
function session.bitmaps_of(parts)
  local out = {}
  for name, follows in pairs(parts.bitmaps or {}) do out[name] = follows and parts.disk end
  return out
end

--- Opens the image in `stores.image` (with `stores.data` when it has a data file) for writing.
-- parts: disk (what it holds), snapshots (name -> disk), bitmaps (name -> does it follow writes), backing (bytes of
-- a raw backing file), backings (others by name), raw (no qcow2).
-- gives: a session, or nil, message, kind.
function session.open(stores, parts)
  local img, message, kind = core.image_open(stores.image, parts.raw and "raw" or "qcow2")
  if not img then return nil, message, kind end
  local self = setmetatable({ img = img, stores = stores, parts = parts, disk = parts.disk,
    snapshots = parts.snapshots or {}, bitmaps = session.bitmaps_of(parts), marks = {}, raw = parts.raw }, Session)
  local ok
  if stores.data then
    ok, message, kind = raw.attach_data(img, stores.data)
    if not ok then return nil, message, kind end
  end
  if parts.backing then
    local backing <close> = raw_image(parts.backing)
    assert(raw.attach_backing(img, backing))
  end
  ok, message, kind = raw.begin(img)
  if not ok then
    img:close()
    return nil, message, kind
  end
  local header = raw.header_fields(img)
  self.cluster_size = header and 1 << header.cluster_bits or 512
  self.version = header and header.version or 3
  self.raw_data = header and header.autoclear_features & 2 ~= 0
  self:mark("open", true, true)
  return self
end

-- How many operations the stores have recorded together.
function Session:recorded()
  return self.stores.image:power_count() + (self.stores.data and self.stores.data:power_count() or 0)
end

function Session:mark(verb, ok, flushed)
  self.marks[#self.marks + 1] = { at = self:recorded(), disk = self.disk, snapshots = copy(self.snapshots),
    bitmaps = copy(self.bitmaps), verb = verb, ok = ok, flushed = flushed }
end

-- ---- what each operation does to the string ------------------------------------------------

local function put(disk, offset, bytes)
  return disk:sub(1, offset) .. bytes .. disk:sub(offset + #bytes + 1)
end

local predict = {}

function predict.write(self, offset, bytes)
  return put(self.disk, offset, bytes)
end

predict.write_compressed = predict.write

function predict.zero(self, offset, length)
  return put(self.disk, offset, zeros(length))
end

function predict.discard(self, offset, length)
  local low, high, cs = offset, offset + length, self.cluster_size
  if self.version < 3 and self.parts.backing then return self.disk end
  if not (self.raw_data or self.raw) then
    low = (low + cs - 1) // cs * cs
    if high < #self.disk then high = high // cs * cs end
  end
  return low < high and put(self.disk, low, zeros(high - low)) or self.disk
end

-- What the disk grows by is clean in every bitmap.
function predict.resize(self, size)
  for name, start in pairs(self.bitmaps) do self.bitmaps[name] = start and cut(start, size) end
  return cut(self.disk, size)
end

predict.grow = predict.resize

function predict.flush(self)
  return self.disk
end

predict.finish = predict.flush
predict.set_backing = predict.flush

-- These change self.bitmaps, of which try() has made a copy.
function predict.bitmap_add(self, name, _, follows)
  self.bitmaps[name] = follows and self.disk
  return self.disk
end

function predict.bitmap_remove(self, name)
  self.bitmaps[name] = nil
  return self.disk
end

function predict.bitmap_enable(self, name, follows)
  self.bitmaps[name] = follows and (self.bitmaps[name] or self.disk)
  return self.disk
end

-- Bits were set, or all of them cleared.
function predict.bitmap_change(self, name, _, _, dirty)
  if not dirty and self.bitmaps[name] then self.bitmaps[name] = self.disk end
  return self.disk
end

predict.bitmap_merge = predict.flush

-- A raw disk is copied over the beginning of this one.
function predict.convert(self, bytes)
  return put(self.disk, 0, bytes)
end

-- Towards the metadata the disk becomes what the data file had when the image was opened.
function predict.resync(self, towards)
  return towards == "data" and self.disk or cut(self.parts.data, #self.disk)
end

predict.rebase = predict.flush
predict.amend = predict.flush

function predict.snapshot_create(self, name)
  local snapshots = copy(self.snapshots)
  snapshots[name] = self.disk
  return self.disk, snapshots
end

function predict.snapshot_apply(self, name)
  return self.snapshots[name]
end

function predict.snapshot_delete(self, name)
  local snapshots = copy(self.snapshots)
  snapshots[name] = nil
  return self.disk, snapshots
end

function predict.snapshot_rename(self, name, new)
  local snapshots = copy(self.snapshots)
  snapshots[name], snapshots[new] = nil, self.snapshots[name]
  return self.disk, snapshots
end

-- The number of the snapshot or bitmap of this name; nil, message, kind, errno.
local function number_of(self, what, name)
  local count, message, kind, errno = raw[what .. "_count"](self.img)
  if not count then return nil, message, kind, errno end
  for i = 0, count - 1 do
    local entry
    entry, message, kind, errno = raw[what .. "_entry"](self.img, i)
    if not entry then return nil, message, kind, errno end
    if entry.name == name then return i end
  end
  error("no " .. what .. " " .. name)
end

-- Calls the core's `method` with that number.
local function with_number(what, method)
  return function(self, name, ...)
    local number, message, kind, errno = number_of(self, what, name)
    if not number then return nil, message, kind, errno end
    return raw[method](self.img, number, ...)
  end
end

-- Steps a job to its end.
local function run_job(job, message, kind, errno)
  if not job then return nil, message, kind, errno end
  local done, total, more, code
  repeat
    done, total, more, code = job:step()
  until not done or not more
  job:close()
  if not done then return nil, total, more, code end
  return true
end

session.run_job = run_job

-- What the core is called with, where it is not what the session is called with.
local calls = {
  grow = function(self, size, preallocation) return raw.resize(self.img, size, false, preallocation) end,
  snapshot_create = function(self, name) return raw.snapshot_create(self.img, name, 1000000000, 5) end,
  snapshot_apply = with_number("snapshot", "snapshot_apply"),
  snapshot_delete = with_number("snapshot", "snapshot_delete"),
  snapshot_rename = with_number("snapshot", "snapshot_rename"),
  bitmap_remove = with_number("bitmap", "bitmap_remove"),
  bitmap_enable = with_number("bitmap", "bitmap_enable"),
  bitmap_change = with_number("bitmap", "bitmap_change"),
  bitmap_merge = function(self, name, from)
    local number, message, kind, errno = number_of(self, "bitmap", from)
    if not number then return nil, message, kind, errno end
    return with_number("bitmap", "bitmap_merge")(self, name, self.img, number)
  end,
  convert = function(self, bytes)
    local source <close> = raw_image(bytes)
    return run_job(core.copy({ source }, self.img, { target_exists = true, sync = true, sparse_size = 4096 }))
  end,
  -- name: one of parts.backings, or nil
  rebase = function(self, name)
    local backing <close> = name and raw_image(self.parts.backings[name]) or nil
    return run_job(core.rebase(self.img, backing, name, name and "raw", false, 1))
  end,
  resync = function(self, towards) return run_job(core.verify(self.img, towards)) end,
  amend = function(self, options) return run_job(core.amend(self.img, options)) end,
}

--- Does one operation. gives: the core's answer. A mark is left either way: a failed operation may have
-- changed some sectors.
function Session:try(verb, ...)
  local before, before_snapshots, before_bitmaps = self.disk, self.snapshots, self.bitmaps
  self.bitmaps = copy(self.bitmaps)
  local disk, snapshots = predict[verb](self, ...)
  local call = calls[verb]
  local ok, message, kind, errno
  if call then
    ok, message, kind, errno = call(self, ...)
  else
    ok, message, kind, errno = raw[verb](self.img, ...)
  end
  self.disk, self.snapshots = disk, snapshots or self.snapshots
  self:mark(verb, ok ~= nil, ok ~= nil and (verb == "flush" or verb == "finish"))
  if not ok then
    self.disk, self.snapshots, self.bitmaps = before, before_snapshots, before_bitmaps
  end
  return ok, message, kind, errno
end

-- What session:write(...) and so on raise when the core says no.
local Failure = {}
Failure.__index = Failure
Failure.__tostring = function(self) return ("%s: %s (%s)"):format(self.verb, self.message, self.kind) end

session.Failure = Failure

-- session:write(...) and so on: as try, and it has to succeed.
for verb in pairs(predict) do
  Session[verb] = function(self, ...)
    local ok, message, kind, errno = self:try(verb, ...)
    if not ok then
      error(setmetatable({ verb = verb, message = message, kind = kind, errno = errno }, Failure), 0)
    end
  end
end

--- The disk as the core reads it.
function Session:read()
  return raw.read(self.img, 0, raw.disk_bytes(self.img))
end

function Session:close()
  self.img:close()
end

-- ---- building -------------------------------------------------------------------------------

--- Builds an image as strings. parts: create (options of core.create), backing (bytes), backing_name, data (true:
-- with a data file), disk (of a raw disk: its bytes), prepare (function(session)), after (function(bytes of the
-- image), gives new ones). gives: parts with image, data, disk, snapshots filled in.
function session.make(parts)
  local made = copy(parts)
  local image = assert(core.store_memory(0))
  local data = parts.data and assert(core.store_memory(0))
  if parts.raw then
    made.disk = parts.disk
    image = assert(core.store_memory(parts.disk))
  else
    local options = copy(parts.create)
    if parts.backing then options.backing_file, options.backing_format = parts.backing_name or "backing", "raw" end
    if parts.data then options.data_file = "data" end
    assert(core.create(image, data or nil, options))
    made.disk = cut(parts.backing or "", options.size)
  end
  if parts.prepare then
    local s = assert(session.open({ image = image, data = data or nil }, made))
    parts.prepare(s)
    s:finish()
    made.disk, made.snapshots = s.disk, s.snapshots
    s:close()
  end
  made.image = image:read(0, image:length())
  made.data = data and data:read(0, data:length())
  if parts.after then made.image = parts.after(made.image) end
  image:close()
  if data then data:close() end
  return made
end

return session
