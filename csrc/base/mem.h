/* SPDX-License-Identifier: MIT
 * Memory: overflow-checked allocation, buffers freed by scope, and a growing array. */
#ifndef Q2_BASE_MEM_H
#define Q2_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Zeroed; NULL when count * size overflows or memory is out. Free with free(). */
static inline void *q2_new(size_t count, size_t size)
{
	return calloc(count ? count : 1, size ? size : 1);
}

/* Page-aligned and not zeroed, for I/O of whole clusters. Free with free(). */
static inline void *q2_new_pages(size_t bytes)
{
	void *p = NULL;
	return posix_memalign(&p, 4096, bytes ? bytes : 1) == 0 ? p : NULL;
}

static inline void q2_free_scope(void *p)
{
	free(*(void **)p);
}

/* `q2_auto uint8_t *buf = ...` is freed when the scope ends; hand it on with q2_take(&buf). */
#define q2_auto __attribute__((cleanup(q2_free_scope)))

#define q2_take(pp)                              \
	({                                       \
		__typeof__(*(pp)) took_ = *(pp); \
		*(pp) = NULL;                    \
		took_;                           \
	})

/* A growing array of one struct type: `struct q2_vec v = {0}; T *t = q2_vec_push(&v, sizeof(T));`
 * Growth may move the items. */
struct q2_vec {
	void *items;
	size_t count, room;
};

/* gives: room for one more item of `size` bytes at the end, zeroed; NULL when memory is out (the
 * array is as it was). */
void *q2_vec_push(struct q2_vec *vec, size_t size);

/* Adds `count` items of `size` bytes. gives: false when memory is out (the array is as it was). */
bool q2_vec_append(struct q2_vec *vec, const void *items, size_t count, size_t size);

/* Frees the items; the array is empty and usable afterwards. */
void q2_vec_free(struct q2_vec *vec);

#endif
