-- SPDX-License-Identifier: MIT
-- Every verb that copies makes the same file, byte for byte, on every run and with any number of threads, and places
-- clusters in the order of the disk.
local qcow2 = require("qcow2")
local random = require("spec.support.random")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local SIZE <const> = 24 << 20

describe("The file that a verb makes", function()
  local dir
  local rng = random.new("same bytes")

  -- Data here and there, in pieces of many sizes; some of it in the base, some above it.
  local function scatter(img, count)
    for _ = 1, count do
      local length = rng:pick({ 512, 4096, 65536, 300000, 1 << 20 })
      local at = rng:int(0, SIZE - length)
      if rng:chance(15) then
        assert(img:zero(at, length))
      else
        assert(img:write(at, rng:bytes(length // 2) .. ("r"):rep(length - length // 2)))
      end
    end
  end

  setup(function()
    dir = tmp.dir()
    for _, name in ipairs({ "base", "other" }) do
      assert(qcow2.create(dir .. "/" .. name, { size = SIZE }))
      local img <close> = assert(qcow2.open(dir .. "/" .. name, { mode = "rw" }))
      scatter(img, 40)
    end
    for name, options in pairs({ over = {}, extended = { extended_l2 = true }, small = { cluster_size = 4096 } }) do
      options.backing_file, options.backing_fmt = "base", "qcow2"
      assert(qcow2.create(dir .. "/" .. name, options))
      local img <close> = assert(qcow2.open(dir .. "/" .. name, { mode = "rw" }))
      scatter(img, 40)
    end
    assert(qcow2.create(dir .. "/empty", { size = SIZE }))
  end)

  -- Words: IN is a fresh copy of the source, OUT is made; what is compared is all that changed.
  local verbs = {
    ["convert to qcow2"] = { "over", { "convert", "-O", "qcow2", "IN", "OUT" } },
    ["convert of extended L2"] = { "extended", { "convert", "-O", "qcow2", "-o", "extended_l2=on", "IN", "OUT" } },
    ["convert to small clusters"] = { "over", { "convert", "-O", "qcow2", "-o", "cluster_size=4k", "IN", "OUT" } },
    ["convert, compressed"] = { "over", { "convert", "-c", "-O", "qcow2", "IN", "OUT" } },
    ["convert to raw"] = { "over", { "convert", "-O", "raw", "IN", "OUT" } },
    ["convert out of order"] = { "over", { "convert", "-W", "-O", "qcow2", "IN", "OUT" } },
    ["convert with a data file"] = { "over", { "convert", "-O", "qcow2", "-o", "data_file=OUT.data", "IN", "OUT" } },
    ["convert onto an image"] = { "over", { "convert", "-n", "-O", "qcow2", "IN", "OUT" }, "other" },
    ["convert -B"] = { "over", { "convert", "-O", "qcow2", "-B", "base", "-F", "qcow2", "IN", "OUT" } },
    ["dd"] = { "over", { "dd", "-O", "qcow2", "if=IN", "of=OUT", "bs=64k" } },
    ["commit"] = { "over", function(path, o) return qcow2.commit(path, o) end, "base" },
    ["commit of small clusters"] = { "small", function(path, o) return qcow2.commit(path, o) end, "base" },
    ["rebase"] = { "over", function(path, o)
      o.backing_file, o.backing_fmt = "other", "qcow2"
      return qcow2.rebase(path, o)
    end },
    ["rebase to nothing"] = { "over", function(path, o) return qcow2.rebase(path, o) end },
    ["rebase, compressed"] = { "over", function(path, o)
      o.compress = true
      return qcow2.rebase(path, o)
    end },
    ["rebase of extended L2"] = { "extended", function(path, o)
      o.backing_file, o.backing_fmt = "other", "qcow2"
      return qcow2.rebase(path, o)
    end },
    ["rebase of small clusters"] = { "small", function(path, o) return qcow2.rebase(path, o) end },
    ["externalize"] = { "over", { "externalize", "IN", "OUT" } },
    ["amend to 0.10"] = { "over", { "amend", "-o", "compat=0.10", "IN" } },
  }

  -- The image's extents that have bytes of their own, as our map lists them.
  local function extents(path)
    local img <close> = assert(qcow2.open(path))
    local count, last, ordered = 0, 0, true
    for e in img:extents({ layer = true }) do
      if e.kind == "data" and e.host_offset then
        count = count + 1
        ordered = ordered and e.host_offset > last
        last = e.host_offset
      end
    end
    return count, ordered
  end

  for title, verb in pairs(verbs) do
    it(("is the same every time: %s"):format(title), function()
      local first
      for _, threads in ipairs({ "1", "2", "8", "8" }) do
        local here = tmp.dir()
        local copies = ("cp %s/base %s/other . && cp %s/%s IN"):format(dir, dir, dir, verb[1])
        sh.check({ "sh", "-c", copies }, { cwd = here })
        if verb[3] then
          sh.check({ "cp", dir .. "/" .. verb[3], "OUT" }, { cwd = here })
        end
        if type(verb[2]) == "function" then
          -- The overlay of a commit names the base that is written to.
          if verb[3] then
            sh.check({ sh.build() .. "/bin/qcow2", "rebase", "-u", "-b", "OUT", "-F", "qcow2", "IN" }, { cwd = here })
          end
          local job <close> = assert(verb[2](here .. "/IN", { threads = tonumber(threads) }))
          assert(job:run())
        else
          local words = table.move(verb[2], 1, #verb[2], 1, {})
          if words[1] == "convert" then table.insert(words, 2, "-m" .. threads) end
          local result = sh.run({ sh.build() .. "/bin/qcow2", table.unpack(words) }, { cwd = here })
          assert.equal(0, result.code, result.stderr)
        end
        local made = {}
        for _, name in ipairs({ "IN", "OUT", "OUT.data" }) do
          local file = io.open(here .. "/" .. name, "rb")
          made[name] = file and file:read("a") or ""
          if file then file:close() end
        end
        first = first or made
        for name, bytes in pairs(made) do
          assert.is_true(bytes == first[name], ("%s differs with %s threads"):format(name, threads))
        end
      end
    end)
  end

  it("has its clusters in the order of the disk after a commit into an empty base and a rebase", function()
    local here = tmp.dir()
    sh.check({ "sh", "-c", ("cp %s/base %s/empty . && cp %s/over over"):format(dir, dir, dir) }, { cwd = here })
    sh.check({ sh.build() .. "/bin/qcow2", "rebase", "-u", "-b", "empty", "-F", "qcow2", "over" }, { cwd = here })
    sh.check({ sh.build() .. "/bin/qcow2", "commit", "over" }, { cwd = here })
    local _, ordered = extents(here .. "/empty")
    assert.is_true(ordered)
    assert(qcow2.create(here .. "/top", { backing_file = "base", backing_fmt = "qcow2" }))
    sh.check({ sh.build() .. "/bin/qcow2", "rebase", "-b", "", "top" }, { cwd = here })
    _, ordered = extents(here .. "/top")
    assert.is_true(ordered)
  end)
end)
