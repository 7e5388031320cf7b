/* SPDX-License-Identifier: MIT
 * Long lists of extents for commands: an image may have tens of millions, so the rows of `map` become text here, and
 * `measure` adds them up here. What the host's holes mean in each layer is the caller's decision. */
#include "bind/text.h"

enum {
	MOST_LAYERS = 201,   /* of a chain, by qcow2_image_attach_backing */
	BATCH_ROWS = 4096,   /* a call gives at most so many */
	BATCH_RUNS = 200000, /* and adds up at most so many */
	MOST_ROW = 256,      /* bytes of a row without the file's name */
};

/* What the caller knows of one layer. */
struct layer {
	uint64_t size;
	bool holes_data,
		holes_zero; /* what a hole of the host under data of the tables is: QEMU may say both */
	const char *file;   /* how its data's file is shown */
	size_t file_length;
};

struct layers {
	struct layer list[MOST_LAYERS];
	size_t count;
	bool encrypted;
};

/* The table at `index`: { encrypted =, { size =, holes_data =, holes_zero =, file = }, ... }, top first. The names
 * live as long as it does. */
static void take_layers(lua_State *L, int index, struct layers *layers)
{
	luaL_checktype(L, index, LUA_TTABLE);
	layers->encrypted = q2_bind_flag(L, index, "encrypted");
	layers->count = (size_t)lua_rawlen(L, index);
	luaL_argcheck(L, layers->count <= MOST_LAYERS, index, "too many layers");
	for (size_t i = 0; i < layers->count; i++) {
		struct layer *layer = &layers->list[i];
		lua_rawgeti(L, index, (lua_Integer)i + 1);
		lua_getfield(L, -1, "size");
		layer->size = q2_bind_unsigned(L, -1, "size");
		lua_getfield(L, -2, "file");
		layer->file = luaL_optlstring(L, -1, "", &layer->file_length);
		layer->holes_data = q2_bind_flag(L, -3, "holes_data");
		layer->holes_zero = q2_bind_flag(L, -3, "holes_zero");
		lua_pop(L, 3);
	}
}

/* One row: what QEMU's map says of a stretch of the disk. */
struct row {
	uint64_t start, length, offset; /* offset UINT64_MAX: none */
	uint32_t depth;
	bool present, zero, data, compressed;
	const struct qcow2_store *store;
};

static struct row row_of(const struct qcow2_extent *e, const struct layers *layers)
{
	const struct layer *layer = e->depth < layers->count ? &layers->list[e->depth] : NULL;
	bool compressed = e->kind == QCOW2_EXTENT_COMPRESSED;
	struct row row = {.start = e->offset,
			  .length = e->length,
			  .offset = e->host_offset,
			  .depth = e->depth,
			  .present = e->present,
			  .data = e->kind == QCOW2_EXTENT_DATA || compressed,
			  .compressed = compressed,
			  .store = e->store};
	row.zero = !row.data;
	if (e->hole && layer) {
		row.data = layer->holes_data;
		row.zero = layer->holes_zero;
	} else if (e->depth && layer && e->offset >= layer->size) {
		/* Past the end of a short backing file it is the layer above that says zeros, and nobody holds them. */
		row.depth--;
		row.present = false;
	}
	/* A compressed stream or a cipher text has no byte for each byte of the disk. */
	if (compressed || layers->encrypted)
		row.offset = UINT64_MAX;
	return row;
}

static bool continues(const struct row *last, const struct row *next)
{
	bool placed = last->offset != UINT64_MAX;
	return last->zero == next->zero && last->data == next->data && last->compressed == next->compressed &&
	       last->depth == next->depth && last->present == next->present && last->store == next->store &&
	       next->offset == (placed ? last->offset + last->length : UINT64_MAX);
}

/* ---- text ---- */

/* As "%#-16x". */
static char *put_hex(char *to, uint64_t value)
{
	char *end = q2_text_put(to, value ? "0x" : "0");
	int bits = 60;
	while (bits > 0 && !(value >> bits))
		bits -= 4;
	for (; value && bits >= 0; bits -= 4)
		*end++ = "0123456789abcdef"[value >> bits & 15];
	while (end - to < 16)
		*end++ = ' ';
	return end;
}

static char *put_human(char *to, const struct row *row)
{
	to = put_hex(to, row->start);
	to = put_hex(to, row->length);
	return put_hex(to, row->offset);
}

static char *put_json(char *to, const struct row *row, bool last)
{
	to = q2_text_decimal(q2_text_put(to, "{ \"start\": "), row->start);
	to = q2_text_decimal(q2_text_put(to, ", \"length\": "), row->length);
	to = q2_text_decimal(q2_text_put(to, ", \"depth\": "), row->depth);
	to = q2_text_put(to, row->present ? ", \"present\": true" : ", \"present\": false");
	to = q2_text_put(to, row->zero ? ", \"zero\": true" : ", \"zero\": false");
	to = q2_text_put(to, row->data ? ", \"data\": true" : ", \"data\": false");
	to = q2_text_put(to, row->compressed ? ", \"compressed\": true" : ", \"compressed\": false");
	if (row->offset != UINT64_MAX)
		to = q2_text_decimal(q2_text_put(to, ", \"offset\": "), row->offset);
	return q2_text_put(to, last ? "}" : "},\n");
}

/* Adds the row's text. gives: false when the human form has no words for it. */
static bool add_row(luaL_Buffer *text, const struct row *row, const struct layers *layers, bool json,
		    bool last)
{
	char *start = luaL_prepbuffsize(text, MOST_ROW), *end = start;
	if (json) {
		end = put_json(start, row, last);
	} else if (row->data && !row->zero) {
		if (row->offset == UINT64_MAX)
			return false;
		end = put_human(start, row);
		luaL_addsize(text, (size_t)(end - start));
		if (row->depth < layers->count)
			luaL_addlstring(text, layers->list[row->depth].file,
					layers->list[row->depth].file_length);
		luaL_addchar(text, '\n');
		return true;
	}
	luaL_addsize(text, (size_t)(end - start));
	return true;
}

/*
 * image:map_rows(offset, limit, holes, layers, json) -> text, next, unplaced
 * Rows from `offset` on, as many as fit a batch; `next` is where the next one begins, offset + limit at the end. A
 * failure behind the first row shortens the batch; the next call meets it. unplaced: the human form ends at `next`
 * because it cannot show what is there.
 */
static int l_map_rows(lua_State *L)
{
	struct qcow2_error err;
	struct layers layers;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset"), limit = q2_bind_unsigned(L, 3, "limit");
	unsigned flags = lua_toboolean(L, 4) ? QCOW2_EXTENT_HOLES : 0;
	bool json = lua_toboolean(L, 6), unplaced = false;
	uint64_t end = offset + limit;
	take_layers(L, 5, &layers);

	struct row row = {.start = offset, .offset = UINT64_MAX};
	luaL_Buffer text;
	luaL_buffinit(L, &text);
	for (int rows = 0; rows < BATCH_ROWS && !unplaced; rows++) {
		bool more = false;
		while (!more && offset < end) {
			struct qcow2_extent extent;
			if (qcow2_image_extent(image, offset, end - offset, flags, &extent, &err)) {
				if (!rows)
					return q2_bind_fail(L, &err);
				goto out;
			}
			struct row next = row_of(&extent, &layers);
			more = row.length && !continues(&row, &next);
			if (more)
				break;
			next.start = row.start;
			next.length += row.length;
			next.offset = row.length ? row.offset : next.offset;
			row = next;
			offset += extent.length;
		}
		unplaced = !add_row(&text, &row, &layers, json, !more);
		if (!more)
			row.start = end;
		if (!more || unplaced)
			break;
		row = (struct row){.start = offset, .offset = UINT64_MAX};
	}
out:
	luaL_pushresult(&text);
	lua_pushinteger(L, (lua_Integer)row.start);
	lua_pushboolean(L, unplaced);
	return 3;
}

/*
 * image:data_clusters(offset, limit, cluster_size, position, holes, layers) -> clusters, next, position
 * How many clusters of another size the data of the disk touches, for a batch of runs from `offset` on; those before
 * `position` are counted already.
 */
static int l_data_clusters(lua_State *L)
{
	struct qcow2_error err;
	struct layers layers;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	uint64_t offset = q2_bind_unsigned(L, 2, "offset"), limit = q2_bind_unsigned(L, 3, "limit");
	uint64_t size = q2_bind_unsigned(L, 4, "cluster_size");
	uint64_t position = q2_bind_unsigned(L, 5, "position"), clusters = 0;
	unsigned flags = lua_toboolean(L, 6) ? QCOW2_EXTENT_HOLES : 0;
	luaL_argcheck(L, size > 0, 4, "cluster_size must not be 0");
	take_layers(L, 7, &layers);
	for (int runs = 0; runs < BATCH_RUNS && limit; runs++) {
		struct qcow2_extent extent;
		if (qcow2_image_extent(image, offset, limit, flags, &extent, &err)) {
			if (!runs)
				return q2_bind_fail(L, &err);
			break;
		}
		struct row row = row_of(&extent, &layers);
		offset += extent.length;
		limit -= extent.length;
		if (!row.data || row.zero || offset <= position)
			continue;
		uint64_t first = (extent.offset > position ? extent.offset : position) / size;
		uint64_t behind = (offset - 1) / size + 1;
		clusters += behind - first;
		position = behind * size;
	}
	lua_pushinteger(L, (lua_Integer)clusters);
	lua_pushinteger(L, (lua_Integer)offset);
	lua_pushinteger(L, (lua_Integer)position);
	return 3;
}

/* Name of the file that holds the image's data, as it was opened; nil when it is not attached. */
static int l_data_file_name(lua_State *L)
{
	struct qcow2_store *store = qcow2_image_data_store(q2_bind_self(L, 1, Q2_IMAGE_CLASS));
	if (store)
		lua_pushstring(L, qcow2_store_name(store));
	else
		lua_pushnil(L);
	return 1;
}

void q2_bind_open_listing(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"map_rows", l_map_rows},
		{"data_clusters", l_data_clusters},
		{"data_file_name", l_data_file_name},
		{NULL, NULL},
	};
	luaL_getmetatable(L, Q2_IMAGE_CLASS);
	lua_getfield(L, -1, "__index");
	q2_bind_image_functions(L, methods);
	lua_pop(L, 2);
}
