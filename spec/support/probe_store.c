/* SPDX-License-Identifier: MIT
 * Lua module qcow2_probe_store, for specs alone: the stores as they are in C, below images and policy, on a
 * host whose system calls can be told to fail, to stop short or to be missing (linked with --wrap). */
#include "store/store.h"
#include "spec/support/stores/test_store.h"

#include <lauxlib.h>
#include <lua.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STORE "qcow2_probe_store.store"

int luaopen_qcow2_probe_store(lua_State *L);

/* ---- the host ------------------------------------------------------------------------------- */

/* An errno makes the call fail always; `short_io` cuts reads, writes and kernel copies to that many bytes;
 * `interrupts` lets that many calls end with EINTR first. */
static struct {
	int punch, zero_range, fallocate, copy_file_range, seek, fdatasync, open_file_locks;
	int short_io;
	atomic_int interrupts, calls;
} host;

static int interrupted(void)
{
	if (host.interrupts <= 0)
		return 0;
	host.interrupts--;
	errno = EINTR;
	return 1;
}

static int failing(int os_errno)
{
	host.calls++;
	if (interrupted())
		return 1;
	errno = os_errno;
	return os_errno != 0;
}

static size_t cut(size_t length)
{
	return host.short_io && length > (size_t)host.short_io ? (size_t)host.short_io : length;
}

int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length)
{
	int os_errno = mode & FALLOC_FL_PUNCH_HOLE   ? host.punch
		       : mode & FALLOC_FL_ZERO_RANGE ? host.zero_range
						     : host.fallocate;
	return failing(os_errno) ? -1 : __real_fallocate(fd, mode, offset, length);
}

ssize_t __real_copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t length, unsigned flags);
ssize_t __wrap_copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t length, unsigned flags);
ssize_t __wrap_copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t length, unsigned flags)
{
	if (failing(host.copy_file_range))
		return -1;
	return __real_copy_file_range(in, in_at, out, out_at, cut(length), flags);
}

off_t __real_lseek(int fd, off_t offset, int whence);
off_t __wrap_lseek(int fd, off_t offset, int whence);
off_t __wrap_lseek(int fd, off_t offset, int whence)
{
	host.calls++;
	errno = host.seek;
	return host.seek ? -1 : __real_lseek(fd, offset, whence);
}

ssize_t __real_pread(int fd, void *buf, size_t length, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t length, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t length, off_t offset)
{
	return failing(0) ? -1 : __real_pread(fd, buf, cut(length), offset);
}

ssize_t __real_pwrite(int fd, const void *buf, size_t length, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t length, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t length, off_t offset)
{
	return failing(0) ? -1 : __real_pwrite(fd, buf, cut(length), offset);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
	return failing(host.fdatasync) ? -1 : __real_fdatasync(fd);
}

int __real_fcntl(int fd, int command, void *argument);
int __wrap_fcntl(int fd, int command, void *argument);
int __wrap_fcntl(int fd, int command, void *argument)
{
	if ((command == F_OFD_GETLK || command == F_OFD_SETLK) && failing(host.open_file_locks))
		return -1;
	return __real_fcntl(fd, command, argument);
}

static int number_field(lua_State *L, const char *name)
{
	int value;

	lua_getfield(L, 1, name);
	value = (int)luaL_optinteger(L, -1, 0);
	lua_pop(L, 1);
	return value;
}

/* host{ punch = errno, ... }: what is not named works. */
static int probe_host(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	host.punch = number_field(L, "punch");
	host.zero_range = number_field(L, "zero_range");
	host.fallocate = number_field(L, "fallocate");
	host.copy_file_range = number_field(L, "copy_file_range");
	host.seek = number_field(L, "seek");
	host.fdatasync = number_field(L, "fdatasync");
	host.open_file_locks = number_field(L, "open_file_locks");
	host.short_io = number_field(L, "short_io");
	host.interrupts = number_field(L, "interrupts");
	host.calls = 0;
	return 0;
}

/* host_calls(): system calls since the last host{}. */
static int probe_host_calls(lua_State *L)
{
	lua_pushinteger(L, host.calls);
	return 1;
}

/* ---- stores --------------------------------------------------------------------------------- */

static struct qcow2_store *check_store(lua_State *L, int at)
{
	struct qcow2_store **box = luaL_checkudata(L, at, STORE);

	luaL_argcheck(L, *box, at, "closed store");
	return *box;
}

static int push_failure(lua_State *L, const struct qcow2_error *err)
{
	lua_pushnil(L);
	lua_pushstring(L, err->text);
	lua_pushstring(L, qcow2_error_word(err->code));
	lua_pushinteger(L, err->os_errno);
	lua_pushinteger(L, (lua_Integer)err->offset);
	return 5;
}

static int push_done(lua_State *L, int ret, const struct qcow2_error *err)
{
	if (ret)
		return push_failure(L, err);
	lua_pushboolean(L, 1);
	return 1;
}

static struct qcow2_store **new_box(lua_State *L)
{
	struct qcow2_store **box = lua_newuserdatauv(L, sizeof *box, 0);

	*box = NULL;
	luaL_setmetatable(L, STORE);
	return box;
}

#define NEW_STORE(L, call)                             \
	do {                                           \
		struct qcow2_error err;                \
		struct qcow2_store **out = new_box(L); \
		if (call)                              \
			return push_failure(L, &err);  \
		return 1;                              \
	} while (0)

static int probe_file(lua_State *L)
{
	const char *path = luaL_checkstring(L, 1);
	unsigned flags = (unsigned)luaL_optinteger(L, 2, 0);

	NEW_STORE(L, qcow2_store_file(path, flags, out, &err));
}

/* memory(length) or memory(bytes) */
static int probe_memory(lua_State *L)
{
	size_t length = 0;
	const char *bytes = lua_type(L, 1) == LUA_TSTRING ? lua_tolstring(L, 1, &length) : NULL;
	uint64_t total = bytes ? length : (uint64_t)luaL_checkinteger(L, 1);

	NEW_STORE(L, qcow2_store_memory(bytes, total, out, &err));
}

static int probe_power(lua_State *L)
{
	NEW_STORE(L, qcow2_store_power(check_store(L, 1), out, &err));
}

static int probe_fault(lua_State *L)
{
	struct qcow2_store *inner = check_store(L, 1);
	const char *kinds = luaL_checkstring(L, 2);
	uint64_t nth = (uint64_t)luaL_checkinteger(L, 3);
	int os_errno = (int)luaL_checkinteger(L, 4);
	bool sticky = lua_toboolean(L, 5);

	NEW_STORE(L, qcow2_store_fault(inner, kinds, nth, os_errno, sticky, out, &err));
}

/* store:replay(count, keep or nil, torn or nil, torn_bytes or nil); keep is a string of "0" and "1". */
static int store_replay(lua_State *L)
{
	struct qcow2_store *power = check_store(L, 1);
	size_t count = (size_t)luaL_checkinteger(L, 2), length;
	size_t torn = (size_t)luaL_optinteger(L, 4, -1), torn_bytes = (size_t)luaL_optinteger(L, 5, 0);
	const char *keep = luaL_optlstring(L, 3, NULL, &length);
	uint8_t *bits = NULL;

	if (keep) {
		luaL_argcheck(L, length >= count, 3, "one letter per operation");
		bits = lua_newuserdatauv(L, length + 1, 0);
		for (size_t i = 0; i < length; i++)
			bits[i] = keep[i] == '1';
	}
	NEW_STORE(L, qcow2_store_power_replay(power, count, bits, torn, torn_bytes, out, &err));
}

static int store_ops(lua_State *L)
{
	struct qcow2_store *power = check_store(L, 1);
	size_t count = qcow2_store_power_count(power);
	char text[80];

	lua_createtable(L, (int)count, 0);
	for (size_t i = 0; i < count; i++) {
		struct qcow2_power_op op;
		struct qcow2_error err;

		if (qcow2_store_power_op(power, i, &op, &err))
			return push_failure(L, &err);
		snprintf(text, sizeof text, "%c %llu %llu", op.kind, (unsigned long long)op.offset,
			 (unsigned long long)op.length);
		lua_pushstring(L, text);
		lua_rawseti(L, -2, (lua_Integer)i + 1);
	}
	return 1;
}

static int store_op(lua_State *L)
{
	struct qcow2_power_op op;
	struct qcow2_error err;

	if (qcow2_store_power_op(check_store(L, 1), (size_t)luaL_checkinteger(L, 2), &op, &err))
		return push_failure(L, &err);
	lua_pushlstring(L, &op.kind, 1);
	return 1;
}

static int store_calls(lua_State *L)
{
	lua_pushinteger(L, (lua_Integer)qcow2_store_fault_calls(check_store(L, 1)));
	return 1;
}

static int store_read(lua_State *L)
{
	struct qcow2_store *store = check_store(L, 1);
	uint64_t offset = (uint64_t)luaL_checkinteger(L, 2);
	size_t length = (size_t)luaL_checkinteger(L, 3);
	struct qcow2_error err;
	luaL_Buffer buffer;
	/* A length that no buffer could have is only for the check of the range. */
	char *to = length < (size_t)1 << 30 ? luaL_buffinitsize(L, &buffer, length) : NULL;

	/* Not what a lazy read would leave there. */
	if (to)
		memset(to, 0xdd, length);
	if (qcow2_store_read(store, offset, to, length, &err))
		return push_failure(L, &err);
	luaL_pushresultsize(&buffer, length);
	return 1;
}

static int store_write(lua_State *L)
{
	struct qcow2_error err;
	size_t length;
	uint64_t offset = (uint64_t)luaL_checkinteger(L, 2);
	const char *bytes = luaL_checklstring(L, 3, &length);

	return push_done(L, qcow2_store_write(check_store(L, 1), offset, bytes, length, &err), &err);
}

static int store_flush(lua_State *L)
{
	struct qcow2_error err;

	return push_done(L, qcow2_store_flush(check_store(L, 1), &err), &err);
}

static int store_punch(lua_State *L)
{
	struct qcow2_error err;
	uint64_t offset = (uint64_t)luaL_checkinteger(L, 2), length = (uint64_t)luaL_checkinteger(L, 3);

	return push_done(L, qcow2_store_punch(check_store(L, 1), offset, length, &err), &err);
}

static int store_allocate(lua_State *L)
{
	struct qcow2_error err;
	uint64_t offset = (uint64_t)luaL_checkinteger(L, 2), length = (uint64_t)luaL_checkinteger(L, 3);

	return push_done(L, q2_store_allocate(check_store(L, 1), offset, length, &err), &err);
}

static int store_resize(lua_State *L)
{
	struct qcow2_error err;
	uint64_t length = (uint64_t)luaL_checkinteger(L, 2);

	return push_done(L, qcow2_store_resize(check_store(L, 1), length, &err), &err);
}

static int store_length(lua_State *L)
{
	struct qcow2_error err;
	uint64_t length;

	if (qcow2_store_length(check_store(L, 1), &length, &err))
		return push_failure(L, &err);
	lua_pushinteger(L, (lua_Integer)length);
	return 1;
}

static int store_allocated(lua_State *L)
{
	struct qcow2_error err;
	uint64_t bytes;

	if (qcow2_store_allocated(check_store(L, 1), &bytes, &err))
		return push_failure(L, &err);
	lua_pushinteger(L, (lua_Integer)bytes);
	return 1;
}

/* store:extent(offset, limit): "data" or "hole", and how far. */
static int store_extent(lua_State *L)
{
	struct qcow2_error err;
	uint64_t offset = (uint64_t)luaL_checkinteger(L, 2), limit = (uint64_t)luaL_checkinteger(L, 3),
		 length;
	bool is_data;

	if (qcow2_store_extent(check_store(L, 1), offset, limit, &is_data, &length, &err))
		return push_failure(L, &err);
	lua_pushstring(L, is_data ? "data" : "hole");
	lua_pushinteger(L, (lua_Integer)length);
	return 2;
}

/* from:copy(from_offset, to, to_offset, length) */
static int store_copy(lua_State *L)
{
	struct qcow2_error err;
	uint64_t from_offset = (uint64_t)luaL_checkinteger(L, 2),
		 to_offset = (uint64_t)luaL_checkinteger(L, 4);
	uint64_t length = (uint64_t)luaL_checkinteger(L, 5);

	return push_done(L,
			 q2_store_copy(check_store(L, 1), from_offset, check_store(L, 3), to_offset, length,
				       &err),
			 &err);
}

static int store_about(lua_State *L)
{
	struct qcow2_store *store = check_store(L, 1);
	uint64_t id[2] = {0, 0};

	lua_newtable(L);
	lua_pushstring(L, qcow2_store_name(store));
	lua_setfield(L, -2, "name");
	lua_pushboolean(L, qcow2_store_writable(store));
	lua_setfield(L, -2, "writable");
	lua_pushboolean(L, qcow2_store_is_device(store));
	lua_setfield(L, -2, "is_device");
	lua_pushboolean(L, q2_store_descriptor(store) >= 0);
	lua_setfield(L, -2, "has_descriptor");
	if (qcow2_store_identity(store, id)) {
		lua_pushinteger(L, (lua_Integer)id[0]);
		lua_setfield(L, -2, "device");
		lua_pushinteger(L, (lua_Integer)id[1]);
		lua_setfield(L, -2, "inode");
	}
	return 1;
}

static int store_close(lua_State *L)
{
	struct qcow2_store **box = luaL_checkudata(L, 1, STORE);

	qcow2_store_unref(*box);
	*box = NULL;
	return 0;
}

/* ---- several threads ------------------------------------------------------------------------ */

#define WORKERS 4
#define PIECE 3000 /* no divisor of any block */

struct worker {
	pthread_t thread;
	struct qcow2_store *store;
	unsigned number, rounds;
	bool failed;
};

/* Every worker owns each fourth piece: what it wrote there it finds again, whatever the others do. */
static void *work(void *argument)
{
	struct worker *w = argument;
	uint8_t mine[PIECE], back[PIECE];

	for (unsigned round = 0; round < w->rounds && !w->failed; round++) {
		uint64_t offset = ((uint64_t)(round % 64) * WORKERS + w->number) * PIECE, run;
		bool is_data;

		memset(mine, (int)(w->number * 50 + round % 50 + 1), sizeof mine);
		w->failed |= qcow2_store_write(w->store, offset, mine, PIECE, NULL) != 0;
		w->failed |= qcow2_store_extent(w->store, offset, PIECE, &is_data, &run, NULL) || !is_data;
		if (round % 7 == 0) {
			memset(mine, 0, sizeof mine);
			w->failed |= qcow2_store_punch(w->store, offset, PIECE, NULL) != 0;
		}
		w->failed |= qcow2_store_read(w->store, offset, back, PIECE, NULL) != 0;
		w->failed |= memcmp(mine, back, PIECE) != 0;
	}
	return NULL;
}

/* store:hammer(rounds): true when every thread found its own bytes. */
static int store_hammer(lua_State *L)
{
	struct worker workers[WORKERS];
	bool failed = false;

	for (unsigned i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){.store = check_store(L, 1),
					     .number = i,
					     .rounds = (unsigned)luaL_checkinteger(L, 2)};
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			abort();
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		pthread_join(workers[i].thread, NULL);
		failed |= workers[i].failed;
	}
	lua_pushboolean(L, !failed);
	return 1;
}

static const luaL_Reg methods[] = {
	{"read", store_read},
	{"write", store_write},
	{"flush", store_flush},
	{"punch", store_punch},
	{"resize", store_resize},
	{"length", store_length},
	{"allocated", store_allocated},
	{"extent", store_extent},
	{"allocate", store_allocate},
	{"copy", store_copy},
	{"about", store_about},
	{"close", store_close},
	{"replay", store_replay},
	{"ops", store_ops},
	{"op", store_op},
	{"calls", store_calls},
	{"hammer", store_hammer},
	{"__gc", store_close},
	{"__close", store_close},
	{NULL, NULL},
};

static const luaL_Reg functions[] = {
	{"file", probe_file},   {"memory", probe_memory}, {"power", probe_power},
	{"fault", probe_fault}, {"host", probe_host},     {"host_calls", probe_host_calls},
	{NULL, NULL},
};

static const struct {
	const char *name;
	int value;
} constants[] = {
	{"WRITE", QCOW2_STORE_WRITE},
	{"CREATE", QCOW2_STORE_CREATE},
	{"EXCLUSIVE", QCOW2_STORE_EXCLUSIVE},
	{"TRUNCATE", QCOW2_STORE_TRUNCATE},
	{"FORCE_SHARE", QCOW2_STORE_FORCE_SHARE},
	{"NO_DEVICE", QCOW2_STORE_NO_DEVICE},
	{"UNLOCKED", QCOW2_STORE_UNLOCKED},
	{"EIO", EIO},
	{"ENOSPC", ENOSPC},
	{"EINVAL", EINVAL},
	{"EXDEV", EXDEV},
	{"EOPNOTSUPP", EOPNOTSUPP},
};

int luaopen_qcow2_probe_store(lua_State *L)
{
	luaL_newmetatable(L, STORE);
	luaL_setfuncs(L, methods, 0);
	lua_pushvalue(L, -1);
	lua_setfield(L, -2, "__index");
	luaL_newlib(L, functions);
	for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
		lua_pushinteger(L, constants[i].value);
		lua_setfield(L, -2, constants[i].name);
	}
	return 1;
}
