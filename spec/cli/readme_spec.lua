-- SPDX-License-Identifier: MIT
-- The README's examples run as they stand there.
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local readme = sh.slurp("README.md")
local lua = os.getenv("Q2_LUA") or "lua5.4"

-- A folder with vm.qcow2: two data clusters, one of them where the example looks.
local function folder()
  local dir = tmp.dir("readme")
  sh.check({ "qemu-img", "create", "-q", "-f", "qcow2", dir .. "/vm.qcow2", "4M" })
  sh.check({ "qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 64k", "-c", "write -q -P 8 1M 64k", dir .. "/vm.qcow2" })
  return dir
end

describe("the README", function()
  it("has Lua that runs", function()
    local dir = folder()
    local env = {
      LUA_PATH = ("%s/lua/?.lua;%s/lua/?/init.lua;;"):format(sh.root(), sh.root()),
      LUA_CPATH = sh.build() .. "/lib/lua/5.4/?.so;;",
    }
    local printed = {}
    for chunk in readme:gmatch("```lua\n(.-)```") do
      sh.spit(dir .. "/example.lua", chunk)
      local result = sh.run({ lua, "example.lua" }, { cwd = dir, env = env })
      assert.equal(0, result.code, result.stderr)
      printed[#printed + 1] = result.stdout
    end
    assert.equal(2, #printed)
    assert.truthy(printed[1]:find("4194304\t65536\tnil\n", 1, true), printed[1])
    assert.truthy(printed[1]:find("1048576\t65536\tdata\t0\n", 1, true), printed[1])
    assert.truthy(printed[2]:find("100%%\n$"), printed[2])
  end)

  it("has commands that run, one after the other", function()
    local dir, count = folder(), 0
    for command in readme:gmatch("\n    (qcow2 %l[^\n]*)") do
      local result = sh.run(command, { cwd = dir, env = { PATH = sh.build() .. "/bin:" .. os.getenv("PATH") } })
      assert.equal(0, result.code, command .. "\n" .. result.stderr)
      count = count + 1
    end
    assert.is_true(count >= 11)
  end)
end)
