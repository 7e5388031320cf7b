/* SPDX-License-Identifier: MIT
 * Class qcow2.image, second half: the header and the tables as they lie on disk. */
#include "bind/bind.h"

static struct qcow2_image *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_IMAGE_CLASS);
}

/* A table of the header's fields by the specification's names; nil for raw images. */
static int l_header(lua_State *L)
{
	const struct qcow2_header *header = qcow2_image_header(self(L));
	if (!header) {
		lua_pushnil(L);
		return 1;
	}
	lua_newtable(L);
#define HEADER_FIELD(bits, name, offset) q2_bind_set_integer(L, #name, header->name);
#include "format/header.def"
#undef HEADER_FIELD
	return 1;
}

/* core.header_fields: array of {name=, offset=, bits=} in file order */
static void push_header_fields(lua_State *L)
{
	int n = 0;
	lua_newtable(L);
#define HEADER_FIELD(width, field, at)           \
	lua_createtable(L, 0, 3);                \
	lua_pushliteral(L, #field);              \
	lua_setfield(L, -2, "name");             \
	q2_bind_set_integer(L, "offset", (at));  \
	q2_bind_set_integer(L, "bits", (width)); \
	lua_rawseti(L, -2, ++n);
#include "format/header.def"
#undef HEADER_FIELD
}

/* backing_file, backing_format, data_file as stored; nil where absent */
static int l_names(lua_State *L)
{
	struct qcow2_image *image = self(L);
	struct qcow2_bytes names[] = {qcow2_image_backing_name(image), qcow2_image_backing_format(image),
				      qcow2_image_data_name(image)};
	for (int i = 0; i < 3; i++) {
		if (names[i].data)
			lua_pushlstring(L, (const char *)names[i].data, names[i].length);
		else
			lua_pushnil(L);
	}
	return 3;
}

static int l_extensions(lua_State *L)
{
	struct qcow2_image *image = self(L);
	struct qcow2_extension ext;
	lua_newtable(L);
	for (uint32_t i = 0; !qcow2_image_extension(image, i, &ext, NULL); i++) {
		lua_createtable(L, 0, 5);
		q2_bind_set_integer(L, "type", ext.type);
		lua_pushstring(L, ext.word);
		lua_setfield(L, -2, "name");
		q2_bind_set_integer(L, "offset", ext.offset);
		q2_bind_set_integer(L, "length", ext.data.length);
		q2_bind_set_bytes(L, "data", ext.data);
		lua_rawseti(L, -2, (lua_Integer)i + 1);
	}
	return 1;
}

/* image:feature_name(type, bit) -> name or nil, is it in the specification? */
static int l_feature_name(lua_State *L)
{
	struct qcow2_image *image = self(L);
	uint64_t type = q2_bind_unsigned(L, 2, "type"), bit = q2_bind_unsigned(L, 3, "bit");
	luaL_argcheck(L, type < 3, 2, "type must be 0, 1 or 2");
	luaL_argcheck(L, bit < 64, 3, "bit must be below 64");
	bool known;
	struct qcow2_bytes name = qcow2_image_feature_name(image, (unsigned)type, (unsigned)bit, &known);
	if (name.data)
		lua_pushlstring(L, (const char *)name.data, name.length);
	else
		lua_pushnil(L);
	lua_pushboolean(L, known);
	return 2;
}

static int l_geometry(lua_State *L)
{
	struct qcow2_geometry g = qcow2_image_geometry(self(L));
	lua_createtable(L, 0, 6);
	q2_bind_set_integer(L, "l1_entries", g.l1_entries);
	q2_bind_set_integer(L, "l2_entries", g.l2_entries);
	q2_bind_set_integer(L, "reftable_entries", g.reftable_entries);
	q2_bind_set_integer(L, "subclusters", g.subclusters);
	q2_bind_set_integer(L, "cluster_size", g.cluster_size);
	q2_bind_set_integer(L, "refcount_bits", g.refcount_bits);
	return 1;
}

static int l_l1_entry(lua_State *L)
{
	struct qcow2_error err;
	uint64_t raw;
	if (qcow2_image_l1_entry(self(L), q2_bind_unsigned(L, 2, "index"), &raw, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)raw);
	return 1;
}

/* raw word, bitmap word, where the entry lies in the file (0: no L2 table) */
static int l_l2_entry(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t l1 = q2_bind_unsigned(L, 2, "l1_index"), l2 = q2_bind_unsigned(L, 3, "l2_index"), raw,
		 bitmap, at;
	if (qcow2_image_l2_entry(image, l1, l2, &raw, &bitmap, &at, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)raw);
	lua_pushinteger(L, (lua_Integer)bitmap);
	lua_pushinteger(L, (lua_Integer)at);
	return 3;
}

/* image:l2_decode(raw, bitmap) -> {kind=, host_offset=, host_length=, copied=, allocated=, zero=, reserved=} */
static int l_l2_decode(lua_State *L)
{
	struct qcow2_l2_entry e;
	qcow2_image_l2_decode(self(L), (uint64_t)luaL_checkinteger(L, 2), (uint64_t)luaL_checkinteger(L, 3),
			      &e);
	lua_createtable(L, 0, 7);
	lua_pushstring(L, e.kind);
	lua_setfield(L, -2, "kind");
	if (e.has_host)
		q2_bind_set_integer(L, "host_offset", e.host_offset);
	if (e.host_length)
		q2_bind_set_integer(L, "host_length", e.host_length);
	q2_bind_set_boolean(L, "copied", e.copied);
	q2_bind_set_integer(L, "allocated", e.allocated);
	q2_bind_set_integer(L, "zero", e.zero);
	q2_bind_set_integer(L, "reserved", e.reserved);
	return 1;
}

static int l_reftable_entry(lua_State *L)
{
	struct qcow2_error err;
	uint64_t raw;
	if (qcow2_image_reftable_entry(self(L), q2_bind_unsigned(L, 2, "index"), &raw, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)raw);
	return 1;
}

static int l_refcount(lua_State *L)
{
	struct qcow2_error err;
	uint64_t count;
	if (qcow2_image_refcount(self(L), q2_bind_unsigned(L, 2, "cluster"), &count, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)count);
	return 1;
}

static int l_snapshot_count(lua_State *L)
{
	struct qcow2_error err;
	uint32_t count;
	if (qcow2_image_snapshot_count(self(L), &count, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, count);
	return 1;
}

/* One snapshot table entry; index counts from 0. */
static int l_snapshot_entry(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t index = q2_bind_unsigned(L, 2, "index");
	struct qcow2_snapshot s;
	luaL_argcheck(L, index <= UINT32_MAX, 2, "index is too large");
	if (qcow2_image_snapshot(image, (uint32_t)index, &s, &err))
		return q2_bind_fail(L, &err);
	lua_createtable(L, 0, 12);
	q2_bind_set_bytes(L, "id", s.id);
	q2_bind_set_bytes(L, "name", s.name);
	q2_bind_set_bytes(L, "extra_data", s.extra_data);
	q2_bind_set_integer(L, "offset", s.offset);
	q2_bind_set_integer(L, "l1_offset", s.l1_offset);
	q2_bind_set_integer(L, "l1_entries", s.l1_entries);
	q2_bind_set_integer(L, "date_sec", s.date_sec);
	q2_bind_set_integer(L, "date_nsec", s.date_nsec);
	q2_bind_set_integer(L, "vm_clock_nsec", s.vm_clock_nsec);
	q2_bind_set_integer(L, "vm_state_size", s.vm_state_size);
	q2_bind_set_integer(L, "size", s.size);
	if (s.icount != UINT64_MAX)
		q2_bind_set_integer(L, "icount", s.icount);
	return 1;
}

static int l_bitmap_count(lua_State *L)
{
	struct qcow2_error err;
	uint32_t count;
	if (qcow2_image_bitmap_count(self(L), &count, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, count);
	return 1;
}

/* One bitmap directory entry; index counts from 0. */
static int l_bitmap_entry(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t index = q2_bind_unsigned(L, 2, "index");
	struct qcow2_bitmap b;
	luaL_argcheck(L, index <= UINT32_MAX, 2, "index is too large");
	if (qcow2_image_bitmap(image, (uint32_t)index, &b, &err))
		return q2_bind_fail(L, &err);
	lua_createtable(L, 0, 12);
	q2_bind_set_bytes(L, "name", b.name);
	q2_bind_set_bytes(L, "extra_data", b.extra_data);
	q2_bind_set_integer(L, "offset", b.offset);
	q2_bind_set_integer(L, "table_offset", b.table_offset);
	q2_bind_set_integer(L, "table_entries", b.table_entries);
	q2_bind_set_integer(L, "flags", b.flags);
	q2_bind_set_integer(L, "type", b.type);
	q2_bind_set_integer(L, "granularity", b.granularity);
	q2_bind_set_boolean(L, "in_use", b.in_use);
	q2_bind_set_boolean(L, "auto", b.autoset);
	q2_bind_set_boolean(L, "enabled", b.autoset);
	return 1;
}

/* image:bitmap_serial(index) -> the bitmap's serial number; index counts from 0 */
static int l_bitmap_serial(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t index = q2_bind_unsigned(L, 2, "index");
	struct qcow2_bitmap b;
	luaL_argcheck(L, index <= UINT32_MAX, 2, "index is too large");
	if (qcow2_image_bitmap(image, (uint32_t)index, &b, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, (lua_Integer)b.serial);
	return 1;
}

/* image:bitmap_find(serial, guess) -> index, from 0 */
static int l_bitmap_find(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t serial = q2_bind_unsigned(L, 2, "serial"), guess = q2_bind_unsigned(L, 3, "guess");
	uint32_t index = (uint32_t)guess;
	if (qcow2_image_bitmap_find(image, serial, &index, &err))
		return q2_bind_fail(L, &err);
	lua_pushinteger(L, index);
	return 1;
}

/* image:bitmap_extent(index, offset, limit) -> dirty, length; index counts from 0 */
static int l_bitmap_extent(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = self(L);
	uint64_t index = q2_bind_unsigned(L, 2, "index"), offset = q2_bind_unsigned(L, 3, "offset"),
		 limit = q2_bind_unsigned(L, 4, "limit"), length;
	bool dirty;
	luaL_argcheck(L, index <= UINT32_MAX, 2, "index is too large");
	if (qcow2_image_bitmap_extent(image, (uint32_t)index, offset, limit, &dirty, &length, &err))
		return q2_bind_fail(L, &err);
	lua_pushboolean(L, dirty);
	lua_pushinteger(L, (lua_Integer)length);
	return 2;
}

void q2_bind_open_tables(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"header_fields", l_header},
		{"names", l_names},
		{"extension_list", l_extensions},
		{"feature_name", l_feature_name},
		{"geometry", l_geometry},
		{"l1_entry", l_l1_entry},
		{"l2_entry", l_l2_entry},
		{"l2_decode", l_l2_decode},
		{"reftable_entry", l_reftable_entry},
		{"refcount", l_refcount},
		{"snapshot_count", l_snapshot_count},
		{"snapshot_entry", l_snapshot_entry},
		{"bitmap_count", l_bitmap_count},
		{"bitmap_entry", l_bitmap_entry},
		{"bitmap_extent", l_bitmap_extent},
		{"bitmap_find", l_bitmap_find},
		{"bitmap_serial", l_bitmap_serial},
		{NULL, NULL},
	};
	luaL_getmetatable(L, Q2_IMAGE_CLASS);
	lua_getfield(L, -1, "__index");
	q2_bind_image_functions(L, methods);
	lua_pop(L, 2);
	push_header_fields(L);
	lua_setfield(L, -2, "header_fields");
}
