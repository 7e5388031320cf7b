-- SPDX-License-Identifier: MIT
-- Stores of a program's own (csrc/store/custom.c): what they may leave out, what they may answer, how many calls come.
local cc = require("spec.support.cc")
local sh = require("spec.support.sh")

describe("A program's own store", function()
  local program

  setup(function()
    program = cc.program("custom_store")
  end)

  local function run(case)
    local result = sh.run({ program, case })
    assert.equal("", result.stderr)
    assert.equal(0, result.code)
    return result.stdout
  end

  it("is refused without a size, a length or a reading, and then not closed", function()
    assert.equal([[
no size: range The size of a struct of options is not set (QCOW2_..._OPTIONS_INIT)
no read: range A store needs the functions `length` and `read`
no length: denied Could not get the length of 'own': Permission denied
unknown: unsupported The program asks for an option that this version of the library lacks
closed 0
]], run("refused"))
  end)

  it("answers with the program's errno, and with io for what is none", function()
    assert.equal([[
open: fine
full: nospace Could not write 'own' at offset 0: No space left on device
nonsense: io Could not write 'own' at offset 4: Input/output error
closed 1
]], run("errors"))
  end)

  it("grows, shrinks, and reads zeros behind its end without asking for them", function()
    assert.equal([[
open: fine
read behind the end: fine
97 97 0 0
write behind the end: fine
shorter: fine
punch: fine
data 100
flush: fine
4096 bytes, writable, first 0, 2 writes
closed 1
]], run("all"))
    assert.equal(run("all"), run("punch"))
    assert.truthy(run("holes"):find("\nhole 100\n", 1, true))
  end)

  it("without resize keeps its length, as a device does", function()
    assert.equal([[
open: fine
read behind the end: fine
97 97 0 0
write behind the end: nospace Could not write 'own' at offset 9437184: No space left on device
shorter: fine
punch: fine
data 100
flush: fine
8388608 bytes, writable, first 0, 1 writes
closed 1
]], run("fixed"))
  end)

  it("without write is for reading only", function()
    local said = run("readonly")
    assert.truthy(said:find("write behind the end: readonly", 1, true), said)
    assert.truthy(said:find("8388608 bytes, readonly, first 97, 0 writes", 1, true), said)
  end)

  it("may come from a program that knew fewer functions", function()
    local said = run("older")
    assert.truthy(said:find("8388608 bytes, writable", 1, true), said)
    assert.truthy(said:find("closed 0", 1, true), said)
  end)

  it("is called by as many threads at once as it allows", function()
    assert.equal("open: fine\ncopy: fine\nat most as many as asked\ntogether no\nclosed 1\n", run("threads1"))
    assert.equal("open: fine\ncopy: fine\nat most as many as asked\ntogether yes\nclosed 1\n", run("threads3"))
  end)
end)
