/* SPDX-License-Identifier: MIT
 * Class qcow2.task: long changes of one image, done in steps. */
#include "bind/bind.h"

static struct qcow2_task *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_TASK_CLASS);
}

/* Field `name` of the table at 2 as a number, 0 when it is missing. */
static uint64_t number_field(lua_State *L, const char *name)
{
	uint64_t value = 0;
	if (lua_getfield(L, 2, name) != LUA_TNIL)
		value = q2_bind_unsigned(L, -1, name);
	lua_pop(L, 1);
	return value;
}

/* 1, 0; -1 when the field is missing. */
static int switch_field(lua_State *L, const char *name)
{
	int value = lua_getfield(L, 2, name) == LUA_TNIL ? -1 : lua_toboolean(L, -1);
	lua_pop(L, 1);
	return value;
}

/* Borrowed from the table, which outlives the call. */
static struct qcow2_bytes bytes_field(lua_State *L, const char *name)
{
	struct qcow2_bytes bytes = {0};
	if (lua_getfield(L, 2, name) == LUA_TSTRING)
		bytes.data = (const uint8_t *)lua_tolstring(L, -1, &bytes.length);
	lua_pop(L, 1);
	return bytes;
}

/* core.amend(image, { version, refcount_bits, lazy_refcounts, data_file, data_file_raw, set_backing, backing_file,
 * backing_format, size, shrink }) */
static int l_amend(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	luaL_checktype(L, 2, LUA_TTABLE);
	struct qcow2_amend_options options = {
		.version = (uint32_t)number_field(L, "version"),
		.refcount_bits = (uint32_t)number_field(L, "refcount_bits"),
		.lazy_refcounts = switch_field(L, "lazy_refcounts"),
		.data_raw = switch_field(L, "data_file_raw"),
		.data_name = bytes_field(L, "data_file"),
		.set_backing = q2_bind_flag(L, 2, "set_backing"),
		.backing_name = bytes_field(L, "backing_file"),
		.backing_format = bytes_field(L, "backing_format"),
		.set_size = lua_getfield(L, 2, "size") != LUA_TNIL,
		.shrink = q2_bind_flag(L, 2, "shrink"),
	};
	options.size = number_field(L, "size");
	struct q2_handle *handle = q2_bind_new(L, Q2_TASK_CLASS);
	int rc = qcow2_amend_new(image, &options, (struct qcow2_task **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* done, total, whether there is more */
static int l_step(lua_State *L)
{
	struct qcow2_error err;
	uint64_t done, total;
	int rc = qcow2_task_step(self(L), &done, &total, &err);
	if (rc < 0)
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)done);
	lua_pushinteger(L, (lua_Integer)total);
	lua_pushboolean(L, rc);
	return 3;
}

static int l_close(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_TASK_CLASS);
	qcow2_task_free(handle->object);
	handle->object = NULL;
	return 0;
}

static int l_tostring(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_TASK_CLASS);
	lua_pushstring(L, handle->object ? "qcow2.task" : "qcow2.task (closed)");
	return 1;
}

void q2_bind_open_amend(lua_State *L)
{
	static const luaL_Reg methods[] = {{"step", l_step}, {"close", l_close}, {NULL, NULL}};
	static const luaL_Reg meta[] = {{"__gc", l_close},
					{"__close", l_close},
					{"__tostring", l_tostring},
					{NULL, NULL}};
	static const luaL_Reg functions[] = {{"amend", l_amend}, {NULL, NULL}};
	q2_bind_class(L, Q2_TASK_CLASS, methods, meta);
	luaL_setfuncs(L, functions, 0);
}
