/* SPDX-License-Identifier: MIT
 * Class qcow2.image, third part: what changes an image. */
#include "bind/bind.h"

#include <time.h>

static struct qcow2_image *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_IMAGE_CLASS);
}

static int l_begin(lua_State *L)
{
	struct qcow2_error err;
	return q2_bind_done(L, qcow2_image_begin(self(L), &err), &err);
}

static int l_begin_tables(lua_State *L)
{
	struct qcow2_error err;
	return q2_bind_done(L, qcow2_image_begin_tables(self(L), &err), &err);
}

/* image:write(offset, bytes) */
static int l_write(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset");
	size_t length;
	const char *bytes = luaL_checklstring(L, 3, &length);
	return q2_bind_done(L, qcow2_image_write(image, offset, bytes, length, &err), &err);
}

/* image:write_compressed(offset, bytes): one cluster */
static int l_write_compressed(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset");
	size_t length;
	const char *bytes = luaL_checklstring(L, 3, &length);
	return q2_bind_done(L, qcow2_image_write_compressed(image, offset, bytes, length, &err), &err);
}

/* image:zero(offset, length, unmap) */
static int l_zero(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset"), length = q2_bind_unsigned(L, 3, "length");
	unsigned flags = lua_toboolean(L, 4) ? QCOW2_ZERO_UNMAP : 0;
	return q2_bind_done(L, qcow2_image_zero(image, offset, length, flags, &err), &err);
}

/* image:discard(offset, length) */
static int l_discard(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset"), length = q2_bind_unsigned(L, 3, "length");
	return q2_bind_done(L, qcow2_image_discard(image, offset, length, &err), &err);
}

static int l_flush(lua_State *L)
{
	struct qcow2_error err;
	return q2_bind_done(L, qcow2_image_flush(self(L), &err), &err);
}

static int l_finish(lua_State *L)
{
	struct qcow2_error err;
	return q2_bind_done(L, qcow2_image_finish(self(L), &err), &err);
}

/* image:resize(size, shrink, "off" | "metadata" | "falloc" | "full") */
static int l_resize(lua_State *L)
{
	static const char *const words[] = {"off", "metadata", "falloc", "full", NULL};
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t size = q2_bind_unsigned(L, 2, "size");
	unsigned flags = lua_toboolean(L, 3) ? QCOW2_RESIZE_SHRINK : 0;
	enum qcow2_preallocation mode = (enum qcow2_preallocation)luaL_checkoption(L, 4, "off", words);
	return q2_bind_done(L, qcow2_image_resize(image, size, flags, mode, &err), &err);
}

/* image:snapshot_create(name[, seconds, nanoseconds]); the time is now when it is not given */
static int l_snapshot_create(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	struct qcow2_bytes name;
	name.data = (const uint8_t *)luaL_checklstring(L, 2, &name.length);
	struct timespec when;
	clock_gettime(CLOCK_REALTIME, &when);
	if (!lua_isnoneornil(L, 3))
		when = (struct timespec){.tv_sec = (time_t)q2_bind_unsigned(L, 3, "seconds"),
					 .tv_nsec = (long)luaL_optinteger(L, 4, 0)};
	return q2_bind_done(L, qcow2_image_snapshot_create(image, name, &when, &err), &err);
}

/* A snapshot's number, counted from 0. */
static uint32_t check_index(lua_State *L)
{
	uint64_t index = q2_bind_unsigned(L, 2, "index");
	luaL_argcheck(L, index <= UINT32_MAX, 2, "index is too large");
	return (uint32_t)index;
}

static int l_snapshot_apply(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	return q2_bind_done(L, qcow2_image_snapshot_apply(image, check_index(L), &err), &err);
}

static int l_snapshot_delete(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	return q2_bind_done(L, qcow2_image_snapshot_delete(image, check_index(L), &err), &err);
}

static int l_snapshot_rename(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint32_t index = check_index(L);
	struct qcow2_bytes name;
	name.data = (const uint8_t *)luaL_checklstring(L, 3, &name.length);
	return q2_bind_done(L, qcow2_image_snapshot_rename(image, index, name, &err), &err);
}

static int l_is_writable(lua_State *L)
{
	lua_pushboolean(L, qcow2_image_writable(self(L)));
	return 1;
}

void q2_bind_open_edit(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"begin", l_begin},
		{"begin_tables", l_begin_tables},
		{"write", l_write},
		{"write_compressed", l_write_compressed},
		{"zero", l_zero},
		{"discard", l_discard},
		{"flush", l_flush},
		{"finish", l_finish},
		{"resize", l_resize},
		{"snapshot_create", l_snapshot_create},
		{"snapshot_apply", l_snapshot_apply},
		{"snapshot_delete", l_snapshot_delete},
		{"snapshot_rename", l_snapshot_rename},
		{"is_writable", l_is_writable},
		{NULL, NULL},
	};
	luaL_getmetatable(L, Q2_IMAGE_CLASS);
	lua_getfield(L, -1, "__index");
	q2_bind_image_functions(L, methods);
	lua_pop(L, 2);
}
