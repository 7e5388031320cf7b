/* SPDX-License-Identifier: MIT
 * Jobs that change or verify one image: amend, internalize, verify; and externalize, which is done at once. */
#include "bind/bind.h"

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
		.struct_size = sizeof(struct qcow2_amend_options),
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
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	int rc = qcow2_amend_new(image, &options, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* core.internalize(image) */
static int l_internalize(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	int rc = qcow2_internalize_new(image, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* core.externalize_check(image, raw) */
static int l_externalize_check(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	return q2_bind_done(L, qcow2_image_externalize_check(image, lua_toboolean(L, 2), &err), &err);
}

/* core.externalize(image, store, name, raw) */
static int l_externalize(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	struct qcow2_store *data = q2_bind_self(L, 2, Q2_STORE_CLASS);
	struct qcow2_bytes name;
	name.data = (const uint8_t *)luaL_checklstring(L, 3, &name.length);
	return q2_bind_done(L, qcow2_image_externalize(image, data, name, lua_toboolean(L, 4), &err), &err);
}

/* core.gather(image) */
static int l_gather(lua_State *L)
{
	struct qcow2_error err;
	return q2_bind_done(L, qcow2_image_gather(q2_bind_self(L, 1, Q2_IMAGE_CLASS), &err), &err);
}

/* core.verify(image, "none" | "data" | "metadata") */
static int l_verify(lua_State *L)
{
	static const char *const modes[] = {
		[QCOW2_RESYNC_NONE] = "none",
		[QCOW2_RESYNC_DATA] = "data",
		[QCOW2_RESYNC_METADATA] = "metadata",
		NULL,
	};
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	enum qcow2_resync mode = (enum qcow2_resync)luaL_checkoption(L, 2, "none", modes);
	struct q2_handle *handle = q2_bind_new(L, Q2_JOB_CLASS);
	int rc = qcow2_verify_new(image, mode, (struct qcow2_job **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

/* job:divergence(index from 0) -> { offset, length, cause, meaning }; nil past the last that is kept */
static int l_divergence(lua_State *L)
{
	const char *meaning = NULL;
	uint64_t index = q2_bind_unsigned(L, 2, "index");
	const struct qcow2_divergence *d = qcow2_verify_divergence(q2_bind_self(L, 1, Q2_JOB_CLASS), index);
	if (!d)
		return 0;
	lua_createtable(L, 0, 4);
	q2_bind_set_integer(L, "offset", d->offset);
	q2_bind_set_integer(L, "length", d->length);
	lua_pushstring(L, qcow2_cause_word(d->cause, &meaning));
	lua_setfield(L, -2, "cause");
	lua_pushstring(L, meaning);
	lua_setfield(L, -2, "meaning");
	return 1;
}

/* job:counts() -> found, mended */
static int l_counts(lua_State *L)
{
	uint64_t found, mended;
	qcow2_verify_counts(q2_bind_self(L, 1, Q2_JOB_CLASS), &found, &mended);
	lua_pushinteger(L, (lua_Integer)found);
	lua_pushinteger(L, (lua_Integer)mended);
	return 2;
}

void q2_bind_open_amend(lua_State *L)
{
	static const luaL_Reg methods[] = {{"divergence", l_divergence}, {"counts", l_counts}, {NULL, NULL}};
	static const luaL_Reg functions[] = {{"amend", l_amend},
					     {"internalize", l_internalize},
					     {"externalize_check", l_externalize_check},
					     {"externalize", l_externalize},
					     {"gather", l_gather},
					     {"verify", l_verify},
					     {NULL, NULL}};
	q2_bind_methods(L, Q2_JOB_CLASS, methods);
	q2_bind_image_functions(L, functions);
}
