/* SPDX-License-Identifier: MIT
 * What the kinds of stores share among themselves: construction, their error sentence, and the locks of
 * files. Only who makes a kind of store includes it. */
#ifndef Q2_STORE_KIND_H
#define Q2_STORE_KIND_H

#include "base/addr.h"
#include "base/error.h"
#include "base/mem.h"
#include "store/store.h"

/* The host's file offsets are signed, so no store is longer than this. */
#define Q2_STORE_MAX ((uint64_t)INT64_MAX)

/* One buffer of zeros is written again and again where the host cannot make zeros itself. */
#define Q2_STORE_ZEROS ((size_t)1 << 20)

/*
 * gives: a zeroed struct of `size` bytes that begins with a struct qcow2_store of one reference, its name
 * a copy of `name`. fails: `nomem`, NULL.
 */
void *q2_store_new(size_t size, const struct q2_store_ops *ops, const char *name, struct qcow2_error *err);

/* A wrapper's: the same, with everything that is known about `inner` copied (the reference is not taken). */
void *q2_store_new_around(size_t size, const struct q2_store_ops *ops, const struct qcow2_store *inner,
			  struct qcow2_error *err);

/* Frees what q2_store_new made; the last thing that a kind's close does. */
void q2_store_free(struct qcow2_store *store);

/* Counts a call that has changed the store, or may have (q2_store_changes). gives: its answer, `rc`. */
static inline int q2_store_changed(struct qcow2_store *store, int rc)
{
	atomic_fetch_add_explicit(&store->changes, 1, memory_order_release);
	return rc;
}

/* May the range be changed? `verb` is what the error says. fails: `readonly`, `range`. */
int q2_store_check_change(struct qcow2_store *store, const char *verb, uint64_t offset, uint64_t length,
			  struct qcow2_error *err);

/* "Could not <verb> '<name>' at offset N: <strerror>", without the offset when it is Q2_NO_OFFSET.
 * gives: the code that belongs to the errno. */
int q2_store_fail(const struct qcow2_store *store, const char *verb, uint64_t offset, int os_errno,
		  struct qcow2_error *err);

/* Writes zeros through the `write` slot, in bounded pieces. */
int q2_store_write_zeros(struct qcow2_store *store, uint64_t offset, uint64_t length,
			 struct qcow2_error *err);

/* Writes zeros into the holes of a range and behind the end: what `allocate` means, done by hand. Bytes
 * that are there already are not touched. */
int q2_store_fill_holes(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err);

/*
 * Takes the locks of a reader or a writer on an open file; they go with the last descriptor of this open
 * file. fails: `locked`, naming the permission that somebody else holds or forbids, and the `path`.
 */
int q2_lock_take(int fd, const char *path, bool write, struct qcow2_error *err);

#endif
