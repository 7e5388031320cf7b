-- SPDX-License-Identifier: MIT
-- The program: one file that carries the core and all modules, whatever lies around it.
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function modules()
  local names = {}
  for path in sh.check("cd lua && find qcow2 -name '*.lua'").stdout:gmatch("[^\n]+") do
    names[#names + 1] = path:gsub("%.lua$", ""):gsub("/init$", ""):gsub("/", ".")
  end
  return names
end

describe("the program", function()
  local dir, program

  before_each(function()
    dir = tmp.dir("program")
    program = dir .. "/moved"
    sh.check({ "cp", sh.build() .. "/bin/qcow2", program })
  end)

  it("runs wherever it is put, alone, under the name it has there", function()
    local result = sh.check({ program, "--version" }, { cwd = "/", env = { LUA_PATH = "", LUA_CPATH = "" } })
    assert.equal("moved version " .. require("qcow2")._VERSION .. "\n", result.stdout)
  end)

  it("knows the name of a link to it", function()
    sh.check({ "ln", "-s", program, dir .. "/qemu-img" })
    assert.equal("qemu-img version ", sh.check({ dir .. "/qemu-img", "--version" }).stdout:sub(1, 17))
  end)

  it("carries every module of the library and of the command line", function()
    local names = modules()
    assert.is_true(#names > 40)
    local code = {}
    for _, name in ipairs(names) do
      -- The second value of require says where a module was found: its name, when it was inside.
      code[#code + 1] = ("assert(select(2, package.searchers[2](%q)) == %q)"):format(name, name)
    end
    sh.check({ program, "shell", "-e", table.concat(code, "\n") }, { cwd = dir })
  end)

  it("takes no code from the current directory", function()
    sh.check({ "mkdir", "-p", dir .. "/qcow2/cmd" })
    local names = { "qcow2/init.lua", "qcow2/cli.lua", "qcow2/core.lua", "qcow2/cmd/info.lua", "argparse.lua" }
    for _, name in ipairs(names) do
      sh.spit(dir .. "/" .. name, "io.write('a stranger\\'s code\\n') os.exit(7)")
    end
    local script = sh.run({ program, "help", "--completion=bash" }, { cwd = dir })
    assert.is_nil(script.stdout:find("a stranger", 1, true))
    assert.not_equal(7, script.status)
    sh.check({ program, "info", "--help" }, { cwd = dir })
  end)

  it("is interrupted by Ctrl-C, but not when it was started with that ignored", function()
    sh.check({ program, "create", "-q", "-f", "qcow2", dir .. "/image", "1M" })
    local code = "io.popen('kill -INT $PPID'):close() for _ = 1, 1000 do end print('still here')"
    for how, expected in pairs({ ignore = "0still here\n", default = "1" }) do
      local result = sh.run({ "env", ("--%s-signal=INT"):format(how), program, "shell", "-e", code, dir .. "/image" })
      assert.equal(expected, result.code .. result.stdout)
    end
  end)
end)
