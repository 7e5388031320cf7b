/* SPDX-License-Identifier: MIT
 * Growth of arrays. */
#include "base/mem.h"

#include <string.h>

void *q2_vec_push(struct q2_vec *vec, size_t size)
{
	if (vec->count == vec->room) {
		size_t room = vec->room ? vec->room * 2 : 8;
		void *items = room > SIZE_MAX / size ? NULL : realloc(vec->items, room * size);
		if (!items)
			return NULL;
		vec->items = items;
		vec->room = room;
	}
	char *item = (char *)vec->items + vec->count++ * size;
	return memset(item, 0, size);
}

void q2_vec_free(struct q2_vec *vec)
{
	free(vec->items);
	*vec = (struct q2_vec){0};
}
