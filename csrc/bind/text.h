/* SPDX-License-Identifier: MIT
 * How values look: numbers, sizes, names from files for terminals and for JSON. Lists of many rows are made with
 * these, and Lua has them too (core.size_text, core.escape, core.quote), so that a thing looks the same everywhere. */
#ifndef Q2_BIND_TEXT_H
#define Q2_BIND_TEXT_H

#include "bind/bind.h"

#include <string.h>

/* ---- at `to`, where there is room; gives: the end. printf would be most of the time of a long list. ---- */

static inline char *q2_text_put(char *to, const char *text)
{
	size_t length = strlen(text);
	memcpy(to, text, length);
	return to + length;
}

char *q2_text_decimal(char *to, uint64_t value);
char *q2_text_signed(char *to, int64_t value);
/* With zeros in front, at least `digits` digits. */
char *q2_text_padded(char *to, uint64_t value, int digits);

/* Bytes with three significant digits and a unit: "197 KiB", "1.5 GiB". The next unit starts at 1000 of the last, so
 * that four digits never show. */
enum { Q2_TEXT_SIZE = 16 }; /* room that it needs, the end mark included */
char *q2_text_size(char to[Q2_TEXT_SIZE], uint64_t bytes);

/* ---- into a buffer of Lua's ---- */

/* A name for a terminal: control characters and bytes that are no UTF-8 become \xNN. */
void q2_text_escape(luaL_Buffer *out, struct qcow2_bytes name);

/* A JSON string with its quotes; all that is not ASCII is escaped. Bytes that are no UTF-8 become U+FFFD, one
 * for each broken sequence, as QEMU has it. */
void q2_text_quote(luaL_Buffer *out, struct qcow2_bytes text);

#endif
