-- SPDX-License-Identifier: MIT
-- The launcher takes compiled modules while they fit their texts.
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("the launcher", function()
  local top, text, bundle
  local lua = os.getenv("Q2_LUA") or "lua5.4"

  -- A tree of our own, so that texts can be changed.
  before_each(function()
    top = tmp.dir("tree")
    local lib = top .. "/build/lib/lua/5.4"
    sh.check({ "mkdir", "-p", top .. "/build/bin", lib })
    sh.check({ "cp", "-r", "lua", top .. "/lua" })
    sh.check({ "cp", "-r", sh.build() .. "/lib/lua/5.4/qcow2", lib .. "/qcow2" })
    local launcher = sh.slurp("lua/bin/qcow2"):gsub("@LUADIR@", "../../lua"):gsub("@LIBDIR@", "../lib/lua/5.4")
    sh.spit(top .. "/build/bin/qcow2", launcher)
    text, bundle = top .. "/lua/qcow2/cli/init.lua", lib .. "/qcow2/modules.bundle"
    sh.check({ lua, "lua/bin/compile.lua", bundle, top .. "/lua", lib, "qcow2/cli/init.lua" })
  end)

  local function version()
    return sh.check({ lua, top .. "/build/bin/qcow2", "--version" }).stdout:match("^%S+ (%S+)")
  end

  local function replace(path, old, new)
    local bytes = sh.slurp(path)
    local at = assert(bytes:find(old, 1, true))
    sh.spit(path, bytes:sub(1, at - 1) .. new .. bytes:sub(at + #old))
  end

  it("runs what is compiled while the text is the same", function()
    replace(bundle, "%s version %s", "%s edition %s")
    assert.equal("edition", version())
  end)

  it("runs the text when it was changed after it was compiled, were it by one letter", function()
    replace(text, "%s version %s", "%s Version %s")
    assert.equal("Version", version())
  end)

  it("runs the text when what was compiled is cut short or missing", function()
    local whole = sh.slurp(bundle)
    for _, length in ipairs({ 10, 30, 100, #whole - 1 }) do
      sh.spit(bundle, whole:sub(1, length))
      assert.equal("version", version(), length)
    end
    os.remove(bundle)
    assert.equal("version", version())
  end)
end)
