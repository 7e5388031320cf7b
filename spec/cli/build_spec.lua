-- SPDX-License-Identifier: MIT
-- What the build promises: one symbol in the Lua core, a static library without Lua in it, one version.
local build = os.getenv("Q2_BUILD") or "build"

local function output_of(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read("a")
  assert.is_true(pipe:close(), command)
  return text
end

local function defined_in(file, pattern)
  local names = {}
  for name in output_of("nm -D --defined-only " .. file):gmatch("%x+ %u ([%w_]+)") do
    if name:find(pattern) then
      names[#names + 1] = name
    end
  end
  return names
end

describe("the build", function()
  it("exports nothing of ours from the core but its entry", function()
    local file = build .. "/lib/lua/5.4/qcow2/core.so"
    assert.same({ "luaopen_qcow2_core" }, defined_in(file, "qcow2"))
    assert.same({}, defined_in(file, "^q2_"))
  end)

  it("keeps Lua out of the static library", function()
    local symbols = output_of("nm -u " .. build .. "/lib/libqcow2.a")
    assert.is_nil(symbols:match(" U (luaL?_[%w_]+)"))
  end)

  it("says the header's version in Lua", function()
    local file = assert(io.open("csrc/qcow2.h"))
    local version = file:read("a"):match('#define QCOW2_VERSION "(.-)"')
    file:close()
    assert.equal(version, require("qcow2")._VERSION)
  end)
end)
