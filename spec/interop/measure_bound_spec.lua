-- SPDX-License-Identifier: MIT
-- What measure says is never too small for the image that convert makes, with tables that grow and move.
local qcow2 = require("qcow2")
local random = require("spec.support.random")
local tmp = require("spec.support.tmp")

describe("The size that measure tells", function()
  local dir = tmp.dir()
  local piece = random.new(3):bytes(65536)

  for _, cluster_size in ipairs({ 512, 1024, 4096, 65536, 2 << 20 }) do
    for _, bits in ipairs({ 1, 16, 64 }) do
      it(("is enough for clusters of %d and counts of %d bits"):format(cluster_size, bits), function()
        for _, size in ipairs({ 1 << 20, 9 << 20, (20 << 20) + 512 }) do
          for _, stride in ipairs({ 65536, 200000 }) do
            local source, target = dir .. "/source", dir .. "/target"
            local file <close> = assert(io.open(source, "wb"))
            for at = 0, size - 65536, stride do
              file:seek("set", at)
              file:write(piece)
            end
            file:seek("set", size - 1)
            file:write("\0")
            file:close()
            local options = { cluster_size = cluster_size, refcount_bits = bits }
            local figures = assert(qcow2.measure(source, { format = "qcow2", source = { format = "raw" },
              cluster_size = cluster_size, refcount_bits = bits }))
            local job <close> = assert(qcow2.convert(source, target, { format = "qcow2", source = { format = "raw" },
              create = options, overwrite = true }))
            assert(job:run())
            local img <close> = assert(qcow2.open(target))
            assert.is_true(img.file_length <= figures.required, ("%d > %d"):format(img.file_length, figures.required))
            if stride == 65536 then assert.is_true(img.file_length <= figures.fully_allocated) end
          end
        end
      end)
    end
  end
end)
