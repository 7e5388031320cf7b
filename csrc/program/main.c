/* SPDX-License-Identifier: MIT
 * The program `qcow2`: a Lua interpreter with the core and the compiled Lua modules inside.
 *
 * Most commands are over in two milliseconds. Finding an interpreter, its line editor, modules and libraries on the
 * disk would take longer than that, so all is linked into one file; it can be moved and linked to freely. What the
 * program does is Lua (lua/qcow2/cli): here is only what stands around it.
 *
 * The modules lie behind one another as csrc/program/compile.lua packs them; an entry is two strings, each behind its
 * length (8 bytes, of this machine): the module's name, and its chunk. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int luaopen_qcow2_core(lua_State *L); /* csrc/bind */

extern const unsigned char q2_modules[];
extern const uint64_t q2_modules_length;
__asm__(".section .rodata\n"
	".globl q2_modules\n"
	".hidden q2_modules\n"
	"q2_modules: .incbin \"" Q2_MODULES "\"\n"
	"q2_modules_end: .balign 8\n"
	".globl q2_modules_length\n"
	".hidden q2_modules_length\n"
	"q2_modules_length: .quad q2_modules_end - q2_modules\n"
	".previous\n");

#ifdef __SANITIZE_ADDRESS__
/* Lua answers for memory that is not there; so specs may ask for more than there is. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "allocator_may_return_null=1";
}
#endif

/* Ctrl-C, a hangup and the wish of another program that we end raise "interrupted!", as in the stand-alone
 * interpreter, so that what is under way is undone. */
static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
enum { SIGNALS = sizeof signals / sizeof *signals };
enum { INTERRUPTED = 130 }; /* what cli.main answers then */
static lua_State *running;
static volatile sig_atomic_t caught; /* the signal, 0: none */

static void raise_interrupted(lua_State *L, lua_Debug *where)
{
	(void)where;
	lua_sethook(L, NULL, 0, 0);
	luaL_error(L, "interrupted!");
}

static void on_signal(int number)
{
	caught = number;
	lua_sethook(running, raise_interrupted, LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

/* A second one ends the program at once; a call that waits for the keyboard does not go on waiting. */
static void listen_to(int number)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
	sigemptyset(&action.sa_mask);
	sigaction(number, &action, NULL);
}

/* Whoever started us with a signal ignored, as shells do with Ctrl-C for what runs behind a script and nohup with a
 * hangup, wants it so. */
static void listen_to_all(void)
{
	for (int i = 0; i < SIGNALS; i++) {
		struct sigaction before;
		if (!sigaction(signals[i], NULL, &before) && before.sa_handler != SIG_IGN)
			listen_to(signals[i]);
	}
}

/* qcow2.program.go_on() -> true after Ctrl-C, which is listened to again; false when the program has to end */
static int go_on(lua_State *L)
{
	bool interrupt = caught == SIGINT;
	if (interrupt) {
		caught = 0;
		listen_to(SIGINT);
	}
	lua_pushboolean(L, interrupt);
	return 1;
}

static int open_program(lua_State *L)
{
	lua_newtable(L);
	lua_pushcfunction(L, go_on);
	lua_setfield(L, -2, "go_on");
	return 1;
}

/* One string behind its length. gives: the string, *at behind it. */
static const char *take_string(const unsigned char **at, size_t *length)
{
	uint64_t stored;
	memcpy(&stored, *at, sizeof stored);
	const char *string = (const char *)*at + sizeof stored;
	*length = (size_t)stored;
	*at += sizeof stored + *length;
	return string;
}

/* package.searchers' part: module name -> loader, name; or a sentence that says it is not here. */
static int search_modules(lua_State *L)
{
	size_t wanted_length;
	const char *wanted = luaL_checklstring(L, 1, &wanted_length);
	const unsigned char *at = q2_modules;
	while (at != q2_modules + q2_modules_length) {
		size_t name_length, chunk_length;
		const char *name = take_string(&at, &name_length);
		const char *chunk = take_string(&at, &chunk_length);
		if (name_length != wanted_length || memcmp(name, wanted, name_length) != 0)
			continue;
		if (luaL_loadbufferx(L, chunk, chunk_length, wanted, "b") != LUA_OK)
			return lua_error(L);
		lua_pushvalue(L, 1);
		return 2;
	}
	lua_pushfstring(L, "no module '%s' in the program", wanted);
	return 1;
}

/* Ours come before what lies on the disk, and nothing is taken from the current directory: a stranger's directory must
 * not lend us its code. */
static void set_search(lua_State *L)
{
	static const char *const paths[] = {"path", "cpath", NULL};
	lua_getglobal(L, "package");
	lua_getfield(L, -1, "searchers");
	for (lua_Integer i = (lua_Integer)lua_rawlen(L, -1); i >= 2; i--) {
		lua_rawgeti(L, -1, i);
		lua_rawseti(L, -2, i + 1);
	}
	lua_pushcfunction(L, search_modules);
	lua_rawseti(L, -2, 2);
	lua_pop(L, 1);
	for (const char *const *name = paths; *name; name++) {
		luaL_Buffer kept;
		lua_getfield(L, -1, *name);
		const char *at = lua_tostring(L, -1); /* stays on the stack, below the buffer */
		luaL_buffinit(L, &kept);
		while (*at) {
			size_t length = strcspn(at, ";");
			if (length && strncmp(at, "./", 2) != 0) {
				luaL_addlstring(&kept, at, length);
				luaL_addchar(&kept, ';');
			}
			at += length + (at[length] == ';');
		}
		luaL_pushresult(&kept);
		lua_setfield(L, -3, *name);
		lua_pop(L, 1);
	}
	lua_pop(L, 1);
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
	lua_pushcfunction(L, luaopen_qcow2_core);
	lua_setfield(L, -2, "qcow2.core");
	lua_pushcfunction(L, open_program);
	lua_setfield(L, -2, "qcow2.program");
	lua_pop(L, 1);
}

/* argc, argv -> the exit code */
static int run(lua_State *L)
{
	int argc = (int)lua_tointeger(L, 1);
	char **argv = lua_touserdata(L, 2);
	const char *slash = strrchr(argv[0], '/');

	luaL_openlibs(L);
	set_search(L);
	lua_getglobal(L, "require");
	lua_pushliteral(L, "qcow2.cli");
	lua_call(L, 1, 1);
	lua_getfield(L, -1, "main");
	lua_pushstring(L, slash ? slash + 1 : argv[0]);
	lua_createtable(L, argc, 0);
	for (int i = 1; i < argc; i++) {
		lua_pushstring(L, argv[i]);
		lua_rawseti(L, -2, i);
	}
	lua_call(L, 2, 1);
	return 1;
}

int main(int argc, char **argv)
{
	lua_State *L = argc ? luaL_newstate() : NULL;
	if (!L)
		return EXIT_FAILURE;
	running = L;
	listen_to_all();
	/* What the start makes is kept: to look for garbage in it costs as much as most commands do. cli.main turns the
	 * collector on again. */
	lua_gc(L, LUA_GCSTOP);
	lua_pushcfunction(L, run);
	lua_pushinteger(L, argc);
	lua_pushlightuserdata(L, argv);
	int status = lua_pcall(L, 2, 1, 0);
	int code = EXIT_FAILURE;
	if (status == LUA_OK)
		code = (int)lua_tointeger(L, -1);
	else if (caught)
		code = INTERRUPTED;
	else
		fprintf(stderr, "%s: %s\n", argv[0], lua_tostring(L, -1));
	lua_sethook(L, NULL, 0, 0);
	lua_close(L);
	/* As shells tell of a program that a signal ended. */
	return caught && code == INTERRUPTED ? 128 + caught : code;
}
