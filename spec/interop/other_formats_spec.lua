-- SPDX-License-Identifier: MIT
-- SAFETY rule 16: formats that are not ours are no raw disks. Without a named format the error says which one it is,
-- wherever the file is reached from.
local forge = require("spec.support.forge")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

describe("A file in another format", function()
  local dir

  setup(function() dir = tmp.dir() end)

  local function by_qemu(format, options)
    return function(path)
      local words = { "create", "-q", "-f", format }
      for _, word in ipairs(options or {}) do words[#words + 1] = word end
      words[#words + 1] = path
      words[#words + 1] = "4M"
      local result = qemu.img(words)
      assert.equal(0, result.code, result.stderr)
    end
  end

  local function of_bytes(head, tail)
    return function(path)
      sh.spit(path, head .. ("\0"):rep((1 << 20) - #head - #tail) .. tail)
    end
  end

  local kinds = {
    { "vmdk", "vmdk", by_qemu("vmdk") },
    { "vmdk, flat", "vmdk", by_qemu("vmdk", { "-o", "subformat=monolithicFlat" }) },
    { "vmdk, a text with comments", "vmdk", of_bytes("# Disk DescriptorFile\r\n\r\n# more\nversion=1\r\nCID=1\n", "") },
    { "vmdk of ESX", "vmdk", of_bytes("COWD\1\0\0\0", "") },
    { "vdi", "vdi", by_qemu("vdi") },
    { "vhdx", "vhdx", by_qemu("vhdx") },
    { "vpc", "vpc", by_qemu("vpc") },
    { "vpc, fixed: a footer alone", "vpc", by_qemu("vpc", { "-o", "subformat=fixed" }) },
    { "qed", "qed", by_qemu("qed") },
    { "parallels", "parallels", by_qemu("parallels") },
    { "qcow, version 1", "qcow", by_qemu("qcow") },
    { "luks", "luks", of_bytes("LUKS\xba\xbe\0\1aes", "") },
    { "dmg", "dmg", of_bytes("", "koly" .. ("\0"):rep(508)) },
    { "bochs", "bochs", of_bytes("Bochs Virtual HD Image\0", "") },
    { "cloop", "cloop",
      of_bytes("#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n", "") },
  }

  for number, kind in ipairs(kinds) do
    local title, name, make = table.unpack(kind)
    it(("is refused by its name: %s"):format(title), function()
      local path = ("%s/%d"):format(dir, number)
      make(path)
      assert.equal(name, qcow2.probe(path))
      for _, mode in ipairs({ "r", "rw" }) do
        local img, message, error_kind = qcow2.open(path, { mode = mode })
        assert.is_nil(img)
        assert.equal("unsupported", error_kind)
        assert.truthy(message:find(("'%s'"):format(name), 1, true), message)
      end
      for _, words in ipairs({ { "info" }, { "map" }, { "check" }, { "convert", "-O", "qcow2" }, { "measure" } }) do
        words[#words + 1] = path
        if words[1] == "convert" then words[#words + 1] = dir .. "/never" end
        if words[1] == "measure" then table.insert(words, 2, "-Oqcow2") end
        local result = sh.qcow2(words)
        assert.equal(1, result.code, words[1])
        assert.truthy(result.stderr:find(("'%s'"):format(name), 1, true), result.stderr)
      end
      assert.is_nil(io.open(dir .. "/never"))
      -- Who names the format raw means its bytes.
      local raw <close> = assert(qcow2.open(path, { format = "raw" }))
      assert.is_true(raw:read(0, 512) == (sh.slurp(path):sub(1, 512) .. ("\0"):rep(512)):sub(1, 512))
    end)

    it(("is what its stored format says behind a backing name: %s"):format(title), function()
      local path = ("%s/%d"):format(dir, number)
      local top = path .. ".top"
      assert(qcow2.create(top, { size = "4M", backing_file = path, backing_fmt = "raw", references = "any" }))
      local img <close> = assert(qcow2.open(top, { references = "any" }))
      assert.equal(512, #assert(img:read(0, 512)))
    end)

    it(("is refused behind a backing name without a format: %s"):format(title), function()
      local path = ("%s/%d"):format(dir, number)
      local top = path .. ".old"
      -- As QEMU made them for years.
      forge.write(top, { header = { version = 2, size = 4 << 20 }, backing_file = path })
      local img <close> = assert(qcow2.open(top, { references = "any" }))
      local bytes, message, error_kind = img:read(0, 512)
      assert.is_nil(bytes)
      assert.equal("unsupported", error_kind)
      assert.truthy(message:find(("'%s'"):format(name), 1, true), message)
      img:close()
    end)
  end

  it("does not stand for plain disks: a boot sector, text, a mark at another place", function()
    for number, bytes in ipairs({ "\xeb\x3c\x90" .. ("\0"):rep(507) .. "\x55\xaa", "version", "# notes\nversion = 1\n",
      " KDMV", ("\0"):rep(1000) .. "conectix" .. ("\0"):rep(600), "LUKS\xba\xbe\0\2", "QFI" }) do
      local path = ("%s/plain%d"):format(dir, number)
      sh.spit(path, bytes)
      assert.equal("raw", qcow2.probe(path))
      local img <close> = assert(qcow2.open(path))
      assert.equal("raw", img.format)
    end
  end)
end)
