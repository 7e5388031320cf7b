-- SPDX-License-Identifier: MIT
-- The rockspec: luarocks builds the checkout into an empty tree, and what it installed runs from there.
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

-- What a make around this run tells its children is not meant for the make inside luarocks.
local CLEAN = "env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u BUILD -u SAN -u CFLAGS -u CC -u Q2_BUILD -u Q2_LUA "
  .. "-u LUA_PATH -u LUA_CPATH -u LUA_PATH_5_4 -u LUA_CPATH_5_4 "

local function version()
  return sh.slurp("csrc/qcow2.h"):match('#define QCOW2_VERSION "(.-)"')
end

describe("the rockspec", function()
  local tree

  setup(function()
    tree = tmp.dir("tree")
    sh.check(CLEAN .. "luarocks --lua-version 5.4 make --tree " .. tree .. " rockspec/qcow2-scm-1.rockspec",
      { timeout = 240 })
  end)

  it("installs a module that Lua finds in the tree", function()
    local paths = ("LUA_PATH='%s/share/lua/5.4/?.lua;%s/share/lua/5.4/?/init.lua;;' "):format(tree, tree)
      .. ("LUA_CPATH='%s/lib/lua/5.4/?.so;;' "):format(tree)
    local result = sh.check(CLEAN .. paths .. "lua5.4 -e 'print(require \"qcow2\"._VERSION)'", { cwd = "/" })
    assert.equal(version() .. "\n", result.stdout)
  end)

  it("installs a command that finds its modules from any directory", function()
    local result = sh.check(CLEAN .. tree .. "/bin/qcow2 --version", { cwd = "/" })
    assert.equal("qcow2 version " .. version() .. "\n", result.stdout)
  end)

  it("installs a command that knows the name of a link to it", function()
    local link = tmp.path("qemu-img")
    sh.check({ "ln", "-s", tree .. "/bin/qcow2", link })
    local result = sh.check(CLEAN .. link .. " --version", { cwd = "/" })
    assert.equal("qemu-img version ", result.stdout:sub(1, 17))
  end)
end)

describe("make install", function()
  it("puts modules, command, header and library below DESTDIR, and a program links with them", function()
    local dest = tmp.dir("dest")
    sh.check(CLEAN .. "make install BUILD=build/rock PREFIX=/usr DESTDIR=" .. dest, { timeout = 240 })
    local result = sh.check(CLEAN .. dest .. "/usr/bin/qcow2 --version", { cwd = "/" })
    assert.equal("qcow2 version " .. version() .. "\n", result.stdout)

    local source, program = dest .. "/use.c", dest .. "/use"
    sh.spit(source, [[
#include <qcow2.h>
#include <stdio.h>
int main(void)
{
	return puts(qcow2_error_word(QCOW2_E_CORRUPT)) < 0;
}
]])
    local config = ("PKG_CONFIG_PATH=%s/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=%s "):format(dest, dest)
    sh.check(CLEAN .. config .. ("sh -c 'gcc -o %s %s $(pkg-config --static --cflags --libs qcow2)'"):format(
      program, source))
    local env = { LD_LIBRARY_PATH = dest .. "/usr/lib" }
    assert.equal("corrupt\n", sh.run({ program }, { env = env }).stdout)
  end)
end)
