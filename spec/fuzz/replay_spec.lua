-- SPDX-License-Identifier: MIT
-- Replays the corpus of every fuzz target: whatever an input does, the target comes back from it.
local sh = require("spec.support.sh")

local function lines_of(command)
  local list = {}
  for line in sh.check(command).stdout:gmatch("[^\n]+") do
    list[#list + 1] = line
  end
  return list
end

describe("the fuzz target", function()
  for _, source in ipairs(lines_of("find spec/fuzz -maxdepth 1 -name '*.c' ! -name replay_main.c | LC_ALL=C sort")) do
    local name = source:match("([^/]+)%.c$")
    it(name .. " survives its corpus", function()
      local files = lines_of("find spec/fuzz/corpus/" .. name .. " -type f | LC_ALL=C sort")
      assert.is_true(#files > 0, "the corpus is empty")
      local program = sh.build() .. "/fuzz-replay/" .. name
      local result = sh.run({ program, table.unpack(files) }, { timeout = 120 })
      if result.code ~= 0 then
        for _, file in ipairs(files) do -- say which one
          local alone = sh.run({ program, file }, { timeout = 30 })
          assert.equal(0, alone.code, file .. "\n" .. alone.stderr)
        end
      end
      assert.equal(0, result.code, result.stderr)
      assert.equal(#files .. " replayed\n", result.stdout)
    end)
  end
end)
