# SPDX-License-Identifier: MIT
# Builds, tests and installs qcow2. Two commands do everything on a fresh Debian machine: `make demo`
# and `make test` (as root they install what is missing, from the one list below).
#
# Variables of use to others: BUILD (where everything goes), CC, CFLAGS, WERROR= (warnings stay
# warnings), SAN=address,undefined (sanitized build; give it a BUILD of its own), PREFIX, DESTDIR, V=1
# (show whole commands).

# ---- what Debian packages give ---------------------------------------------------------------
# To build and to test, and for the lints and the sanitizers on top of it.
PACKAGES := gcc g++ libc6-dev make pkg-config lua5.4 liblua5.4-dev zlib1g-dev libdeflate-dev libzstd-dev \
	libssl-dev lua-argparse lua-dkjson lua-busted luarocks qemu-utils e2fsprogs luajit
PACKAGES_LINT := lua-check gcovr clang libclang-rt-dev clang-format cppcheck valgrind

BUILD ?= build
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LUADIR ?= $(PREFIX)/share/lua/5.4
LIBDIR ?= $(PREFIX)/lib/lua/5.4
INCDIR ?= $(PREFIX)/include
ARDIR ?= $(PREFIX)/lib
DATADIR ?= $(PREFIX)/share/qcow2
FUZZ_SECONDS ?= 60
CLANG ?= clang

ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc)
endif
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:

Q := $(if $(V),,@)
ifeq ($(origin CC),default)
CC := gcc
endif
LUA ?= $(firstword $(foreach l,lua5.4 lua54 lua-5.4 lua,$(shell command -v $(l))) lua5.4)
VERSION := $(shell sed -n 's/^.define QCOW2_VERSION "\(.*\)"/\1/p' csrc/qcow2.h)

# ---- libraries, by pkg-config ----------------------------------------------------------------
PC_LUA := $(firstword $(foreach p,lua5.4 lua54 lua-5.4 lua,\
	$(shell pkg-config --exists '$(p) >= 5.4 $(p) < 5.5' 2>/dev/null && echo $(p))))
pc_has = $(shell pkg-config --exists $(1) 2>/dev/null && echo $(1))
PC_OPTIONAL := $(call pc_has,libdeflate) $(call pc_has,libzstd) $(call pc_has,libcrypto)
PC_ZLIB := $(call pc_has,zlib)
LUA_CFLAGS := $(if $(PC_LUA),$(shell pkg-config --cflags $(PC_LUA)))
LIB_CFLAGS := $(shell pkg-config --cflags $(PC_ZLIB) $(PC_OPTIONAL) 2>/dev/null) \
	$(if $(filter libdeflate,$(PC_OPTIONAL)),-DQ2_HAVE_LIBDEFLATE) \
	$(if $(filter libzstd,$(PC_OPTIONAL)),-DQ2_HAVE_LIBZSTD) \
	$(if $(filter libcrypto,$(PC_OPTIONAL)),-DQ2_HAVE_LIBCRYPTO)
LIBS := $(shell pkg-config --libs $(PC_ZLIB) $(PC_OPTIONAL) 2>/dev/null)
LUA_LIBS := $(if $(PC_LUA),$(shell pkg-config --libs $(PC_LUA)))
# For the program: archives where there are any, since every shared library costs its start a tenth of a millisecond.
archive = $(or $(wildcard $(shell $(CC) -print-file-name=lib$(1).a)),-l$(1))
PROGRAM_LIBS = $(foreach l,$(LUA_LIBS) $(LIBS),$(if $(filter -l%,$(l)),$(call archive,$(l:-l%=%)),$(l))) -lm -ldl

# ---- flags -----------------------------------------------------------------------------------
WERROR ?= -Werror
CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes $(WERROR)
ifdef SAN
SAN_FLAGS := -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
Q2_FLAGS := -std=c11 -D_GNU_SOURCE -Icsrc -pthread -fPIC -fvisibility=hidden $(WARNINGS) \
	$(LIB_CFLAGS) $(SAN_FLAGS)

# ---- files -----------------------------------------------------------------------------------
CORE_SRC := $(sort $(wildcard csrc/base/*.c csrc/store/*.c csrc/format/*.c csrc/data/*.c csrc/meta/*.c \
	csrc/image/*.c csrc/check/*.c csrc/copy/*.c))
BIND_SRC := $(sort $(wildcard csrc/bind/*.c))
PROGRAM_SRC := $(sort $(wildcard csrc/program/*.c))
CORE_OBJ := $(CORE_SRC:csrc/%.c=$(BUILD)/obj/%.o)
BIND_OBJ := $(BIND_SRC:csrc/%.c=$(BUILD)/obj/%.o)
PROGRAM_OBJ := $(PROGRAM_SRC:csrc/%.c=$(BUILD)/obj/%.o)
LUA_FILES := $(shell find lua/qcow2 -name '*.lua')
LIB := $(BUILD)/lib/libqcow2.a
SO_VERSION := 0
SO := $(BUILD)/lib/libqcow2.so.$(SO_VERSION)
HEADER := $(BUILD)/include/qcow2.h
CDEF := $(BUILD)/include/qcow2.cdef
CORE := $(BUILD)/lib/lua/5.4/qcow2/core.so
BIN := $(BUILD)/bin/qcow2
MODULES := $(BUILD)/modules.bin
FUZZ_SRC := $(filter-out spec/fuzz/replay_main.c,$(wildcard spec/fuzz/*.c))
REPLAY := $(FUZZ_SRC:spec/fuzz/%.c=$(BUILD)/fuzz-replay/%)
FUZZERS := $(FUZZ_SRC:spec/fuzz/%.c=$(BUILD)/fuzz/%)
HOST := $(if $(SAN),$(BUILD)/bin/lua)
# Lua modules for specs alone, which see the core's floors one by one.
TEST_STORES := $(BUILD)/lib/lua/5.4/qcow2_test_stores.so
PROBE_STORE := $(BUILD)/lib/lua/5.4/qcow2_probe_store.so
PROBES := $(BUILD)/lib/lua/5.4/qcow2_probe.so $(BUILD)/lib/lua/5.4/qcow2_probe_meta.so
SPEC_MODULES := $(TEST_STORES) $(PROBE_STORE) $(PROBES)
# The interpreter for specs: a sanitized build needs a sanitized host program.
RUN_LUA := $(if $(SAN),$(abspath $(BUILD))/bin/lua,$(LUA))

.PHONY: all demo test test-long interop asan valgrind lint fuzz bench install clean help
.PHONY: format abi spec tsan coverage other-builds install-lua install-c core deps deps-lint demo-run test-run libs fuzzers bench-tools FORCE

all: $(LIB) $(SO) $(HEADER) $(CDEF) $(CORE) $(BIN) $(HOST) $(REPLAY)
core: $(CORE) $(BIN)

help:
	@echo 'make            build everything under build/: bin/qcow2, lib/libqcow2.so, lib/libqcow2.a, the Lua core'
	@echo 'make demo       install what is missing (root), build, and work on a disk with real contents'
	@echo 'make test       install what is missing (root), build, run the specs'
	@echo 'make test-long  the specs with the long ones'
	@echo 'make interop    only the specs that compare with qemu-img'
	@echo 'make spec       one spec file or folder: make spec F=spec/unit/hold_spec.lua'
	@echo 'make tsan       the copy, check and job specs under ThreadSanitizer'
	@echo 'make coverage   which lines of csrc the specs reach'
	@echo 'make other-builds  the unit specs with clang, and a build without any optional library'
	@echo 'make asan       the specs under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make valgrind   the unit specs under valgrind'
	@echo 'make lint       floors, circles, binary interface, sizes, types, luacheck, clang-format, cppcheck'
	@echo 'make abi        takes the binary interface as it is now for the one that the lint holds'
	@echo 'make format     lay out the C files as the lint wants them'
	@echo 'make fuzz       every fuzz target for FUZZ_SECONDS (60)'
	@echo 'make bench      the workloads beside qemu-img'
	@echo 'make install    into PREFIX (/usr/local), below DESTDIR'
	@echo 'make clean      remove build/'

# ---- compile and link ------------------------------------------------------------------------
libs:
	$(if $(PC_LUA)$(LUA_CFLAGS),,$(error Lua 5.4 not found by pkg-config: install liblua5.4-dev and pkg-config))
	$(if $(PC_ZLIB),,$(error zlib not found by pkg-config: install zlib1g-dev and pkg-config))
	@:

# Objects depend on the flags they were made with: the file changes only when those do.
FLAGS_NOW = $(CC) $(CFLAGS) $(Q2_FLAGS) $(LUA_CFLAGS) $(LDFLAGS) $(LIBS) $(CORE_SRC) $(BIND_SRC)
$(BUILD)/flags: FORCE | libs
	@mkdir -p $(@D)
	@printf '%s\n' '$(FLAGS_NOW)' | cmp -s - $@ || printf '%s\n' '$(FLAGS_NOW)' >$@

$(BUILD)/obj/%.o: csrc/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  CC      $<"
	$(Q)$(CC) $(CFLAGS) $(Q2_FLAGS) $(if $(filter csrc/bind/%,$<),-fvisibility=default $(LUA_CFLAGS)) \
		-MMD -MP -c -o $@ $<

-include $(CORE_OBJ:.o=.d) $(BIND_OBJ:.o=.d) $(PROGRAM_OBJ:.o=.d)

$(LIB): $(CORE_OBJ) $(BUILD)/flags
	@mkdir -p $(@D)
	@rm -f $@
	@echo "  AR      $@"
	$(Q)$(AR) rcs $@ $(CORE_OBJ)

# The header as others get it, in one piece, and its declarations alone for other languages.
HEADER_PARTS := csrc/qcow2.h $(wildcard csrc/qcow2/*.h) $(wildcard csrc/*/*.def)
$(HEADER): csrc/qcow2/flatten.lua $(HEADER_PARTS) | libs
	@mkdir -p $(@D)
	@$(LUA) $< csrc/qcow2.h $@
$(CDEF): csrc/qcow2/flatten.lua $(HEADER_PARTS) | libs
	@mkdir -p $(@D)
	@$(LUA) $< csrc/qcow2.h $@ cdef

# The shared library has what the header names and nothing else.
$(BUILD)/qcow2.map: $(HEADER)
	@{ echo 'QCOW2_$(SO_VERSION) { global:'; sed -n '/^QCOW2_API/,/;$$/p' $< | grep -o 'qcow2_[a-z0-9_]*(' | tr '(' ';' | \
		sort -u; echo 'local: *; };'; } >$@

$(SO): $(CORE_OBJ) $(BUILD)/qcow2.map
	@echo "  LINK    $@"
	$(Q)$(CC) $(CFLAGS) $(SAN_FLAGS) -pthread -shared $(LDFLAGS) -Wl,-soname,$(@F) \
		-Wl,--version-script=$(BUILD)/qcow2.map -o $@ $(CORE_OBJ) $(LIBS)
	@ln -sf $(@F) $(BUILD)/lib/libqcow2.so

# Lua finds one symbol in it; everything else stays inside.
$(BUILD)/core.map: $(BUILD)/flags
	@echo '{ global: luaopen_qcow2_core; local: *; };' >$@

$(CORE): $(BIND_OBJ) $(LIB) $(BUILD)/core.map
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(CC) $(CFLAGS) $(SAN_FLAGS) -pthread -shared $(LDFLAGS) -Wl,--version-script=$(BUILD)/core.map -o $@ \
		$(BIND_OBJ) $(LIB) $(LIBS)

# The Lua modules, compiled, for the program to carry.
compile = $(LUA) csrc/program/compile.lua $(1) lua $(LUA_FILES:lua/%=%)
$(MODULES): csrc/program/compile.lua $(LUA_FILES) $(BUILD)/flags
	@$(call compile,$@)

$(PROGRAM_OBJ): $(MODULES)
$(PROGRAM_OBJ): Q2_FLAGS += $(LUA_CFLAGS) -DQ2_MODULES='"$(MODULES)"'

# Lua's own names are visible, for C modules that the shell may load.
$(BIN): $(PROGRAM_OBJ) $(BIND_OBJ) $(LIB)
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(CC) $(CFLAGS) $(SAN_FLAGS) -pthread -rdynamic $(LDFLAGS) -o $@ $(PROGRAM_OBJ) $(BIND_OBJ) $(LIB) \
		$(PROGRAM_LIBS)

$(BUILD)/bin/lua: spec/support/lua_host.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(CC) $(CFLAGS) $(Q2_FLAGS) $(LUA_CFLAGS) -rdynamic -o $@ $< $(LUA_LIBS)

# Stores that record what is done, and stores that fail: no part of the product.
STORES_SRC := spec/support/stores/power.c spec/support/stores/fault.c
SPEC_MODULE = $(CC) $(CFLAGS) $(Q2_FLAGS) -I. -fvisibility=default $(LUA_CFLAGS) -shared $(LDFLAGS)
$(TEST_STORES): spec/support/stores/module.c $(STORES_SRC) spec/support/stores/test_store.h $(BIND_OBJ) $(LIB)
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(SPEC_MODULE) -o $@ $(filter %.c,$^) $(BUILD)/obj/bind/bind.o $(LIB) $(LIBS)

# Between the stores and the host stands the probe, so that specs can make system calls fail.
PROBE_WRAPS := fallocate copy_file_range lseek pread pwrite fdatasync fcntl
$(PROBE_STORE): spec/support/probe_store.c $(STORES_SRC) spec/support/stores/test_store.h $(LIB)
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(SPEC_MODULE) $(PROBE_WRAPS:%=-Wl,--wrap=%) -o $@ $(filter %.c,$^) $(LIB) $(LIBS)

# What needs no host: codecs, layouts, tables in memory.
$(PROBES): $(BUILD)/lib/lua/5.4/qcow2_%.so: spec/support/%.c $(LIB)
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(SPEC_MODULE) -o $@ $< $(LIB) $(LIBS)

# ---- tests -----------------------------------------------------------------------------------
# $(call need,packages): installs what is missing when root, names it otherwise.
define need
	@if command -v dpkg-query >/dev/null; then \
		missing=; for p in $(1); do \
			dpkg-query -W -f '$${db:Status-Status}\n' $$p 2>/dev/null | grep -qx installed || \
				missing="$$missing $$p"; \
		done; \
		if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ]; then \
			echo "installing:$$missing"; \
			export DEBIAN_FRONTEND=noninteractive; \
			{ apt-get -qq update && \
			apt-get -qq -y --no-install-recommends install $$missing; } >&2 || exit 1; \
		elif [ -n "$$missing" ]; then \
			echo "missing; install with: sudo apt-get install$$missing" >&2; \
		fi; \
	fi
endef

deps:
	$(call need,$(PACKAGES))
deps-lint:
	$(call need,$(PACKAGES) $(PACKAGES_LINT))

SUITES := spec/unit spec/cli spec/interop spec/crash spec/fault spec/model spec/check spec/fuzz
SUB = +@$(MAKE) --no-print-directory
RUN = Q2_BUILD=$(BUILD) Q2_LUA=$(RUN_LUA) $(RUN_LUA) spec/support/run.lua

test: deps
	$(SUB) test-run
test-long: deps
	$(SUB) test-run TAGS=all
interop: deps
	$(SUB) test-run SUITES=spec/interop
test-run: all $(SPEC_MODULES)
	@$(RUN) $(if $(TAGS),--long) $(SUITES)

# One spec, or a folder of them: make spec F=spec/unit/hold_spec.lua
spec: all $(SPEC_MODULES)
	@$(RUN) --long $(F)
# The engines that have threads.
TSAN_SUITES := spec/unit/hold_spec.lua spec/unit/copy_image_spec.lua spec/unit/copy_raw_spec.lua \
	spec/unit/copy_compare_spec.lua spec/cli/same_bytes_spec.lua spec/cli/commit_spec.lua spec/cli/rebase_spec.lua \
	spec/check/sound_spec.lua
tsan: deps-lint
	$(SUB) test-run BUILD=build/tsan SAN=thread CFLAGS='-O1 -g' SUITES='$(TSAN_SUITES)'
# Which lines of csrc the specs reach, by file and in all.
coverage: deps-lint
	$(SUB) test-run BUILD=build/coverage CFLAGS='-O0 -g --coverage' LDFLAGS='--coverage'
	@gcovr --root . --filter csrc/ --exclude 'csrc/program/.*' --gcov-ignore-parse-errors \
		--txt build/coverage/lines.txt build/coverage/obj && cat build/coverage/lines.txt
# Another compiler, and no library that a build can do without.
other-builds: deps-lint
	$(SUB) test-run BUILD=build/clang CC=$(CLANG) SUITES='spec/unit spec/cli/program_spec.lua'
	$(SUB) all BUILD=build/plain PC_OPTIONAL=
	@build/plain/bin/qcow2 create -q -f qcow2 build/plain/disk.qcow2 1M
	@build/plain/bin/qcow2 convert -c -O qcow2 build/plain/disk.qcow2 build/plain/copy.qcow2
	@build/plain/bin/qcow2 compare -q build/plain/disk.qcow2 build/plain/copy.qcow2
	@! build/plain/bin/qcow2 create -q -f qcow2 -o compression_type=zstd build/plain/zstd.qcow2 1M 2>build/plain/said
	@grep -q 'built without libzstd' build/plain/said
asan: deps-lint
	$(SUB) test-run BUILD=build/asan SAN=address,undefined CFLAGS='-O1 -g'
valgrind: deps-lint
	$(SUB) all $(SPEC_MODULES)
	@$(RUN) --valgrind spec/unit

demo: deps
	$(SUB) demo-run
demo-run: all
	@Q2_BUILD=$(BUILD) $(RUN_LUA) spec/demo/demo.lua

# BENCH='--runs 3 --size small map' says which workloads, and how (spec/bench/run.lua).
BENCH_TOOLS := $(patsubst spec/bench/%.c,$(BUILD)/bench/%,$(wildcard spec/bench/*.c))
bench: deps
	$(SUB) all bench-tools
	@Q2_BUILD=$(BUILD) Q2_LUA=$(RUN_LUA) $(RUN_LUA) spec/bench/run.lua $(BENCH)
bench-tools: $(BENCH_TOOLS)
$(BUILD)/bench/%: spec/bench/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(CC) $(CFLAGS) $(Q2_FLAGS) -o $@ $<

lint: deps-lint
	$(SUB) all
	@Q2_BUILD=$(BUILD) $(RUN_LUA) spec/lint/run.lua
# The interface that the lint holds is the one of now.
abi: $(CDEF) $(HEADER)
	@Q2_BUILD=$(BUILD) $(LUA) spec/lint/abi.lua
format: deps-lint
	@clang-format -i $$(find csrc spec -name '*.[ch]')

# ---- fuzzing ---------------------------------------------------------------------------------
# The same targets twice: with libFuzzer to find inputs, with a plain main to replay them in `test`.
$(BUILD)/fuzz-replay/%: spec/fuzz/%.c spec/fuzz/replay_main.c $(LIB)
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(CC) $(CFLAGS) $(Q2_FLAGS) -MMD -MP -MF $@.d -o $@ $< spec/fuzz/replay_main.c $(LIB) $(LIBS)
-include $(wildcard $(BUILD)/fuzz-replay/*.d)

fuzz: deps-lint
	$(SUB) fuzzers BUILD=build/fuzz-build CC=$(CLANG) CFLAGS='-O1 -g' \
		SAN=fuzzer-no-link,address,undefined
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(LUA) spec/support/fuzz.lua build/fuzz-build/fuzz
fuzzers: $(FUZZERS)
$(BUILD)/fuzz/%: spec/fuzz/%.c $(LIB)
	@mkdir -p $(@D)
	@echo "  LINK    $@"
	$(Q)$(CC) $(CFLAGS) $(Q2_FLAGS) -fsanitize=fuzzer -o $@ $< $(LIB) $(LIBS)

# ---- install ---------------------------------------------------------------------------------
D = $(DESTDIR)
install: install-lua install-c
install-lua: $(CORE) $(BIN)
	@set -e; for f in $(LUA_FILES); do install -D -m 644 $$f "$(D)$(LUADIR)/$${f#lua/}"; done
	@install -D -m 755 $(CORE) "$(D)$(LIBDIR)/qcow2/core.so"
	@install -D -m 755 $(BIN) "$(D)$(BINDIR)/qcow2"
	@echo "installed $(D)$(BINDIR)/qcow2, $(D)$(LUADIR)/qcow2, $(D)$(LIBDIR)/qcow2/core.so"
install-c: $(LIB) $(SO) $(HEADER) $(CDEF)
	@install -D -m 644 $(HEADER) "$(D)$(INCDIR)/qcow2.h"
	@install -D -m 644 $(CDEF) "$(D)$(DATADIR)/qcow2.cdef"
	@install -D -m 644 $(LIB) "$(D)$(ARDIR)/libqcow2.a"
	@install -D -m 755 $(SO) "$(D)$(ARDIR)/$(notdir $(SO))"
	@ln -sf $(notdir $(SO)) "$(D)$(ARDIR)/libqcow2.so"
	@mkdir -p "$(D)$(ARDIR)/pkgconfig"
	@printf '%s\n' 'Name: qcow2' 'Description: qcow2 disk images' 'Version: $(VERSION)' \
		'Requires.private: zlib $(strip $(PC_OPTIONAL))' 'Cflags: -I$(INCDIR)' \
		'Libs: -L$(ARDIR) -lqcow2' 'Libs.private: -pthread' \
		'cdef=$(DATADIR)/qcow2.cdef' >"$(D)$(ARDIR)/pkgconfig/qcow2.pc"
	@echo "installed $(D)$(INCDIR)/qcow2.h, $(D)$(ARDIR)/$(notdir $(SO)), $(D)$(ARDIR)/libqcow2.a," \
		"$(D)$(DATADIR)/qcow2.cdef, $(D)$(ARDIR)/pkgconfig/qcow2.pc"

clean:
	rm -rf build
