# SPDX-License-Identifier: MIT
# python3 tour.py IMAGE: the same through Python's ctypes.
import ctypes as c
import sys


class Error(c.Structure):
    _fields_ = [("code", c.c_int), ("os_errno", c.c_int), ("offset", c.c_uint64), ("text", c.c_char * 488)]


class Extent(c.Structure):
    _fields_ = [("offset", c.c_uint64), ("length", c.c_uint64), ("kind", c.c_int), ("depth", c.c_uint32),
                ("present", c.c_bool), ("hole", c.c_bool), ("copied", c.c_bool), ("image", c.c_void_p),
                ("store", c.c_void_p), ("host_offset", c.c_uint64), ("host_length", c.c_uint32),
                ("within", c.c_uint32)]


lib = c.CDLL("libqcow2.so.0")
lib.qcow2_image_size.restype = c.c_uint64
QCOW2_STORE_WRITE = 1
AT = 1 << 20


def call(name, *arguments):
    err = Error()
    if getattr(lib, name)(*arguments, c.byref(err)) < 0:
        sys.exit("tour: " + err.text.decode())


store, image = c.c_void_p(), c.c_void_p()
call("qcow2_store_file", sys.argv[1].encode(), QCOW2_STORE_WRITE, c.byref(store))
call("qcow2_image_open", store, c.byref(image))
lib.qcow2_store_unref(store)

at, size, extent = 0, lib.qcow2_image_size(image), Extent()
while at < size:
    call("qcow2_image_extent", image, c.c_uint64(at), c.c_uint64(size - at), 0, c.byref(extent))
    print(at, extent.length, ["data", "zero", "unallocated", "compressed"][extent.kind])
    at += extent.length

sentence = b"written by a program in Python"
back = c.create_string_buffer(len(sentence))
call("qcow2_image_begin", image)
call("qcow2_image_write", image, c.c_uint64(AT), sentence, c.c_size_t(len(sentence)))
call("qcow2_image_finish", image)
call("qcow2_image_read", image, c.c_uint64(AT), back, c.c_size_t(len(sentence)))
print(back.raw.decode())
lib.qcow2_image_unref(image)
