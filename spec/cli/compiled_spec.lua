-- SPDX-License-Identifier: MIT
-- The launcher takes compiled modules while they fit their texts.
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("the launcher", function()
  local top, text, kept

  -- A tree of our own, so that texts can be changed.
  before_each(function()
    top = tmp.dir("tree")
    sh.check({ "mkdir", "-p", top .. "/build/bin", top .. "/build/lib/lua/5.4" })
    sh.check({ "cp", "-r", "lua", top .. "/lua" })
    sh.check({ "cp", "-r", sh.build() .. "/lib/lua/5.4/qcow2", top .. "/build/lib/lua/5.4/qcow2" })
    local launcher = sh.slurp("lua/bin/qcow2"):gsub("@LUADIR@", "../../lua"):gsub("@LIBDIR@", "../lib/lua/5.4")
    sh.spit(top .. "/build/bin/qcow2", launcher)
    text = top .. "/lua/qcow2/cli/init.lua"
    kept = top .. "/build/lib/lua/5.4/qcow2/compiled/qcow2/cli/init.lua"
    sh.check({ "lua5.4", "lua/bin/compile.lua", top .. "/build/lib/lua/5.4/qcow2/compiled", "lua/qcow2/cli/init.lua" })
  end)

  local function version()
    local lua = os.getenv("Q2_LUA") or "lua5.4"
    return sh.check({ lua, top .. "/build/bin/qcow2", "--version" }).stdout:match("^%S+ (%S+)")
  end

  local function replace(path, old, new)
    local bytes = sh.slurp(path)
    local at = assert(bytes:find(old, 1, true))
    sh.spit(path, bytes:sub(1, at - 1) .. new .. bytes:sub(at + #old))
  end

  it("runs what is compiled while the text is the same", function()
    local bytes = sh.slurp(kept)
    local head = 4 + #sh.slurp(text)
    local chunk = bytes:sub(head + 1):gsub("%%s version %%s", "%%s edition %%s")
    sh.spit(kept, bytes:sub(1, head) .. chunk)
    assert.equal("edition", version())
  end)

  it("runs the text when it is another than what was compiled, were it by one letter", function()
    replace(text, "%s version %s", "%s Version %s")
    assert.equal("Version", version())
  end)

  it("runs the text when what was compiled is cut short or missing", function()
    sh.spit(kept, sh.slurp(kept):sub(1, -100))
    assert.equal("version", version())
    os.remove(kept)
    assert.equal("version", version())
  end)
end)
