/* SPDX-License-Identifier: MIT
 * Class qcow2.job: long work, done in steps, whatever it is; what copies and comparisons add to it. Files that make other
 * jobs add what these have (check.c, amend.c). A method of another kind of job answers nothing. */
#include "bind/bind.h"

#include <limits.h>

static struct qcow2_job *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_JOB_CLASS);
}

static unsigned threads_field(lua_State *L, int index)
{
	lua_getfield(L, index, "threads");
	lua_Integer threads = luaL_optinteger(L, -1, 0);
	luaL_argcheck(L, threads >= 0 && threads <= INT_MAX, index, "threads is out of range");
	lua_pop(L, 1);
	return (unsigned)threads;
}

/* core.copy({ image, ... }, target store or image, { sparse_size, threads, target_exists, target_is_zero,
 * salvage, strict, sync, compress, target_backing, bitmaps, rate, start, length }) */
static int l_copy(lua_State *L)
{
	struct qcow2_error err;
	luaL_checktype(L, 1, LUA_TTABLE);
	luaL_checktype(L, 3, LUA_TTABLE);
	lua_settop(L, 3);
	bool into_image = luaL_testudata(L, 2, Q2_IMAGE_CLASS) != NULL;
	void *target = q2_bind_self(L, 2, into_image ? Q2_IMAGE_CLASS : Q2_STORE_CLASS);
	lua_getfield(L, 3, "sparse_size");
	struct qcow2_copy_options options = {
		.struct_size = sizeof(struct qcow2_copy_options),
		.sparse_size = q2_bind_unsigned(L, -1, "sparse_size"),
		.threads = threads_field(L, 3),
		.target_exists = q2_bind_flag(L, 3, "target_exists"),
		.target_is_zero = q2_bind_flag(L, 3, "target_is_zero"),
		.salvage = q2_bind_flag(L, 3, "salvage"),
		.strict = q2_bind_flag(L, 3, "strict"),
		.sync = q2_bind_flag(L, 3, "sync"),
		.compress = q2_bind_flag(L, 3, "compress"),
		.target_backing = q2_bind_flag(L, 3, "target_backing"),
		.bitmaps = q2_bind_flag(L, 3, "bitmaps"),
	};
	if (lua_getfield(L, 3, "rate") != LUA_TNIL)
		options.rate = q2_bind_unsigned(L, -1, "rate");
	if (lua_getfield(L, 3, "length") != LUA_TNIL) {
		options.length = q2_bind_unsigned(L, -1, "length");
		lua_getfield(L, 3, "start");
		options.start = q2_bind_unsigned(L, -1, "start");
	}
	size_t count = lua_rawlen(L, 1);
	luaL_argcheck(L, count > 0 && count <= INT_MAX, 1, "no source");
	/* In Lua's memory, because looking at the sources may raise. */
	struct qcow2_image **sources = lua_newuserdatauv(L, count * sizeof *sources, 0);
	for (size_t i = 0; i < count; i++) {
		lua_rawgeti(L, 1, (lua_Integer)i + 1);
		sources[i] = q2_bind_self(L, -1, Q2_IMAGE_CLASS);
		lua_pop(L, 1);
	}
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	struct qcow2_job **job = (struct qcow2_job **)&handle->object;
	int rc = into_image ? qcow2_copy_image_new(sources, count, target, &options, job, &err)
			    : qcow2_copy_new(sources, count, target, &options, job, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* core.compare(image, image, { strict, threads }) */
static int l_compare(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *a = q2_bind_self(L, 1, Q2_IMAGE_CLASS), *b = q2_bind_self(L, 2, Q2_IMAGE_CLASS);
	luaL_checktype(L, 3, LUA_TTABLE);
	bool strict = q2_bind_flag(L, 3, "strict");
	unsigned threads = threads_field(L, 3);
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	int rc = qcow2_compare_new(a, b, strict, threads, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* done, total, whether there is more */
static int l_step(lua_State *L)
{
	struct qcow2_error err;
	uint64_t done, total;
	struct qcow2_job *job = self(L);
	/* A job that rests on another, as a repair on its check, needs that one. */
	if (lua_getiuservalue(L, 1, 1) == LUA_TUSERDATA)
		q2_bind_self(L, -1, Q2_JOB_CLASS);
	int rc = qcow2_job_step(job, &done, &total, &err);
	return q2_bind_step(L, rc, done, total, &err);
}

static int l_lost(lua_State *L)
{
	lua_pushinteger(L, (lua_Integer)qcow2_copy_lost(self(L)));
	return 1;
}

/* bytes, from, to: what lies behind the end of its image file; 0 when there is nothing */
static int l_missing(lua_State *L)
{
	uint64_t from, to;
	lua_pushinteger(L, (lua_Integer)qcow2_copy_missing(self(L), &from, &to));
	lua_pushinteger(L, (lua_Integer)from);
	lua_pushinteger(L, (lua_Integer)to);
	return 3;
}

/* "same" | "content" | "size" | "allocation", and the offset or nil */
static int l_difference(lua_State *L)
{
	static const char *const words[] = {
		[QCOW2_SAME] = "same",
		[QCOW2_DIFFERENT_CONTENT] = "content",
		[QCOW2_DIFFERENT_SIZE] = "size",
		[QCOW2_DIFFERENT_ALLOCATION] = "allocation",
	};
	uint64_t offset;
	lua_pushstring(L, words[qcow2_compare_result(self(L), &offset)]);
	if (offset == UINT64_MAX)
		lua_pushnil(L);
	else
		lua_pushinteger(L, (lua_Integer)offset);
	return 2;
}

static int l_close(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_JOB_CLASS);
	qcow2_job_free(handle->object);
	handle->object = NULL;
	return 0;
}

static int l_tostring(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_JOB_CLASS);
	lua_pushstring(L, handle->object ? "qcow2.job" : "qcow2.job (closed)");
	return 1;
}

void q2_bind_open_job(lua_State *L)
{
	static const luaL_Reg methods[] = {{"step", l_step},       {"lost", l_lost},
					   {"missing", l_missing}, {"difference", l_difference},
					   {"close", l_close},     {NULL, NULL}};
	static const luaL_Reg meta[] = {{"__gc", l_close},
					{"__close", l_close},
					{"__tostring", l_tostring},
					{NULL, NULL}};
	static const luaL_Reg functions[] = {{"copy", l_copy}, {"compare", l_compare}, {NULL, NULL}};
	q2_bind_class(L, Q2_JOB_CLASS, methods, meta);
	luaL_setfuncs(L, functions, 0);
}
