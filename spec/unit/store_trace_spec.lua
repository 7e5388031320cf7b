-- SPDX-License-Identifier: MIT
-- Traces: a line for each call of a store, with the owner of the place; by the library, the environment and -T.
local core = require "qcow2.core"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local C <const> = 65536

local function lines_of(path)
  local list = {}
  for line in io.lines(path) do list[#list + 1] = line end
  return list
end

describe("A trace", function()
  it("tells of each call, its place's owner and its end, and changes no byte", function()
    local out = tmp.path("trace")
    local memory = assert(core.store_memory(0))
    local store = assert(memory:trace(assert(core.trace_file(out))))
    assert(core.create(store, nil, { size = 1 << 30 }))
    local image = assert(core.image_open(store, "qcow2"))
    local raw = require("qcow2.image").raw
    assert(raw.begin(image))
    assert(raw.write(image, 512 << 20, ("x"):rep(C)))
    assert(raw.finish(image))
    raw.close(image)
    image = assert(core.image_open(store, "qcow2"))
    assert.equal("x", raw.read(image, 512 << 20, 1))
    raw.close(image)
    local text = sh.slurp(out)
    for _, line in ipairs {
      "memory: write 0+512 (header): ok\n", "memory: flush: ok\n", "memory: read 0+112 (header): ok\n",
      "memory: write 0x30008+8 (L1 of guest 0x20000000): ok\n", "(refcount block 0): ok\n",
      "memory: read 0x40000+16384 (L2 of guest 0x20000000): ok\n", "memory: read 0x50000+1 (data): ok\n",
    } do
      assert.truthy(text:find(line, 1, true), line .. "\n" .. text)
    end
    assert.equal(memory:length(), store:length())
    assert.equal(memory:read(0, memory:length()), store:read(0, memory:length()))
  end)

  it("names how a call failed, and tells of the events that it was asked for alone", function()
    local out = tmp.path("trace")
    local fault = assert(assert(core.store_memory(C)):fault("w", 1, 28, true))
    local store = assert(fault:trace(assert(core.trace_file(out)), { "write" }))
    store:read(0, 1)
    assert.is_nil(store:write(7, "abc"))
    assert.same({ "memory: write 0x7+3 (data): nospace" }, lines_of(out))
  end)

  it("is written by every program with QCOW2_TRACE=FILE", function()
    local dir = tmp.dir()
    local env = { QCOW2_TRACE = dir .. "/trace" }
    assert.equal(0, sh.qcow2({ "create", "-q", "-f", "qcow2", "a", "1M" }, { cwd = dir, env = env }).code)
    local plain = sh.slurp(dir .. "/a")
    assert.equal(0, sh.qcow2({ "create", "-q", "-f", "qcow2", "b", "1M" }, { cwd = dir }).code)
    assert.equal(plain, sh.slurp(dir .. "/b"))
    assert.equal("a: flush: ok", lines_of(dir .. "/trace")[#lines_of(dir .. "/trace")])
    env.QCOW2_TRACE = dir .. "/none/trace"
    local result = sh.qcow2({ "info", "a" }, { cwd = dir, env = env })
    assert.equal(1, result.code)
    assert.matches("QCOW2_TRACE: Could not open '.*/none/trace': No such file or directory", result.stderr)
  end)

  it("is written with -T, as QEMU's programs take it", function()
    local dir = tmp.dir()
    local function run(trace)
      return sh.qcow2({ "-T", trace, "create", "-q", "-f", "qcow2", "a", "1M" }, { cwd = dir })
    end
    assert.matches("^a: flush: ok\n", run("store_flush").stderr)
    assert.equal("", run("enable=store_f*,file=t").stderr)
    for _, line in ipairs(lines_of(dir .. "/t")) do assert.equal("a: flush: ok", line) end
    sh.spit(dir .. "/events", "# comment\nstore_resize\n-store_read\n")
    assert.matches("^a: resize to 0: ok\na: resize to %d+: ok\n$", run("events=events").stderr)
    assert.equal("qcow2: warning: trace event 'blk_*' does not exist\n", run("blk_*").stderr)
    assert.equal(1, run("events=none").code)
    assert.equal(1, run("what=x").code)
  end)
end)
