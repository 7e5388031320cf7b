-- SPDX-License-Identifier: MIT
-- The locks of csrc/store/lock.c, with QEMU's own programs on the other side.

local lfs = require "lfs"
local store = require "qcow2_probe_store"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local EINVAL = store.EINVAL

local function image(format)
  local path = tmp.path("disk.img")
  sh.check { "qemu-img", "create", "-q", "-f", format or "qcow2", path, "1M" }
  return path
end

-- The bytes that are locked in a file, as the kernel lists them: "100 101 103 201 203".
local function locked_bytes(path)
  local inode, found = lfs.attributes(path, "ino"), {}
  for line in io.lines("/proc/locks") do
    local first, last = line:match(":" .. inode .. " (%d+) (%d+)$")
    if first then
      for byte = tonumber(first), tonumber(last) do found[byte] = true end
    end
  end
  local list = {}
  for byte in pairs(found) do list[#list + 1] = byte end
  table.sort(list)
  return table.concat(list, " ")
end

local function wait_for(condition)
  for _ = 1, 500 do
    if condition() then return end
    os.execute("sleep 0.02")
  end
  error("what was waited for did not happen within ten seconds")
end

local READER, WRITER = "100 201 203", "100 101 103 201 203"

-- Calls back while qemu-io holds the image open with these words, and these bytes: on its way it holds others.
local function while_qemu_holds(path, words, bytes, callback)
  local pipe = assert(io.popen("exec qemu-io " .. words .. " " .. sh.quote(path) .. " >/dev/null 2>&1", "w"))
  local ok, message = pcall(function()
    wait_for(function() return locked_bytes(path) == bytes end)
    callback()
  end)
  pipe:write("quit\n")
  pipe:close()
  assert(ok, message)
end

local function is_locked(path, flags, lock)
  local ok, message, kind = store.file(path, flags)
  assert.is_nil(ok)
  assert.equal("locked", kind)
  assert.equal(("Could not open '%s': Failed to get %s lock. Is another process using the image [%s]?")
    :format(path, lock, path), message)
end

local function opens(path, flags)
  assert(store.file(path, flags)):close()
end

local function qemu_is_refused(words, lock)
  local r = sh.run(words)
  assert.equal(1, r.code)
  assert.matches("Failed to get " .. lock .. " lock\nIs another process using the image", r.stderr)
end

describe("the locks of a store", function()
  after_each(function() store.host {} end)

  it("lie on the very bytes that QEMU locks, for readers and writers", function()
    local path = image()
    while_qemu_holds(path, "", WRITER, function() end)
    local w <close> = assert(store.file(path, store.WRITE))
    assert.equal(WRITER, locked_bytes(path))
    w:close()
    while_qemu_holds(path, "-r", READER, function() end)
    local r <close> = assert(store.file(path))
    assert.equal(READER, locked_bytes(path))
    r:close()
  end)

  it("vanish with the store", function()
    local path = image()
    local s <close> = assert(store.file(path, store.WRITE))
    assert.not_equal("", locked_bytes(path))
    s:close()
    assert.equal("", locked_bytes(path))
  end)

  it("keep readers and writers out while QEMU writes", function()
    local path = image()
    while_qemu_holds(path, "", WRITER, function()
      is_locked(path, 0, 'shared "write"')
      is_locked(path, store.WRITE, '"write"')
      is_locked(path, store.CREATE | store.TRUNCATE, '"write"')
      opens(path, store.FORCE_SHARE)
      opens(path, store.UNLOCKED)
      opens(path, store.UNLOCKED | store.WRITE)
    end)
    opens(path, store.WRITE)
  end)

  it("keep only writers out while QEMU reads", function()
    local path = image()
    while_qemu_holds(path, "-r", READER, function()
      is_locked(path, store.WRITE, '"write"')
      opens(path, 0)
    end)
  end)

  it("keep readers out while QEMU writes to a raw image", function()
    local path = image("raw")
    while_qemu_holds(path, "-f raw", "100 101", function()
      is_locked(path, 0, 'shared "write"')
      is_locked(path, store.WRITE, 'shared "write"')
    end)
  end)

  it("keep QEMU's readers and writers out while we write", function()
    local path = image()
    local s <close> = assert(store.file(path, store.WRITE))
    qemu_is_refused({ "qemu-img", "info", path }, 'shared "write"')
    qemu_is_refused({ "qemu-img", "convert", "-O", "raw", path, path .. ".raw" }, 'shared "write"')
    qemu_is_refused({ "qemu-io", "-c", "write 0 512", path }, '"write"')
    qemu_is_refused({ "qemu-img", "snapshot", "-c", "s", path }, '"write"')
    sh.check { "qemu-img", "info", "-U", path }
    s:close()
    sh.check { "qemu-img", "info", path }
    sh.check { "qemu-io", "-c", "write 0 512", path }
  end)

  it("keep only QEMU's writers out while we read", function()
    local path = image()
    local s <close> = assert(store.file(path))
    sh.check { "qemu-img", "info", path }
    sh.check { "qemu-io", "-r", "-c", "read 0 512", path }
    qemu_is_refused({ "qemu-io", "-c", "write 0 512", path }, '"write"')
    assert.equal("QFI\xfb", s:read(0, 4))
  end)

  it("do not stand in QEMU's way when sharing is forced or locking is off", function()
    local path = image()
    for _, flags in ipairs { store.FORCE_SHARE, store.UNLOCKED, store.UNLOCKED | store.WRITE } do
      local s <close> = assert(store.file(path, flags))
      assert.equal("", locked_bytes(path))
      sh.check { "qemu-io", "-c", "write 0 512", path }
      s:close()
    end
  end)

  it("hold between two handles of one process too", function()
    local path = image()
    do
      local a <close> = assert(store.file(path))
      local b <close> = assert(store.file(path))
      is_locked(path, store.WRITE, '"write"')
      b:close()
      is_locked(path, store.WRITE, '"write"')
      a:close()
    end
    local w <close> = assert(store.file(path, store.WRITE))
    is_locked(path, 0, 'shared "write"')
    is_locked(path, store.WRITE, '"write"')
    w:close()
    opens(path, store.WRITE)
  end)

  it("fall back to the process's locks on a host without locks of open files", function()
    local path = image()
    store.host { open_file_locks = EINVAL }
    local s <close> = assert(store.file(path, store.WRITE))
    assert.equal(WRITER, locked_bytes(path))
    qemu_is_refused({ "qemu-img", "info", path }, 'shared "write"')
    s:close()
    while_qemu_holds(path, "", WRITER, function()
      is_locked(path, 0, 'shared "write"')
    end)
  end)

  it("name the file, escaped, in the message", function()
    local path = tmp.dir() .. "/new\nline"
    local s <close> = assert(store.file(path, store.CREATE))
    local _, message = store.file(path)
    s:close()
    assert.matches([[%[/.*/new\x0aline%]%?$]], message)
  end)
end)
