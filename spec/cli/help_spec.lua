-- SPDX-License-Identifier: MIT
-- The program around the verbs: help, version, man pages, completions, mistakes in the command line.
local cli = require("qcow2.cli")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function try(name)
  return ("Try '%s --help' for more info\n"):format(name)
end

describe("the program", function()
  it("says its version", function()
    for _, word in ipairs({ "--version", "-V", "--vers" }) do
      local result = sh.qcow2({ word })
      assert.equal(0, result.code)
      assert.equal(("qcow2 version %s\n"):format(require("qcow2")._VERSION), result.stdout)
    end
  end)

  it("lists all verbs in its help, each with a summary", function()
    local long = sh.qcow2({ "--help" })
    assert.equal(0, long.code)
    assert.equal(long.stdout, sh.qcow2({ "-h" }).stdout)
    assert.equal(long.stdout, sh.qcow2({ "help" }).stdout)
    for _, verb in ipairs(cli.verbs()) do
      assert.truthy(long.stdout:find(("\n  %-9s %s\n"):format(verb.name, verb.summary), 1, true))
    end
    assert.truthy(long.stdout:find("\nSupported formats: qcow2 raw\n", 1, true))
  end)

  it("refuses to do nothing, or what it does not know", function()
    for words, message in pairs({
      [""] = "Not enough arguments",
      bogus = "Command not found: bogus",
      ["--bogus"] = "unrecognized option '--bogus'",
      ["help bogus"] = "Command not found: bogus",
    }) do
      local list = {}
      for word in words:gmatch("%S+") do
        list[#list + 1] = word
      end
      local result = sh.qcow2(list)
      assert.equal(1, result.code)
      assert.equal("", result.stdout)
      assert.equal(("qcow2: %s\n%s"):format(message, try("qcow2")), result.stderr)
    end
  end)

  it("speaks as qemu-img through a link of that name", function()
    local link = tmp.path("qemu-img")
    sh.check({ "ln", "-s", sh.build() .. "/bin/qcow2", link })
    local wrong = sh.run({ link, "info" })
    assert.equal("qemu-img: Expecting one image file name\n" .. try("qemu-img info"), wrong.stderr)
    assert.truthy(sh.run({ link, "--version" }).stdout:find("^qemu%-img version %d+%.%d+"))
  end)

  it("says which verb does not know an option", function()
    local result = sh.qcow2({ "map", "-Z" })
    assert.same({ 1, "qcow2 map: invalid option -- 'Z'\n" .. try("qcow2 map") }, { result.code, result.stderr })
  end)

  it("goes on without a trace that does not exist", function()
    local result = sh.qcow2({ "-T", "qcow2*", "help", "info" })
    assert.same({ 0, "qcow2: warning: trace event 'qcow2*' does not exist\n" },
      { result.code, result.stderr })
  end)

  it("takes no code from the current directory", function()
    local dir = tmp.dir()
    sh.check({ "mkdir", dir .. "/qcow2" })
    for _, name in ipairs({ "qcow2/core.lua", "qcow2/image.lua", "argparse.lua" }) do
      sh.spit(dir .. "/" .. name, "print('a stranger') os.exit(7)")
    end
    assert.equal(0, sh.qcow2({ "--version" }, { cwd = dir }).code)
    assert.equal(0, sh.qcow2({ "help", "--completion=bash" }, { cwd = dir }).code)
  end)

  it("says when what it prints gets lost", function()
    local result = sh.run(sh.quote(sh.build() .. "/bin/qcow2") .. " --help >/dev/full")
    assert.equal(1, result.code)
    assert.equal("qcow2: Could not write to the standard output: No space left on device\n", result.stderr)
  end)
end)

describe("each verb", function()
  for _, verb in ipairs(cli.verbs()) do
    it(("%s explains every option and operand"):format(verb.name), function()
      local result = sh.qcow2({ verb.name, "--help" })
      assert.equal(0, result.code)
      assert.equal("", result.stderr)
      assert.equal(result.stdout, sh.qcow2({ "help", verb.name }).stdout)
      assert.truthy(result.stdout:find("^Usage:\n  qcow2 " .. verb.name .. " "))
      for _, option in ipairs(verb.options) do
        assert.truthy(result.stdout:find(option.long and "--" .. option.long or "-" .. option.short, 1, true))
        assert.is_string(option.help)
      end
      for line in result.stdout:gmatch("[^\n]+") do
        assert.is_true(#line <= 80, line)
      end
    end)

    it(("%s has no two options of one spelling"):format(verb.name), function()
      local seen = {}
      for _, option in ipairs(verb.options) do
        for _, spelling in ipairs({ option.short or false, option.long or false,
          table.unpack(option.hidden or {}) }) do
          assert.is_falsy(seen[spelling])
          seen[spelling] = spelling and option
        end
      end
    end)

    it(("%s has a man page"):format(verb.name), function()
      local page = sh.qcow2({ "help", "--man", verb.name })
      assert.equal(0, page.code)
      assert.truthy(page.stdout:find("^%.TH QCOW2\\%-" .. verb.name:upper()))
      assert.truthy(page.stdout:find("\n.SH OPTIONS\n", 1, true))
    end)
  end

  it("is in the completions of bash, which bash can read", function()
    local script = sh.qcow2({ "help", "--completion=bash" })
    assert.equal(0, script.code)
    for _, verb in ipairs(cli.verbs()) do
      assert.truthy(script.stdout:find(verb.name, 1, true))
    end
    assert.equal(0, sh.run({ "bash", "-n" }, { input = script.stdout }).code)
    assert.equal(0, sh.qcow2({ "help", "--completion=zsh" }).code)
    assert.equal(0, sh.qcow2({ "help", "--completion=fish" }).code)
  end)

  it("has no completions for a shell nobody knows", function()
    local result = sh.qcow2({ "help", "--completion=rc" })
    assert.equal(1, result.code)
    assert.equal("qcow2: no completions for 'rc'; there are bash, zsh and fish\n", result.stderr)
  end)
end)
