-- SPDX-License-Identifier: MIT
-- The grammar of command lines, as getopt_long has it.
local getopt = require("qcow2.cli.getopt")
local optlist = require("qcow2.cli.optlist")

local OPTIONS = {
  { short = "f", long = "format", arg = "FMT" },
  { short = "p", long = "progress", arg = "json", optional = true },
  { short = "q", long = "quiet" },
  { short = "S", key = "sparse", arg = "SIZE" },
  { short = "o", long = "options", arg = "LIST", many = true },
  { long = "backing-chain" },
  { long = "bitmaps" },
  { short = "B", long = "backing", arg = "FILE", hidden = { "b", "backing-file" } },
}

local function parse(...)
  return getopt.parse(OPTIONS, { ... }, 1)
end

describe("the command line", function()
  it("takes options before, between and behind operands", function()
    assert.same({ operands = { "a", "b" }, format = "raw", quiet = true }, parse("-q", "a", "-f", "raw", "b"))
  end)

  it("takes an argument attached to a short option or after it", function()
    assert.equal("4k", parse("-S4k").sparse)
    assert.equal("4k", parse("-S", "4k").sparse)
    assert.equal("-1", parse("-S", "-1").sparse)
  end)

  it("takes several flags in one word, the last with an argument", function()
    assert.same({ operands = {}, quiet = true, progress = true, format = "raw" }, parse("-qpfraw"))
  end)

  it("takes an argument of a long option with = or as the next word", function()
    assert.equal("raw", parse("--format=raw").format)
    assert.equal("raw", parse("--format", "raw").format)
    assert.equal("", parse("--format=").format)
    assert.equal("a=b", parse("--format=a=b").format)
  end)

  it("takes an optional argument only when it is attached", function()
    assert.same({ operands = { "json" }, progress = true }, parse("--progress", "json"))
    assert.equal("json", parse("--progress=json").progress)
    assert.same({ operands = { "json" }, progress = true }, parse("-p", "json"))
  end)

  it("takes unambiguous beginnings of long options", function()
    assert.is_true(parse("--bit").bitmaps)
    assert.equal("raw", parse("--form=raw").format)
  end)

  it("takes a beginning for the option that qemu-img has, when one of ours begins so too", function()
    local options = { { long = "repair-kind", arg = "KIND", ours = true }, { long = "repair", arg = "WHAT" },
      { long = "allow", arg = "DIR", ours = true } }
    assert.same({ operands = {}, repair = "all" }, getopt.parse(options, { "--rep=all" }, 1))
    assert.same({ operands = {}, repair_kind = "x" }, getopt.parse(options, { "--repair-=x" }, 1))
    assert.same({ operands = {}, allow = "x" }, getopt.parse(options, { "--a=x" }, 1))
  end)

  it("takes a whole name that begins another one", function()
    assert.equal("x", parse("--backing=x").backing)
    assert.is_true(parse("--backing-c").backing_chain)
  end)

  it("takes older spellings of an option", function()
    assert.equal("x", parse("-b", "x").backing)
    assert.equal("x", parse("--backing-file=x").backing)
  end)

  it("keeps the last of an option, and all of one that collects", function()
    assert.equal("b", parse("-f", "a", "-f", "b").format)
    assert.same({ "a", "b" }, parse("-o", "a", "--options=b").options)
  end)

  it("reads no options behind --, and a lone - is an operand", function()
    assert.same({ operands = { "-", "-q", "--" } }, parse("-", "--", "-q", "--"))
  end)

  it("stops at the first operand when told to", function()
    local values, at = getopt.parse(OPTIONS, { "-q", "info", "-f", "x" }, 1, true)
    assert.same({ operands = {}, quiet = true }, values)
    assert.equal(2, at)
  end)

  for _, case in ipairs({
    { { "-x" }, "invalid option -- 'x'" },
    { { "-qx" }, "invalid option -- 'x'" },
    { { "--nothing" }, "unrecognized option '--nothing'" },
    { { "--quiet=yes" }, "option '--quiet' doesn't allow an argument" },
    { { "--b" }, "option '--b' is ambiguous; possibilities: '--backing-chain' '--bitmaps' '--backing'" },
    { { "-f" }, "option requires an argument -- 'f'" },
    { { "a", "--format" }, "option '--format' requires an argument" },
  }) do
    it(("refuses %s"):format(table.concat(case[1], " ")), function()
      local values, message = parse(table.unpack(case[1]))
      assert.is_nil(values)
      assert.equal(case[2], message)
    end)
  end
end)

describe("an option list", function()
  local function pairs_of(...)
    local out = {}
    for _, entry in ipairs(optlist.parse(...)) do
      out[#out + 1] = entry.key .. "=" .. entry.value
    end
    return out
  end

  it("holds keys and values between commas", function()
    assert.same({ "a=1", "b=2=3", "c=" }, pairs_of("a=1,b=2=3,c="))
  end)

  it("has a comma where two stand", function()
    assert.same({ "a=x,y", "b=," }, pairs_of("a=x,,y,b=,,"))
  end)

  it("turns bare words on, and off with no in front", function()
    assert.same({ "lazy=on", "lazy=off" }, pairs_of("lazy,nolazy"))
  end)

  it("gives a bare first word to the implied key", function()
    assert.same({ "type=secret", "id=a" }, pairs_of("secret,id=a", "type"))
    assert.same({ "id=a", "x=on" }, pairs_of("id=a,x", "type"))
  end)

  it("can be joined to others unless a comma would change its meaning", function()
    assert.is_true(optlist.joinable("a=1"))
    assert.is_true(optlist.joinable("a=1,,"))
    assert.is_false(optlist.joinable(""))
    assert.is_false(optlist.joinable(",a"))
    assert.is_false(optlist.joinable("a,"))
  end)

  it("asks for help by help or ?, alone or among others", function()
    assert.is_true(optlist.wants_help("help"))
    assert.is_true(optlist.wants_help("size=1,?"))
    assert.is_false(optlist.wants_help("a=help"))
  end)
end)
