/* SPDX-License-Identifier: MIT
 * Reading a line from a terminal with editing, history and completion, by GNU readline or libedit where the machine
 * has one. They are looked for when the first line is asked for: nothing else needs them. */
#include "bind/bind.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

/* What both libraries have under these names; all NULL until it was found. */
static struct {
	char *(*readline)(const char *prompt);
	void (*add_history)(const char *line);
	char *(**complete)(const char *begun, int again); /* their variables */
	int (**on_signal)(void);                          /* NULL where the library has none: libedit */
	void (*forget_line)(void);
	void (*restore_terminal)(void);
	const char **word_breaks;
	int *append_character;
} editor;

/* Where to go from a line that Ctrl-C ends, and the state whose program listens for it: by a hook, as interpreters do. */
static jmp_buf given_up;
static lua_State *asking;

/* Called by the library, not by the system, after a signal came while it waited for a key. */
static int end_line(void)
{
	if (lua_gethook(asking)) {
		editor.forget_line();
		editor.restore_terminal();
		longjmp(given_up, 1);
	}
	return 0;
}

/* The words of the call that is under way, an array that ends with NULL: the libraries know no other way to hand
 * anything to a completion. */
static const char *const *offered;

static char *next_word(const char *begun, int again)
{
	static size_t at;
	size_t length = strlen(begun);
	*editor.append_character = 0; /* it is a space again at every completion */
	if (!again)
		at = 0;
	while (offered && offered[at]) {
		const char *word = offered[at++];
		if (strncmp(word, begun, length) == 0)
			return strdup(word); /* the library frees it */
	}
	return NULL;
}

/* gives: false when the machine has no such library. */
static bool find_editor(void)
{
	static const char *const names[] = {"libreadline.so.8", "libreadline.so", "libedit.so.2", NULL};
	void *library = NULL;
	for (const char *const *name = names; *name && !library; name++)
		library = dlopen(*name, RTLD_NOW | RTLD_LOCAL);
	if (!library)
		return false;
	/* POSIX has functions fit into object pointers; C has no cast for it. */
	*(void **)&editor.readline = dlsym(library, "readline");
	*(void **)&editor.add_history = dlsym(library, "add_history");
	*(void **)&editor.complete = dlsym(library, "rl_completion_entry_function");
	*(void **)&editor.word_breaks = dlsym(library, "rl_basic_word_break_characters");
	*(void **)&editor.append_character = dlsym(library, "rl_completion_append_character");
	*(void **)&editor.on_signal = dlsym(library, "rl_signal_event_hook");
	*(void **)&editor.forget_line = dlsym(library, "rl_free_line_state");
	*(void **)&editor.restore_terminal = dlsym(library, "rl_cleanup_after_signal");
	if (!editor.forget_line || !editor.restore_terminal)
		editor.on_signal = NULL;
	if (editor.readline && editor.add_history && editor.complete && editor.word_breaks &&
	    editor.append_character)
		return true;
	memset(&editor, 0, sizeof editor); /* a part of one is none */
	dlclose(library);
	return false;
}

/*
 * core.read_line(prompt, words) -> the line without its end, nil at the end of the input; false when there is no
 * library for it. A line that a signal ended is empty, and the caller's hook tells. words: array of what the tabulator completes; dots and colons belong to words.
 */
static int l_read_line(lua_State *L)
{
	const char *prompt = luaL_checkstring(L, 1);
	luaL_checktype(L, 2, LUA_TTABLE);
	if (!editor.readline && !find_editor()) {
		lua_pushboolean(L, 0);
		return 1;
	}
	size_t count = lua_rawlen(L, 2);
	const char **words = lua_newuserdatauv(L, (count + 1) * sizeof *words, 0);
	for (size_t i = 0; i < count; i++) {
		lua_rawgeti(L, 2, (lua_Integer)i + 1);
		words[i] = luaL_checkstring(L, -1); /* the table keeps it */
		lua_pop(L, 1);
	}
	words[count] = NULL;
	offered = words;
	*editor.complete = next_word;
	*editor.word_breaks = " \t\n\"'`=<>;,{}()[]+-*/%#&|~^";
	asking = L;
	if (editor.on_signal)
		*editor.on_signal = end_line;
	if (setjmp(given_up)) {
		/* The hook raises as soon as Lua runs again. */
		offered = NULL;
		lua_pushliteral(L, "");
		return 1;
	}
	char *line = editor.readline(prompt);
	offered = NULL;
	if (!line) {
		lua_pushnil(L);
		return 1;
	}
	if (*line)
		editor.add_history(line);
	lua_pushstring(L, line);
	free(line);
	return 1;
}

void q2_bind_open_line(lua_State *L)
{
	lua_pushcfunction(L, l_read_line);
	lua_setfield(L, -2, "read_line");
}
