-- SPDX-License-Identifier: MIT
-- What holds for every compression type: csrc/data/codec.c.

local probe = require "qcow2_probe"
local random = require "spec.support.random"

local DEFLATE, ZSTD = 0, 1

local function words(seed, length)
  local rng, out, size = random.new(seed), {}, 0
  local list = { "the", "cluster", "at", "offset", "zero", "reads", "from", "backing", "\n", "0x", "refcount" }
  while size < length do
    local word = rng:chance(10) and tostring(rng:int(0, 99999)) or rng:pick(list)
    out[#out + 1] = word .. " "
    size = size + #word + 1
  end
  return table.concat(out):sub(1, length)
end

describe("a compression type", function()
  it("has the name that qemu-img knows it by", function()
    assert.equal("zlib", (probe.codec_about(DEFLATE)))
    assert.equal("zstd", (probe.codec_about(ZSTD)))
  end)

  it("says which library serves it", function()
    local _, library = probe.codec_about(DEFLATE)
    assert.matches("^libdeflate %d+%.%d+", library:gsub("^zlib", "libdeflate"))
    _, library = probe.codec_about(ZSTD)
    if library then assert.matches("^libzstd %d+%.%d+%.%d+$", library) end
  end)

  if not select(2, probe.codec_about(ZSTD)) then
    it("without a library is unsupported, and the message names what is missing", function()
      local codec, message, kind = probe.codec(ZSTD)
      assert.is_nil(codec)
      assert.equal("unsupported", kind)
      assert.matches("libzstd", message)
    end)
  end

  it("of another number is unknown", function()
    for _, number in ipairs { -1, 2, 255, math.mininteger >> 32 } do
      assert.same({}, { probe.codec_about(number) })
      local codec, message, kind = probe.codec(number)
      assert.is_nil(codec)
      assert.equal("unsupported", kind)
      assert.matches("not known", message)
    end
  end)
end)

for _, number in ipairs { DEFLATE, ZSTD } do
  local name, library = probe.codec_about(number)
  describe(("the codec %s"):format(name), function()
    if not library then
      it("is left out of this build", function() pending("built without its library") end)
      return
    end
    local codec = assert(probe.codec(number))

    -- A cluster that compresses comes back from its stream, from the stream with garbage behind it up to
    -- the sector's end, and the stream is the same each time.
    local function round_trip(cluster)
      local stream = assert(codec:compress(cluster, #cluster - 1))
      assert.is_true(#stream > 0 and #stream < #cluster)
      assert.is_true(cluster == codec:expand(stream, #cluster))
      assert.is_true(cluster == codec:expand(stream .. ("\xff"):rep(512 - #stream % 512), #cluster))
      assert.is_true(stream == codec:compress(cluster, #cluster - 1))
      local other <close> = assert(probe.codec(number))
      assert.is_true(stream == other:compress(cluster, #cluster - 1))
      if number == DEFLATE then
        assert.is_true(cluster == probe.inflate_as_qemu(stream, #cluster))
      end
      return stream
    end

    for bits = 9, 21 do
      local size = 1 << bits
      it(("brings back a cluster of %d bytes"):format(size), function()
        local zeros = round_trip(("\0"):rep(size))
        assert.is_true(#zeros < 64 + size // 500)
        round_trip(words(size, size))
        round_trip(random.new(size):bytes(size // 2) .. ("\0"):rep(size // 2))
        round_trip(words(size, size // 4) .. random.new(1):bytes(size // 4) .. words(2, size // 2))
      end)

      it(("says that %d random bytes do not shrink"):format(size), function()
        assert.equal("", codec:compress(random.new(size):bytes(size), size - 1))
      end)
    end

    it("brings back lengths that are no power of two", function()
      for _, size in ipairs { 100, 513, 4095, 65537, 1000003 } do round_trip(words(size, size)) end
    end)

    it("brings back a single byte from a stream that is longer", function()
      local stream = codec:compress("x", 100)
      assert.equal("x", codec:expand(stream, 1))
    end)

    it("gives an empty stream when the room is short by one byte, and the stream when it is not", function()
      local cluster = words(7, 65536)
      local stream = codec:compress(cluster, 65535)
      assert.equal("", codec:compress(cluster, #stream // 2))
      assert.equal("", codec:compress(cluster, 1))
      assert.equal("", codec:compress(cluster, 0))
      assert.equal("", codec:compress(cluster, #stream - 1))
      assert.is_true(stream == codec:compress(cluster, 65535))
    end)

    it("finds a stream cut off anywhere corrupt, or has every byte", function()
      for _, cluster in ipairs { words(3, 4096), ("\0"):rep(4096), random.new(3):bytes(1024) .. words(4, 3072) } do
        local stream, whole = codec:compress(cluster, 4095), 0
        for length = 0, #stream - 1 do
          local got, message, kind = codec:expand(stream:sub(1, length), 4096)
          if got then
            assert.is_true(got == cluster)
            whole = whole + 1
          else
            assert.equal("corrupt", kind)
            assert.matches("stream", message)
          end
        end
        assert.is_true(whole <= 3, "only the end mark can be spared")
      end
    end)

    it("finds a stream of fewer bytes than the cluster corrupt", function()
      local stream = codec:compress(words(5, 4096), 4095)
      local got, message, kind = codec:expand(stream, 8192)
      assert.is_nil(got)
      assert.equal("corrupt", kind)
      assert.matches("4096 of 8192", message)
    end)

    it("stops at the end of the cluster when the stream goes on", function()
      local cluster = words(6, 65536)
      local stream = codec:compress(cluster, 65535)
      for _, size in ipairs { 1, 511, 512, 4096, 65535 } do
        assert.is_true(cluster:sub(1, size) == codec:expand(stream, size))
      end
    end)

    it("takes zeros, which an unwritten sector holds, for corrupt", function()
      for _, length in ipairs { 1, 512, 70000 } do
        local got, _, kind = codec:expand(("\0"):rep(length), 65536)
        assert.is_nil(got)
        assert.equal("corrupt", kind)
      end
    end)

    it("comes back from garbage, and works afterwards", function()
      local rng = random.new("garbage " .. name)
      local cluster = words(8, 4096)
      local stream = codec:compress(cluster, 4095)
      for _ = 1, 2000 do
        local bytes
        if rng:chance(30) then
          bytes = rng:bytes(rng:int(1, 600))
        else -- a good stream with up to four bytes changed
          bytes = stream
          for _ = 1, rng:int(1, 4) do
            local at = rng:int(1, #bytes)
            bytes = bytes:sub(1, at - 1) .. string.char(rng:int(0, 255)) .. bytes:sub(at + 1)
          end
        end
        local got, _, kind = codec:expand(bytes, 4096)
        if got then
          assert.equal(4096, #got)
        else
          assert.equal("corrupt", kind)
        end
      end
      assert.is_true(cluster == codec:expand(stream, 4096))
      assert.is_true(stream == codec:compress(cluster, 4095))
    end)

    it("calls lengths that no caller may give a bug", function()
      for _, call in ipairs {
        function() return codec:expand("abc", 0) end,
        function() return codec:compress("", 100) end,
      } do
        local got, _, kind = call()
        assert.is_nil(got)
        assert.equal("bug", kind)
      end
    end)
  end)
end
