-- SPDX-License-Identifier: MIT
-- Every verb that works with threads ends as well where the system gives fewer of them, or none at all.
local cc = require("spec.support.cc")
local qcow2 = require("qcow2")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

-- A sanitizer has to be loaded first.
if cc.is_sanitized() then return end

describe("With too few threads", function()
  local library, dir

  setup(function()
    library = cc.shared("few_threads")
    dir = tmp.dir()
    assert(qcow2.create(dir .. "/base", { size = "8M" }))
    local base <close> = assert(qcow2.open(dir .. "/base", { mode = "rw" }))
    local bytes = random.new(1):bytes(3 << 20)
    assert(base:write(1 << 20, bytes))
    assert(base:close())
    assert(qcow2.create(dir .. "/over", { backing_file = "base", backing_fmt = "qcow2" }))
    local over <close> = assert(qcow2.open(dir .. "/over", { mode = "rw" }))
    assert(over:write(2 << 20, bytes:reverse()))
  end)

  -- A verb that hangs is killed by timeout, whose code is 124.
  local function run(most, words)
    return sh.run({ "timeout", "30", "env", "LD_PRELOAD=" .. library, "Q2_FEW_THREADS=" .. most,
      sh.build() .. "/bin/qcow2", table.unpack(words) }, { cwd = dir })
  end

  local verbs = {
    { "convert", "-O", "raw", "over", "out" },
    { "convert", "-O", "qcow2", "over", "out" },
    { "convert", "-c", "-O", "qcow2", "over", "out" },
    { "convert", "-W", "-m", "8", "-O", "qcow2", "over", "out" },
    { "compare", "over", "over" },
    { "check", "over" },
    { "dd", "if=over", "of=out", "bs=1M" },
    { "externalize", "moved", "data" },
    { "internalize", "moved" },
    { "rebase", "-b", "", "moved" },
    { "commit", "copied" },
    { "measure", "-O", "qcow2", "over" },
  }
  for _, most in ipairs({ 0, 1 }) do
    it(("as few as %d, all ends and is right"):format(most), function()
      sh.check({ "rm", "-f", "data", "out" }, { cwd = dir })
      sh.check({ "cp", "over", "moved" }, { cwd = dir })
      sh.check({ "cp", "over", "copied" }, { cwd = dir })
      for _, words in ipairs(verbs) do
        local result = run(most, words)
        assert.equal(0, result.code, table.concat(words, " ") .. ": " .. result.stderr)
        if words[1] == "convert" then
          assert.equal(0, sh.qcow2({ "compare", "over", "out" }, { cwd = dir }).code)
        end
      end
    end)
  end
end)
