/* SPDX-License-Identifier: MIT
 * Class qcow2.image: open, attach, read, extents. Its tables are in tables.c, its sugar in lua/qcow2. */
#include "bind/bind.h"

/* Reads up to this go through the C stack: one copy into the string, no buffer to allocate. */
enum { STACK_READ = 32768 };

static struct qcow2_image *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_IMAGE_CLASS);
}

/* core.image_open(store, "qcow2"|"raw", damaged) */
static int l_open(lua_State *L)
{
	static const char *const formats[] = {"qcow2", "raw", NULL};
	struct qcow2_error err;
	struct qcow2_store *store = q2_bind_self(L, 1, Q2_STORE_CLASS);
	int format = luaL_checkoption(L, 2, "qcow2", formats);
	struct q2_handle *handle = q2_bind_new(L, Q2_IMAGE_CLASS);
	struct qcow2_image **out = (struct qcow2_image **)&handle->object;
	int rc = format                ? qcow2_image_open_raw(store, out, &err)
		 : lua_toboolean(L, 3) ? qcow2_image_open_damaged(store, out, &err)
				       : qcow2_image_open(store, out, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* core.image_probe(store) -> "qcow2" | "raw" | "unfinished" | another format's name */
static int l_probe(lua_State *L)
{
	struct qcow2_error err;
	const char *format;
	if (qcow2_image_probe(q2_bind_self(L, 1, Q2_STORE_CLASS), &format, &err))
		return q2_bind_fail(L, &err);
	lua_pushstring(L, format);
	return 1;
}

static int l_open_snapshot(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t index = q2_bind_unsigned(L, 2, "index");
	luaL_argcheck(L, index <= UINT32_MAX, 2, "index is too large");
	struct q2_handle *handle = q2_bind_new(L, Q2_IMAGE_CLASS);
	int rc = qcow2_image_open_snapshot(image, (uint32_t)index, (struct qcow2_image **)&handle->object,
					   &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

static int l_attach_data(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	struct qcow2_store *store = q2_bind_self(L, 2, Q2_STORE_CLASS);
	return q2_bind_done(L, qcow2_image_attach_data(image, store, &err), &err);
}

static int l_attach_backing(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L), *backing = q2_bind_self(L, 2, Q2_IMAGE_CLASS);
	return q2_bind_done(L, qcow2_image_attach_backing(image, backing, &err), &err);
}

/* A new handle for the attached backing image, nil when there is none. */
static int l_backing(lua_State *L)
{
	struct qcow2_image *backing = qcow2_image_backing(self(L));
	if (!backing) {
		lua_pushnil(L);
		return 1;
	}
	/* The handle first: making it may raise, and then no reference must be lost. */
	struct q2_handle *handle = q2_bind_new(L, Q2_IMAGE_CLASS);
	handle->object = qcow2_image_ref(backing);
	return 1;
}

/* has_data, has_backing: what is attached right now */
static int l_attached(lua_State *L)
{
	struct qcow2_image *image = self(L);
	lua_pushboolean(L, qcow2_image_data_store(image) != NULL);
	lua_pushboolean(L, qcow2_image_backing(image) != NULL);
	return 2;
}

static int l_size(lua_State *L)
{
	lua_pushinteger(L, (lua_Integer)qcow2_image_size(self(L)));
	return 1;
}

/* image:file_lengths() -> length, bytes spent by the host */
static int l_file_lengths(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = qcow2_image_store(self(L));
	uint64_t length, spent;
	if (qcow2_store_length(store, &length, &err) || qcow2_store_allocated(store, &spent, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)length);
	lua_pushinteger(L, (lua_Integer)spent);
	return 2;
}

/* image:data_lengths() -> length, bytes spent of the external data file; nil when it is not attached */
static int l_data_lengths(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *store = qcow2_image_data_store(self(L));
	uint64_t length, spent;
	if (!store) {
		lua_pushnil(L);
		return 1;
	}
	if (qcow2_store_length(store, &length, &err) || qcow2_store_allocated(store, &spent, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)length);
	lua_pushinteger(L, (lua_Integer)spent);
	return 2;
}

static int l_read(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset");
	uint64_t length = q2_bind_unsigned(L, 3, "length");
	if (length <= STACK_READ) {
		char bytes[STACK_READ];
		if (qcow2_image_read(image, offset, bytes, length, &err))
			return q2_bind_fail(L, &err);
		lua_pushlstring(L, bytes, length);
		return 1;
	}
	/* Refused before memory is asked for: a length past the disk's end may be any number. */
	uint64_t size = qcow2_image_size(image);
	char probe;
	if ((offset > size || length > size - offset) &&
	    qcow2_image_read(image, offset, &probe, length, &err))
		return q2_bind_fail(L, &err);
	luaL_Buffer buffer;
	char *to = luaL_buffinitsize(L, &buffer, length);
	if (qcow2_image_read(image, offset, to, length, &err))
		return q2_bind_fail(L, &err);
	luaL_pushresultsize(&buffer, length);
	return 1;
}

static void push_extent(lua_State *L, const struct qcow2_extent *e)
{
	static const char *const kinds[] = {"data", "zero", "unallocated", "compressed"};
	lua_createtable(L, 0, 10);
	q2_bind_set_integer(L, "offset", e->offset);
	q2_bind_set_integer(L, "length", e->length);
	lua_pushstring(L, kinds[e->kind]);
	lua_setfield(L, -2, "kind");
	q2_bind_set_integer(L, "depth", e->depth);
	q2_bind_set_boolean(L, "present", e->present);
	if (e->hole)
		q2_bind_set_boolean(L, "hole", true);
	if (e->copied)
		q2_bind_set_boolean(L, "copied", true);
	if (e->store) {
		lua_pushstring(L, qcow2_store_name(e->store));
		lua_setfield(L, -2, "file");
	}
	if (e->host_offset != UINT64_MAX)
		q2_bind_set_integer(L, "host_offset", e->host_offset);
	if (e->kind == QCOW2_EXTENT_COMPRESSED)
		q2_bind_set_integer(L, "host_length", e->host_length);
}

/*
 * image:extent_batch(offset, limit, count, holes, layer) -> array of up to `count` extents that follow one
 * another from `offset` on. An error behind the first extent shortens the batch; the next call meets it.
 */
static int l_extent_batch(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset"), limit = q2_bind_unsigned(L, 3, "limit");
	lua_Integer count = luaL_checkinteger(L, 4);
	unsigned flags = (lua_toboolean(L, 5) ? QCOW2_EXTENT_HOLES : 0) |
			 (lua_toboolean(L, 6) ? QCOW2_EXTENT_LAYER : 0);
	lua_newtable(L);
	for (lua_Integer n = 1; n <= count && limit; n++) {
		struct qcow2_extent extent;
		if (qcow2_image_extent(image, offset, limit, flags, &extent, &err)) {
			if (n == 1)
				return q2_bind_fail(L, &err);
			break;
		}
		push_extent(L, &extent);
		lua_rawseti(L, -2, n);
		offset += extent.length;
		limit -= extent.length;
	}
	return 1;
}

static int l_is_preallocated(lua_State *L)
{
	struct qcow2_error err;
	bool preallocated;
	if (qcow2_image_is_preallocated(self(L), &preallocated, &err))
		return q2_bind_fail(L, &err);
	lua_pushboolean(L, preallocated);
	return 1;
}

static int l_close(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_IMAGE_CLASS);
	qcow2_image_unref(handle->object);
	handle->object = NULL;
	lua_pushboolean(L, 1);
	return 1;
}

static int l_is_held(lua_State *L)
{
	lua_pushboolean(L, qcow2_image_is_held(self(L)));
	return 1;
}

static int l_is_open(lua_State *L)
{
	struct q2_handle *handle = luaL_checkudata(L, 1, Q2_IMAGE_CLASS);
	lua_pushboolean(L, handle->object != NULL);
	return 1;
}

void q2_bind_open_image(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"open_snapshot", l_open_snapshot},
		{"attach_data", l_attach_data},
		{"attach_backing", l_attach_backing},
		{"read", l_read},
		{"extent_batch", l_extent_batch},
		{"is_preallocated", l_is_preallocated},
		{NULL, NULL},
	};
	/* What no job's thread changes. */
	static const luaL_Reg facts[] = {
		{"attached", l_attached},
		{"backing", l_backing},
		{"disk_bytes", l_size},
		{"file_lengths", l_file_lengths},
		{"data_lengths", l_data_lengths},
		{"is_held", l_is_held},
		{"is_open", l_is_open},
		{"close", l_close},
		{NULL, NULL},
	};
	static const luaL_Reg meta[] = {{"__gc", l_close}, {"__close", l_close}, {NULL, NULL}};
	static const luaL_Reg functions[] = {{"image_open", l_open}, {"image_probe", l_probe}, {NULL, NULL}};
	q2_bind_class(L, Q2_IMAGE_CLASS, facts, meta);
	luaL_getmetatable(L, Q2_IMAGE_CLASS);
	lua_getfield(L, -1, "__index");
	q2_bind_image_functions(L, methods);
	lua_pop(L, 2);
	luaL_setfuncs(L, functions, 0);
}
