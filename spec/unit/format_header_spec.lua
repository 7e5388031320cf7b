-- SPDX-License-Identifier: MIT
-- The header and its extensions: every field comes out as it went in, and as the decoder reads it.
local core = require "qcow2.core"
local decoder = require "spec.support.decoder"
local forge = require "spec.support.forge"
local poke = require "spec.support.poke"
local qcow2 = require "qcow2"
local random = require "spec.support.random"
local tmp = require "spec.support.tmp"

local function opened(description)
  local path = tmp.path("image.qcow2")
  local at = forge.write(path, description)
  return assert(qcow2.open(path)), path, at
end

describe("The header", function()
  it("names the specification's fields in the order and at the places that it gives", function()
    local count = 0
    for name in pairs(poke.fields) do
      count = count + 1
      assert.is_true(type(name) == "string")
    end
    assert.equal(count, #core.header_fields)
    local last = -1
    for _, field in ipairs(core.header_fields) do
      assert.equal(poke.fields[field.name][1], field.offset, field.name)
      assert.equal(string.packsize(poke.fields[field.name][2]) * 8, field.bits, field.name)
      assert.is_true(field.offset > last)
      last = field.offset
    end
  end)

  it("gives every field as it lies in the file", function()
    local rng = random.new("header fields")
    for _ = 1, 60 do
      local bits = rng:int(9, 21)
      local header = {
        cluster_bits = bits, size = rng:int(0, 1 << 22), refcount_order = rng:int(0, 6),
        crypt_method = rng:int(0, 2), incompatible_features = rng:int(0, 3),
        compatible_features = rng:bits(),
        autoclear_features = rng:bits() & ~3,
        header_length = rng:int(0, 1) * 8 + 104,
      }
      local img <close>, path = opened({ header = header })
      for name, field in pairs(poke.fields) do
        if name ~= "compression_type" or header.header_length > 104 then
          local value = string.unpack(field[2] == ">I8" and ">i8" or field[2], poke.read(path, field[1], 8))
          assert.equal(value, img.header[name], name)
        end
      end
      local decoded <close> = decoder.open(path)
      for name, value in pairs(decoded.header) do assert.equal(value, img.header[name], name) end
    end
  end)

  it("of version 2 has the defaults of the fields that it lacks", function()
    local img <close>, path = opened({ header = { version = 2 } })
    assert.same({ 0, 0, 0, 4, 72, 0 }, { img.header.incompatible_features, img.header.compatible_features,
      img.header.autoclear_features, img.header.refcount_order, img.header.header_length, img.header.compression_type })
    -- Whatever lies where version 3 has them.
    img:close()
    poke.bytes(path, 72, ("\0"):rep(8) .. ("\255"):rep(32))
    local again <close> = assert(qcow2.open(path))
    assert.equal(16, again.refcount_bits)
    assert.same({}, again.features)
  end)

  it("of 104 bytes has no compression type, whatever lies behind it", function()
    local img <close> = opened({ header = { header_length = 104 },
      extension_bytes = string.pack(">I4I4", 0x01000000, 0) })
    assert.equal("zlib", img.compression_type)
    assert.equal(1, #img.extensions)
  end)

  it("longer than we know keeps its extensions where it ends", function()
    local img <close> = opened({ header = { header_length = 512 }, extensions = { { type = 5, data = "five" } } })
    assert.equal("five", img.extensions[1].data)
    assert.equal(520, img.extensions[1].offset)
  end)

  it("gives the properties that follow from it", function()
    local img <close> = opened({ extended_l2 = true, header = { cluster_bits = 14, refcount_order = 3,
      compression_type = 1, compatible_features = 1, incompatible_features = 1 | 2 | 8 | 16, size = 12345 } })
    assert.same({ 12345, 3, 16384, 512, 8, "zstd", true, true, true, true, false },
      { img.size, img.version, img.cluster_size, img.subcluster_size, img.refcount_bits, img.compression_type,
        img.extended_l2, img.lazy_refcounts, img.dirty, img.corrupt, img.external_data })
    local names = {}
    for _, bit in ipairs(img.features) do names[#names + 1] = bit.type .. " " .. bit.name end
    assert.same({ "incompatible dirty bit", "incompatible corrupt bit", "incompatible compression type",
      "incompatible extended L2 entries", "compatible lazy refcounts" }, names)
  end)
end)

describe("Header extensions", function()
  it("come out in order with type, name, place and data", function()
    local rng = random.new("extensions")
    for _ = 1, 30 do
      local list = {}
      for i = 1, rng:int(0, 12) do
        list[i] = { type = rng:int(1, 0xffffffff), data = rng:bytes(rng:int(0, 50)) }
        if list[i].type == forge.extension.bitmaps then list[i].type = 1 end
      end
      local img <close>, path = opened({ extensions = list })
      local decoded <close> = decoder.open(path)
      assert.equal(#list, #img.extensions)
      for i, extension in ipairs(img.extensions) do
        assert.equal(list[i].type, extension.type)
        assert.equal(list[i].data, extension.data)
        assert.equal(#list[i].data, extension.length)
        assert.equal(decoded.extensions[i].offset, extension.offset)
        assert.equal(decoded.extensions[i].name, extension.name)
      end
    end
  end)

  it("end at the end mark, at the backing file's name, or with the cluster", function()
    local entry = string.pack(">I4I4", 77, 8) .. "12345678"
    local img <close> = opened({ extension_bytes = entry .. string.pack(">I4I4", 0, 0) .. entry })
    assert.equal(1, #img.extensions)
    local named <close> = opened({ backing_file = "name",
      header = { backing_file_offset = 112 + 32, backing_file_size = 4 }, extension_bytes = entry:rep(2) })
    assert.equal(2, #named.extensions)
    assert.equal("name", named.backing_file)
    local full <close> = opened({ header = { cluster_bits = 9, size = 4096 }, extension_bytes = entry:rep(25) })
    assert.equal(25, #full.extensions)
  end)

  it("give names as they are stored, byte for byte", function()
    local name = "a\0b\xff\n/ü"
    local img <close> = opened({ backing_file = name, backing_format = "q\0", data_file = name .. "!" })
    assert.equal(name, img.backing_file)
    assert.equal("q\0", img.backing_format)
    assert.equal(name .. "!", img.data_file)
  end)

  it("hold the feature name table", function()
    local img <close> = opened({ feature_names = { { 0, 0, "dirty bit" }, { 1, 7, ("n"):rep(46) }, { 2, 63, "" },
      { 9, 1, "odd" } } })
    assert.same({ { type = "incompatible", bit = 0, name = "dirty bit" },
      { type = "compatible", bit = 7, name = ("n"):rep(46) }, { type = "autoclear", bit = 63, name = "" },
      { type = 9, bit = 1, name = "odd" } }, img.feature_names)
  end)
end)
