-- SPDX-License-Identifier: MIT
-- SAFETY rule 17: a job holds its images. Until it ends they answer conflict, whoever closes one cancels the job first.
local qcow2 = require("qcow2")
local random = require("spec.support.random")
local tmp = require("spec.support.tmp")

local SIZE <const> = 16 << 20

describe("While a job runs", function()
  local dir, base, over

  before_each(function()
    dir = tmp.dir()
    assert(qcow2.create(dir .. "/base", { size = SIZE }))
    base = assert(qcow2.open(dir .. "/base", { mode = "rw" }))
    assert(base:write(0, random.new(1):bytes(1 << 18):rep(32)))
    assert(base:close())
    assert(qcow2.create(dir .. "/over", { backing_file = "base", backing_fmt = "qcow2" }))
    over = assert(qcow2.open(dir .. "/over", { mode = "rw" }))
    assert(over:write(4 << 20, random.new(2):bytes(1 << 18):rep(32)))
    assert(over:bitmap_add("b"))
    assert(over:flush())
  end)

  after_each(function() over:close() end)

  local methods = {
    read = { 0, 512 }, write = { 0, "x" }, zero = { 0, 512 }, discard = { 0, 65536 }, flush = {},
    resize = { SIZE * 2 }, snapshot_create = { "s" },
    bitmap_add = { "c" }, bitmap_set = { "b", 0, 512 }, check = {}, repair = { { all = true } },
    amend = { { lazy_refcounts = true } }, refcount = { 0 }, bitmap = { "b" },
  }

  local function all_conflict(img)
    for name, arguments in pairs(methods) do
      local answer, message, kind = img[name](img, table.unpack(arguments))
      assert.is_nil(answer, name)
      assert.equal("conflict", kind, name .. ": " .. tostring(message))
    end
    assert.has_error(function() return img.header end)
    assert.has_error(function() return img.cluster_size end)
    assert.has_error(function() for _ in img:extents() do end end)
    -- What no thread of a job changes is still told.
    assert.equal(SIZE, img.size)
    assert.truthy(tostring(img):find("over", 1, true))
    assert.equal("qcow2", img.format)
  end

  local made = 0
  local function new_path()
    made = made + 1
    return ("%s/out%d"):format(dir, made)
  end

  local kinds = {
    convert = function() return qcow2.convert(over, new_path(), { format = "qcow2" }) end,
    ["convert to raw"] = function() return qcow2.convert({ over, over }, new_path(), { format = "raw" }) end,
    commit = function() return qcow2.commit(over) end,
    rebase = function() return qcow2.rebase(over) end,
  }

  for name, start in pairs(kinds) do
    it(("its images answer conflict: %s"):format(name), function()
      local job <close> = assert(start())
      all_conflict(over)
      local step = job:steps()
      step()
      if tostring(job):find("not done", 1, true) then all_conflict(over) end
      assert(job:run())
      assert.equal(512, #assert(over:read(0, 512)))
      assert(over:write(0, "free again"))
      assert(over:check())
    end)

    it(("no second one begins with its images: %s"):format(name), function()
      local job <close> = assert(start())
      for other, start_other in pairs(kinds) do
        local second, _, kind = start_other()
        assert.is_nil(second, other)
        assert.equal("conflict", kind, other)
      end
      assert.equal(nil, (qcow2.compare(over, over)))
      assert(job:run())
    end)

    it(("closing its image cancels it first: %s"):format(name), function()
      local job = assert(start())
      assert(over:close())
      assert.has_error(function() job:run() end)
      -- Nothing is held any more, by locks either.
      over = assert(qcow2.open(dir .. "/over", { mode = "rw" }))
      assert.equal(0, #over:check().findings)
      assert.equal(512, #assert(over:read(0, 512)))
    end)

    it(("a job that nobody keeps lets go: %s"):format(name), function()
      assert(start())
      collectgarbage()
      collectgarbage()
      assert.equal(512, #assert(over:read(0, 512)))
    end)
  end

  it("the same holds in what tells of progress", function()
    local asked = {}
    local function ask()
      local _, _, kind = over:read(0, 512)
      asked[#asked + 1] = kind or "an answer"
    end
    assert(over:check({ progress = function() if not over.size then error("no size") end end }))
    local job <close> = assert(qcow2.convert(over, dir .. "/out"))
    for _ in job:steps() do ask() end
    assert(#asked > 0)
    for i = 1, #asked - 1 do assert.equal("conflict", asked[i]) end
  end)

  it("a snapshot that it reads stays", function()
    assert(over:snapshot_create("s"))
    local view <close> = assert(over:snapshot("s"))
    local job <close> = assert(qcow2.convert(view, dir .. "/out"))
    local done, _, kind = over:snapshot_delete("s")
    assert.is_nil(done)
    assert.equal("conflict", kind)
    assert(over:write(0, "the image itself is free"))
    assert(job:run())
    assert(over:snapshot_delete("s"))
  end)
end)
