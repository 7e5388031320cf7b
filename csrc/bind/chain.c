/* SPDX-License-Identifier: MIT
 * Backing files for the Lua side: image:set_backing, core.rebase, core.commit. */
#include "bind/bind.h"

#include <limits.h>

/* A string argument, borrowed; nothing for nil. */
static struct qcow2_bytes bytes_at(lua_State *L, int index)
{
	struct qcow2_bytes bytes = {NULL, 0};
	bytes.data = (const uint8_t *)luaL_optlstring(L, index, NULL, &bytes.length);
	return bytes;
}

/* image:set_backing(name or nil, format or nil) */
static int l_set_backing(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	struct qcow2_bytes name = bytes_at(L, 2), format = bytes_at(L, 3);
	return q2_bind_done(L, qcow2_image_set_backing(image, name, format, &err), &err);
}

static unsigned threads_at(lua_State *L, int index)
{
	lua_Integer threads = luaL_optinteger(L, index, 0);
	luaL_argcheck(L, threads >= 0 && threads <= INT_MAX, index, "threads is out of range");
	return (unsigned)threads;
}

/* core.rebase(image, backing image or nil, name, format, compress, threads) */
static int l_rebase(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *overlay = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	struct qcow2_image *backing = lua_isnil(L, 2) ? NULL : q2_bind_self(L, 2, Q2_IMAGE_CLASS);
	struct qcow2_rebase_options options = {
		.struct_size = sizeof(struct qcow2_rebase_options),
		.name = bytes_at(L, 3),
		.format = bytes_at(L, 4),
		.compress = lua_toboolean(L, 5),
		.threads = threads_at(L, 6),
	};
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	int rc = qcow2_rebase_new(overlay, backing, &options, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* core.commit(image, base, keep, rate, threads) */
static int l_commit(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *overlay = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	struct qcow2_image *base = q2_bind_self(L, 2, Q2_IMAGE_CLASS);
	struct qcow2_commit_options options = {
		.struct_size = sizeof(struct qcow2_commit_options),
		.keep = lua_toboolean(L, 3),
		.rate = q2_bind_unsigned(L, 4, "rate"),
		.threads = threads_at(L, 5),
	};
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	int rc = qcow2_commit_new(overlay, base, &options, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

void q2_bind_open_chain(lua_State *L)
{
	static const luaL_Reg methods[] = {{"set_backing", l_set_backing}, {NULL, NULL}};
	static const luaL_Reg functions[] = {{"rebase", l_rebase}, {"commit", l_commit}, {NULL, NULL}};
	luaL_getmetatable(L, Q2_IMAGE_CLASS);
	lua_getfield(L, -1, "__index");
	q2_bind_image_functions(L, methods);
	lua_pop(L, 2);
	q2_bind_image_functions(L, functions);
}
