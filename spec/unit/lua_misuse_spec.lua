-- SPDX-License-Identifier: MIT
-- What the manual forbids raises, with the argument named; nothing that Lua code does to the core's classes ends
-- in anything but an error.
local core = require "qcow2.core"
local forge = require "spec.support.forge"
local qcow2 = require "qcow2"
local raw = require("qcow2.image").raw
local tmp = require "spec.support.tmp"

local path = tmp.path("image.qcow2")
forge.write(path, { clusters = { [0] = { data = "data" } }, snapshots = { { name = "s" } },
  bitmaps = { { name = "b" } } })

local function raises(words, call, ...)
  local arguments = table.pack(...)
  local fine, message = pcall(function()
    local result = call(table.unpack(arguments, 1, arguments.n)) -- no tail call: this line is to be blamed
    return result
  end)
  assert.is_false(fine, "nothing was raised")
  assert.is_truthy(tostring(message):find(words, 1, true), message)
  return message
end

describe("Options of open", function()
  local wrong = {
    mode = { "w", "", true, 1, {} }, format = { "vmdk", "", "QCOW2", true, 7 },
    references = { "all", "", 1, true, { 5 }, { "dir", {} } }, data_file = { 1, true, {}, print },
    backing = { 1, true, {}, print, io.stdout }, backing_format = { "vdi", 1, true }, snapshot = { 1, true, {} },
    force_share = { 1, "yes", {} },
  }
  for name, values in pairs(wrong) do
    it("of a wrong type raise, naming the option: " .. name, function()
      for _, value in ipairs(values) do
        local message = raises(name, qcow2.open, path, { [name] = value })
        assert.is_truthy(message:find("lua_misuse_spec", 1, true), "the caller is not blamed: " .. message)
      end
    end)
  end

  it("that nobody knows raise, with the list of known ones", function()
    for _, key in ipairs { "modus", "Mode", 1, true } do
      local message = raises(("unknown option '%s'"):format(tostring(key)), qcow2.open, path, { [key] = "r" })
      assert.is_truthy(message:find("backing_format", 1, true), message)
    end
  end)

  it("that exclude one another raise", function()
    raises("excludes", qcow2.open, path, { mode = "rw", force_share = true })
    raises("excludes", qcow2.open, path, { mode = "rw", snapshot = "s" })
  end)

  it("that are no table raise", function()
    raises("options must be a table", qcow2.open, path, "rw")
    raises("options must be a table", qcow2.open, path, 1)
  end)

  it("may name a closed image no more than a stranger's userdata", function()
    local closed = assert(qcow2.open(path))
    closed:close()
    raises("backing", qcow2.open, path, { backing = closed })
  end)
end)

describe("A path", function()
  it("that is no string raises", function()
    for _, value in ipairs { 1, true, {}, print } do
      raises("path must be a string", qcow2.open, value)
      assert.is_false(pcall(qcow2.probe, value) and type(value) ~= "number")
    end
    raises("path must be a string", qcow2.open)
  end)

  it("with a NUL in it raises, instead of opening another file", function()
    raises("NUL", qcow2.open, path .. "\0.raw")
    raises("NUL", core.realpath, "/etc\0/passwd")
  end)

  it("that is empty, too long or of a missing file is the world's fault", function()
    for _, name in ipairs { "", ("x"):rep(300), ("y/"):rep(3000), "/nonexistent/file" } do
      local img, message, kind, errno = qcow2.open(name)
      assert.is_nil(img)
      assert.is_string(message)
      assert.is_string(kind)
      assert.is_number(errno)
    end
  end)
end)

describe("Arguments of methods", function()
  local img
  before_each(function() img = assert(qcow2.open(path)) end)
  after_each(function() img:close() end)

  local bad = { "x", true, {}, print, 1.5, 0 / 0, math.huge, -math.huge, 1e300, -1, math.mininteger }

  it("of read that are no integers of at least 0 raise", function()
    for _, value in ipairs(bad) do
      assert.is_false(pcall(img.read, img, value, 1), tostring(value))
      assert.is_false(pcall(img.read, img, 0, value), tostring(value))
    end
    assert.is_false(pcall(img.read, img))
    assert.is_false(pcall(img.read, img, 0))
    raises("offset must not be negative", img.read, img, -1, 1)
    raises("length must not be negative", img.read, img, 0, -1)
    raises("offset must be an integer", img.read, img, 1.5, 1)
    raises("length: integer expected, got nil", img.read, img, 0, nil)
    raises("cluster: integer expected, got table", img.refcount, img, {})
    raises("path has a NUL in it", qcow2.open, "a\0b")
  end)

  it("may be floats with an integer's value, as everywhere in Lua", function()
    assert.equal("data", img:read(0.0, 4.0))
    assert.equal(img:refcount(1), img:refcount(1.0))
  end)

  it("of refcount, explain, snapshot and bitmap raise too", function()
    for _, value in ipairs(bad) do
      assert.is_false(pcall(img.refcount, img, value), tostring(value))
      assert.is_false(pcall(img.explain, img, value), tostring(value))
    end
    raises("offset is missing", img.explain, img)
    for _, value in ipairs { 1, true, {}, print } do
      raises("must be a string", img.snapshot, img, value)
      raises("must be a string", img.bitmap, img, value)
    end
    raises("must be a string", img.snapshot, img)
  end)

  it("of extents raise, naming the option", function()
    for _, value in ipairs { true, {}, print, 1.5 } do
      raises("'start'", img.extents, img, { start = value })
      raises("'length'", img.extents, img, { length = value })
    end
    raises("start", img.extents, img, { start = -1 })
    raises("start", img.extents, img, { start = "12X" })
    raises("length", img.extents, img, { length = "" })
    raises("past the disk's end", img.extents, img, { start = img.size + 1 })
    raises("'layer'", img.extents, img, { layer = 1 })
    raises("'holes'", img.extents, img, { holes = "no" })
    raises("unknown option 'begin'", img.extents, img, { begin = 0 })
  end)

  it("that belong to another class raise", function()
    local store <close> = assert(core.store_file(path))
    for _, self in ipairs { 1, "x", {}, io.stdout, store, coroutine.create(print) } do
      for name, method in pairs(raw) do
        local fine, message = pcall(method, self)
        assert.is_false(fine, name)
        assert.is_truthy(tostring(message):find("expected", 1, true), name .. ": " .. tostring(message))
      end
      for _, name in ipairs { "read", "extents", "refcount", "explain", "chain", "attach", "close" } do
        assert.is_false(pcall(img[name], self, 0, 0), name)
      end
    end
    for name, method in pairs(core.classes.store.__index) do
      local fine, message = pcall(method, img)
      assert.is_false(fine, name)
      assert.is_truthy(tostring(message):find("expected", 1, true), name .. ": " .. tostring(message))
    end
  end)

  it("that are missing, of every method of the core, raise or fail and nothing else", function()
    local values = { false, -1, 0, 1, 1 << 62, math.maxinteger, 0.5, "", "x", {}, print }
    for _, class in ipairs { "image", "store" } do
      for name, method in pairs(class == "image" and raw or core.classes.store.__index) do
        if name ~= "close" and name ~= "resize" and name ~= "write" then
          for _, a in ipairs(values) do
            for _, b in ipairs(values) do
              local store = class == "store" and assert(core.store_memory("some bytes"))
              pcall(method, store or img, a, b, a, b, a)
              if store then store:close() end
            end
          end
        end
      end
    end
    assert.equal("data", img:read(0, 4))
  end)

  it("to the core's functions raise or fail and nothing else", function()
    local values = { false, -1, 0, 7, 0.5, "", "x", {}, print, img }
    -- These would write files, or ask at the terminal.
    local quiet = { convert = true, copy = true, create = true, create_raw = true, read_line = true }
    for name, call in pairs(core) do
      if type(call) == "function" and not quiet[name] then
        for _, a in ipairs(values) do
          for _, b in ipairs(values) do pcall(call, a, b, a) end
        end
      end
    end
    collectgarbage() -- jobs and tasks that came to be hold the image
    assert.equal("data", img:read(0, 4))
  end)

  it("ask for too much memory without taking the process down", function()
    local store <close> = assert(core.store_memory(1 << 40))
    assert.is_false(pcall(store.read, store, 0, 1 << 62))
    local huge = tmp.path()
    forge.write(huge, { header = { cluster_bits = 21, size = 1 << 60 }, l1_size = (1 << 60 >> 39) })
    local big <close> = assert(qcow2.open(huge))
    local fine, bytes, _, kind = pcall(big.read, big, 0, 1 << 59)
    assert.is_truthy(not fine or (bytes == nil and kind == "nomem"))
    assert.equal(("\0"):rep(10), big:read((1 << 60) - 10, 10))
  end)
end)

describe("A handle's metamethods", function()
  it("may be called by hand without harm", function()
    local img = assert(qcow2.open(path))
    local meta = debug.getmetatable(img)
    assert.is_true(pcall(meta.__gc, img))
    assert.equal("qcow2.image (closed)", tostring(img))
    assert.is_true(pcall(meta.__gc, img))
    assert.is_true(pcall(meta.__close, img, nil))
    assert.is_false(pcall(meta.__gc, {}))
    assert.is_false(pcall(meta.__index, {}, "size"))
    local store = assert(core.store_memory("x"))
    local store_meta = debug.getmetatable(store)
    store_meta.__gc(store)
    assert.is_false(pcall(store.read, store, 0, 1))
    assert.equal("qcow2.store (closed)", tostring(store))
  end)

  it("may find the user value replaced", function()
    local img <close> = assert(qcow2.open(path))
    debug.setuservalue(img, nil, 1)
    assert.is_string(tostring(img))
    assert.equal("data", img:read(0, 4))
    assert.is_nil(img.path)
  end)
end)

describe("Sizes", function()
  it("raise for what is neither integer nor text", function()
    for _, value in ipairs { true, {}, print, 1.5 } do raises("size", qcow2.size, value) end
    assert.is_false(pcall(qcow2.size))
  end)

  it("are parsed exactly, or refused with a message", function()
    local good = { ["0"] = 0, ["1"] = 1, ["512"] = 512, ["1K"] = 1024, ["1k"] = 1024, ["64M"] = 64 << 20,
      ["1.5G"] = 3 << 29, ["7E"] = 7 << 60, ["9223372036854775807"] = math.maxinteger, ["0x10"] = 16, ["1T"] = 1 << 40,
      ["2P"] = 2 << 50,
      ["0.5K"] = 512, ["10B"] = 10, ["1.K"] = 1024, [".5K"] = 512 }
    for text, bytes in pairs(good) do assert.equal(bytes, qcow2.size(text), text) end
    for _, text in ipairs { "", " ", "K", "-1", "1KB", "1.5", "8E", "9223372036854775808", "1e3", "0x", ".",
      "1 K", "99999999999999999999", "9E9",
      "1\0", "nan", "inf", "0xffffffffffffffff" } do
      local bytes, message, kind = qcow2.size(text)
      assert.is_nil(bytes, text)
      assert.is_string(message)
      assert.equal("range", kind)
    end
    assert.is_nil((qcow2.size(-1)))
    assert.equal(5, qcow2.size(5))
  end)
end)
