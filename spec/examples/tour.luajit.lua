-- SPDX-License-Identifier: MIT
-- luajit tour.luajit.lua IMAGE [CDEF]: the same through LuaJIT's ffi, with the declarations that are installed
-- (`pkg-config --variable=cdef qcow2`).
local ffi = require("ffi")

local path, cdef = arg[1], arg[2] or "/usr/local/share/qcow2/qcow2.cdef"
local file = assert(io.open(cdef))
ffi.cdef(file:read("*a"))
file:close()
local C = ffi.load("qcow2")

local err = ffi.new("struct qcow2_error")
local function check(code)
  if code < 0 then
    error(ffi.string(err.text), 0)
  end
end

local store, image = ffi.new("struct qcow2_store *[1]"), ffi.new("struct qcow2_image *[1]")
check(C.qcow2_store_file(path, C.QCOW2_STORE_WRITE, store, err))
check(C.qcow2_image_open(store[0], image, err))
C.qcow2_store_unref(store[0])
local disk = ffi.gc(image[0], C.qcow2_image_unref)

local kinds = { [0] = "data", "zero", "unallocated", "compressed" }
local extent, size, at = ffi.new("struct qcow2_extent"), tonumber(C.qcow2_image_size(disk)), 0
while at < size do
  check(C.qcow2_image_extent(disk, at, size - at, 0, extent, err))
  print(("%d %d %s"):format(at, tonumber(extent.length), kinds[tonumber(extent.kind)]))
  at = at + tonumber(extent.length)
end

local sentence = "written by a program in LuaJIT"
local back = ffi.new("char[?]", #sentence)
check(C.qcow2_image_begin(disk, err))
check(C.qcow2_image_write(disk, 1048576, sentence, #sentence, err))
check(C.qcow2_image_finish(disk, err))
check(C.qcow2_image_read(disk, 1048576, back, #sentence, err))
print(ffi.string(back, #sentence))
