/* SPDX-License-Identifier: MIT
 * The table cache: L2 tables and refcount blocks, held in slices with a stated memory bound.
 *
 * A *slice* is an aligned piece of a table, at most Q2_SLICE_MAX bytes and at most a cluster, so one
 * never straddles two tables. Bytes are kept as they lie on disk (big-endian).
 *
 * A slice that was edited is *dirty* until q2_cache_write takes it down; only writeback.c calls that, since
 * the order of writes is its duty. Dirty slices are never evicted: when nothing else is left the cache
 * grows past its bound, and the writer commits soon (q2_cache_is_full). A *fresh* slice belongs to a table
 * that nothing on disk points at yet.
 *
 * Invariant: a pointer that the cache gave is good until its next call, no longer. */
#ifndef Q2_META_CACHE_H
#define Q2_META_CACHE_H

#include "base/addr.h"
#include "base/error.h"

#define Q2_SLICE_MAX 16384u
#define Q2_CACHE_BOUND (16u << 20) /* bytes: maps 128 GiB of 64 KiB clusters */

struct q2_slot;

/* What a slice holds; a mask for q2_cache_write. */
enum q2_table {
	Q2_TABLE_L2 = 1,
	Q2_TABLE_REFBLOCK = 2,
};

struct q2_cache {
	struct qcow2_store *store; /* borrowed */
	uint32_t slice;            /* bytes */
	uint32_t most;             /* slots at the bound */
	uint32_t used, hand;       /* slots in use; the clock's hand */
	uint32_t room;             /* slots allocated */
	struct q2_slot *slots;
	uint32_t *buckets;     /* hash heads: slot number + 1, 0 none */
	uint32_t bucket_count; /* power of two */
	uint32_t dirty;        /* dirty slots */
	uint64_t hits, misses;
	uint64_t
		changes; /* grows with every edit, new table and forgotten slice: answers kept elsewhere are stale */
};

void q2_cache_init(struct q2_cache *cache, struct qcow2_store *store, uint32_t cluster_size, uint64_t bound);
void q2_cache_free(struct q2_cache *cache);

/*
 * needs: `at` aligned to the slice; the caller has bounded it to the file. gives: the slice's bytes,
 * valid until the next call. fails: as the store's read, `nomem`.
 */
int q2_cache_get(struct q2_cache *cache, q2_host at, uint8_t **bytes, struct qcow2_error *err);

/* Is the slice at `at` in memory? */
bool q2_cache_has(const struct q2_cache *cache, q2_host at);

/* How many bytes from `at` on, at most `length`, the cache has no changes of. */
uint64_t q2_cache_unchanged(const struct q2_cache *cache, q2_host at, uint64_t length);

/* The same for writing: the slice is dirty from now on. */
int q2_cache_edit(struct q2_cache *cache, q2_host at, enum q2_table kind, uint8_t **bytes,
		  struct qcow2_error *err);

/*
 * A new table at `at`, `length` bytes (a multiple of the slice), without reading what the file has there:
 * zeros, or a copy of `bytes` when not NULL. Dirty and fresh.
 */
int q2_cache_new(struct q2_cache *cache, q2_host at, uint64_t length, enum q2_table kind,
		 const uint8_t *bytes, struct qcow2_error *err);

/*
 * Writes the dirty slices whose kind is in `kinds` and that are fresh (fresh_only) or any (!fresh_only), in
 * the order of the file. What is written is clean and no longer fresh.
 */
int q2_cache_write(struct q2_cache *cache, unsigned kinds, bool fresh_only, struct qcow2_error *err);

/* Is half of the bound dirty? Then it is time to commit. */
static inline bool q2_cache_is_full(const struct q2_cache *cache)
{
	return cache->dirty > cache->most / 2;
}

/* Forgets the slices of [at, at + length), dirty or not: the table there was given up. */
void q2_cache_forget(struct q2_cache *cache, q2_host at, uint64_t length);

/* Forgets every slice (the tables changed behind the cache). */
void q2_cache_drop(struct q2_cache *cache);

#endif
