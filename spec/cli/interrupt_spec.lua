-- SPDX-License-Identifier: MIT
-- Signals: what a verb was making is gone or bears the mark of the unfinished, and the shell goes on.
local cc = require("spec.support.cc")
local poke = require("spec.support.poke")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local terminal = require("spec.support.terminal")
local tmp = require("spec.support.tmp")

describe("A signal during a convert", function()
  local dir

  setup(function()
    dir = tmp.dir()
    local file <close> = assert(io.open(dir .. "/in", "wb"))
    local piece = random.new(1):bytes(1 << 20)
    for _ = 1, 100 do file:write(piece) end
  end)

  -- Begins to convert, sends the signal once a good part is written. gives: what the command left and its code.
  local function stopped(signal, words)
    return sh.run(([[
rm -f out
env --default-signal=INT %s/bin/qcow2 convert -r 60M %s -f raw in out 2>said & job=$!
blocks() { stat -c %%b out 2>/dev/null || echo 0; }
while [ "$(blocks)" -lt 5000 ] && kill -0 $job; do sleep 0.02; done
kill -%s $job; wait $job; echo $?]]):format(sh.build(), words, signal), { cwd = dir })
  end

  for signal, code in pairs({ INT = 130, TERM = 143, HUP = 129 }) do
    for _, words in ipairs({ "-O qcow2", "-O raw", "-c -O qcow2", "-O qcow2 -o cluster_size=4k" }) do
      it(("named %s removes what was made: %s"):format(signal, words), function()
        local result = stopped(signal, words)
        assert.equal(code .. "\n", result.stdout)
        assert.is_nil(io.open(dir .. "/out"))
      end)
    end
  end

  it("that nobody can answer leaves a file with a mark of its own, which is no raw disk", function()
    assert.equal("137\n", stopped("KILL", "-O qcow2").stdout)
    assert.equal("QFI?", poke.read(dir .. "/out", 0, 4))
    assert.equal("unfinished", qcow2.probe(dir .. "/out"))
    for _, options in ipairs({ {}, { format = "qcow2" }, { mode = "rw" } }) do
      local img, message, kind = qcow2.open(dir .. "/out", options)
      assert.is_nil(img)
      assert.equal("format", kind)
      assert.truthy(message:find("unfinished", 1, true))
    end
    for _, words in ipairs({ { "info", "out" }, { "check", "out" }, { "convert", "-O", "raw", "out", "more" } }) do
      local result = sh.qcow2(words, { cwd = dir })
      assert.equal(1, result.code)
      assert.truthy(result.stderr:find("unfinished", 1, true), result.stderr)
    end
    assert.equal(1, qemu.img({ "info", "-f", "qcow2", dir .. "/out" }).code)
    local raw <close> = assert(qcow2.open(dir .. "/out", { format = "raw" }))
    assert.equal("QFI?", raw:read(0, 4))
    assert(raw:close())
    -- It can be overwritten like any other.
    assert.equal(0, sh.qcow2({ "create", "-q", "-f", "qcow2", "out", "1M" }, { cwd = dir }).code)
    assert.equal("qcow2", qcow2.probe(dir .. "/out"))
  end)

  it("is not listened to where it was ignored from the beginning", function()
    local result = sh.run(([[(trap '' HUP TERM; %s/bin/qcow2 convert -O qcow2 -f raw in out & job=$!
kill -HUP $job; kill -TERM $job; wait $job; echo $?)]]):format(sh.build()), { cwd = dir })
    assert.equal("0\n", result.stdout)
  end)
end)

describe("The shell at a terminal", function()
  local dir

  setup(function()
    dir = tmp.dir()
    assert(qcow2.create(dir .. "/image", { size = "1M" }))
  end)

  local function shell(keys, words)
    return terminal.run(sh.build() .. "/bin/qcow2 shell " .. (words or "image"), keys, { cwd = dir })
  end

  it("goes on after Ctrl-C, again and again, at an idle prompt and with half a line", function()
    local shown, code = shell({ "\3", "\3", "1+", "\3", "6*7\n", "\3", "20+3\n", "\4" })
    assert.truthy(shown:find("\n42\n", 1, true), shown)
    assert.truthy(shown:find("\n23\n", 1, true), shown)
    assert.equal(0, code)
  end)

  it("goes on after Ctrl-C while a chunk runs, again and again", function()
    local shown, code = shell({ "while true do end\n", "\3", "while true do end\n", "\3", "6*7\n", "\4" })
    assert.truthy(shown:find("\n42\n", 1, true), shown)
    assert.equal(0, code)
  end)

  it("goes on when its image is closed, or is something else", function()
    local shown, code = shell({ "img:close()\n", "6*7\n", "img = 5\n", "20+3\n", "img = nil\n", "100+1\n", "\4" })
    for _, answer in ipairs({ "\n42\n", "\n23\n", "\n101\n" }) do
      assert.truthy(shown:find(answer, 1, true), shown)
    end
    assert.equal(0, code)
  end)

  -- A sanitizer has to be loaded first.
  if cc.is_sanitized() then return end
  it("goes on without a library for lines, too", function()
    -- A name that no library has in front of those that it looks for.
    local shown, code = terminal.run(("env LD_PRELOAD=%s %s/bin/qcow2 shell image"):format(cc.shared("no_editor"),
      sh.build()), { "\3", "\3", "6*7\n", "while true do end\n", "\3", "20+3\n", "\4" }, { cwd = dir })
    assert.truthy(shown:find("\n42\n", 1, true), shown)
    assert.truthy(shown:find("\n23\n", 1, true), shown)
    assert.equal(0, code)
  end)
end)
