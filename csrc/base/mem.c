/* SPDX-License-Identifier: MIT
 * Growth of arrays. */
#include "base/mem.h"

#include <string.h>

static bool make_room(struct q2_vec *vec, size_t more, size_t size)
{
	size_t room = vec->room ? vec->room : 8;
	if (more <= vec->room - vec->count)
		return true;
	if (more > SIZE_MAX / 2 - vec->count)
		return false;
	while (room < vec->count + more)
		room *= 2;
	void *items = room > SIZE_MAX / size ? NULL : realloc(vec->items, room * size);
	if (!items)
		return false;
	vec->items = items;
	vec->room = room;
	return true;
}

bool q2_vec_append(struct q2_vec *vec, const void *items, size_t count, size_t size)
{
	if (!count)
		return true;
	if (!make_room(vec, count, size))
		return false;
	memcpy((char *)vec->items + vec->count * size, items, count * size);
	vec->count += count;
	return true;
}

void *q2_vec_push(struct q2_vec *vec, size_t size)
{
	if (!make_room(vec, 1, size))
		return NULL;
	char *item = (char *)vec->items + vec->count++ * size;
	return memset(item, 0, size);
}

void q2_vec_free(struct q2_vec *vec)
{
	free(vec->items);
	*vec = (struct q2_vec){0};
}
