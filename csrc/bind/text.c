/* SPDX-License-Identifier: MIT
 * How values look: numbers, sizes, names from files for terminals and for JSON. */
#include "bind/text.h"

#include <stdio.h>

char *q2_text_padded(char *to, uint64_t value, int least)
{
	char digits[20];
	size_t n = sizeof digits;
	do {
		digits[--n] = (char)('0' + value % 10);
		value /= 10;
	} while (value || (int)(sizeof digits - n) < least);
	memcpy(to, digits + n, sizeof digits - n);
	return to + (sizeof digits - n);
}

char *q2_text_decimal(char *to, uint64_t value)
{
	return q2_text_padded(to, value, 1);
}

char *q2_text_signed(char *to, int64_t value)
{
	if (value < 0)
		*to++ = '-';
	return q2_text_decimal(to, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

char *q2_text_size(char to[Q2_TEXT_SIZE], uint64_t bytes)
{
	static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
	if (bytes < 1000)
		return q2_text_put(q2_text_decimal(to, bytes), units[0]);
	double value = (double)bytes;
	size_t unit = 0;
	for (; value >= 1000; unit++)
		value /= 1024;
	return to + snprintf(to, Q2_TEXT_SIZE, "%.3g%s", value, units[unit]);
}

/* ---- UTF-8 ---- */

enum { NO_POINT = 0x110000 }; /* above all of them */

/* The code point at `bytes`, which takes *used of them; NO_POINT where there is no UTF-8. A sequence that is broken off,
 * too long or forbidden is taken whole, as QEMU takes it. */
static uint32_t decode(const uint8_t *bytes, size_t room, size_t *used)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000}; /* no longer form than needed */
	uint32_t point = bytes[0];
	size_t length = 0, n = 1;
	while (length < 8 && point & 0x80u >> length)
		length++;
	point &= 0x7fu >> length;
	if (length >= 2 && length <= 6)
		for (; n < length && n < room && (bytes[n] & 0xc0) == 0x80; n++)
			point = point << 6 | (bytes[n] & 0x3f);
	*used = n;
	if (!length)
		return point;
	bool whole = n == length && length >= 2 && length <= 4;
	bool fits = whole && point >= least[length] && point < NO_POINT && (point < 0xd800 || point > 0xdfff);
	return fits ? point : NO_POINT;
}

static char *put_hex(char *to, uint32_t value, int digits, const char *alphabet)
{
	for (int i = digits - 1; i >= 0; i--)
		*to++ = alphabet[value >> 4 * i & 15];
	return to;
}

static bool plain(uint8_t byte)
{
	return byte >= ' ' && byte < 0x7f;
}

void q2_text_escape(luaL_Buffer *out, struct qcow2_bytes name)
{
	for (size_t at = 0, start = 0; at <= name.length;) {
		size_t used = 1;
		if (at < name.length) {
			uint8_t byte = name.data[at];
			/* C0 and DEL are one byte; C1 is U+0080 to U+009F, which terminals obey too. */
			uint32_t point = plain(byte) ? byte : decode(name.data + at, name.length - at, &used);
			if (point >= ' ' && point != 0x7f && !(point >= 0x80 && point < 0xa0) &&
			    point != NO_POINT) {
				at += used;
				continue;
			}
		}
		/* What needs no escape goes out in one piece. */
		if (at > start)
			luaL_addlstring(out, (const char *)name.data + start, at - start);
		if (at == name.length)
			break;
		for (start = at + used; at < start; at++) {
			char *to = luaL_prepbuffsize(out, 4);
			put_hex(q2_text_put(to, "\\x"), name.data[at], 2, "0123456789abcdef");
			luaL_addsize(out, 4);
		}
	}
}

static char *put_unit(char *to, uint32_t value)
{
	return put_hex(q2_text_put(to, "\\u"), value, 4, "0123456789ABCDEF");
}

static char *put_json(char *to, uint32_t point)
{
	static const char from[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
	const char *at = point && point < 0x80 ? strchr(from, (int)point) : NULL;
	if (at) {
		*to++ = '\\';
		*to++ = names[at - from];
		return to;
	}
	if (point == NO_POINT)
		point = 0xfffd;
	if (point <= 0xffff)
		return put_unit(to, point);
	point -= 0x10000;
	return put_unit(put_unit(to, 0xd800 + (point >> 10)), 0xdc00 + (point & 0x3ff));
}

void q2_text_quote(luaL_Buffer *out, struct qcow2_bytes text)
{
	luaL_addchar(out, '"');
	for (size_t at = 0; at < text.length;) {
		size_t start = at, used;
		while (at < text.length && plain(text.data[at]) && text.data[at] != '"' &&
		       text.data[at] != '\\')
			at++;
		if (at > start)
			luaL_addlstring(out, (const char *)text.data + start, at - start);
		if (at == text.length)
			break;
		char *to = luaL_prepbuffsize(out, 12);
		char *end = put_json(to, decode(text.data + at, text.length - at, &used));
		luaL_addsize(out, (size_t)(end - to));
		at += used;
	}
	luaL_addchar(out, '"');
}

/* ---- the same for Lua ---- */

static struct qcow2_bytes check_bytes(lua_State *L, int arg)
{
	struct qcow2_bytes bytes;
	bytes.data = (const uint8_t *)luaL_checklstring(L, arg, &bytes.length);
	return bytes;
}

/* core.size_text(bytes): a number of 64 bits without a sign, as images have them */
static int l_size_text(lua_State *L)
{
	char text[Q2_TEXT_SIZE];
	char *end = q2_text_size(text, (uint64_t)luaL_checkinteger(L, 1));
	lua_pushlstring(L, text, (size_t)(end - text));
	return 1;
}

/* core.escape(name) */
static int l_escape(lua_State *L)
{
	struct qcow2_bytes name = check_bytes(L, 1);
	luaL_Buffer out;
	luaL_buffinit(L, &out);
	q2_text_escape(&out, name);
	luaL_pushresult(&out);
	return 1;
}

/* core.quote(text) */
static int l_quote(lua_State *L)
{
	struct qcow2_bytes text = check_bytes(L, 1);
	luaL_Buffer out;
	luaL_buffinit(L, &out);
	q2_text_quote(&out, text);
	luaL_pushresult(&out);
	return 1;
}

void q2_bind_open_text(lua_State *L)
{
	static const luaL_Reg functions[] = {
		{"size_text", l_size_text},
		{"escape", l_escape},
		{"quote", l_quote},
		{NULL, NULL},
	};
	luaL_setfuncs(L, functions, 0);
}
