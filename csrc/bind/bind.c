/* SPDX-License-Identifier: MIT
 * What the Lua classes share: handles, answers, arguments. */
#include "bind/bind.h"

struct q2_handle *q2_bind_new(lua_State *L, const char *class_name)
{
	struct q2_handle *handle = lua_newuserdatauv(L, sizeof *handle, 1);
	handle->object = NULL;
	luaL_setmetatable(L, class_name);
	return handle;
}

void *q2_bind_self(lua_State *L, int index, const char *class_name)
{
	struct q2_handle *handle = luaL_checkudata(L, index, class_name);
	/* "qcow2.image" is closed: the word behind the dot is what people call it. */
	if (!handle->object)
		luaL_error(L, "attempt to use a closed %s", class_name + 6);
	return handle->object;
}

int q2_bind_fail(lua_State *L, const struct qcow2_error *err)
{
	lua_pushnil(L);
	lua_pushstring(L, err->text);
	lua_pushstring(L, qcow2_error_word(err->code));
	if (err->os_errno)
		lua_pushinteger(L, err->os_errno);
	else
		lua_pushnil(L);
	return 4;
}

int q2_bind_done(lua_State *L, int rc, const struct qcow2_error *err)
{
	if (rc)
		return q2_bind_fail(L, err);
	lua_pushboolean(L, 1);
	return 1;
}

int q2_bind_step(lua_State *L, int rc, uint64_t done, uint64_t total, const struct qcow2_error *err)
{
	if (rc < 0)
		return q2_bind_fail(L, err);
	lua_pushinteger(L, (lua_Integer)done);
	lua_pushinteger(L, (lua_Integer)total);
	lua_pushboolean(L, rc);
	return 3;
}

uint64_t q2_bind_unsigned(lua_State *L, int index, const char *name)
{
	int is_integer;
	lua_Integer value = lua_tointegerx(L, index, &is_integer);
	if (!is_integer && lua_type(L, index) == LUA_TNUMBER)
		luaL_argerror(L, index, lua_pushfstring(L, "%s must be an integer", name));
	if (!is_integer)
		luaL_argerror(L, index,
			      lua_pushfstring(L, "%s: integer expected, got %s", name,
					      luaL_typename(L, index)));
	if (value < 0)
		luaL_argerror(L, index, lua_pushfstring(L, "%s must not be negative", name));
	return (uint64_t)value;
}

bool q2_bind_flag(lua_State *L, int index, const char *name)
{
	if (lua_isnoneornil(L, index))
		return false;
	luaL_checktype(L, index, LUA_TTABLE);
	lua_getfield(L, index, name);
	bool value = lua_toboolean(L, -1);
	lua_pop(L, 1);
	return value;
}

void q2_bind_set_integer(lua_State *L, const char *name, uint64_t value)
{
	lua_pushinteger(L, (lua_Integer)value);
	lua_setfield(L, -2, name);
}

void q2_bind_set_boolean(lua_State *L, const char *name, bool value)
{
	lua_pushboolean(L, value);
	lua_setfield(L, -2, name);
}

void q2_bind_set_bytes(lua_State *L, const char *name, struct qcow2_bytes bytes)
{
	if (!bytes.data)
		return;
	lua_pushlstring(L, (const char *)bytes.data, bytes.length);
	lua_setfield(L, -2, name);
}

/* Calls the function of its upvalue, unless a job holds the image. */
static int guarded(lua_State *L)
{
	const struct q2_handle *handle = luaL_testudata(L, 1, Q2_IMAGE_CLASS);
	if (handle && handle->object && qcow2_image_is_held(handle->object)) {
		lua_pushnil(L);
		lua_pushliteral(L, "The image is held by a job that has not ended");
		lua_pushliteral(L, "conflict");
		return 3;
	}
	return lua_tocfunction(L, lua_upvalueindex(1))(L);
}

void q2_bind_image_functions(lua_State *L, const luaL_Reg *functions)
{
	for (; functions->name; functions++) {
		lua_pushcfunction(L, functions->func);
		lua_pushcclosure(L, guarded, 1);
		lua_setfield(L, -2, functions->name);
	}
}

void q2_bind_methods(lua_State *L, const char *class_name, const luaL_Reg *methods)
{
	luaL_getmetatable(L, class_name);
	lua_getfield(L, -1, "__index");
	luaL_setfuncs(L, methods, 0);
	lua_pop(L, 2);
}

void q2_bind_class(lua_State *L, const char *class_name, const luaL_Reg *methods, const luaL_Reg *meta)
{
	luaL_newmetatable(L, class_name);
	luaL_setfuncs(L, meta, 0);
	lua_newtable(L);
	luaL_setfuncs(L, methods, 0);
	lua_setfield(L, -2, "__index");
	lua_pop(L, 1);
}
