/* SPDX-License-Identifier: MIT
 * Lua module qcow2_test_stores, for specs alone: the methods power and fault of every store, and what can be asked of the
 * stores that these make. It gives the class of the core more methods, so the core has to be there. */
#include "bind/bind.h"
#include "spec/support/stores/test_store.h"

int luaopen_qcow2_test_stores(lua_State *L);

static struct qcow2_store *self(lua_State *L)
{
	return q2_bind_self(L, 1, Q2_STORE_CLASS);
}

/* store:power(other): `other` is a power store whose operations are numbered in one sequence with these */
static int l_power(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *inner = self(L);
	struct qcow2_store *other = lua_isnoneornil(L, 2) ? NULL : q2_bind_self(L, 2, Q2_STORE_CLASS);
	struct q2_handle *handle = q2_bind_new(L, Q2_STORE_CLASS);
	int rc = qcow2_store_power(inner, (struct qcow2_store **)&handle->object, &err);
	if (!rc && other)
		rc = qcow2_store_power_join(handle->object, other, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

static int l_fault(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *inner = self(L);
	const char *kinds = luaL_checkstring(L, 2);
	uint64_t nth = q2_bind_unsigned(L, 3, "nth");
	int os_errno = (int)luaL_checkinteger(L, 4);
	bool sticky = lua_toboolean(L, 5);
	struct q2_handle *handle = q2_bind_new(L, Q2_STORE_CLASS);
	int rc = qcow2_store_fault(inner, kinds, nth, os_errno, sticky,
				   (struct qcow2_store **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

static int l_power_count(lua_State *L)
{
	lua_pushinteger(L, (lua_Integer)qcow2_store_power_count(self(L)));
	return 1;
}

/* kind, offset, length, sequence of operation number `index` (from 0) */
static int l_power_op(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_power_op op;
	if (qcow2_store_power_op(self(L), q2_bind_unsigned(L, 2, "index"), &op, &err))
		return q2_bind_fail(L, &err);
	lua_pushlstring(L, &op.kind, 1);
	lua_pushinteger(L, (lua_Integer)op.offset);
	lua_pushinteger(L, (lua_Integer)op.length);
	lua_pushinteger(L, (lua_Integer)op.sequence);
	return 4;
}

/* power:power_replay(count, keep, torn, torn_bytes): keep is a string of "\0" and "\1", or nil */
static int l_power_replay(lua_State *L)
{
	struct qcow2_error err;
	struct qcow2_store *power = self(L);
	size_t count = q2_bind_unsigned(L, 2, "count"), keep_length = 0;
	const char *keep = luaL_optlstring(L, 3, NULL, &keep_length);
	luaL_argcheck(L, !keep || keep_length >= count, 3, "keep is shorter than count");
	size_t torn = lua_isnoneornil(L, 4) ? SIZE_MAX : q2_bind_unsigned(L, 4, "torn");
	size_t torn_bytes = lua_isnoneornil(L, 5) ? 0 : q2_bind_unsigned(L, 5, "torn_bytes");
	struct q2_handle *handle = q2_bind_new(L, Q2_STORE_CLASS);
	int rc = qcow2_store_power_replay(power, count, (const uint8_t *)keep, torn, torn_bytes,
					  (struct qcow2_store **)&handle->object, &err);
	return rc ? q2_bind_fail(L, &err) : 1;
}

static int l_fault_calls(lua_State *L)
{
	lua_pushinteger(L, (lua_Integer)qcow2_store_fault_calls(self(L)));
	return 1;
}

int luaopen_qcow2_test_stores(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"power", l_power},
		{"power_count", l_power_count},
		{"power_op", l_power_op},
		{"power_replay", l_power_replay},
		{"fault", l_fault},
		{"fault_calls", l_fault_calls},
		{NULL, NULL},
	};
	lua_getglobal(L, "require");
	lua_pushliteral(L, "qcow2.core");
	lua_call(L, 1, 0);
	q2_bind_methods(L, Q2_STORE_CLASS, methods);
	lua_pushboolean(L, true);
	return 1;
}
