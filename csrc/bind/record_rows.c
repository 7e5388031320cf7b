/* SPDX-License-Identifier: MIT
 * Long lists of snapshots and bitmaps for commands: an image may have 65,536 of them, so their rows become text here,
 * a batch a call. */
#include "bind/text.h"

#include <time.h>

/* A call's text ends with the row that makes it as long: a single name may be longer. */
enum { BATCH = 1 << 16 };

static void add(luaL_Buffer *out, const char *text)
{
	luaL_addstring(out, text);
}

/* Spaces up to `width` columns for what begins at `start`. */
static void pad(luaL_Buffer *out, size_t start, size_t width)
{
	while (luaL_bufflen(out) - start < width)
		luaL_addchar(out, ' ');
}

/* [text, end) against the right border of `width` columns, and a space before it. */
static void add_right(luaL_Buffer *out, const char *text, const char *end, size_t width)
{
	size_t length = (size_t)(end - text);
	luaL_addchar(out, ' ');
	for (; width > length; width--)
		luaL_addchar(out, ' ');
	luaL_addlstring(out, text, length);
}

static void add_member(luaL_Buffer *out, const char *indent, const char *name)
{
	add(out, indent);
	add(out, "    \"");
	add(out, name);
	add(out, "\": ");
}

static void add_integer(luaL_Buffer *out, const char *indent, const char *name, uint64_t value)
{
	char text[24];
	add_member(out, indent, name);
	luaL_addlstring(out, text, (size_t)(q2_text_signed(text, (int64_t)value) - text));
	add(out, ",\n");
}

static void add_string(luaL_Buffer *out, const char *indent, const char *name, struct qcow2_bytes value)
{
	add_member(out, indent, name);
	q2_text_quote(out, value);
	add(out, ",\n");
}

/* The last member or item has no comma. */
static void drop_comma(luaL_Buffer *out)
{
	luaL_buffsub(out, 2);
	add(out, "\n");
}

/* ---- snapshots ---- */

/* As strftime's "%Y-%m-%d %H:%M:%S" in local time. */
static char *put_date(char *to, uint32_t date)
{
	time_t seconds = date;
	struct tm tm;
	if (!localtime_r(&seconds, &tm))
		return to; /* no such year: not for 32 bits of seconds */
	to = q2_text_padded(to, (uint64_t)tm.tm_year + 1900, 4);
	*to++ = '-';
	to = q2_text_padded(to, (uint64_t)tm.tm_mon + 1, 2);
	*to++ = '-';
	to = q2_text_padded(to, (uint64_t)tm.tm_mday, 2);
	*to++ = ' ';
	to = q2_text_padded(to, (uint64_t)tm.tm_hour, 2);
	*to++ = ':';
	to = q2_text_padded(to, (uint64_t)tm.tm_min, 2);
	*to++ = ':';
	return q2_text_padded(to, (uint64_t)tm.tm_sec, 2);
}

static char *put_clock(char *to, uint64_t nanoseconds)
{
	uint64_t seconds = nanoseconds / 1000000000;
	to = q2_text_padded(to, seconds / 3600, 4);
	*to++ = ':';
	to = q2_text_padded(to, seconds / 60 % 60, 2);
	*to++ = ':';
	to = q2_text_padded(to, seconds % 60, 2);
	*to++ = '.';
	return q2_text_padded(to, nanoseconds / 1000000 % 1000, 3);
}

static void add_snapshot_human(luaL_Buffer *out, const struct qcow2_snapshot *s, const char *indent)
{
	char text[64];
	add(out, indent);
	size_t start = luaL_bufflen(out);
	q2_text_escape(out, s->id);
	pad(out, start, 7);
	luaL_addchar(out, ' ');
	start = luaL_bufflen(out);
	q2_text_escape(out, s->name);
	pad(out, start, 16);
	add_right(out, text, q2_text_size(text, s->vm_state_size), 8);
	add_right(out, text, put_date(text, s->date_sec), 19);
	add_right(out, text, put_clock(text, s->vm_clock_nsec), 15);
	add_right(out, text,
		  s->icount != UINT64_MAX ? q2_text_signed(text, (int64_t)s->icount)
					  : q2_text_put(text, "--"),
		  10);
	luaL_addchar(out, '\n');
}

/* Members in the order in which QEMU's hash table has them. */
static void add_snapshot_json(luaL_Buffer *out, const struct qcow2_snapshot *s, const char *indent)
{
	if (s->icount != UINT64_MAX)
		add_integer(out, indent, "icount", s->icount);
	add_integer(out, indent, "vm-clock-nsec", s->vm_clock_nsec % 1000000000);
	add_string(out, indent, "name", s->name);
	add_integer(out, indent, "date-sec", s->date_sec);
	add_integer(out, indent, "date-nsec", s->date_nsec);
	add_integer(out, indent, "vm-clock-sec", s->vm_clock_nsec / 1000000000);
	add_string(out, indent, "id", s->id);
	add_integer(out, indent, "vm-state-size", s->vm_state_size);
}

/* ---- bitmaps ---- */

static void add_bitmap_human(luaL_Buffer *out, const struct qcow2_bitmap *b, const char *indent,
			     uint32_t index)
{
	char text[24];
	int flags = 0;
	add(out, indent);
	luaL_addchar(out, '[');
	luaL_addlstring(out, text, (size_t)(q2_text_decimal(text, index) - text));
	add(out, "]:\n");
	add(out, indent);
	add(out, "    flags:\n");
	if (b->in_use) {
		add(out, indent);
		add(out, "        [0]: in-use\n");
		flags++;
	}
	if (b->autoset) {
		add(out, indent);
		add(out, flags ? "        [1]: auto\n" : "        [0]: auto\n");
	}
	add(out, indent);
	add(out, "    name: ");
	q2_text_escape(out, b->name);
	luaL_addchar(out, '\n');
	add(out, indent);
	add(out, "    granularity: ");
	luaL_addlstring(out, text, (size_t)(q2_text_decimal(text, b->granularity) - text));
	luaL_addchar(out, '\n');
}

static void add_bitmap_json(luaL_Buffer *out, const struct qcow2_bitmap *b, const char *indent)
{
	add_member(out, indent, "flags");
	add(out, "[\n");
	if (b->in_use) {
		add(out, indent);
		add(out, "        \"in-use\",\n");
	}
	if (b->autoset) {
		add(out, indent);
		add(out, "        \"auto\",\n");
	}
	if (b->in_use || b->autoset)
		drop_comma(out);
	add(out, indent);
	add(out, "    ],\n");
	add_string(out, indent, "name", b->name);
	add_integer(out, indent, "granularity", b->granularity);
}

/* ---- both ---- */

/* Adds row number `index`. gives: 0, or a failure. */
typedef int add_row(luaL_Buffer *out, struct qcow2_image *image, uint32_t index, const char *indent,
		    bool json, struct qcow2_error *err);

static int add_snapshot(luaL_Buffer *out, struct qcow2_image *image, uint32_t index, const char *indent,
			bool json, struct qcow2_error *err)
{
	struct qcow2_snapshot s;
	int rc = qcow2_image_snapshot(image, index, &s, err);
	if (rc)
		return rc;
	if (json)
		add_snapshot_json(out, &s, indent);
	else
		add_snapshot_human(out, &s, indent);
	return 0;
}

static int add_bitmap(luaL_Buffer *out, struct qcow2_image *image, uint32_t index, const char *indent,
		      bool json, struct qcow2_error *err)
{
	struct qcow2_bitmap b;
	int rc = qcow2_image_bitmap(image, index, &b, err);
	if (rc)
		return rc;
	if (json)
		add_bitmap_json(out, &b, indent);
	else
		add_bitmap_human(out, &b, indent, index);
	return 0;
}

/*
 * (image, index, count, indent, json) -> text, next
 * Rows from `index` on, of `count` in all, as many as fit a batch; each begun with `indent`. The JSON form is that of
 * items between the brackets of a list.
 */
static int rows(lua_State *L, add_row *row)
{
	struct qcow2_error err;
	struct qcow2_image *image = q2_bind_self(L, 1, Q2_IMAGE_CLASS);
	uint64_t index = q2_bind_unsigned(L, 2, "index"), count = q2_bind_unsigned(L, 3, "count");
	const char *indent = luaL_checkstring(L, 4);
	bool json = lua_toboolean(L, 5);
	luaL_argcheck(L, count <= UINT32_MAX, 3, "count is too large");
	luaL_Buffer out;
	luaL_buffinit(L, &out);
	for (; index < count && luaL_bufflen(&out) < BATCH; index++) {
		if (json) {
			add(&out, indent);
			add(&out, "{\n");
		}
		if (row(&out, image, (uint32_t)index, indent, json, &err))
			return q2_bind_fail(L, &err);
		if (json) {
			drop_comma(&out);
			add(&out, indent);
			add(&out, index + 1 < count ? "},\n" : "}\n");
		}
	}
	luaL_pushresult(&out);
	lua_pushinteger(L, (lua_Integer)index);
	return 2;
}

/* image:snapshot_rows(index, count, indent, json) */
static int l_snapshot_rows(lua_State *L)
{
	return rows(L, add_snapshot);
}

/* image:bitmap_rows(index, count, indent, json) */
static int l_bitmap_rows(lua_State *L)
{
	return rows(L, add_bitmap);
}

void q2_bind_open_records(lua_State *L)
{
	static const luaL_Reg methods[] = {
		{"snapshot_rows", l_snapshot_rows},
		{"bitmap_rows", l_bitmap_rows},
		{NULL, NULL},
	};
	luaL_getmetatable(L, Q2_IMAGE_CLASS);
	lua_getfield(L, -1, "__index");
	q2_bind_image_functions(L, methods);
	lua_pop(L, 2);
}
