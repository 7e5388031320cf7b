-- SPDX-License-Identifier: MIT
-- Deflate streams written by hand, block by block: csrc/data/deflate.c.

local probe = require "qcow2_probe"
local random = require "spec.support.random"

local codec = assert(probe.codec(0))

-- Writes bits as RFC 1951 packs them: fields from the lowest bit, Huffman codes from the highest.
local function writer()
  local bits = {}
  local self = {}
  function self.field(value, count)
    for i = 0, count - 1 do bits[#bits + 1] = value >> i & 1 end
    return self
  end
  function self.code(value, count)
    for i = count - 1, 0, -1 do bits[#bits + 1] = value >> i & 1 end
    return self
  end
  function self.align()
    while #bits % 8 ~= 0 do bits[#bits + 1] = 0 end
    return self
  end
  function self.stored(last, data, complement)
    self.field(last and 1 or 0, 1).field(0, 2).align()
    self.field(#data, 16).field(complement or ~#data & 0xffff, 16)
    for i = 1, #data do self.field(data:byte(i), 8) end
    return self
  end
  function self.fixed(last) return self.field(last and 1 or 0, 1).field(1, 2) end
  -- A literal, length or end symbol of the fixed code.
  function self.symbol(value)
    if value < 144 then return self.code(0x30 + value, 8) end
    if value < 256 then return self.code(0x190 + value - 144, 9) end
    if value < 280 then return self.code(value - 256, 7) end
    return self.code(0xc0 + value - 280, 8)
  end
  -- 258 bytes from far back: a distance symbol and its extra bits.
  function self.match(symbol, extra, extra_bits) return self.symbol(285).code(symbol, 5).field(extra, extra_bits) end
  function self.bytes()
    local out = {}
    for i = 1, #bits, 8 do
      local byte = 0
      for k = 0, 7 do byte = byte | (bits[i + k] or 0) << k end
      out[#out + 1] = string.char(byte)
    end
    return table.concat(out)
  end
  return self
end

local END = 256

-- As QEMU's zlib sees it, and as we do: both take it and agree, or both refuse.
local function expands_to(cluster, stream)
  assert.is_true(cluster == probe.inflate_as_qemu(stream, #cluster), "QEMU would not read this")
  assert.is_true(cluster == codec:expand(stream, #cluster))
end

local function is_corrupt(stream, size, pattern)
  assert.is_nil((probe.inflate_as_qemu(stream, size)), "QEMU would read this")
  local got, message, kind = codec:expand(stream, size)
  assert.is_nil(got)
  assert.equal("corrupt", kind)
  assert.matches(pattern, message)
end

describe("a deflate stream", function()
  local cluster = random.new("stored"):bytes(512)

  it("may be stored blocks", function()
    expands_to(cluster, writer().stored(true, cluster).bytes())
    local w = writer().stored(false, cluster:sub(1, 100)).stored(false, "").stored(true, cluster:sub(101))
    expands_to(cluster, w.bytes())
  end)

  it("may mix stored and coded blocks", function()
    local w = writer().fixed(false)
    for i = 1, 200 do w.symbol(cluster:byte(i)) end
    expands_to(cluster, w.symbol(END).stored(true, cluster:sub(201)).bytes())
  end)

  it("may lack its end mark", function()
    expands_to(cluster, writer().stored(false, cluster).bytes())
    local w = writer().fixed(true)
    for i = 1, 512 do w.symbol(cluster:byte(i)) end
    expands_to(cluster, w.bytes())
  end)

  it("may have anything behind it", function()
    local stream = writer().stored(true, cluster).bytes()
    expands_to(cluster, stream .. random.new("tail"):bytes(700))
    expands_to(cluster, stream .. stream)
  end)

  it("may have another block behind the cluster's last byte", function()
    expands_to(cluster, writer().stored(false, cluster).stored(true, "more").bytes())
    expands_to(cluster, writer().stored(false, cluster).fixed(true).symbol(65).symbol(END).bytes())
  end)

  it("may run over the cluster's end in the middle of a match", function()
    expands_to(("A"):rep(512), writer().fixed(true).symbol(65).match(0, 0, 0).match(0, 0, 0).match(0, 0, 0).bytes())
  end)

  it("may reach back 32 KiB, beyond the window that QEMU names", function()
    -- Distance symbol 29 with all its 13 extra bits set is 32768.
    local start = random.new("far"):bytes(32768)
    local w = writer()
    w.stored(false, start).fixed(true).match(29, 8191, 13).symbol(END)
    expands_to(start .. start:sub(1, 258), w.bytes())
  end)

  it("made here reaches back further than 4 KiB, and QEMU's zlib reads it", function()
    local piece = random.new("piece"):bytes(1000)
    local far = piece .. ("\0"):rep(20000) .. piece .. ("\0"):rep(65536 - 22000)
    local stream = codec:compress(far, 65535)
    expands_to(far, stream)
  end)

  it("that reaches back before the cluster's start is corrupt", function()
    is_corrupt(writer().fixed(true).match(0, 0, 0).symbol(END).bytes(), 258, "too far back")
    is_corrupt(writer().fixed(true).symbol(65).match(1, 0, 0).symbol(END).bytes(), 259, "after 1 of 259")
    is_corrupt(writer().stored(false, cluster).fixed(true).match(29, 8191, 13).symbol(END).bytes(), 770, "too far back")
  end)

  it("with a stored block whose two lengths disagree is corrupt", function()
    is_corrupt(writer().stored(true, cluster, 0x1234).bytes(), 512, "stored block")
  end)

  it("with a block of the fourth type is corrupt", function()
    is_corrupt(writer().field(1, 1).field(3, 2).bytes() .. cluster, 512, "block type")
  end)

  it("that is damaged right behind the cluster's last byte is refused as QEMU refuses it", function()
    is_corrupt(writer().stored(false, cluster).field(1, 1).field(3, 2).bytes(), 512, "after 512 of 512")
  end)

  it("that ends before the cluster does is corrupt, with an end mark or without", function()
    is_corrupt(writer().stored(true, cluster).bytes(), 513, "ends after 512 of 513")
    is_corrupt(writer().stored(false, cluster).bytes(), 513, "ends after 512 of 513")
    is_corrupt(writer().stored(true, "").bytes(), 512, "ends after 0 of 512")
  end)

  it("with a zlib header is corrupt: streams are raw", function()
    local stream = "\x78\x9c" .. writer().stored(true, cluster).bytes()
    assert.is_nil((codec:expand(stream, 512)))
  end)

  it("is judged as QEMU's zlib judges it, whatever bit is turned over", function()
    local rng = random.new("judge")
    local text = {}
    for i = 1, 300 do text[i] = ("%d %s;"):format(i * i, rng:pick { "cluster", "table", "entry" }) end
    local whole = table.concat(text):sub(1, 4096)
    local size = #whole
    local stream = codec:compress(whole, size)
    -- Faults in the description of a block's code, where libdeflate is known to let more pass.
    local tolerated = {
      ["invalid literal/length code"] = true,
      ["invalid distance code"] = true,
      ["too many length or distance symbols"] = true,
      ["invalid code lengths set"] = true,
      ["invalid bit length repeat"] = true,
    }
    for bit = 0, #stream * 8 - 1 do
      local at = bit // 8 + 1
      local damaged = stream:sub(1, at - 1) .. string.char(stream:byte(at) ~ 1 << bit % 8) .. stream:sub(at + 1)
      local theirs, message = probe.inflate_as_qemu(damaged, size)
      local ours = codec:expand(damaged, size)
      assert.is_true(ours == theirs or (theirs == nil and tolerated[message]), "bit " .. bit)
    end
  end)
end)
