-- SPDX-License-Identifier: MIT
-- What -p shows: percents that never go back, from nothing to 100, about one for each percent of the work.
local qcow2 = require("qcow2")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local SIZE <const> = 64 << 20

-- The numbers that were shown, in order.
local function shown(words, cwd)
  local result = sh.run({ sh.build() .. "/bin/qcow2", table.unpack(words) }, { cwd = cwd })
  assert.equal(0, result.code, result.stderr)
  local list = {}
  for number in result.stdout:gmatch("(%d+%.%d+)/100%%") do list[#list + 1] = tonumber(number) end
  return list
end

describe("Progress", function()
  local dir
  before_each(function()
    dir = tmp.dir()
    local piece = ("p"):rep(300000)
    local file = assert(io.open(dir .. "/base", "wb"))
    for i = 0, 63 do
      file:seek("set", i << 20)
      file:write(piece)
    end
    file:seek("set", SIZE - 1)
    file:write("\0")
    file:close()
    assert(qcow2.create(dir .. "/over", { size = SIZE, backing_file = "base", backing_fmt = "raw" }))
    local img <close> = assert(qcow2.open(dir .. "/over", { mode = "rw" }))
    for i = 0, 63 do assert(img:write((i << 20) + 500000, ("o"):rep(200000))) end
  end)

  -- At least so many lines, also on a machine that has much else to do.
  for title, case in pairs({
    ["of convert"] = { 10, { "convert", "-p", "-O", "qcow2", "over", "new" } },
    ["of convert, compressed"] = { 10, { "convert", "-p", "-c", "-O", "qcow2", "over", "new" } },
    ["of convert to raw"] = { 10, { "convert", "-p", "-O", "raw", "over", "new" } },
    ["of compare"] = { 3, { "compare", "-p", "over", "over" } },
    ["of commit"] = { 4, { "commit", "-p", "over" } },
    ["of rebase"] = { 4, { "rebase", "-p", "-b", "", "over" } },
    ["of amend"] = { 2, { "amend", "-p", "-o", "compat=0.10", "over" } },
  }) do
    it(title .. " grows step by step to 100", function()
      local list = shown(case[2], dir)
      local different, last = 0, -1
      for _, percent in ipairs(list) do
        assert.is_true(percent >= last, ("%s after %s"):format(percent, last))
        if percent > last then different = different + 1 end
        last = percent
      end
      assert.equal(100, last)
      assert.is_true(different >= case[1], ("%d lines"):format(different))
    end)
  end
end)
