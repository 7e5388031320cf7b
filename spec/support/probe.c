/* SPDX-License-Identifier: MIT
 * Lua module qcow2_probe, for specs alone: what lies below the public binding and touches no store, called
 * as it is in C. One section a floor; a section ends with its luaL_Reg list, which luaopen_ adds.
 *
 * Buffers given to the functions under test end right before a page that may not be touched and are
 * preceded by one: a byte read or written outside kills the process, and the spec with it. */
#include "base/error.h"
#include "data/codec.h"
#include "data/zero.h"

#include <lauxlib.h>
#include <lua.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

int luaopen_qcow2_probe(lua_State *L);

/* ---- answers and guarded buffers -------------------------------------------------------------- */

/* nil, text, kind, errno, offset */
static int push_failure(lua_State *L, const struct qcow2_error *err)
{
	lua_pushnil(L);
	lua_pushstring(L, err->text);
	lua_pushstring(L, qcow2_error_word(err->code));
	lua_pushinteger(L, err->os_errno);
	lua_pushinteger(L, (lua_Integer)err->offset);
	return 5;
}

/* `bytes` has `length` bytes and ends at a guard page; what the last page has before it holds CANARY. */
struct guarded {
	unsigned char *map, *bytes;
	size_t map_length, length, page;
};

#define CANARY 0xa5

static struct guarded guard(const void *contents, size_t length)
{
	struct guarded g = {.length = length, .page = (size_t)sysconf(_SC_PAGESIZE)};
	size_t room = (length + g.page - 1) / g.page * g.page;

	g.map_length = room + 2 * g.page;
	g.map = mmap(NULL, g.map_length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g.map == MAP_FAILED || mprotect(g.map, g.page, PROT_NONE) ||
	    mprotect(g.map + g.page + room, g.page, PROT_NONE))
		abort();
	g.bytes = g.map + g.page + room - length;
	memset(g.map + g.page, CANARY, room - length);
	if (contents)
		memcpy(g.bytes, contents, length);
	return g;
}

static void unguard(struct guarded *g)
{
	for (unsigned char *p = g->map + g->page; p < g->bytes; p++)
		if (*p != CANARY)
			abort();
	munmap(g->map, g->map_length);
}

/* ---- data: codecs ----------------------------------------------------------------------------- */

#define CODEC "qcow2_probe.codec"

static struct q2_codec *check_codec(lua_State *L)
{
	struct q2_codec **box = luaL_checkudata(L, 1, CODEC);

	luaL_argcheck(L, *box, 1, "closed codec");
	return *box;
}

/* codec(type): an object that is used again and again, as the library does. */
static int probe_codec(lua_State *L)
{
	int compression = (int)luaL_checkinteger(L, 1);
	struct q2_codec **box = lua_newuserdatauv(L, sizeof *box, 0);
	struct qcow2_error err;

	*box = NULL;
	luaL_setmetatable(L, CODEC);
	if (q2_codec_new(compression, box, &err))
		return push_failure(L, &err);
	return 1;
}

/* codec_about(type): name and library, nil where there is none. */
static int probe_codec_about(lua_State *L)
{
	int compression = (int)luaL_checkinteger(L, 1);

	lua_pushstring(L, q2_codec_name(compression));
	lua_pushstring(L, q2_codec_backend(compression));
	return 2;
}

/* codec:expand(stream, length) */
static int codec_expand(lua_State *L)
{
	struct q2_codec *codec = check_codec(L);
	size_t in_length;
	const char *in_bytes = luaL_checklstring(L, 2, &in_length);
	size_t out_length = (size_t)luaL_checkinteger(L, 3);
	struct qcow2_error err;

	struct guarded in = guard(in_bytes, in_length), out = guard(NULL, out_length);
	int rc = q2_codec_expand(codec, in.bytes, in_length, out.bytes, out_length, &err);
	if (rc == 0)
		lua_pushlstring(L, (const char *)out.bytes, out_length);
	unguard(&in);
	unguard(&out);
	return rc ? push_failure(L, &err) : 1;
}

/* codec:compress(bytes, room): the stream, "" when it does not fit. */
static int codec_compress(lua_State *L)
{
	struct q2_codec *codec = check_codec(L);
	size_t in_length, used = SIZE_MAX;
	const char *in_bytes = luaL_checklstring(L, 2, &in_length);
	size_t out_room = (size_t)luaL_checkinteger(L, 3);
	struct qcow2_error err;

	struct guarded in = guard(in_bytes, in_length), out = guard(NULL, out_room);
	int rc = q2_codec_compress(codec, in.bytes, in_length, out.bytes, out_room, &used, &err);
	if (rc == 0 && used > out_room)
		abort();
	if (rc == 0)
		lua_pushlstring(L, (const char *)out.bytes, used);
	unguard(&in);
	unguard(&out);
	return rc ? push_failure(L, &err) : 1;
}

static int codec_close(lua_State *L)
{
	struct q2_codec **box = luaL_checkudata(L, 1, CODEC);

	q2_codec_free(*box);
	*box = NULL;
	return 0;
}

/* inflate_as_qemu(stream, length): zlib alone, asked as QEMU asks it; the bytes or nil and zlib's message. */
static int probe_inflate_as_qemu(lua_State *L)
{
	size_t in_length, out_length = (size_t)luaL_checkinteger(L, 2);
	const char *in_bytes = luaL_checklstring(L, 1, &in_length);
	unsigned char *out = lua_newuserdatauv(L, out_length, 0);
	z_stream s = {.next_in = (z_const Bytef *)in_bytes,
		      .avail_in = (uInt)in_length,
		      .next_out = out,
		      .avail_out = (uInt)out_length};

	if (inflateInit2(&s, -12) != Z_OK)
		return luaL_error(L, "inflateInit2 failed");
	int status = inflate(&s, Z_FINISH);
	bool full = (status == Z_STREAM_END || status == Z_BUF_ERROR) && s.avail_out == 0;
	const char *message = s.msg ? s.msg : zError(status);
	inflateEnd(&s);
	if (full) {
		lua_pushlstring(L, (const char *)out, out_length);
		return 1;
	}
	lua_pushnil(L);
	lua_pushstring(L, message);
	return 2;
}

static const luaL_Reg codec_methods[] = {
	{"expand", codec_expand}, {"compress", codec_compress}, {"close", codec_close},
	{"__gc", codec_close},    {"__close", codec_close},     {NULL, NULL},
};

static const luaL_Reg codec_functions[] = {
	{"codec", probe_codec},
	{"codec_about", probe_codec_about},
	{"inflate_as_qemu", probe_inflate_as_qemu},
	{NULL, NULL},
};

static void open_codec(lua_State *L)
{
	luaL_newmetatable(L, CODEC);
	luaL_setfuncs(L, codec_methods, 0);
	lua_pushvalue(L, -1);
	lua_setfield(L, -2, "__index");
	lua_pop(L, 1);
	luaL_setfuncs(L, codec_functions, 0);
}

/* ---- data: zeros ------------------------------------------------------------------------------ */

/* zero_test(bytes) */
static int probe_zero_test(lua_State *L)
{
	size_t length;
	const char *bytes = luaL_checklstring(L, 1, &length);

	struct guarded g = guard(bytes, length);
	bool zero = q2_zero_test(g.bytes, length);
	unguard(&g);
	lua_pushboolean(L, zero);
	return 1;
}

/* zero_run(bytes, unit): the run's length, is it zero */
static int probe_zero_run(lua_State *L)
{
	size_t length, unit = (size_t)luaL_checkinteger(L, 2);
	const char *bytes = luaL_checklstring(L, 1, &length);
	bool zero;

	luaL_argcheck(L, length > 0, 1, "empty");
	luaL_argcheck(L, unit > 0, 2, "zero");
	struct guarded g = guard(bytes, length);
	size_t run = q2_zero_run(g.bytes, length, unit, &zero);
	unguard(&g);
	lua_pushinteger(L, (lua_Integer)run);
	lua_pushboolean(L, zero);
	return 2;
}

static const luaL_Reg zero_functions[] = {
	{"zero_test", probe_zero_test},
	{"zero_run", probe_zero_run},
	{NULL, NULL},
};

/* ---- the module ------------------------------------------------------------------------------- */

int luaopen_qcow2_probe(lua_State *L)
{
	lua_newtable(L);
	open_codec(L);
	luaL_setfuncs(L, zero_functions, 0);
	return 1;
}
