/* SPDX-License-Identifier: MIT
 * Creation for the Lua side: core.create and what belongs to it. The options are the words of lua/qcow2/create. */
#include "bind/bind.h"

static const char *const preallocations[] = {"off", "metadata", "falloc", "full", NULL};

/* Field `name` of the options as a number; `fallback` when it is absent. */
static uint64_t number(lua_State *L, int index, const char *name, uint64_t fallback)
{
	if (lua_getfield(L, index, name) != LUA_TNIL) {
		int is_integer;
		lua_Integer value = lua_tointegerx(L, -1, &is_integer);
		if (!is_integer || value < 0)
			luaL_error(L, "option '%s' must be a non-negative integer", name);
		fallback = (uint64_t)value;
	}
	lua_pop(L, 1);
	return fallback;
}

/* The same for the fields of 32 bits: what does not fit is beyond every limit, and stays so. */
static uint32_t number32(lua_State *L, int index, const char *name, uint32_t fallback)
{
	uint64_t value = number(L, index, name, fallback);
	return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

/* A word of a list by its place there; the first when the field is absent. */
static int word(lua_State *L, int index, const char *name, const char *const *words)
{
	lua_getfield(L, index, name);
	int found = lua_isnil(L, -1) ? 0 : luaL_checkoption(L, -1, NULL, words);
	lua_pop(L, 1);
	return found;
}

/* A name, borrowed from the table, which keeps it alive. */
static struct qcow2_bytes name_of(lua_State *L, int index, const char *name)
{
	struct qcow2_bytes bytes = {NULL, 0};
	if (lua_getfield(L, index, name) == LUA_TSTRING)
		bytes.data = (const uint8_t *)lua_tolstring(L, -1, &bytes.length);
	else if (!lua_isnil(L, -1))
		luaL_error(L, "option '%s' must be a string", name);
	lua_pop(L, 1);
	return bytes;
}

static struct qcow2_create_options read_options(lua_State *L, int index)
{
	static const char *const compressions[] = {"zlib", "zstd", NULL};
	luaL_checktype(L, index, LUA_TTABLE);
	return (struct qcow2_create_options){
		.struct_size = sizeof(struct qcow2_create_options),
		.size = number(L, index, "size", 0),
		.version = number32(L, index, "version", 3),
		.cluster_size = number32(L, index, "cluster_size", 65536),
		.refcount_bits = number32(L, index, "refcount_bits", 16),
		.compression = (uint32_t)word(L, index, "compression_type", compressions),
		.preallocation = (enum qcow2_preallocation)word(L, index, "preallocation", preallocations),
		.lazy_refcounts = q2_bind_flag(L, index, "lazy_refcounts"),
		.extended_l2 = q2_bind_flag(L, index, "extended_l2"),
		.backing_name = name_of(L, index, "backing_file"),
		.backing_format = name_of(L, index, "backing_format"),
		.data_name = name_of(L, index, "data_file"),
		.data_raw = q2_bind_flag(L, index, "data_file_raw"),
		.keep_data = q2_bind_flag(L, index, "keep_data_file"),
		.keep_holes = q2_bind_flag(L, index, "keep_holes"),
		.nocow = q2_bind_flag(L, index, "nocow"),
	};
}

/* core.create_check(options) -> true */
static int l_check(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_create_options options = read_options(L, 1);
	return q2_bind_done(L, qcow2_create_check(&options, &err), &err);
}

/* core.create(store, data store or nil, options) -> true */
static int l_create(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = q2_bind_self(L, 1, Q2_STORE_CLASS);
	struct qcow2_store *data = lua_isnil(L, 2) ? NULL : q2_bind_self(L, 2, Q2_STORE_CLASS);
	struct qcow2_create_options options = read_options(L, 3);
	return q2_bind_done(L, qcow2_create(store, data, &options, &err), &err);
}

/* core.create_open(store, data store or nil, options) -> image: for a copy, which finishes it */
static int l_create_open(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = q2_bind_self(L, 1, Q2_STORE_CLASS);
	struct qcow2_store *data = lua_isnil(L, 2) ? NULL : q2_bind_self(L, 2, Q2_STORE_CLASS);
	struct qcow2_create_options options = read_options(L, 3);
	struct q2_handle *handle = q2_bind_new(L, Q2_IMAGE_CLASS);
	int rc = qcow2_create_open(store, data, &options, (struct qcow2_image **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* core.create_raw(store, size, preallocation, nocow) -> true */
static int l_create_raw(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = q2_bind_self(L, 1, Q2_STORE_CLASS);
	uint64_t size = q2_bind_unsigned(L, 2, "size");
	int mode = luaL_checkoption(L, 3, "off", preallocations);
	bool nocow = lua_toboolean(L, 4);
	int rc = qcow2_create_raw(store, size, (enum qcow2_preallocation)mode, nocow, &err);
	return q2_bind_done(L, rc, &err);
}

/* core.create_has_nocow(store): does the host leave out copy-on-write for it? */
static int l_has_nocow(lua_State *L)
{
	lua_pushboolean(L, qcow2_create_has_nocow(q2_bind_self(L, 1, Q2_STORE_CLASS)));
	return 1;
}

void q2_bind_open_create(lua_State *L)
{
	static const luaL_Reg functions[] = {{"create", l_create},
					     {"create_open", l_create_open},
					     {"create_check", l_check},
					     {"create_raw", l_create_raw},
					     {"create_has_nocow", l_has_nocow},
					     {NULL, NULL}};
	luaL_setfuncs(L, functions, 0);
}
