/* SPDX-License-Identifier: MIT
 * Class qcow2.store: files and memory. */
#include "bind/bind.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

static struct qcow2_store *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_STORE_CLASS);
}

static int l_file(lua_State *L)
{
	static const struct {
		const char *name;
		unsigned flag;
	} flags[] = {
		{"write", QCOW2_STORE_WRITE},
		{"create", QCOW2_STORE_CREATE},
		{"exclusive", QCOW2_STORE_EXCLUSIVE},
		{"truncate", QCOW2_STORE_TRUNCATE},
		{"force_share", QCOW2_STORE_FORCE_SHARE},
		{"no_device", QCOW2_STORE_NO_DEVICE},
		{"unlocked", QCOW2_STORE_UNLOCKED},
	};
	struct qcow2_error err;
	size_t length;
	const char *path = luaL_checklstring(L, 1, &length);
	luaL_argcheck(L, length == strlen(path), 1, "path has a NUL in it");
	unsigned mask = 0;
	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
		if (q2_bind_flag(L, 2, flags[i].name))
			mask |= flags[i].flag;
	struct q2_handle *handle = q2_bind_new(L, Q2_STORE_CLASS);
	int rc = qcow2_store_file(path, mask, (struct qcow2_store **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* store:trace(fd, { "read", ... }) -> a store around it that tells of these events; all without a list */
static int l_trace(lua_State *L)
{
	static const char *const words[] = {"read",     "write",  "flush",  "punch",
					    "allocate", "resize", "extent", NULL};
	struct qcow2_error err;
	struct qcow2_store *inner = self(L);
	int fd = (int)luaL_checkinteger(L, 2);
	unsigned events = lua_istable(L, 3) ? 0 : ~0u;
	for (lua_Integer i = 1; lua_istable(L, 3) && i <= luaL_len(L, 3); i++) {
		lua_rawgeti(L, 3, i);
		events |= 1u << luaL_checkoption(L, -1, NULL, words);
		lua_pop(L, 1);
	}
	struct q2_handle *handle = q2_bind_new(L, Q2_STORE_CLASS);
	int rc = qcow2_store_trace(inner, fd, events, (struct qcow2_store **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* core.trace_file(path) -> a file descriptor that lines are appended to; it stays open as long as the process */
static int l_trace_file(lua_State *L)
{
	int fd = open(luaL_checkstring(L, 1), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (fd < 0) {
		int os_errno = errno;
		lua_pushnil(L);
		lua_pushfstring(L, "Could not open '%s': %s", lua_tostring(L, 1), strerror(os_errno));
		lua_pushstring(L, "io");
		lua_pushinteger(L, os_errno);
		return 4;
	}
	lua_pushinteger(L, fd);
	return 1;
}

static int l_memory(lua_State *L)
{
	struct qcow2_error err;
	size_t length = 0;
	const char *bytes = NULL;
	if (lua_type(L, 1) == LUA_TSTRING)
		bytes = lua_tolstring(L, 1, &length);
	else
		length = q2_bind_unsigned(L, 1, "length");
	struct q2_handle *handle = q2_bind_new(L, Q2_STORE_CLASS);
	int rc = qcow2_store_memory(bytes, length, (struct qcow2_store **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

static int l_read(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset");
	size_t length = q2_bind_unsigned(L, 3, "length");
	luaL_Buffer buffer;
	char *to = luaL_buffinitsize(L, &buffer, length);
	if (qcow2_store_read(store, offset, to, length, &err))
		return q2_bind_fail(L, &err);
	luaL_pushresultsize(&buffer, length);
	return 1;
}

static int l_write(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset");
	size_t length;
	const char *bytes = luaL_checklstring(L, 3, &length);
	return q2_bind_done(L, qcow2_store_write(store, offset, bytes, length, &err), &err);
}

static int l_flush(lua_State *L)
{
	struct qcow2_error err;
	return q2_bind_done(L, qcow2_store_flush(self(L), &err), &err);
}

static int l_punch(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset"), length = q2_bind_unsigned(L, 3, "length");
	return q2_bind_done(L, qcow2_store_punch(store, offset, length, &err), &err);
}

static int l_resize(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = self(L);
	return q2_bind_done(L, qcow2_store_resize(store, q2_bind_unsigned(L, 2, "length"), &err), &err);
}

static int l_length(lua_State *L)
{
	struct qcow2_error err;
	uint64_t length;
	if (qcow2_store_length(self(L), &length, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)length);
	return 1;
}

static int l_allocated(lua_State *L)
{
	struct qcow2_error err;
	uint64_t bytes;
	if (qcow2_store_allocated(self(L), &bytes, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)bytes);
	return 1;
}

/* is_data, length */
static int l_extent(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset"), limit = q2_bind_unsigned(L, 3, "limit"), length;
	bool is_data;
	luaL_argcheck(L, limit > 0, 3, "limit must be positive");
	if (qcow2_store_extent(store, offset, limit, &is_data, &length, &err))
		return q2_bind_fail(L, &err);
	lua_pushboolean(L, is_data);
	lua_pushinteger(L, (lua_Integer)length);
	return 2;
}

static int l_name(lua_State *L)
{
	lua_pushstring(L, qcow2_store_name(self(L)));
	return 1;
}

static int l_is_device(lua_State *L)
{
	lua_pushboolean(L, qcow2_store_is_device(self(L)));
	return 1;
}

static int l_is_writable(lua_State *L)
{
	lua_pushboolean(L, qcow2_store_writable(self(L)));
	return 1;
}

/* device, inode; nil when there is no file behind it */
static int l_identity(lua_State *L)
{
	uint64_t id[2];
	if (!qcow2_store_identity(self(L), id)) {
		lua_pushnil(L);
		return 1;
	}
	lua_pushinteger(L, (lua_Integer)id[0]);
	lua_pushinteger(L, (lua_Integer)id[1]);
	return 2;
}

static int l_close(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_STORE_CLASS);
	qcow2_store_unref(handle->object);
	handle->object = NULL;
	return 0;
}

static int l_tostring(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_STORE_CLASS);
	if (handle->object)
		lua_pushfstring(L, "qcow2.store (%s)", qcow2_store_name(handle->object));
	else
		lua_pushliteral(L, "qcow2.store (closed)");
	return 1;
}

void q2_bind_open_store(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"read", l_read},
		{"write", l_write},
		{"flush", l_flush},
		{"punch", l_punch},
		{"resize", l_resize},
		{"length", l_length},
		{"allocated", l_allocated},
		{"extent", l_extent},
		{"name", l_name},
		{"is_device", l_is_device},
		{"is_writable", l_is_writable},
		{"identity", l_identity},
		{"trace", l_trace},
		{"close", l_close},
		{NULL, NULL},
	};
	static const luaL_Reg meta[] = {{"__gc", l_close},
					{"__close", l_close},
					{"__tostring", l_tostring},
					{NULL, NULL}};
	static const luaL_Reg functions[] = {{"store_file", l_file},
					     {"store_memory", l_memory},
					     {"trace_file", l_trace_file},
					     {NULL, NULL}};
	q2_bind_class(L, Q2_STORE_CLASS, methods, meta);
	luaL_setfuncs(L, functions, 0);
}
