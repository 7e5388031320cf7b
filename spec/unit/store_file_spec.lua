-- SPDX-License-Identifier: MIT
-- Stores in files and block devices: csrc/store/file.c and the bounds of csrc/store/store.c.

local lfs = require "lfs"
local store = require "qcow2_probe_store"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local K, M = 1024, 1 << 20
local NEW = store.CREATE | store.EXCLUSIVE
local FAR = math.maxinteger

-- A new file of these bytes, or of this length.
local function file_of(content)
  local path = tmp.path()
  if type(content) == "string" then
    sh.spit(path, content)
  else
    sh.check { "truncate", "-s", content, path }
  end
  return path
end

-- All runs up to `length`, as "data 0 4096" lines.
local function runs(s, length, step)
  local out, at = {}, 0
  while at < length do
    local kind, run = s:extent(at, math.min(step or length, length - at))
    assert(run >= 1 and run <= length - at)
    local last = out[#out]
    if last and last.kind == kind then
      last.length = last.length + run
    else
      out[#out + 1] = { kind = kind, offset = at, length = run }
    end
    at = at + run
  end
  for i, r in ipairs(out) do out[i] = ("%s %d %d"):format(r.kind, r.offset, r.length) end
  return out
end

local function fails(kind, pattern, ok, message, got)
  assert.is_nil(ok)
  assert.equal(kind, got)
  assert.matches(pattern, message)
end

describe("a store in a file", function()
  after_each(function() store.host {} end)

  it("reads what is there and zeros past the end", function()
    local s <close> = assert(store.file(file_of "hello"))
    assert.equal("ell", s:read(1, 3))
    assert.equal("lo\0\0\0\0", s:read(3, 6))
    assert.equal("\0\0", s:read(5, 2))
    assert.equal(("\0"):rep(70000), s:read(1 << 40, 70000))
    assert.equal("", s:read(0, 0))
    assert.equal(5, s:length())
  end)

  it("writes, grows and keeps the rest", function()
    local path = file_of "0123456789"
    do
      local s <close> = assert(store.file(path, store.WRITE))
      assert(s:write(2, "ab"))
      assert(s:write(12, "z"))
      assert(s:write(5000, ""))
      assert(s:flush())
      assert.equal(13, s:length())
    end
    assert.equal("01ab456789\0\0z", sh.slurp(path))
  end)

  it("goes on after short and interrupted reads and writes", function()
    local path = file_of(0)
    local s <close> = assert(store.file(path, store.WRITE))
    store.host { short_io = 7, interrupts = 3 }
    local bytes = ("0123456789"):rep(100)
    assert(s:write(3, bytes))
    assert.is_true(store.host_calls() > 140)
    store.host { short_io = 7, interrupts = 3 }
    assert.equal(bytes .. "\0\0\0", s:read(3, 1003))
    store.host { interrupts = 2 }
    assert(s:flush())
    assert(s:punch(0, 10))
    assert.equal(("\0"):rep(10), s:read(0, 10))
  end)

  it("answers every later flush with the first error", function()
    local s <close> = assert(store.file(file_of "x", store.WRITE))
    store.host { fdatasync = store.EIO }
    fails("io", "^Could not flush '.*': Input/output error$", s:flush())
    store.host {}
    fails("io", "Input/output error", s:flush())
    assert.equal("x", s:read(0, 1))
  end)

  it("says why a file cannot be opened", function()
    local missing = tmp.path("no such")
    local ok, message, kind, errno = store.file(missing)
    assert.is_nil(ok)
    assert.equal(("Could not open '%s': No such file or directory"):format(missing), message)
    assert.equal("missing", kind)
    assert.equal(2, errno)
    fails("missing", "Not a directory", store.file(file_of "x" .. "/y"))
    fails("missing", [[\x0a\x1b%[31m]], store.file(tmp.dir() .. "/a\n\27[31m"))
  end)

  it("opens no directory, FIFO, socket or character device, and does not wait for one", function()
    local dir = tmp.dir()
    sh.check { "mkfifo", dir .. "/fifo" }
    sh.check { "perl", "-MSocket", "-e",
      "socket(S, PF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un($ARGV[0])) || die $!", dir .. "/sock" }
    for path, what in pairs {
      [dir] = "a directory",
      [dir .. "/fifo"] = "a FIFO",
      [dir .. "/sock"] = "a socket",
      ["/dev/null"] = "a character device",
    } do
      for _, flags in ipairs { 0, store.WRITE, store.CREATE, store.WRITE | store.TRUNCATE } do
        fails("refused", "It is " .. what .. ", but only regular files and block devices",
          store.file(path, flags))
      end
    end
  end)

  it("opens what a symbolic link leads to", function()
    local path = file_of "linked"
    local link = tmp.path("link")
    assert(lfs.link(path, link, true))
    local s <close> = assert(store.file(link))
    assert.equal("linked", s:read(0, 6))
    assert.equal(lfs.attributes(path, "ino"), s:about().inode)
    assert.equal(lfs.attributes(path, "dev"), s:about().device)
    assert.equal(link, s:about().name)
    assert.is_false(s:about().is_device)
    assert.is_true(s:about().has_descriptor)
  end)

  it("creates files, keeps those that are there, and truncates only when asked", function()
    local path = tmp.path()
    fails("missing", "No such file", store.file(path, store.WRITE))
    do
      local s <close> = assert(store.file(path, NEW))
      assert.is_true(s:about().writable)
      assert(s:write(0, "kept"))
    end
    assert.equal("rw-r--r--", lfs.attributes(path, "permissions"))
    fails("exists", "^Could not create '.*': File exists$", store.file(path, NEW))
    do
      local s <close> = assert(store.file(path, store.CREATE))
      assert.equal("kept", s:read(0, 4))
    end
    do
      local s <close> = assert(store.file(path, store.WRITE | store.TRUNCATE))
      assert.equal(0, s:length())
    end
  end)

  it("truncates nothing that somebody else holds", function()
    local path = file_of "precious"
    local s <close> = assert(store.file(path))
    fails("locked", "Failed to get", store.file(path, store.CREATE | store.TRUNCATE))
    assert.equal("precious", s:read(0, 8))
  end)

  it("refuses flags that contradict one another", function()
    local path = file_of "x"
    for _, flags in ipairs { store.EXCLUSIVE, store.TRUNCATE, store.FORCE_SHARE | store.WRITE,
      store.FORCE_SHARE | store.CREATE } do
      fails("conflict", "force%-share reads only", store.file(path, flags))
    end
    assert.equal("x", sh.slurp(path))
  end)

  it("changes nothing when open for reading", function()
    local path = file_of "same"
    local s <close> = assert(store.file(path))
    assert.is_false(s:about().writable)
    fails("readonly", "it is open for reading only", s:write(0, "no"))
    fails("readonly", "reading only", s:punch(0, 2))
    fails("readonly", "reading only", s:resize(0))
    fails("readonly", "reading only", s:allocate(0, 100))
    assert(s:flush())
    assert.equal("same", sh.slurp(path))
  end)

  it("takes no range past the largest file offset", function()
    local s <close> = assert(store.file(file_of "x", store.WRITE))
    fails("range", "past the largest file offset", s:read(FAR, 1))
    fails("range", "past", s:read(-1, 1))
    fails("range", "past", s:read(1, FAR))
    fails("range", "past", s:write(FAR, "x"))
    fails("range", "past", s:write(-1, ""))
    fails("range", "past", s:punch(FAR - 1, 2))
    fails("range", "past", s:punch(1, -1))
    fails("range", "past", s:allocate(-4096, 4096))
    fails("range", "past", s:resize(-1))
    fails("range", "0 bytes", s:extent(0, 0))
    assert.same({ "hole", -1 }, { s:extent(-1, -1) })
    assert.same({ "hole", FAR }, { s:extent(FAR - 5, FAR) })
    assert.equal(1, s:length())
  end)

  it("tells when the host has no room", function()
    local path = file_of ""
    local script = ([[
      package.cpath = %q
      local store = require "qcow2_probe_store"
      local s = assert(store.file(%q, store.WRITE))
      print(select(2, s:write(0, ("x"):rep(1 << 20))))
      print(select(3, s:resize(1 << 30)))
    ]]):format(package.cpath, path)
    sh.spit(path .. ".lua", script)
    local lua = os.getenv("Q2_LUA") or "lua5.4"
    -- bash counts ulimit -f in KiB; what is past it answers EFBIG where the signal is ignored.
    local r = sh.check { "bash", "-c", "trap '' XFSZ; ulimit -f 64; exec " .. lua .. " " .. path .. ".lua" }
    assert.matches("^Could not write '.*' at offset 65536: File too large\tnospace\t27\t65536\nnospace\t27",
      r.stdout)
  end)
end)

describe("the extents of a file", function()
  after_each(function() store.host {} end)

  it("are data where bytes were written and holes elsewhere, as SEEK_DATA and filefrag know them", function()
    local path = file_of(10 * M)
    local w <close> = assert(store.file(path, store.WRITE))
    assert(w:write(M, ("x"):rep(64 * K)))
    assert(w:write(3 * M + 4096, "y"))
    local expected = { "hole 0 1048576", "data 1048576 65536", "hole 1114112 2035712", "data 3149824 4096",
      "hole 3153920 7331840" }
    assert.same(expected, runs(w, 10 * M))
    assert.same(expected, runs(w, 10 * M, 1000))
    assert(w:flush())
    local frag = sh.run { "filefrag", "-b4096", "-v", path }
    if frag.code == 0 then -- not every file system tells
      assert.matches("256%.%. +271:", frag.stdout)
      assert.matches("769%.%. +769:", frag.stdout)
    end
    w:close()
    local r <close> = assert(store.file(path))
    assert.same(expected, runs(r, 10 * M))
    assert.same(expected, runs(r, 10 * M, 512))
    assert.equal(68 * K, r:allocated())
  end)

  it("end at the end of the file, wherever that is", function()
    local s <close> = assert(store.file(file_of(("x"):rep(5000))))
    assert.same({ "data", 5000 }, { s:extent(0, 1 << 50) })
    assert.same({ "data", 1 }, { s:extent(4999, 10) })
    assert.same({ "hole", 10 }, { s:extent(5000, 10) })
    assert.same({ "hole", -1 }, { s:extent(6000, -1) })
  end)

  it("follow our own writes, punches and resizes", function()
    local s <close> = assert(store.file(file_of(4 * M), store.WRITE))
    assert.same({ "hole 0 4194304" }, runs(s, 4 * M))
    assert(s:write(0, ("x"):rep(2 * M)))
    assert.same({ "data 0 2097152", "hole 2097152 2097152" }, runs(s, 4 * M))
    assert(s:punch(64 * K, 64 * K))
    assert.same({ "data 0 65536", "hole 65536 65536", "data 131072 1966080", "hole 2097152 2097152" },
      runs(s, 4 * M))
    assert(s:resize(M))
    assert(s:resize(4 * M))
    assert.same({ "hole", 3 * M }, { s:extent(M, 3 * M) })
    assert.same({ "data", M - 128 * K }, { s:extent(128 * K, 4 * M) })
  end)

  it("follow others' writes when nobody is locked out", function()
    local path = file_of(4 * M)
    local r <close> = assert(store.file(path, store.FORCE_SHARE))
    assert.same({ "hole", 4 * M }, { r:extent(0, 4 * M) })
    local w <close> = assert(store.file(path, store.WRITE))
    assert(w:write(M, ("x"):rep(4096)))
    assert.same({ "hole", M }, { r:extent(0, 4 * M) })
    assert.same({ "data", 4096 }, { r:extent(M, 4 * M) })
  end)

  it("cost the host nothing while one run is walked in small steps", function()
    local path = file_of(("x"):rep(4 * M))
    for _, flags in ipairs { 0, store.WRITE } do
      local s <close> = assert(store.file(path, flags))
      store.host {}
      assert.same({ "data 0 4194304" }, runs(s, 4 * M, 4096))
      assert.equal(2, store.host_calls())
    end
  end)

  it("are data up to the end on a host that cannot tell", function()
    local s <close> = assert(store.file(file_of(1 * M), store.WRITE))
    store.host { seek = store.EINVAL }
    assert.same({ "data", M }, { s:extent(0, 2 * M) })
    assert.same({ "hole", M }, { s:extent(M, M) })
    store.host { seek = store.EIO }
    fails("io", "Could not look for data in '.*' at offset 2097152: Input/output error", s:extent(2 * M, 1))
  end)
end)

describe("punching a file", function()
  after_each(function() store.host {} end)

  local hosts = {
    ["holes"] = {},
    ["zero ranges only"] = { punch = store.EOPNOTSUPP },
    ["nothing but writes"] = { punch = store.EOPNOTSUPP, zero_range = store.EOPNOTSUPP },
    ["calls that it refuses for this range"] = { punch = store.EINVAL, zero_range = store.EINVAL },
  }
  for name, host in pairs(hosts) do
    it("leaves zeros and the same length on a host with " .. name, function()
      local bytes = ("abcdefgh"):rep(3 * M // 8)
      local path = file_of(bytes)
      local s <close> = assert(store.file(path, store.WRITE))
      store.host(host)
      for _, range in ipairs { { 1000, 10 }, { 4000, 5000 }, { 65536, 65536 }, { 100000, 1500000 },
        { 3 * M - 100, 1 << 40 }, { 5 * M, 10 } } do
        assert(s:punch(range[1], range[2]))
        local last = math.min(range[1] + range[2], 3 * M)
        if range[1] < last then
          bytes = bytes:sub(1, range[1]) .. ("\0"):rep(last - range[1]) .. bytes:sub(last + 1)
        end
        assert.equal(3 * M, s:length())
        assert.is_true(bytes == s:read(0, 3 * M))
      end
    end)
  end

  it("gives the space back", function()
    local s <close> = assert(store.file(file_of(("x"):rep(4 * M)), store.WRITE))
    local before = s:allocated()
    assert(s:punch(M, 2 * M))
    assert.equal(before - 2 * M, s:allocated())
  end)

  it("fails when the host does", function()
    local s <close> = assert(store.file(file_of(("x"):rep(8192)), store.WRITE))
    store.host { punch = store.EIO }
    fails("io", "Could not discard '.*' at offset 0: Input/output error", s:punch(0, 4096))
    store.host {}
    assert.equal("xx", s:read(0, 2))
  end)
end)

describe("allocating in a file", function()
  after_each(function() store.host {} end)

  for name, host in pairs { ["with fallocate"] = {}, ["without it"] = { fallocate = store.EOPNOTSUPP } } do
    it("spends space, grows, and overwrites nothing on a host " .. name, function()
      local s <close> = assert(store.file(file_of(2 * M), store.WRITE))
      assert(s:write(M, ("x"):rep(8192)))
      store.host(host)
      assert(s:allocate(0, 3 * M + 5))
      assert.equal(3 * M + 5, s:length())
      assert.is_true(s:allocated() >= 3 * M)
      assert.is_true(s:read(0, 3 * M + 5)
        == ("\0"):rep(M) .. ("x"):rep(8192) .. ("\0"):rep(2 * M + 5 - 8192))
    end)
  end

  it("tells when there is no room", function()
    local s <close> = assert(store.file(file_of "x", store.WRITE))
    store.host { fallocate = store.ENOSPC }
    fails("nospace", "Could not allocate '.*' at offset 0: No space left on device", s:allocate(0, 4096))
    assert.equal(1, s:length())
  end)
end)

describe("resizing a file", function()
  it("cuts, and shows zeros where it grows again", function()
    local s <close> = assert(store.file(file_of(("x"):rep(10000)), store.WRITE))
    assert(s:resize(5000))
    assert.equal(5000, s:length())
    assert(s:resize(1 << 40))
    assert.equal(1 << 40, s:length())
    assert.equal("x" .. ("\0"):rep(6000), s:read(4999, 6001))
    assert.is_true(s:allocated() < M)
  end)
end)

describe("a store in a block device", function()
  local image, device

  setup(function()
    image = tmp.path()
    sh.check { "truncate", "-s", 4 * M, image }
    local r = sh.run { "losetup", "-f", "--show", image }
    device = r.code == 0 and r.stdout:match("%S+") or nil
  end)
  teardown(function()
    if device then sh.check { "losetup", "-d", device } end
  end)

  it("has a fixed length, and everything else as files have", function()
    if not device then return pending("no loop devices here") end
    local s <close> = assert(store.file(device, store.WRITE))
    assert.is_true(s:about().is_device)
    assert.equal(4 * M, s:length())
    assert(s:write(0, ("abcd"):rep(M)))
    assert(s:flush())
    assert(s:punch(1000, 100000))
    assert.equal("d" .. ("\0"):rep(100000) .. "a", s:read(999, 100002))
    assert(s:punch(200, 100))
    assert.equal("d" .. ("\0"):rep(100) .. "a", s:read(199, 102))
    assert.same({ "data", 4 * M }, { s:extent(0, 8 * M) })
    assert.same({ "hole", M }, { s:extent(4 * M, M) })
    assert(s:resize(M))
    assert(s:resize(4 * M))
    fails("nospace", "the device has 4194304 bytes, 4194305 are asked for", s:resize(4 * M + 1))
    fails("nospace", "No space left", s:write(4 * M - 1, "xy"))
    fails("nospace", "No space left", s:allocate(4 * M - 1, 2))
    assert(s:allocate(0, 4 * M))
    assert.equal(4 * M, s:length())
    assert.equal("\0\0", s:read(4 * M, 2))
  end)

  it("is not truncated, and refused where only files are wanted", function()
    if not device then return pending("no loop devices here") end
    do
      local s <close> = assert(store.file(device, store.CREATE | store.TRUNCATE))
      assert.equal(4 * M, s:length())
    end
    fails("refused", "It is a block device, but only regular files are", store.file(device, store.NO_DEVICE))
  end)

  it("is one thing under two names", function()
    if not device then return pending("no loop devices here") end
    local node = tmp.path("node")
    local minor = device:match("(%d+)$")
    sh.check { "mknod", node, "b", "7", minor }
    local a <close> = assert(store.file(device))
    local b <close> = assert(store.file(node))
    assert.equal(a:about().inode, b:about().inode)
    assert.equal(a:about().device, b:about().device)
  end)

  it("is not opened for writing when it is set read-only", function()
    if not device then return pending("no loop devices here") end
    sh.check { "blockdev", "--setro", device }
    local ok, message, kind = store.file(device, store.WRITE)
    sh.check { "blockdev", "--setrw", device }
    fails("denied", "The device is read%-only", ok, message, kind)
  end)
end)

describe("threads on one store in a file", function()
  it("find what they wrote", function()
    local s <close> = assert(store.file(file_of(0), store.WRITE))
    assert.is_true(s:hammer(500))
  end)
end)
