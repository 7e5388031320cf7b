-- SPDX-License-Identifier: MIT
-- Images whose contents lie in an external data file, made by qemu-img, read with ours.

local qcow2 = require "qcow2"
local reading = require "spec.support.reading"
local sh = require "spec.support.sh"

local words = { describe = describe, it = it, lazy_setup = lazy_setup, lazy_teardown = lazy_teardown }

describe("An image with", function()
  reading.describe("data_files", words, function(recipe, get)
    it("tells where its data file is", function()
      local image = get()
      local img <close> = assert(qcow2.open(image.path, image.open))
      assert.is_true(img.external_data)
      assert.are.equal(recipe.raw or false, img.data_file_raw)
      if not image.open then
        assert.are.equal(image.data_path:match("[^/]+$"), img.data_file:match("[^/]+$"))
      end
    end)

    if recipe.raw then
      it("is byte for byte its raw data file", function()
        local image, truth = get()
        local img <close> = assert(qcow2.open(image.path, image.open))
        local bytes = sh.slurp(image.data_path):sub(1, img.size)
        assert.is_true(bytes == truth)
        assert.is_true(assert(img:read(0, img.size)) == bytes)
      end)
    end

    it("is described and mapped by its tables when the data file is gone", function()
      local image = get()
      local hidden = image.data_path .. ".hidden"
      assert(os.rename(image.data_path, hidden))
      local info = sh.qcow2({ "info", "--output=json", image.path })
      local img = qcow2.open(image.path)
      local version = img and img.version
      local bytes, message, kind = nil, nil, nil
      if img and img.size > 0 then bytes, message, kind = img:read(0, 1) end
      if img then img:close() end
      assert(os.rename(hidden, image.data_path))
      assert.are.equal(0, info.code)
      assert.are.equal(3, version)
      if bytes == nil then
        assert.is_string(message)
        assert.are.equal("missing", kind)
      end
    end)
  end)
end)
