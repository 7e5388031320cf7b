-- SPDX-License-Identifier: MIT
-- `bench`: what it says and does beside qemu-img.
local qemu = require("spec.support.qemu")
local sh = require("spec.support.sh")
local tmp = require("spec.support.tmp")

local function timeless(said)
  return (said:gsub("in %d+%.%d%d%d seconds", "in N seconds"))
end

describe("bench", function()
  local dir = tmp.dir()

  local function fresh(name)
    local place = dir .. "/" .. name
    sh.check({ "mkdir", "-p", place })
    qemu.create(place .. "/a.qcow2", { size = "10M" })
    qemu.create(place .. "/r.raw", { size = "1M", format = "raw" })
    return place
  end

  for _, words in ipairs({
    { "-c", "10", "a.qcow2" },
    { "-q", "-c", "2", "-U", "-t", "none", "-i", "threads", "a.qcow2" },
    { "-c", "3", "-f", "raw", "-o", "1k", "-s", "512", "-S", "64k", "-d", "2", "r.raw" },
    { "-w", "-c", "25", "--pattern", "0x41", "-s", "333", "-S", "1000003", "a.qcow2" },
    { "-w", "-c", "9", "--pattern=7", "-d", "2", "--flush-interval=4", "--no-drain", "-s", "64k", "a.qcow2" },
    { "-w", "-c", "2", "--pattern", "1", "-f", "raw", "r.raw" },
    { "--image-opts", "-c", "2", "driver=qcow2,file.filename=a.qcow2" },
    { "-w", "-U", "a.qcow2" },
    { "-w", "-c", "10", "--flush-interval", "2", "a.qcow2" },
    { "--flush-interval", "64", "a.qcow2" },
    { "-n", "a.qcow2" },
    { "-i", "bogus", "a.qcow2" },
    { "-t", "bogus", "a.qcow2" },
    {},
    { "-Z" },
  }) do
    it("does and says what qemu-img does: " .. table.concat(words, " "), function()
      local there, here = fresh("there"), fresh("here")
      local theirs = qemu.img({ "bench", table.unpack(words) }, { cwd = there })
      local ours = sh.qcow2({ "bench", table.unpack(words) }, { cwd = here })
      assert.same({ theirs.code, timeless(theirs.stdout), qemu.plain(theirs.stderr) },
        { ours.code, timeless(ours.stdout), qemu.plain(ours.stderr) })
      for name, format in pairs({ ["a.qcow2"] = "qcow2", ["r.raw"] = "raw" }) do
        sh.check({ "qemu-img", "compare", "-f", format, "-F", format, there .. "/" .. name, here .. "/" .. name })
      end
      sh.check({ "qemu-img", "check", "-q", here .. "/a.qcow2" })
    end)
  end

  it("refuses numbers out of bounds, naming them", function()
    local here = fresh("here")
    for words, message in pairs({
      ["-c 0"] = "Invalid request count specified. Must be between 1 and 2147483647.",
      ["-c 1k"] = "Invalid request count specified: '1k'.",
      ["-d x"] = "Invalid queue depth specified: 'x'.",
      ["-o -1"] = "Invalid offset specified. Must be between 0 and 9223372036854775807.",
      ["-s 2G"] = "Invalid buffer size specified. Must be between 1 and 2147483647.",
      ["--pattern 256"] = "Invalid pattern byte specified. Must be between 0 and 255.",
    }) do
      local flag, value = words:match("^(%S+) (%S+)$")
      local ours = sh.qcow2({ "bench", flag, value, "a.qcow2" }, { cwd = here })
      assert.same({ 1, "", "qcow2: " .. message .. "\n" }, { ours.code, ours.stdout, ours.stderr })
    end
  end)

  it("fails behind the disk's end, after it has said what it was about to do", function()
    local ours = sh.qcow2({ "bench", "-o", "20M", "-c", "1", "a.qcow2" }, { cwd = fresh("here") })
    assert.equal(1, ours.code)
    assert.equal("Sending 1 read requests, 4096 bytes each, 64 in parallel (starting at offset 20971520, "
      .. "step size 4096)\n", ours.stdout)
    assert.truthy(ours.stderr:find("^qcow2: Failed request: .*lies outside the disk"))
  end)

  it("writes nothing to a file that was only guessed to be raw", function()
    local here = fresh("here")
    local ours = sh.qcow2({ "bench", "-w", "-c", "1", "--pattern", "1", "r.raw" }, { cwd = here })
    assert.equal(1, ours.code)
    assert.equal(("\0"):rep(1 << 20), sh.slurp(here .. "/r.raw"))
  end)
end)
