-- SPDX-License-Identifier: MIT
-- Zstd frames written by hand, block by block: csrc/data/zstd.c.

local probe = require "qcow2_probe"
local random = require "spec.support.random"

local _, library = probe.codec_about(1)

-- A frame of RFC 8878. options: window_log (10 and up; 10 when not given), size (content size, four bytes),
-- checksum (its four bytes), open (no block is marked as the last).
local function frame(blocks, options)
  options = options or {}
  local descriptor = (options.size and 0x80 or 0) | (options.checksum and 4 or 0)
  local out = { "\x28\xb5\x2f\xfd", string.pack("<BB", descriptor, (options.window_log or 10) - 10 << 3) }
  if options.size then out[#out + 1] = string.pack("<I4", options.size) end
  for i, block in ipairs(blocks) do
    local last = i == #blocks and not options.open and 1 or 0
    local run = block.run
    out[#out + 1] = string.pack("<I3", last | (run and 1 or 0) << 1 | (run or #block[1]) << 3) .. block[1]
  end
  return table.concat(out) .. (options.checksum or "")
end

local function raw(bytes) return { bytes } end
local function run(byte, length) return { byte, run = length } end

describe("a zstd stream", function()
  if not library then
    it("is unsupported in this build", function() pending("built without libzstd") end)
    return
  end
  local codec = assert(probe.codec(1))
  local cluster = random.new("zstd"):bytes(512)

  local function expands_to(want, stream)
    local got, message = codec:expand(stream, #want)
    assert.is_true(got == want, message)
  end

  local function is_corrupt(stream, size, pattern)
    local got, message, kind = codec:expand(stream, size)
    assert.is_nil(got)
    assert.equal("corrupt", kind)
    assert.matches(pattern, message)
  end

  it("may be a frame that says its size, or one that does not", function()
    expands_to(cluster, frame({ raw(cluster) }, { size = 512 }))
    expands_to(cluster, frame { raw(cluster) })
  end)

  it("may have many blocks of all kinds", function()
    expands_to(cluster .. ("x"):rep(512), frame { raw(cluster:sub(1, 9)), raw "", raw(cluster:sub(10)), run("x", 512) })
  end)

  it("may be several frames, skippable ones among them", function()
    expands_to(("a"):rep(256) .. ("b"):rep(256), frame { run("a", 256) } .. frame { run("b", 256) })
    local skippable = string.pack("<I4s4", 0x184d2a57, "anything")
    expands_to(("a"):rep(512), skippable .. frame { run("a", 512) })
    expands_to(("a"):rep(512), frame { run("a", 200) } .. skippable .. frame { run("a", 312) })
  end)

  it("may have anything behind it", function()
    expands_to(cluster, frame { raw(cluster) } .. random.new("tail"):bytes(900))
    expands_to(cluster, frame { raw(cluster) } .. frame { raw(cluster) })
  end)

  it("may lack its last block", function()
    expands_to(cluster, frame({ raw(cluster) }, { open = true }))
  end)

  it("may go on behind the cluster's last byte", function()
    expands_to(cluster, frame { raw(cluster), raw "more" })
    expands_to(("z"):rep(512), frame({ run("z", 4096) }, { window_log = 12 }))
  end)

  it("in one frame may claim any window, for none is allocated", function()
    expands_to(cluster, frame({ raw(cluster) }, { window_log = 27 }))
    expands_to(cluster, frame({ raw(cluster) }, { window_log = 31 }))
  end)

  it("with a window that no decoder knows is corrupt", function()
    is_corrupt(frame({ raw(cluster) }, { window_log = 40 }), 512, "memory")
  end)

  it("in several frames may claim no window above 8 MiB", function()
    local function twice(window_log)
      local half = frame({ run("a", 256) }, { window_log = window_log })
      return half .. half
    end
    expands_to(("a"):rep(512), twice(23))
    is_corrupt(twice(24), 512, "memory")
    is_corrupt(twice(31), 512, "memory")
  end)

  it("whose checksum is wrong is corrupt", function()
    is_corrupt(frame({ raw(cluster) }, { checksum = "\1\2\3\4" }), 512, "checksum")
    is_corrupt(frame({ raw(cluster) }, { size = 512, checksum = "\1\2\3\4" }), 512, "checksum")
  end)

  it("that yields less or more than the size it says is corrupt", function()
    is_corrupt(frame({ raw(cluster) }, { size = 500 }), 512, "stream")
    is_corrupt(frame({ raw(cluster) }, { size = 600 }), 512, "stream")
  end)

  it("that ends before the cluster does is corrupt", function()
    is_corrupt(frame { raw(cluster) }, 513, "after 512 of 513")
    is_corrupt(frame { raw(cluster) } .. "garbage", 1024, "has no frame after 512 of 1024")
    is_corrupt(string.pack("<I4s4", 0x184d2a50, ""), 512, "after 0 of 512")
  end)

  it("with a block of the reserved type is corrupt", function()
    is_corrupt("\x28\xb5\x2f\xfd\0\0" .. string.pack("<I3", 1 | 3 << 1 | 512 << 3) .. cluster, 512, "damaged")
  end)

  it("in a format from before the standard is corrupt, even where libzstd would read it", function()
    for version = 0x22, 0x27 do
      is_corrupt(string.char(version) .. "\xb5\x2f\xfd\0\0\x13\x10\0?Z", 512, "has no frame")
      is_corrupt(frame { run("a", 256) } .. string.char(version) .. "\xb5\x2f\xfd\0\0\x13\x10\0?Z", 512,
        "has no frame after 256")
    end
  end)

  it("made here says the cluster's size in its header, as QEMU's do", function()
    local stream = codec:compress(("\0"):rep(65536), 65535)
    assert.equal(0x20, stream:byte(5) & 0x20, "one segment")
    assert.equal(65536 - 256, string.unpack("<I2", stream, 6))
  end)
end)
