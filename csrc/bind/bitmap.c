/* SPDX-License-Identifier: MIT
 * Class qcow2.image, fourth part: changing persistent bitmaps. Indices count from 0. */
#include "bind/bind.h"

static struct qcow2_image *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_IMAGE_CLASS);
}

static uint32_t check_index(lua_State *L, int arg)
{
	uint64_t index = q2_bind_unsigned(L, arg, "index");
	luaL_argcheck(L, index <= UINT32_MAX, arg, "index is too large");
	return (uint32_t)index;
}

/* image:bitmap_add(name, granularity, enabled) */
static int l_add(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	struct qcow2_bytes name;
	name.data = (const uint8_t *)luaL_checklstring(L, 2, &name.length);
	uint64_t granularity = q2_bind_unsigned(L, 3, "granularity");
	int rc = qcow2_image_bitmap_add(image, name, granularity, lua_toboolean(L, 4), &err);
	return q2_bind_done(L, rc, &err);
}

static int l_remove(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	return q2_bind_done(L, qcow2_image_bitmap_remove(image, check_index(L, 2), &err), &err);
}

/* image:bitmap_enable(index, enabled) */
static int l_enable(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint32_t index = check_index(L, 2);
	return q2_bind_done(L, qcow2_image_bitmap_enable(image, index, lua_toboolean(L, 3), &err), &err);
}

/* image:bitmap_change(index, offset, length, dirty) */
static int l_change(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint32_t index = check_index(L, 2);
	uint64_t offset = q2_bind_unsigned(L, 3, "offset"), length = q2_bind_unsigned(L, 4, "length");
	int rc = qcow2_image_bitmap_change(image, index, offset, length, lua_toboolean(L, 5), &err);
	return q2_bind_done(L, rc, &err);
}

/* image:bitmap_merge(index, source image, source index) */
static int l_merge(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L), *source = q2_bind_self(L, 3, Q2_IMAGE_CLASS);
	uint32_t index = check_index(L, 2), from = check_index(L, 4);
	return q2_bind_done(L, qcow2_image_bitmap_merge(image, index, source, from, &err), &err);
}

void q2_bind_open_bitmap(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"bitmap_add", l_add},       {"bitmap_remove", l_remove}, {"bitmap_enable", l_enable},
		{"bitmap_change", l_change}, {"bitmap_merge", l_merge},   {NULL, NULL},
	};
	luaL_getmetatable(L, Q2_IMAGE_CLASS);
	lua_getfield(L, -1, "__index");
	q2_bind_image_functions(L, methods);
	lua_pop(L, 2);
}
