-- SPDX-License-Identifier: MIT
-- A raw external data file is exactly the disk: after every write into its last cluster, after resizes, and when an
-- image declares its data file raw. Bytes behind the disk's end belong to nobody.
local made = require("spec.support.made")
local qcow2 = require("qcow2")
local qemu = require("spec.support.qemu")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local CLUSTER <const> = 65536
local SIZE <const> = 3 * CLUSTER + 1536 -- ends inside the fourth cluster

local function make(options)
  local dir = tmp.dir()
  local o = { size = SIZE, data_file = "data" }
  for key, value in pairs(options or {}) do o[key] = value end
  return made(dir .. "/image", o), dir .. "/image", dir .. "/data"
end

local function length(path) return #sh.slurp(path) end

local function causes(img)
  local list = {}
  for _, divergence in ipairs(assert(img:verify()).divergences) do list[#list + 1] = divergence.cause end
  return table.concat(list, " ")
end

describe("A write into the last cluster of a data file", function()
  local last = 3 * CLUSTER
  local writes = {
    ["of its first sector"] = function(img) assert(img:write(last, ("a"):rep(512))) end,
    ["of its last sector"] = function(img) assert(img:write(SIZE - 512, ("a"):rep(512))) end,
    ["of one byte"] = function(img) assert(img:write(SIZE - 700, "a")) end,
    ["from the cluster before"] = function(img) assert(img:write(last - 10, ("a"):rep(20))) end,
    ["of all of it"] = function(img) assert(img:write(last, ("a"):rep(SIZE - last))) end,
  }
  local before = {
    ["that holds nothing"] = function() end,
    ["that holds data"] = function(img) assert(img:write(last, ("b"):rep(SIZE - last))) end,
    ["under a zero flag"] = function(img) assert(img:zero(last, SIZE - last)) end,
    ["that was discarded"] = function(img)
      assert(img:write(last, ("b"):rep(SIZE - last)))
      assert(img:discard(last, SIZE - last))
    end,
  }
  for _, options in ipairs({ { data_file_raw = true }, {}, { extended_l2 = true },
    { extended_l2 = true, data_file_raw = true } }) do
    for how, write in pairs(writes) do
      for what, prepare in pairs(before) do
        it(("%s %s ends with the disk%s%s"):format(how, what, options.data_file_raw and ", raw" or "",
          options.extended_l2 and ", extended L2" or ""), function()
          local img, path, data = make(options)
          prepare(img)
          write(img)
          local disk = img:read(0, SIZE)
          assert(img:close())
          assert.is_true(length(data) <= SIZE)
          if options.data_file_raw then assert.is_true(sh.slurp(data) == disk) end
          assert.is_true(qemu.sound(path))
        end)
      end
    end
  end

  it("ends with the disk where QEMU left a zero flag in a raw image", function()
    local img, path, data = make({ data_file_raw = true })
    assert(img:close())
    qemu.io(path, { ("write -z -u %d %d"):format(last, SIZE - last) })
    local before_length = length(data)
    img = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:write(SIZE - 512, ("a"):rep(512)))
    assert(img:close())
    assert.is_true(length(data) <= math.max(before_length, SIZE))
  end)
end)

describe("Declaring a data file raw", function()
  it("cuts what is left of a larger disk", function()
    local img, path, data = make()
    assert(img:write(0, random.new(1):bytes(SIZE)))
    assert(img:resize(CLUSTER + 512, { shrink = true }))
    assert(img:amend({ data_file_raw = true }))
    local disk = img:read(0, CLUSTER + 512)
    assert.equal("", causes(img))
    assert(img:close())
    assert.is_true(sh.slurp(data) == disk)
    assert.is_true(qemu.sound(path))
  end)

  it("cuts the padding of the last cluster", function()
    local img, path, data = make()
    assert(img:write(SIZE - 512, ("a"):rep(512)))
    assert(img:close())
    sh.spit(data, sh.slurp(data) .. ("\0"):rep(4 * CLUSTER - SIZE))
    img = assert(qcow2.open(path, { mode = "rw" }))
    assert(img:amend({ data_file_raw = true }))
    assert(img:close())
    assert.equal(SIZE, length(data))
  end)

  it("refuses a file with bytes behind the disk's end, and changes nothing", function()
    local img, path, data = make()
    assert(img:close())
    sh.spit(data, ("\0"):rep(SIZE) .. ("\0"):rep(CLUSTER) .. "somebody's")
    local before = sh.slurp(data)
    img = assert(qcow2.open(path, { mode = "rw" }))
    local done, message, kind = img:amend({ data_file_raw = true })
    assert.is_nil(done)
    assert.equal("conflict", kind)
    assert.truthy(message:find("longer than the disk", 1, true))
    assert.is_false(img.data_file_raw)
    assert(img:close())
    assert.is_true(sh.slurp(data) == before)
  end)
end)

describe("A raw data file that is longer than the disk", function()
  it("is a divergence to verify, zeros or not, and goes with a resync of the data", function()
    for _, tail in ipairs({ ("\0"):rep(512), "tail" }) do
      local img, path, data = make({ data_file_raw = true })
      assert(img:close())
      sh.spit(data, sh.slurp(data) .. tail)
      img = assert(qcow2.open(path, { mode = "rw" }))
      assert.equal("tail", causes(img))
      assert(img:verify({ resync = "data" }))
      assert.equal("", causes(img))
      assert(img:close())
      assert.equal(SIZE, length(data))
    end
  end)
end)

describe("A repair", function()
  it("lengthens a short data file when it is raw, and only then", function()
    for _, raw in ipairs({ true, false }) do
      local img, path, data = make({ data_file_raw = raw or nil })
      assert(img:close())
      sh.spit(data, ("x"):rep(CLUSTER))
      img = assert(qcow2.open(path, { mode = "rw" }))
      assert(img:repair({ all = true }))
      assert(img:close())
      assert.equal(raw and SIZE or CLUSTER, length(data))
    end
  end)
end)
