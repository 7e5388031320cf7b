-- SPDX-License-Identifier: MIT
-- Soundness: where qemu-img finds nothing, check finds nothing; its sums and statistics are qemu-img's.

local fixtures = require "spec.support.fixtures"
local qcow2 = require "qcow2"
local qemu = require "spec.support.qemu"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

-- Kinds of findings that are more than notes.
local function trouble(report)
  local list = {}
  for _, finding in ipairs(report.findings) do
    if finding.severity ~= "note" then list[#list + 1] = finding.kind .. ": " .. tostring(finding) end
  end
  return table.concat(list, "\n")
end

-- What qemu-img says of a fixture, in the form that `words` ask for, with the name that ours gives it.
local function theirs(image, ...)
  local words = { "check", ... }
  for _, word in ipairs(image.object or {}) do words[#words + 1] = word end
  if image.qemu_options then
    words[#words + 1] = "--image-opts"
  else
    words[#words + 1], words[#words + 2] = "-f", "qcow2"
  end
  words[#words + 1] = image.qemu
  local result = qemu.img(words, { cwd = image.dir })
  result.stdout = result.stdout:gsub(image.qemu:gsub("%p", "%%%0"), (image.path:gsub("%%", "%%%%")))
  return result
end

for _, group in ipairs { "options", "sizes", "odd", "chains", "snapshots", "bitmaps", "data_files", "encrypted" } do
  describe("Of a fixture of the group " .. group .. ",", function()
    for _, recipe in ipairs(fixtures.of(group)) do
      describe(recipe:title(), function()
        local image
        lazy_setup(function() image = recipe:make(tmp.dir()) end)
        lazy_teardown(function() tmp.remove(image.dir) end)

        it("check finds nothing but notes", function()
          local img <close> = assert(qcow2.open(image.path, image.open))
          local report = assert(img:check())
          assert.are.equal("", trouble(report))
          assert.is_false(report.incomplete)
          assert.are.equal(0, report.omitted)
        end)

        it("check says what qemu-img says, to people and as JSON", function()
          for _, output in ipairs { "--output=human", "--output=json" } do
            local judged, ours = theirs(image, output), sh.qcow2({ "check", output, image.path }, { cwd = image.dir })
            -- QEMU counts the sectors of an odd disk down and then finds more clusters than there are.
            if group ~= "odd" then assert.are.equal(judged.stdout, ours.stdout) end
            assert.are.equal(judged.code, ours.code)
          end
        end)

        it("check finds the same on one thread and on four", function()
          local img <close> = assert(qcow2.open(image.path, image.open))
          local one, four = assert(img:check { threads = 1 }), assert(img:check { threads = 4 })
          assert.are.same(one, four)
        end)
      end)
    end
  end)
end
