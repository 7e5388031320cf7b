-- SPDX-License-Identifier: MIT
-- Encrypted images by qemu-img: their tables are open to everybody, their contents to nobody without the key.

local decoder = require "spec.support.decoder"
local fixtures = require "spec.support.fixtures"
local judge = require "spec.support.judge"
local qcow2 = require "qcow2"
local reading = require "spec.support.reading"
local qemu = require "spec.support.qemu"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

describe("An image that qemu-img encrypted with", function()
  for _, recipe in ipairs(fixtures.of("encrypted")) do
    describe(recipe:title(), function()
      local dir, image

      lazy_setup(function()
        dir = tmp.dir()
        image = recipe:make(dir)
      end)

      lazy_teardown(function() tmp.remove(dir) end)

      it("says so", function()
        local img <close> = assert(qcow2.open(image.path))
        assert.are.equal(recipe.encryption, img.encryption)
        local info = qemu.decode(sh.qcow2({ "info", "--output=json", image.path }).stdout)
        assert.is_true(info.encrypted)
        local theirs = qemu.info(image.path)
        assert.are.equal(theirs["virtual-size"], info["virtual-size"])
        local encrypt = info["format-specific"].data.encrypt
        assert.are.equal(recipe.encryption, encrypt.format)
        if recipe.encryption == "luks" then
          -- A member that came with QEMU 9.
          assert.is_false(encrypt["detached-header"])
          encrypt["detached-header"] = nil
        end
        assert.are.same(theirs["format-specific"].data.encrypt, encrypt)
      end)

      it("has the tables that the decoder finds", function()
        local decoded <close> = decoder.open(image.path)
        reading.none(decoded:problems())
        local img <close> = assert(qcow2.open(image.path))
        reading.none(judge.tables(img, image.path))
        reading.none(judge.layer(img, image.path))
      end)

      it("does not hand out ciphertext for data", function()
        local img <close> = assert(qcow2.open(image.path))
        local tried = 0
        for e in img:extents() do
          if e.kind == "data" then
            local bytes, message, kind = img:read(e.offset, math.min(e.length, 512))
            assert.is_nil(bytes)
            assert.is_string(message)
            assert.is_true(kind == "unsupported" or kind == "key", kind)
            tried = tried + 1
          end
        end
        assert.is_true(tried > 0)
        local target = dir .. "/plain.raw"
        assert.are.equal(1, sh.qcow2({ "convert", "-f", "qcow2", "-O", "raw", image.path, target }).code)
      end)
    end)
  end

  it("by LUKS shows the method alone when its LUKS header is damaged", function()
    local dir = tmp.dir()
    local image = fixtures.of("encrypted")[2]:make(dir)
    local img <close> = assert(qcow2.open(image.path))
    local file <close> = assert(io.open(image.path, "r+b"))
    local before
    for _, extension in ipairs(img.extensions) do
      if extension.name == "encryption" then before = extension end
    end
    local at = string.unpack(">I8", before.data)
    for _, damage in ipairs({ { at, "LUKX" }, { before.offset, string.pack(">i8", -1) },
      { before.offset, string.pack(">I8", img.file_length - 100) } })
    do
      file:seek("set", damage[1])
      file:write(damage[2])
      file:flush()
      local result = sh.qcow2({ "info", "--output=json", image.path })
      assert.are.equal(0, result.code, result.stderr)
      assert.are.same({ format = "luks" }, qemu.decode(result.stdout)["format-specific"].data.encrypt)
      file:seek("set", damage[1])
      file:write(damage[1] == at and "LUKS" or before.data)
      file:flush()
    end
    tmp.remove(dir)
  end)
end)
