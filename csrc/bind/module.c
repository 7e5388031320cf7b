/* SPDX-License-Identifier: MIT
 * The Lua module `qcow2.core`: what require gets. */
#include "qcow2.h"

#include <lauxlib.h>
#include <lua.h>

int luaopen_qcow2_core(lua_State *L);

int luaopen_qcow2_core(lua_State *L)
{
	lua_newtable(L);
	lua_pushliteral(L, QCOW2_VERSION);
	lua_setfield(L, -2, "_VERSION");
	return 1;
}
