-- SPDX-License-Identifier: MIT
-- The error of the last flush is not lost: close(), the end of a block and the exit status carry it. The disk is
-- full for real here: the process may not make files longer.

local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

-- An image whose next L2 table makes the file longer. gives: its path, and the limit for `ulimit -f` (512 bytes).
local function full_image()
  local path = tmp.path()
  sh.spit(path:gsub("[^/]*$", "") .. "below", ("b"):rep(1 << 20))
  assert(qcow2.create(path, { backing_file = "below", backing_fmt = "raw" }))
  local pipe <close> = assert(io.popen("stat -c %s " .. sh.quote(path)))
  return path, (pipe:read("n") + 511) // 512
end

local function run_limited(limit, words)
  local script = ("trap '' XFSZ; ulimit -f %d; exec %s"):format(limit, sh.join(words))
  return sh.run({ "sh", "-c", script }, { env = { LUA_PATH = package.path, LUA_CPATH = package.cpath } })
end

-- Runs Lua code on the image with no room for it to grow; `path` and `qcow2` are there.
local function run_full(code)
  local path, limit = full_image()
  local script = path .. ".lua"
  sh.spit(script, ("local qcow2, path = require 'qcow2', %q\n%s"):format(path, code))
  local result = run_limited(limit, { os.getenv("Q2_LUA") or "lua5.4", script })
  local report, status = qemu.check(path)
  assert.is_true(status == 0 or status == 3, tostring(report.corruptions))
  return result, path
end

describe("On a full disk", function()
  it("close answers with the failure, again and again, and what was there stays", function()
    local result, path = run_full([[
      local img = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:zero(0, 65536))
      local ok, message, kind = img:flush()
      print(ok, kind, message:find("File too large", 1, true) ~= nil)
      ok, message, kind = img:write(0, "x")
      print(ok, kind, message:find("File too large", 1, true) ~= nil)
      ok, message, kind = img:close()
      print(ok, kind, message:find("File too large", 1, true) ~= nil)
    ]])
    assert.are.equal("nil\tnospace\ttrue\nnil\tnospace\ttrue\nnil\tnospace\ttrue\n", result.stdout)
    assert.are.equal("", result.stderr)
    local img <close> = assert(qcow2.open(path))
    assert.are.equal(("b"):rep(65536), img:read(0, 65536))
  end)

  it("a block that ends normally raises the failure of its image's close", function()
    local result = run_full([[
      print(pcall(function()
        local img <close> = assert(qcow2.open(path, { mode = "rw" }))
        assert(img:zero(0, 65536))
      end))
    ]])
    assert.matches("^false\t.*Could not write.*File too large\n$", result.stdout)
  end)

  it("a block that ends by an error keeps its own", function()
    local result = run_full([[
      print(pcall(function()
        local img <close> = assert(qcow2.open(path, { mode = "rw" }))
        assert(img:zero(0, 65536))
        error("mine", 0)
      end))
    ]])
    assert.are.equal("false\tmine\n", result.stdout)
  end)

  it("the program exits with 1 and says what failed", function()
    local path, limit = full_image()
    local before = sh.slurp(path)
    local result = run_limited(limit, { sh.build() .. "/bin/qcow2", "snapshot", "-c", "new", path })
    assert.are.equal(1, result.code)
    assert.matches("^qcow2: .*File too large\n$", result.stderr)
    assert.are.equal("", result.stdout)
    local report, status = qemu.check(path)
    assert.is_true(status == 0 or status == 3, tostring(report.corruptions))
    assert.are.equal(before:sub(1, 104), sh.slurp(path):sub(1, 104))
  end)
end)
