/* SPDX-License-Identifier: MIT
 * Lua module qcow2_probe_meta, for specs alone: the map, the allocator, the table cache and the writeback of an image as
 * they are in C. The image lies in memory; an external data file, too. */
#include "image/image.h"
#include "store/store.h"

#include <lauxlib.h>
#include <lua.h>

#define IMAGE "qcow2_probe_meta.image"

int luaopen_qcow2_probe_meta(lua_State *L);

struct probe {
	struct qcow2_store *store, *data;
	struct qcow2_image *image;
};

/* nil, text, kind, offset */
static int push_failure(lua_State *L, const struct qcow2_error *err)
{
	lua_pushnil(L);
	lua_pushstring(L, err->text);
	lua_pushstring(L, qcow2_error_word(err->code));
	lua_pushinteger(L, (lua_Integer)err->offset);
	return 4;
}

static int answer(lua_State *L, int rc, const struct qcow2_error *err)
{
	if (rc)
		return push_failure(L, err);
	lua_pushboolean(L, true);
	return 1;
}

static uint64_t field(lua_State *L, int table, const char *name, uint64_t missing)
{
	lua_getfield(L, table, name);
	uint64_t value = lua_isboolean(L, -1) ? (uint64_t)lua_toboolean(L, -1)
					      : (uint64_t)luaL_optinteger(L, -1, (lua_Integer)missing);
	lua_pop(L, 1);
	return value;
}

static void set_field(lua_State *L, const char *name, uint64_t value)
{
	lua_pushinteger(L, (lua_Integer)value);
	lua_setfield(L, -2, name);
}

static void set_flag(lua_State *L, const char *name, bool value)
{
	lua_pushboolean(L, value);
	lua_setfield(L, -2, name);
}

static struct probe *probe_of(lua_State *L)
{
	return luaL_checkudata(L, 1, IMAGE);
}

static int probe_close(lua_State *L)
{
	struct probe *p = probe_of(L);
	struct qcow2_error err;
	int rc = 0;
	if (p->image)
		rc = qcow2_image_finish(p->image, &err);
	qcow2_image_unref(p->image);
	p->image = NULL;
	qcow2_store_unref(p->store);
	qcow2_store_unref(p->data);
	p->store = p->data = NULL;
	return answer(L, rc, &err);
}

/* image{size=, cluster_size=, refcount_bits=, extended_l2=, version=, data=, bound=}: created, opened, begun. `bound`: bytes
 * of the table cache. */
static int probe_image(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	struct qcow2_create_options options = QCOW2_CREATE_OPTIONS_INIT;
	struct qcow2_error err;
	options.size = field(L, 1, "size", 1 << 20);
	options.cluster_size = (uint32_t)field(L, 1, "cluster_size", 65536);
	options.refcount_bits = (uint32_t)field(L, 1, "refcount_bits", 16);
	options.version = (uint32_t)field(L, 1, "version", 3);
	options.extended_l2 = field(L, 1, "extended_l2", 0);
	uint64_t bound = field(L, 1, "bound", 0);
	struct probe *p = lua_newuserdatauv(L, sizeof *p, 0);
	*p = (struct probe){0};
	luaL_setmetatable(L, IMAGE);
	int rc = qcow2_store_memory(NULL, 0, &p->store, &err);
	if (!rc && field(L, 1, "data", 0)) {
		options.data_name = (struct qcow2_bytes){(const uint8_t *)"data", 4};
		rc = qcow2_store_memory(NULL, 0, &p->data, &err);
	}
	if (!rc)
		rc = qcow2_create(p->store, p->data, &options, &err);
	if (!rc)
		rc = qcow2_image_open(p->store, &p->image, &err);
	if (!rc && p->data)
		rc = qcow2_image_attach_data(p->image, p->data, &err);
	if (!rc)
		rc = qcow2_image_begin(p->image, &err);
	if (!rc)
		rc = q2_edit_begin(p->image, &err);
	if (rc)
		return push_failure(L, &err);
	if (bound) {
		struct q2_cache *cache = &p->image->meta.cache;
		q2_cache_free(cache);
		q2_cache_init(cache, p->store, options.cluster_size, bound);
	}
	return 1;
}

/* ---- the map ----------------------------------------------------------------------------------- */

static int probe_find(lua_State *L)
{
	static const char *const kinds[] = {"unallocated", "zero", "data", "compressed", "invalid"};
	struct q2_run run;
	struct qcow2_error err;
	int rc = q2_map_find(&probe_of(L)->image->map, q2_guest_at((uint64_t)luaL_checkinteger(L, 2)),
			     (uint64_t)luaL_checkinteger(L, 3), &run, &err);
	if (rc)
		return push_failure(L, &err);
	lua_newtable(L);
	lua_pushstring(L, kinds[run.kind]);
	lua_setfield(L, -2, "kind");
	set_field(L, "length", run.length);
	if (run.has_host)
		set_field(L, "host", run.host.v);
	set_flag(L, "copied", run.copied);
	return 1;
}

static int probe_held(lua_State *L)
{
	static const char *const holdings[] = {"none", "shared", "own"};
	struct q2_held held;
	struct qcow2_error err;
	int rc = q2_map_held(&probe_of(L)->image->map, q2_guest_at((uint64_t)luaL_checkinteger(L, 2)),
			     (uint64_t)luaL_checkinteger(L, 3), &held, &err);
	if (rc)
		return push_failure(L, &err);
	lua_newtable(L);
	set_field(L, "count", held.count);
	lua_pushstring(L, holdings[held.holding]);
	lua_setfield(L, -2, "holding");
	if (held.holding == Q2_HOLDING_OWN)
		set_field(L, "host", held.host.v);
	set_flag(L, "plain", held.plain);
	return 1;
}

/* entry(guest): word, bitmap, where the entry lies. */
static int probe_entry(lua_State *L)
{
	uint64_t word, bitmap;
	q2_host at;
	struct qcow2_error err;
	int rc = q2_map_entry(&probe_of(L)->image->map, q2_guest_at((uint64_t)luaL_checkinteger(L, 2)), &word,
			      &bitmap, &at, &err);
	if (rc)
		return push_failure(L, &err);
	lua_pushinteger(L, (lua_Integer)word);
	lua_pushinteger(L, (lua_Integer)bitmap);
	lua_pushinteger(L, (lua_Integer)at.v);
	return 3;
}

/* ---- changing the map -------------------------------------------------------------------------- */

static void push_place(lua_State *L, const struct q2_map_place *place)
{
	lua_newtable(L);
	set_field(L, "guest", place->guest.v);
	set_field(L, "count", place->count);
	set_field(L, "host", place->host.v);
	set_field(L, "first", place->first);
	set_field(L, "last", place->last);
	set_flag(L, "plain", place->plain);
	set_flag(L, "moves", place->moves);
	set_flag(L, "taken", place->taken);
	set_flag(L, "virgin", place->virgin);
	set_flag(L, "composed", place->composed);
}

static struct q2_map_place to_place(lua_State *L, int table)
{
	luaL_checktype(L, table, LUA_TTABLE);
	return (struct q2_map_place){.guest = q2_guest_at(field(L, table, "guest", 0)),
				     .count = field(L, table, "count", 0),
				     .host = q2_host_at(field(L, table, "host", 0)),
				     .plain = field(L, table, "plain", 0),
				     .moves = field(L, table, "moves", 0),
				     .taken = field(L, table, "taken", 0),
				     .first = field(L, table, "first", 0),
				     .last = field(L, table, "last", 0)};
}

/* prepare(start, length, whole) */
static int probe_prepare(lua_State *L)
{
	struct q2_map_place place;
	struct qcow2_error err;
	int rc = q2_map_prepare(&probe_of(L)->image->map, q2_guest_at((uint64_t)luaL_checkinteger(L, 2)),
				(uint64_t)luaL_checkinteger(L, 3), lua_toboolean(L, 4), &place, &err);
	if (rc)
		return push_failure(L, &err);
	push_place(L, &place);
	return 1;
}

static int probe_commit(lua_State *L)
{
	struct q2_map_place place = to_place(L, 2);
	struct qcow2_error err;
	return answer(L, q2_map_commit(&probe_of(L)->image->map, &place, NULL, &err), &err);
}

static int probe_abandon(lua_State *L)
{
	struct q2_map_place place = to_place(L, 2);
	q2_map_abandon(&probe_of(L)->image->map, &place);
	return 0;
}

/* set(start, end, kind, {free=, say=, host=, length=}) */
static int probe_set(lua_State *L)
{
	static const char *const kinds[] = {"unallocated", "zero", "data", "compressed", "copied", NULL};
	struct q2_map_state to = {.kind = 0};
	struct qcow2_error err;
	uint64_t start = (uint64_t)luaL_checkinteger(L, 2), end = (uint64_t)luaL_checkinteger(L, 3);
	to.kind = (unsigned)luaL_checkoption(L, 4, NULL, kinds);
	if (lua_istable(L, 5)) {
		to.free = field(L, 5, "free", 0);
		to.say = field(L, 5, "say", 0);
		to.host = q2_host_at(field(L, 5, "host", 0));
		to.length = (uint32_t)field(L, 5, "length", 0);
	}
	return answer(L, q2_map_set_range(&probe_of(L)->image->map, start, end, &to, &err), &err);
}

/* drop_tables(first, end) */
static int probe_drop_tables(lua_State *L)
{
	struct qcow2_error err;
	return answer(L,
		      q2_map_drop_tables(&probe_of(L)->image->map, (uint64_t)luaL_checkinteger(L, 2),
					 (uint64_t)luaL_checkinteger(L, 3), &err),
		      &err);
}

/* check_release(start, end) */
static int probe_check_release(lua_State *L)
{
	struct qcow2_error err;
	return answer(L,
		      q2_map_check_release(&probe_of(L)->image->map, (uint64_t)luaL_checkinteger(L, 2),
					   (uint64_t)luaL_checkinteger(L, 3), &err),
		      &err);
}

/* ---- counts and order -------------------------------------------------------------------------- */

/* alloc(want, exact): first cluster, how many */
static int probe_alloc(lua_State *L)
{
	uint64_t start, got;
	struct qcow2_error err;
	int rc = q2_alloc(&probe_of(L)->image->meta, (uint64_t)luaL_checkinteger(L, 2), lua_toboolean(L, 3),
			  &start, &got, &err);
	if (rc)
		return push_failure(L, &err);
	lua_pushinteger(L, (lua_Integer)start);
	lua_pushinteger(L, (lua_Integer)got);
	return 2;
}

/* release(first cluster, count) and give_back: with and without waiting for the next writeback. */
static int probe_release(lua_State *L)
{
	struct qcow2_error err;
	return answer(L,
		      q2_alloc_release(&probe_of(L)->image->meta, (uint64_t)luaL_checkinteger(L, 2),
				       (uint64_t)luaL_checkinteger(L, 3), &err),
		      &err);
}

static int probe_give_back(lua_State *L)
{
	struct qcow2_error err;
	return answer(L,
		      q2_alloc_abandon(&probe_of(L)->image->meta, (uint64_t)luaL_checkinteger(L, 2),
				       (uint64_t)luaL_checkinteger(L, 3), &err),
		      &err);
}

static int probe_count(lua_State *L)
{
	uint64_t count;
	struct qcow2_error err;
	int rc = q2_refcount_read(&probe_of(L)->image->meta, (uint64_t)luaL_checkinteger(L, 2), &count, &err);
	if (rc)
		return push_failure(L, &err);
	lua_pushinteger(L, (lua_Integer)count);
	return 1;
}

static int probe_writeback(lua_State *L)
{
	struct qcow2_error err;
	return answer(L, q2_writeback(&probe_of(L)->image->meta, &err), &err);
}

static int probe_live(lua_State *L)
{
	lua_pushboolean(L, q2_live_metadata_has(&probe_of(L)->image->meta.live,
						(uint64_t)luaL_checkinteger(L, 2), 1));
	return 1;
}

/* state(): what waits, and how full the cache is. */
static int probe_state(lua_State *L)
{
	struct q2_meta *meta = &probe_of(L)->image->meta;
	lua_newtable(L);
	set_field(L, "l1_words", meta->l1_words.count);
	set_field(L, "pending_free", meta->pending_clusters);
	set_field(L, "pending_punch", meta->pending_punch.count);
	set_field(L, "virgin", meta->virgin);
	set_field(L, "dirty", meta->cache.dirty);
	set_field(L, "used", meta->cache.used);
	set_field(L, "most", meta->cache.most);
	set_field(L, "slice", meta->cache.slice);
	set_field(L, "hits", meta->cache.hits);
	set_field(L, "misses", meta->cache.misses);
	set_field(L, "reftable_entries", meta->reftable_entries);
	set_field(L, "changes", q2_store_changes(meta->store));
	return 1;
}

/* ---- bytes, and the cache alone ---------------------------------------------------------------- */

static struct qcow2_store *store_of(lua_State *L, int index)
{
	struct probe *p = probe_of(L);
	return lua_toboolean(L, index) ? p->data : p->store;
}

/* read(offset, length, of the data file) */
static int probe_read(lua_State *L)
{
	struct qcow2_store *store = store_of(L, 4);
	size_t length = (size_t)luaL_checkinteger(L, 3);
	luaL_Buffer buffer;
	struct qcow2_error err;
	char *bytes = luaL_buffinitsize(L, &buffer, length);
	int rc = qcow2_store_read(store, (uint64_t)luaL_checkinteger(L, 2), bytes, length, &err);
	luaL_pushresultsize(&buffer, length);
	return rc ? push_failure(L, &err) : 1;
}

/* write(offset, bytes, of the data file) */
static int probe_write(lua_State *L)
{
	size_t length;
	const char *bytes = luaL_checklstring(L, 3, &length);
	struct qcow2_error err;
	return answer(L,
		      qcow2_store_write(store_of(L, 4), (uint64_t)luaL_checkinteger(L, 2), bytes, length,
					&err),
		      &err);
}

/* slice(offset): the bytes of a slice by the cache */
static int probe_slice(lua_State *L)
{
	struct q2_cache *cache = &probe_of(L)->image->meta.cache;
	uint8_t *bytes;
	struct qcow2_error err;
	int rc = q2_cache_get(cache, q2_host_at((uint64_t)luaL_checkinteger(L, 2)), &bytes, &err);
	if (rc)
		return push_failure(L, &err);
	lua_pushlstring(L, (const char *)bytes, cache->slice);
	return 1;
}

/* edit(offset, text): the slice begins with the text from now on; new(offset, length, text) makes a table of it. */
static int probe_edit(lua_State *L)
{
	struct q2_cache *cache = &probe_of(L)->image->meta.cache;
	size_t length;
	const char *text = luaL_checklstring(L, 3, &length);
	uint8_t *bytes;
	struct qcow2_error err;
	luaL_argcheck(L, length <= cache->slice, 3, "longer than a slice");
	int rc = q2_cache_edit(cache, q2_host_at((uint64_t)luaL_checkinteger(L, 2)), Q2_TABLE_L2, &bytes,
			       &err);
	if (!rc)
		memcpy(bytes, text, length);
	return answer(L, rc, &err);
}

static int probe_new(lua_State *L)
{
	size_t length;
	const char *text = luaL_checklstring(L, 3, &length);
	struct qcow2_error err;
	return answer(L,
		      q2_cache_new(&probe_of(L)->image->meta.cache,
				   q2_host_at((uint64_t)luaL_checkinteger(L, 2)), length, Q2_TABLE_L2,
				   (const uint8_t *)text, &err),
		      &err);
}

static int probe_has(lua_State *L)
{
	lua_pushboolean(L, q2_cache_has(&probe_of(L)->image->meta.cache,
					q2_host_at((uint64_t)luaL_checkinteger(L, 2))));
	return 1;
}

/* forget(offset, length), flush(fresh only) */
static int probe_forget(lua_State *L)
{
	q2_cache_forget(&probe_of(L)->image->meta.cache, q2_host_at((uint64_t)luaL_checkinteger(L, 2)),
			(uint64_t)luaL_checkinteger(L, 3));
	return 0;
}

static int probe_flush(lua_State *L)
{
	struct qcow2_error err;
	return answer(L,
		      q2_cache_write(&probe_of(L)->image->meta.cache, Q2_TABLE_L2 | Q2_TABLE_REFBLOCK,
				     lua_toboolean(L, 2), &err),
		      &err);
}

static const luaL_Reg methods[] = {
	{"find", probe_find},
	{"held", probe_held},
	{"entry", probe_entry},
	{"prepare", probe_prepare},
	{"commit", probe_commit},
	{"abandon", probe_abandon},
	{"set", probe_set},
	{"drop_tables", probe_drop_tables},
	{"check_release", probe_check_release},
	{"alloc", probe_alloc},
	{"release", probe_release},
	{"give_back", probe_give_back},
	{"count", probe_count},
	{"writeback", probe_writeback},
	{"live", probe_live},
	{"state", probe_state},
	{"read", probe_read},
	{"write", probe_write},
	{"slice", probe_slice},
	{"edit", probe_edit},
	{"new", probe_new},
	{"has", probe_has},
	{"forget", probe_forget},
	{"flush", probe_flush},
	{"close", probe_close},
	{"__gc", probe_close},
	{NULL, NULL},
};

static const luaL_Reg functions[] = {{"image", probe_image}, {NULL, NULL}};

int luaopen_qcow2_probe_meta(lua_State *L)
{
	luaL_newmetatable(L, IMAGE);
	luaL_setfuncs(L, methods, 0);
	lua_pushvalue(L, -1);
	lua_setfield(L, -2, "__index");
	luaL_newlib(L, functions);
	return 1;
}
