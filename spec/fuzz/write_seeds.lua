-- SPDX-License-Identifier: MIT
-- Writes the seeds of the fuzz target `write`: images of the target `walk`, each with a script behind it.
--
--   lua5.4 spec/fuzz/write_seeds.lua [FOLDER]         (default spec/fuzz/corpus/write)
local folder = arg[1] or "spec/fuzz/corpus/write"

local REPAIR = 128

-- Steps of four bytes: see the `switch` of write.c.
local WRITE, ZERO, UNMAP, DISCARD, COMPRESS, RESIZE, SNAPSHOT, BITMAP, AMEND, FLUSH = 0, 3, 15, 5, 6, 7, 8, 9, 10, 11
local scripts = {
  guest = { { WRITE, 0, 40, 9 }, { WRITE, 9, 3, 77 }, { ZERO, 2, 20, 0 }, { UNMAP, 12, 31, 0 }, { DISCARD, 0, 9, 0 },
    { COMPRESS, 3, 5, 0 }, { FLUSH, 0, 0, 0 }, { WRITE, 4, 255, 3 }, { COMPRESS, 4, 6, 0 } },
  snapshots = { { SNAPSHOT, 0, 0, 0 }, { WRITE, 0, 40, 9 }, { SNAPSHOT, 0, 0, 0 }, { SNAPSHOT, 1, 0, 0 },
    { WRITE, 3, 40, 9 }, { SNAPSHOT, 3, 1, 0 }, { SNAPSHOT, 2, 0, 0 }, { WRITE, 1, 2, 3 } },
  shape = { { RESIZE, 8, 0, 0 }, { WRITE, 0, 16, 1 }, { RESIZE, 2, 9, 1 }, { AMEND, 4, 0, 5 }, { AMEND, 3, 1, 0 },
    { WRITE, 2, 16, 2 }, { AMEND, 1, 0, 0 }, { RESIZE, 255, 255, 0 } },
  bitmaps = { { BITMAP, 0, 0, 8 }, { WRITE, 0, 16, 1 }, { BITMAP, 0, 1, 3 }, { BITMAP, 3, 1, 21 }, { BITMAP, 4, 0, 1 },
    { BITMAP, 2, 0, 0 }, { RESIZE, 9, 0, 0 }, { BITMAP, 1, 0, 0 } },
}

local seeds = {
  guest = { "qemu_plain", "qemu_refcounts", "qemu_snapshots", "backing", "data_file", "data_file_raw", "extended",
    "extended_data_file", "version_2", "qemu_zstd", "kinds_12", "refcount_order_0", "data_past_end" },
  snapshots = { "qemu_plain", "qemu_version_2", "extended", "compressed", "refcount_order_1", "l2_shared" },
  shape = { "qemu_plain", "odd_size", "empty_disk", "qemu_version_2", "data_file_raw", "two_tables" },
  bitmaps = { "qemu_bitmaps", "bitmaps", "bitmap_broken" },
}

local function slurp(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

os.execute("mkdir -p " .. folder)
for name, images in pairs(seeds) do
  local script = {}
  for i, step in ipairs(scripts[name]) do script[i] = string.char(table.unpack(step)) end
  for _, image in ipairs(images) do
    local bytes = slurp("spec/fuzz/corpus/walk/" .. image)
    for suffix, flag in pairs { [""] = 0, _repaired = REPAIR } do
      if flag == 0 or image:find("broken") or image:find("shared") or image == "qemu_refcounts" then
        local out <close> = assert(io.open(("%s/%s_%s%s"):format(folder, image, name, suffix), "wb"))
        out:write(string.char(bytes:byte() & 127 | flag), bytes:sub(2), table.concat(script), string.char(#script))
      end
    end
  end
end
