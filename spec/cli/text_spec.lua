-- SPDX-License-Identifier: MIT
-- Values as people and programs see them: sizes, escaped names, JSON.
local json = require("qcow2.cli.json")
local text = require("qcow2.cli.text")

describe("a size for people", function()
  -- As qemu-img prints them.
  for bytes, shown in pairs({
    [0] = "0 B",
    [512] = "512 B",
    [999] = "999 B",
    [1000] = "0.977 KiB",
    [1024] = "1 KiB",
    [200704] = "196 KiB",
    [1023999] = "1e+03 KiB",
    [1024000] = "0.977 MiB",
    [1 << 20] = "1 MiB",
    [1610612736] = "1.5 GiB",
    [1 << 40] = "1 TiB",
    [1 << 56] = "64 PiB",
    [math.maxinteger] = "8 EiB",
    [-1] = "16 EiB", -- images have 64 bits without a sign
  }) do
    it(("shows %d as %s"):format(bytes, shown), function()
      assert.equal(shown, text.size(bytes))
    end)
  end
end)

describe("a name from an image", function()
  it("stays as it is when it is plain or UTF-8", function()
    assert.equal("a b\\c.qcow2", text.escape("a b\\c.qcow2"))
    assert.equal("größe-日本.raw", text.escape("größe-日本.raw"))
  end)

  it("shows control characters and stray bytes by number", function()
    assert.equal("a\\x1b[2Jb\\x0a", text.escape("a\27[2Jb\n"))
    assert.equal("\\x7f\\x00", text.escape("\x7f\0"))
    assert.equal("x\\xff\\xc3", text.escape("x\xff\xc3"))
    assert.equal("\\xc2\\x9b31m", text.escape("\xc2\x9b31m"))
    assert.equal("a\\x9b31m\u{e9}\\x9bb", text.escape("a\x9b31m\u{e9}\x9bb"))
  end)

  it("shows what looks like UTF-8 and is not by number", function()
    for _, broken in ipairs { "\xe2\x82", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
      "\xf8\x88\x80\x80\x80", "\xfe", "\xfc\x80" } do
      local shown = broken:gsub(".", function(byte) return ("\\x%02x"):format(byte:byte()) end)
      assert.equal("a" .. shown .. "b", text.escape("a" .. broken .. "b"))
      assert.equal('"a\\uFFFDb"', json.quote("a" .. broken .. "b"))
    end
    assert.equal('"\\uFFFD\\uFFFD\\uFFFDa\\uFFFD"', json.quote("\x80\x80\xff" .. "a\x80"))
  end)

  it("stays when it is one of UTF-8's borders", function()
    for _, point in ipairs { 0xa0, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff } do
      assert.equal(utf8.char(point), text.escape(utf8.char(point)))
    end
  end)
end)

describe("JSON", function()
  it("has a member a line, in the order given, four spaces a level", function()
    assert.equal('{\n    "b": 1,\n    "a": [\n        true,\n        "x"\n    ]\n}',
      json.pretty(json.object("b a c", { a = { true, "x" }, b = 1 })))
  end)

  it("has empty containers on two lines", function()
    assert.equal("[\n]", json.pretty({}))
    assert.equal('{\n    "a": {\n    }\n}', json.pretty(json.object("a", { a = json.object("", {}) })))
  end)

  it("escapes as QEMU does", function()
    assert.equal([["a\"b\\c\n\u001B\u007F\u00E9\uD83D\uDE00\uFFFD"]], json.quote('a"b\\c\n\27\x7f\u{e9}\u{1f600}\xff'))
  end)

  it("refuses a member that has no place", function()
    assert.has_error(function()
      json.object("a", { b = 1 })
    end, "JSON member without a place: b")
  end)
end)
