/* SPDX-License-Identifier: MIT
 * What the tables of one image file share: the store, the geometry, the header, the cache. */
#ifndef Q2_META_META_H
#define Q2_META_META_H

#include "format/entry.h"
#include "meta/cache.h"

struct q2_meta {
	struct qcow2_store *store; /* borrowed from the image */
	struct qcow2_header header;
	struct q2_geometry geo;
	uint64_t file_length; /* bytes; every table lies below it (SAFETY rule 2) */
	struct q2_cache cache;

	uint64_t *reftable; /* host order; NULL until the first use */
	uint32_t reftable_entries;
};

void q2_meta_free(struct q2_meta *meta);

/*
 * Does a table of `bytes` at `at` lie aligned, behind the header and inside the file? `what` names it
 * ("L2 table"). fails: `corrupt`.
 */
int q2_meta_bound(const struct q2_meta *meta, const char *what, uint64_t at, uint64_t bytes,
		  struct qcow2_error *err);

/* Reads a table of big-endian 64-bit entries whole, in host order. gives: an array to free().
 * needs: bytes == entries * 8 within the limits of header.h; bounds it itself. */
int q2_meta_read_table(const struct q2_meta *meta, const char *what, uint64_t at, uint32_t entries,
		       uint64_t **out, struct qcow2_error *err);

/* Refuses a table (host order) that names one offset twice. */
int q2_meta_distinct(const uint64_t *table, uint32_t entries, uint64_t mask, const char *what,
		     struct qcow2_error *err);

/* ---- reference counts (refcount.c) ------------------------------------------------------------- */

/* The refcount table in memory; reads it on first use. */
int q2_refcount_load(struct q2_meta *meta, struct qcow2_error *err);

/* The count of host cluster number `cluster`; 0 where no block exists. */
int q2_refcount_read(struct q2_meta *meta, uint64_t cluster, uint64_t *count, struct qcow2_error *err);

#endif
