/* SPDX-License-Identifier: MIT
 * The C module qcow2.core: the classes, and what this build can do. Policy and sugar are in lua/qcow2. */
#include "bind/bind.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

__attribute__((visibility("default"))) int luaopen_qcow2_core(lua_State *L);

/* What serves each optional part of this build: "libdeflate 1.14", or false. */
static void push_features(lua_State *L)
{
	static const struct {
		const char *name;
		int compression;
	} codecs[] = {{"deflate", 0}, {"zstd", 1}};
	lua_newtable(L);
	for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++) {
		const char *backend = qcow2_codec_backend(codecs[i].compression);
		if (backend)
			lua_pushstring(L, backend);
		else
			lua_pushboolean(L, 0);
		lua_setfield(L, -2, codecs[i].name);
	}
	/* Encrypted images open for inspection only. */
	q2_bind_set_boolean(L, "crypto", false);
}

/* core.realpath(path) -> the path without links and dots, or nil, message, kind, errno */
static int l_realpath(lua_State *L)
{
	size_t length;
	const char *path = luaL_checklstring(L, 1, &length);
	luaL_argcheck(L, length == strlen(path), 1, "path has a NUL in it");
	char *real = realpath(path, NULL);
	if (!real) {
		int os_errno = errno;
		lua_pushnil(L);
		lua_pushfstring(L, "%s: %s", path, strerror(os_errno));
		lua_pushstring(L, os_errno == ENOENT || os_errno == ENOTDIR ? "missing"
				  : os_errno == EACCES                      ? "denied"
									    : "io");
		lua_pushinteger(L, os_errno);
		return 4;
	}
	lua_pushstring(L, real);
	free(real);
	return 1;
}

/* core.file_length(path) -> bytes of the regular file there, which is not opened; nil when there is none */
static int l_file_length(lua_State *L)
{
	struct stat st;
	if (stat(luaL_checkstring(L, 1), &st) || !S_ISREG(st.st_mode))
		lua_pushnil(L);
	else
		lua_pushinteger(L, (lua_Integer)st.st_size);
	return 1;
}

/* core.sync_directory(path): names that were made in it are on stable storage */
static int l_sync_directory(lua_State *L)
{
	const char *path = luaL_checkstring(L, 1);
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int failed = fd < 0 || fsync(fd) ? errno : 0;
	if (fd >= 0)
		close(fd);
	if (!failed) {
		lua_pushboolean(L, 1);
		return 1;
	}
	lua_pushnil(L);
	lua_pushfstring(L, "%s: %s", path, strerror(failed));
	lua_pushliteral(L, "io");
	lua_pushinteger(L, failed);
	return 4;
}

/* core.isatty(descriptor) */
static int l_isatty(lua_State *L)
{
	lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
	return 1;
}

static volatile sig_atomic_t progress_wanted;

static void want_progress(int signal_number)
{
	(void)signal_number;
	progress_wanted = 1;
}

/* core.progress_wanted(): has SIGUSR1 come since the last call? From the first call on it does not end the program. */
static int l_progress_wanted(lua_State *L)
{
	static const struct sigaction action = {.sa_handler = want_progress, .sa_flags = SA_RESTART};
	sigaction(SIGUSR1, &action, NULL);
	lua_pushboolean(L, progress_wanted != 0);
	progress_wanted = 0;
	return 1;
}

/* core.clock(): seconds, with a fraction, of a clock that only goes forward */
static int l_clock(lua_State *L)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	lua_pushnumber(L, (lua_Number)now.tv_sec + (lua_Number)now.tv_nsec / 1e9);
	return 1;
}

int luaopen_qcow2_core(lua_State *L)
{
	static const luaL_Reg functions[] = {{"realpath", l_realpath},
					     {"file_length", l_file_length},
					     {"isatty", l_isatty},
					     {"clock", l_clock},
					     {"progress_wanted", l_progress_wanted},
					     {"sync_directory", l_sync_directory},
					     {NULL, NULL}};
	static const char *const classes[] = {"store", "image", NULL};
	lua_newtable(L);
	lua_pushliteral(L, QCOW2_VERSION);
	lua_setfield(L, -2, "_VERSION");
	luaL_setfuncs(L, functions, 0);
	q2_bind_open_store(L);
	q2_bind_open_image(L);
	q2_bind_open_tables(L);
	q2_bind_open_text(L);
	q2_bind_open_listing(L);
	q2_bind_open_records(L);
	q2_bind_open_edit(L);
	q2_bind_open_bitmap(L);
	q2_bind_open_create(L);
	q2_bind_open_job(L);
	q2_bind_open_chain(L);
	q2_bind_open_check(L);
	q2_bind_open_amend(L);
	q2_bind_open_line(L);
	push_features(L);
	lua_setfield(L, -2, "features");
	/* The metatables, for lua/qcow2 to dress. */
	lua_newtable(L);
	for (const char *const *name = classes; *name; name++) {
		lua_pushfstring(L, "qcow2.%s", *name);
		lua_rawget(L, LUA_REGISTRYINDEX);
		lua_setfield(L, -2, *name);
	}
	lua_setfield(L, -2, "classes");
	return 1;
}
