/* SPDX-License-Identifier: MIT
 * A Lua interpreter for sanitized builds: `lua [-e chunk] [script [args]]` as a program that carries the
 * sanitizer's runtime, so that nothing has to be preloaded into it or into the programs it starts. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* Modules stay loaded to the end: a leak's stack that runs through one still has names then. */
int dlclose(void *handle);
int dlclose(void *handle)
{
	(void)handle;
	return 0;
}

/* Ctrl-C raises "interrupted!" in the script, as it does in the interpreter that everybody has. */
static lua_State *running;

static void raise_interrupted(lua_State *L, lua_Debug *where)
{
	(void)where;
	lua_sethook(L, NULL, 0, 0);
	luaL_error(L, "interrupted!");
}

static void on_interrupt(int number)
{
	signal(number, SIG_DFL); /* a second one ends the program */
	lua_sethook(running, raise_interrupted, LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

/* Lua answers for memory that is not there; so specs may ask for more than there is. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "allocator_may_return_null=1";
}

static int with_traceback(lua_State *L)
{
	luaL_traceback(L, L, luaL_tolstring(L, 1, NULL), 1);
	return 1;
}

static int run(lua_State *L)
{
	int argc = (int)lua_tointeger(L, 1);
	char **argv = lua_touserdata(L, 2);
	int script = 1;

	luaL_openlibs(L);
	lua_pushcfunction(L, with_traceback);
	int handler = lua_gettop(L);
	while (script + 1 < argc && strcmp(argv[script], "-e") == 0) {
		if (luaL_loadstring(L, argv[script + 1]) != LUA_OK || lua_pcall(L, 0, 0, handler) != LUA_OK)
			return lua_error(L);
		script += 2;
	}
	if (script >= argc)
		return 0;
	lua_newtable(L);
	for (int i = 0; i < argc; i++) {
		lua_pushstring(L, argv[i]);
		lua_rawseti(L, -2, i - script);
	}
	lua_setglobal(L, "arg");
	if (luaL_loadfile(L, argv[script]) != LUA_OK)
		return lua_error(L);
	for (int i = script + 1; i < argc; i++)
		lua_pushstring(L, argv[i]);
	if (lua_pcall(L, argc - script - 1, 0, handler) != LUA_OK)
		return lua_error(L);
	return 0;
}

int main(int argc, char **argv)
{
	lua_State *L = luaL_newstate();
	if (!L)
		return 1;
	running = L;
	signal(SIGINT, on_interrupt);
	lua_pushcfunction(L, run);
	lua_pushinteger(L, argc);
	lua_pushlightuserdata(L, argv);
	int status = lua_pcall(L, 2, 0, 0);
	if (status != LUA_OK)
		fprintf(stderr, "%s: %s\n", argv[0], lua_tostring(L, -1));
	lua_close(L);
	return status == LUA_OK ? 0 : 1;
}
