rockspec_format = "3.0"
package = "qcow2"
version = "scm-1"
-- Made from a checkout: `luarocks make rockspec/qcow2-scm-1.rockspec`.
source = {
  url = "file://.",
}
description = {
  summary = "qcow2 disk images: a library and qemu-img compatible tools",
  detailed = [[
Opens, inspects, creates and converts qcow2 disk images from Lua, and brings the command `qcow2` with the
grammar of qemu-img. Needs a C compiler, GNU make, pkg-config and zlib; uses libdeflate, libzstd and
libcrypto when pkg-config finds them.]],
  license = "MIT",
}
supported_platforms = { "linux" }
dependencies = {
  "lua ~> 5.4",
}
build = {
  type = "make",
  build_target = "core",
  variables = {
    CC = "$(CC)",
    CFLAGS = "$(CFLAGS)",
    LUA = "$(LUA)",
    LUA_CFLAGS = "-I$(LUA_INCDIR)",
    BUILD = "build/rock",
    WERROR = "",
  },
  install_target = "install-lua",
  install_variables = {
    LUA = "$(LUA)",
    BUILD = "build/rock",
    LUADIR = "$(LUADIR)",
    LIBDIR = "$(LIBDIR)",
    BINDIR = "$(BINDIR)",
  },
}
-- The command is a program, not a script; a wrapper would hide the name it is called by.
deploy = {
  wrap_bin_scripts = false,
}
