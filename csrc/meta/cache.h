/* SPDX-License-Identifier: MIT
 * The table cache: L2 tables and refcount blocks, held in slices with a stated memory bound.
 *
 * A *slice* is an aligned piece of a table, at most Q2_SLICE_MAX bytes and at most a cluster, so one
 * never straddles two tables. Bytes are kept as they lie on disk (big-endian).
 * Invariant: a pointer that q2_cache_get gave is good until the next call of q2_cache_get, no longer.
 * Memory: at most `bound` bytes of slices, taken as they are needed. */
#ifndef Q2_META_CACHE_H
#define Q2_META_CACHE_H

#include "base/addr.h"
#include "base/error.h"

#define Q2_SLICE_MAX 16384u
#define Q2_CACHE_BOUND (16u << 20) /* bytes: maps 128 GiB of 64 KiB clusters */

struct q2_slot;

struct q2_cache {
	struct qcow2_store *store; /* borrowed */
	uint32_t slice;            /* bytes */
	uint32_t most;             /* slots at the bound */
	uint32_t used, hand;       /* slots in use; the clock's hand */
	uint32_t room;             /* slots allocated */
	struct q2_slot *slots;
	uint32_t *buckets;     /* hash heads: slot number + 1, 0 none */
	uint32_t bucket_count; /* power of two */
	uint64_t hits, misses;
};

void q2_cache_init(struct q2_cache *cache, struct qcow2_store *store, uint32_t cluster_size, uint64_t bound);
void q2_cache_free(struct q2_cache *cache);

/*
 * needs: `at` aligned to the slice; the caller has bounded it to the file. gives: the slice's bytes,
 * valid until the next call. fails: as the store's read, `nomem`.
 */
int q2_cache_get(struct q2_cache *cache, q2_host at, uint8_t **bytes, struct qcow2_error *err);

/* Forgets every slice (the tables changed behind the cache). */
void q2_cache_drop(struct q2_cache *cache);

#endif
