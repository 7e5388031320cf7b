-- SPDX-License-Identifier: MIT
-- The library as programs in other languages get it: installed into a prefix of its own, found by pkg-config.
local cc = require("spec.support.cc")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

-- A sanitizer has to be there before the program begins.
if cc.is_sanitized() then return end

describe("The installed library", function()
  local dir, prefix, env, flags

  setup(function()
    dir = tmp.dir()
    prefix = dir .. "/prefix"
    sh.check { "make", "-s", "--no-print-directory", "install-c", "BUILD=" .. sh.build(), "PREFIX=" .. prefix }
    env = { PKG_CONFIG_PATH = prefix .. "/lib/pkgconfig", LD_LIBRARY_PATH = prefix .. "/lib" }
    flags = sh.run("pkg-config --cflags --libs qcow2", { env = env }).stdout:gsub("%s+$", "")
  end)

  local function fresh()
    local path = tmp.path()
    assert(qcow2.create(path, { size = "3M", cluster_size = "64K" }))
    local img <close> = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:write(0, ("x"):rep(65536)))
    return path
  end

  local MAP <const> = "0 65536 data\n65536 3080192 unallocated\n"

  local function tours(language, words)
    local path = fresh()
    words[#words + 1] = path
    if words.more then words[#words + 1] = words.more end
    local result = sh.run(words, { env = env })
    assert.equal("", result.stderr)
    assert.equal(MAP .. "written by a program in " .. language .. "\n", (result.stdout:gsub("\0", "")))
    assert.equal(0, result.code)
    local bytes = qemu.read_all(path, tmp.path())
    assert.equal("written by a program in " .. language, bytes:match("written by[%w%+ ]*", (1 << 20) + 1))
    assert.is_true(qemu.sound(path))
  end

  local function compiled(compiler, source)
    local program = dir .. "/" .. source:gsub("%W", "_")
    sh.check(("%s -Wall -Wextra -Werror -o %s spec/examples/%s %s"):format(compiler, program, source, flags))
    return program
  end

  it("has one header, one soname and what pkg-config says", function()
    assert.truthy(flags:find("-I" .. prefix .. "/include", 1, true), flags)
    assert.is_nil(flags:find("zstd", 1, true), flags)
    local found = sh.run({ "find", prefix, "-type", "f", "-printf", "%P\\n" }).stdout
    local list = {}
    for name in found:gmatch("[^\n]+") do list[#list + 1] = name end
    table.sort(list)
    assert.same({ "include/qcow2.h", "lib/libqcow2.a", "lib/libqcow2.so.0", "lib/pkgconfig/qcow2.pc",
      "share/qcow2/qcow2.cdef" }, list)
    assert.truthy(sh.run({ "objdump", "-p", prefix .. "/lib/libqcow2.so.0" }).stdout:find("SONAME%s+libqcow2%.so%.0\n"))
  end)

  it("exports what the header names, and nothing else", function()
    local header, named, there = sh.slurp(prefix .. "/include/qcow2.h"), {}, {}
    for name in header:gsub("/%*.-%*/", ""):gmatch("QCOW2_API[^;]-(qcow2_%w[%w_]*)%(") do named[name] = true end
    for name in sh.run({ "nm", "-D", "--defined-only", prefix .. "/lib/libqcow2.so.0" }).stdout:gmatch(" T (%S+)") do
      there[name:gsub("@.*", "")] = true
    end
    assert.same(named, there)
    assert.is_nil(header:find("power", 1, true))
    assert.is_nil(header:find(".def", 1, true) and header:find('#include "', 1, true))
  end)

  it("serves programs in C", function()
    tours("C", { compiled("cc -std=c11", "tour.c") })
  end)

  it("serves programs in C that are linked with the archive", function()
    local static = sh.run("pkg-config --static --libs qcow2", { env = env }).stdout:gsub("%s+$", "")
    static = static:gsub("%-lqcow2", prefix .. "/lib/libqcow2.a")
    local program = dir .. "/tour_static"
    sh.check(("cc -I%s/include -o %s spec/examples/tour.c %s"):format(prefix, program, static))
    tours("C", { program })
  end)

  it("serves programs in C++", function()
    tours("C++", { compiled("c++ -std=c++11", "tour.cc") })
  end)

  it("serves LuaJIT", function()
    tours("LuaJIT", { "luajit", "spec/examples/tour.luajit.lua", more = prefix .. "/share/qcow2/qcow2.cdef" })
  end)

  it("serves Python", function()
    if sh.run("command -v python3").code ~= 0 then pending("there is no python3") end
    tours("Python", { "python3", "spec/examples/tour.py" })
  end)

  it("takes a program's own bytes", function()
    local result = sh.run({ compiled("cc -std=c11", "own_store.c"), dir .. "/own", dir .. "/raw" }, { env = env })
    assert.equal("", result.stderr)
    assert.equal("flushed\n", result.stdout)
    assert.is_true(qemu.sound(dir .. "/own"))
    assert.is_true(qemu.read_all(dir .. "/own", dir .. "/all") == sh.slurp(dir .. "/raw"))
    local text = ("\0"):rep(3 << 20)
    for at = 0, (3 << 20) - 1, 100000 do text = text:sub(1, at) .. "a part of the disk" .. text:sub(at + 19) end
    assert.is_true(text == sh.slurp(dir .. "/raw"))
  end)
end)
