-- SPDX-License-Identifier: MIT
-- `make demo`: puts a real file system into qcow2 images of several shapes with qemu-img, reads them with our
-- command and our library, and proves that not a byte changed on the way. Works in build/demo.
local build = os.getenv("Q2_BUILD") or "build"
package.path = "./lua/?.lua;./lua/?/init.lua;" .. package.path
package.cpath = "./" .. build .. "/lib/lua/5.4/?.so;" .. package.cpath

local HOME = "build/demo"
local DISK, CONTENTS = "64M", 40 << 20
local SHOWN = 8 -- lines of a long answer

local checks = 0

local function fail(text)
  io.stdout:flush()
  io.stderr:write("\ndemo: ", text, "\n")
  os.exit(1, true)
end

local function quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

-- Runs in HOME; gives what it printed. /sbin has mke2fs and is not in everybody's PATH.
local function run(command)
  local line = ("cd %s && PATH=$PATH:/usr/sbin:/sbin && { %s; } 2>&1"):format(HOME, command)
  local pipe = assert(io.popen(line))
  local text = pipe:read("a")
  local fine, how, code = pipe:close()
  if not fine then
    fail(("%s\n%s(%s %d)"):format(command, text, how, code))
  end
  return text
end

local function say(text)
  print("\n-- " .. text)
end

-- Shows a command of ours as one would type it, and the beginning of its answer.
local function ours(words)
  print("$ qcow2 " .. words)
  local text = run("../../" .. build .. "/bin/qcow2 " .. words)
  local count = 0
  for line in text:gmatch("[^\n]+") do
    count = count + 1
    if count <= SHOWN then
      print("  " .. line)
    end
  end
  if count > SHOWN then
    print(("  ... %d more lines"):format(count - SHOWN))
  end
  return text
end

local function theirs(command)
  print("$ " .. command)
  run(command)
end

local function proven(text)
  checks = checks + 1
  print("  proven: " .. text)
end

-- A folder of real files: this checkout's own, and what the system has lying around.
local function gather()
  run("mkdir -p tree/checkout tree/system && cp -r ../../csrc ../../lua ../../README.md tree/checkout/")
  local list = run("find /usr/share/doc /usr/share/common-licenses /usr/share/lua /usr/lib /usr/bin "
    .. "-xdev -type f -size -1024k -readable -printf '%s %p\\n' 2>/dev/null | sort -k2 || true")
  local total, count, batch = 0, 0, {}
  for size, path in list:gmatch("(%d+) ([^\n]+)\n") do
    if total + tonumber(size) > CONTENTS or count >= 6000 then
      break
    end
    total, count = total + tonumber(size), count + 1
    batch[#batch + 1] = path
  end
  local names = assert(io.open(HOME .. "/names", "w"))
  names:write(table.concat(batch, "\n"), "\n")
  assert(names:close())
  run("xargs -a names -d '\\n' cp --parents -t tree/system")
  return count, total
end

-- Writes to an image of `old` what makes it `new`, as a guest would have done; gives the number of writes.
local function write_differences(old, new, image)
  local a <close> = assert(io.open(HOME .. "/" .. old, "rb"))
  local b <close> = assert(io.open(HOME .. "/" .. new, "rb"))
  local commands, offset = {}, 0
  while true do
    local before, after = a:read(65536), b:read(65536)
    if not after then
      break
    end
    if before ~= after then
      local piece = "piece." .. #commands
      local file = assert(io.open(HOME .. "/" .. piece, "wb"))
      file:write(after)
      assert(file:close())
      commands[#commands + 1] = ("-c 'write -q -s %s %d %d'"):format(piece, offset, #after)
    end
    offset = offset + #after
  end
  run(("qemu-io -f qcow2 %s %s && rm -f piece.*"):format(table.concat(commands, " "), image))
  return #commands
end

local function extents_of(path)
  local qcow2 = require("qcow2")
  local image <close> = assert(qcow2.open(path, { references = "beside" }))
  print("  " .. tostring(image))
  local sums, offset = {}, 0
  for extent in image:extents() do
    if extent.offset ~= offset then
      fail(("%s: the extents leave a gap at %d"):format(path, offset))
    end
    offset = extent.offset + extent.length
    sums[extent.kind] = (sums[extent.kind] or 0) + extent.length
  end
  if offset ~= image.size then
    fail(("%s: the extents end at %d of %d"):format(path, offset, image.size))
  end
  local words = {}
  for kind, bytes in pairs(sums) do
    words[#words + 1] = ("%s %.1f MiB"):format(kind, bytes / (1 << 20))
  end
  table.sort(words)
  print("  " .. table.concat(words, ", "))
  return assert(image:read(0, 1 << 16)), image.size
end

os.execute("rm -rf " .. HOME .. " && mkdir -p " .. HOME)

say("a disk with a real file system, made by mke2fs")
local count, bytes = gather()
print(("  %d files of the system, %.1f MiB, beside this checkout"):format(count, bytes / (1 << 20)))
theirs("mke2fs -q -F -t ext4 -d tree disk.raw " .. DISK)

say("a later state of the same disk: one file more")
run("cp --sparse=always disk.raw later.raw")
theirs("debugfs -w -R 'write names listing.txt' later.raw")

say("the same disks in qcow2, made by qemu-img")
theirs("qemu-img convert -O qcow2 disk.raw plain.qcow2")
theirs("qemu-img convert -O qcow2 -c disk.raw packed.qcow2")
theirs("qemu-img convert -O qcow2 -o data_file=side.data,data_file_raw=on disk.raw side.qcow2")
theirs("qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 overlay.qcow2")
print(("$ qemu-io overlay.qcow2   (%d writes: what the new file changed)"):format(
  write_differences("disk.raw", "later.raw", "overlay.qcow2")))

local images = {
  { "plain.qcow2", "disk.raw", "an image" },
  { "packed.qcow2", "disk.raw", "a compressed image" },
  { "side.qcow2", "disk.raw", "an image with its data in a raw file beside it" },
  { "overlay.qcow2", "later.raw", "an image on top of another" },
}
for _, item in ipairs(images) do
  local image, disk, what = item[1], item[2], item[3]
  local back = image:gsub("qcow2$", "back")
  say(what .. ": " .. image)
  ours("info " .. image)
  -- Compressed clusters have no place in the table for people.
  ours("map " .. (image == "packed.qcow2" and "--output=json " or "") .. image)
  ours(("convert -O raw %s %s"):format(image, back))
  run(("cmp %s %s"):format(back, disk))
  proven(("%s holds the bytes of %s"):format(back, disk))
  if not ours(("compare %s %s"):format(image, disk)):find("identical", 1, true) then
    fail("compare did not say that the images are identical")
  end
  run("e2fsck -f -n " .. back)
  proven("its file system is clean")
  run(("debugfs -R 'dump /checkout/README.md README.%s' %s"):format(back, back))
  run(("cmp README.%s ../../README.md"):format(back))
  proven("README.md came back as it went in")
end

say("images that differ are told apart")
print("$ qcow2 compare plain.qcow2 overlay.qcow2")
local differs = run(("../../%s/bin/qcow2 compare plain.qcow2 overlay.qcow2; echo \"exit code $?\""):format(build))
io.write("  ", (differs:gsub("\n(.)", "\n  %1")))
if not differs:find("exit code 1", 1, true) then
  fail("compare took different images for the same")
end
proven("the file that was added shows")

say("the same from Lua")
for _, item in ipairs(images) do
  local head, size = extents_of(HOME .. "/" .. item[1])
  local file = assert(io.open(HOME .. "/" .. item[2], "rb"))
  if head ~= file:read(#head) or size ~= file:seek("end") then
    fail(item[1] .. ": the library reads something else than " .. item[2])
  end
  file:close()
  proven(("the first %d bytes and the size of %s are those of %s"):format(#head, item[1], quote(item[2])))
end

run("rm -rf tree *.back later.raw")
print(("\nall %d proofs hold; the images are in %s"):format(checks, HOME))
