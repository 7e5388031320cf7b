-- SPDX-License-Identifier: MIT
-- Writes the seeds of the fuzz target `walk`: small images of every feature, in its input format.
--
--   lua5.4 spec/fuzz/walk_seeds.lua [FOLDER]         (default spec/fuzz/corpus/walk)
package.path = "./?.lua;" .. package.path
local forge = require "spec.support.forge"
local qemu = require "spec.support.qemu"
local tmp = require "spec.support.tmp"

local folder = arg[1] or "spec/fuzz/corpus/walk"
local PIECE = 512

-- The image as an input: pieces of 512 bytes, `spread` times apart; what lies between must be zeros.
local function input_of(bytes, shift, flags)
  local step, pieces = PIECE << shift, {}
  for at = 1, #bytes, step do
    local piece = bytes:sub(at, at + PIECE - 1)
    if shift > 0 then
      assert(not bytes:sub(at + PIECE, at + step - 1):find("[^\0]"), "bytes beyond a cluster's first piece")
      piece = piece .. ("\0"):rep(PIECE - #piece)
    end
    pieces[#pieces + 1] = piece
  end
  return string.char(shift | (flags or 0)) .. table.concat(pieces)
end

local function put(name, path, shift, flags)
  local file <close> = assert(io.open(path, "rb"))
  local bytes = input_of(file:read("a"), shift, flags)
  assert(#bytes <= 20480, name .. " is too large")
  local out <close> = assert(io.open(folder .. "/" .. name, "wb"))
  out:write(bytes)
end

local function seed(name, description, shift, flags)
  local path = tmp.path()
  forge.write(path, description)
  put(name, path, shift or description.header.cluster_bits - 9, flags)
end

local function header(bits, size, more)
  local h = { cluster_bits = bits, size = size }
  for key, value in pairs(more or {}) do h[key] = value end
  return h
end

local text = ("The quick brown fox. "):rep(20)
local stream = forge.deflate(("z"):rep(512))
local kinds = {
  [0] = { data = text }, [1] = "zero", [2] = { data = "abc", zero = true }, [4] = { data = "def" },
  [5] = { data = "ghi" }, [7] = { compressed = stream }, [8] = { compressed = stream },
}

os.execute("mkdir -p " .. folder)
for bits = 9, 12 do
  seed("kinds_" .. bits, { header = header(bits, 64 << bits), clusters = {
    [0] = kinds[0], [1] = "zero", [2] = kinds[2], [4] = kinds[4], [63] = kinds[5] } })
end
seed("kinds_21", { header = header(21, 64 << 21), clusters = { [0] = { data = "x" }, [1] = "zero" } })
seed("compressed", { header = header(9, 32768), clusters = kinds }, 0)
seed("compressed_zstd", { header = header(9, 32768, { compression_type = 1 }),
  clusters = { [1] = { compressed = forge.zstd(("y"):rep(512)) }, [3] = { data = "q" } } }, 0)
seed("compressed_open", { header = header(10, 65536),
  clusters = { [1] = { compressed = forge.deflate(("y"):rep(1024), true) } } }, 0)
seed("version_2", { header = header(9, 32768, { version = 2 }), clusters = { [0] = kinds[0], [9] = kinds[4] } }, 0)
seed("odd_size", { header = header(9, 32768 + 1), clusters = { [64] = { data = "end" } } }, 0)
seed("empty_disk", { header = header(9, 0) }, 0)
seed("huge_disk", { header = header(21, 1 << 50), clusters = { [0] = { data = "x" } } })
seed("two_tables", { header = header(9, 128 * 512), clusters = { [63] = { data = "a" }, [64] = { data = "b" } } }, 0)
for order = 0, 6 do
  seed("refcount_order_" .. order, { header = header(9, 8192, { refcount_order = order }),
    clusters = { [0] = { data = "a" } } }, 0)
end
local extended = { header = header(14, 8 << 14), extended_l2 = true, clusters = {
  [0] = { data = text, alloc = 0xffff, zero = 0xf0000000 }, [1] = "zero", [2] = { data = "abc", alloc = 1 },
  [3] = { raw = 0, bitmap = 1 << 63 }, [5] = { data = "kept", zero = true } } }
seed("extended", extended)
seed("extended_contradiction", { header = header(14, 8 << 14), extended_l2 = true,
  clusters = { [0] = { data = "a", alloc = 1, zero = 1 }, [1] = { raw = 0, bitmap = 1 } } })
extended.data_file = "data.raw"
seed("extended_data_file", extended)
seed("data_file", { header = header(9, 32768), data_file = "data.raw",
  clusters = { [0] = { data = "a" }, [1] = { data = "b" }, [3] = "zero" } }, 0)
seed("data_file_raw", { header = header(12, 32768), data_file = "data.raw", data_file_raw = true,
  clusters = { [0] = { data = "a" }, [1] = { data = "b" } } })
seed("data_file_missing", { header = header(9, 32768), data_file = "data.raw", clusters = { [0] = { data = "a" } } },
  0, 128)
seed("data_file_compressed", { header = header(9, 32768), data_file = "d", clusters = { [0] = 1 << 62 | 512 } }, 0)
seed("backing", { header = header(9, 32768), backing_file = "base.qcow2", backing_format = "qcow2",
  clusters = { [0] = kinds[0], [3] = "zero", [8] = { compressed = stream } } }, 0)
seed("backing_extended", { header = header(14, 8 << 14), extended_l2 = true, backing_file = "base",
  backing_format = "qcow2", clusters = { [0] = { data = "a", alloc = 0xff, zero = 0xff00 } } })
seed("backing_missing", { header = header(9, 32768), backing_file = "base" }, 0, 128)
seed("features", { header = header(9, 8192, { compatible_features = 3, incompatible_features = 3,
    autoclear_features = 1 << 40 }),
  feature_names = { { 0, 0, "dirty bit" }, { 1, 1, "odd \27[31m" } } }, 0)
seed("feature_unknown", { header = header(9, 8192, { incompatible_features = 1 << 9 | 1 << 63 }),
  feature_names = { { 0, 9, "teleport\n" } } }, 0)
seed("extensions", { header = header(9, 8192), extensions = { { type = 1, data = "abc" }, { type = 2, data = "" },
  { type = 0x12345678, data = ("e"):rep(40) } } }, 0)
seed("long_header", { header = header(9, 8192, { header_length = 200 }) }, 0)
seed("encrypted_aes", { header = header(9, 8192, { crypt_method = 1 }), clusters = { [0] = { data = "a" } } }, 0)
seed("encrypted_luks", { header = header(9, 8192, { crypt_method = 2 }), clusters = { [0] = { data = "a" } },
  extensions = { { type = 0x0537be77, data = string.pack(">I8I8", 4096, 512) } } }, 0)
seed("snapshots", { header = header(9, 32768), clusters = { [0] = { data = "now" } }, snapshots = {
  { id = "1", name = "shared" },
  { id = "2", name = "own", clusters = { [0] = { data = "then" }, [2] = "zero" } },
  { id = "3", name = "old", extra = "" },
  { id = "4", name = "counted", extra = string.pack(">i8i8i8", 1 << 20, 16384, 77) },
  { id = "5", name = "more", extra = ("\0"):rep(8) .. string.pack(">i8", 4096) .. ("x"):rep(30) },
} }, 0)
seed("snapshot_broken", { header = header(9, 32768), snapshots = {
  { id = "1", name = "far", l1_offset = 1 << 40 }, { id = "2", name = "many", l1_size = 0x7fffffff },
  { id = "3", name = "odd", l1_offset = 77 } } }, 0)
seed("bitmaps", { header = header(9, 1 << 20), bitmaps = {
  { name = "b0", granularity_bits = 9, entries = { [0] = "\255\0\1\2\3" } },
  { name = "b1", granularity_bits = 12, flags = 2, entries = { [0] = "ones" } },
  { name = "b2", flags = 1, extra = "extra", type = 1 }, { name = "b3", type = 2 },
} }, 0)
seed("bitmap_broken", { header = header(9, 1 << 20), bitmaps = {
  { name = "far", table_offset = 1 << 40, entries = {} }, { name = "fine", granularity_bits = 8 },
  header = { directory_size = 1 << 30 } } , length = 8192 }, 0)
seed("l1_bit_63", { header = header(9, 128 * 512), l1 = { [0] = 1 << 63 } }, 0)
seed("l2_shared", { header = header(9, 256 * 512), clusters = { [0] = { data = "a" } },
  l1 = { [1] = 2560, [2] = 2560 } }, 0)
seed("reserved_bits", { header = header(9, 32768), clusters = { [0] = 0x3f000000000001fe, [1] = 1 << 63 } }, 0)
seed("data_past_end", { header = header(9, 32768), clusters = { [0] = 1 << 40, [1] = 1 << 40 | 512 } }, 0)

-- The same by QEMU's own hand.
local function by_qemu(name, options, commands, more)
  local path = tmp.path()
  options.cluster_size = 512
  qemu.create(path, options)
  qemu.io(path, commands)
  if more then more(path) end
  put("qemu_" .. name, path, 0)
end

by_qemu("plain", { size = "32K" }, { "write -P 1 0 2k", "write -z 4k 1k", "write -zu 0 512", "write -c -P 7 8k 1k" })
by_qemu("version_2", { size = "32K", compat = "0.10" }, { "write -P 1 0 2k", "write -c -P 7 8k 1k" })
by_qemu("zstd", { size = "32K", compression_type = "zstd" }, { "write -c -P 7 8k 1k", "write -P 1 0 600" })
by_qemu("refcounts", { size = "32K", refcount_bits = 1, lazy_refcounts = true },
  { "write -P 1 0 2k", "discard 512 1k" })
by_qemu("snapshots", { size = "32K" }, { "write -P 1 0 1k" }, function(path)
  qemu.snapshot(path, "-c", "one")
  qemu.io(path, { "write -P 2 512 1k" })
  qemu.snapshot(path, "-c", "two")
end)
by_qemu("bitmaps", { size = "32K" }, { "write -P 1 0 1k" }, function(path)
  qemu.bitmap(path, "b", "--add", "-g", "512")
  qemu.bitmap(path, "off", "--add", "--disable")
  qemu.io(path, { "write -P 2 5k 1k" })
end)
