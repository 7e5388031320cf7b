/* SPDX-License-Identifier: MIT
 * New L1 and L2 tables for the whole disk, beside the old ones; with new reference counts (meta/counts.h) they become
 * true by one switch of the header (invariant 5).
 *
 *   q2_table_rebuild_take    places for the new tables
 *   q2_rebuild_open    ... then counts are changed: q2_table_rebuild_count, q2_refcount_add ...
 *   q2_table_rebuild_write   the tables, made of the old ones
 *   q2_table_rebuild_name    the header's fields
 *   q2_rebuild_switch
 *   q2_table_rebuild_adopt   the map speaks of the new tables
 *   q2_rebuild_undo, q2_table_rebuild_free   in any case
 */
#ifndef Q2_IMAGE_TABLE_REBUILD_H
#define Q2_IMAGE_TABLE_REBUILD_H

#include "image/image.h"
#include "meta/refcount_rebuild.h"

struct q2_table_rebuild {
	struct q2_rebuild counts;
	bool full;                   /* every L1 entry gets a table; set before q2_table_rebuild_take */
	uint64_t l1_at, l1_clusters; /* the new L1's place, cluster number and count */
	uint64_t *l1;                /* its entries, host order */
	uint32_t l1_entries;
	struct q2_vec l2; /* struct q2_span: places for L2 tables */
};

void q2_table_rebuild_free(struct q2_table_rebuild *tables);

/* Adds `delta` to the counts of an L1's L2 tables alone. needs: the counts is open. */
int q2_table_rebuild_count_own(struct qcow2_image *image, const uint64_t *l1, uint32_t entries, int delta,
			       struct qcow2_error *err);

/* Adds `delta` to the counts of an L1's L2 tables and of all that these refer to, by runs. needs: as above. */
int q2_table_rebuild_count(struct qcow2_image *image, const uint64_t *l1, uint32_t entries, int delta,
			   struct qcow2_error *err);

/*
 * Adds `delta` to the counts of the guest's clusters in memory alone, as far as memory reaches: where a count would not
 * fit this fails before anything has changed. needs: nothing in the cache is dirty; q2_cache_drop afterwards.
 */
int q2_table_rebuild_try(struct qcow2_image *image, const uint64_t *l1, uint32_t entries, int delta,
			 struct qcow2_error *err);

/* Takes the places for a new L1 of `entries` and for the L2 tables that `l1` has. */
int q2_table_rebuild_take(struct qcow2_image *image, struct q2_table_rebuild *tables, const uint64_t *l1,
			  uint32_t entries, struct qcow2_error *err);

/* Changes the bytes of one L2 table, whose first entry stands for guest offset `guest`. */
typedef int q2_table_rebuild_convert(struct qcow2_image *image, uint64_t guest, uint8_t *table,
				     struct qcow2_error *err);

/* COPIED exactly where the count is one. */
int q2_table_rebuild_set_copied(struct qcow2_image *image, uint64_t guest, uint8_t *table,
				struct qcow2_error *err);

/* Writes the new tables: copies of those of `l1` (empty ones where it has none), as `convert` changes them; NULL
 * changes nothing. */
int q2_table_rebuild_write(struct qcow2_image *image, struct q2_table_rebuild *tables, const uint64_t *l1,
			   q2_table_rebuild_convert *convert, struct qcow2_error *err);

/* Lets the header name the new L1. */
void q2_table_rebuild_name(struct qcow2_image *image, const struct q2_table_rebuild *tables);

/* After the switch: lets the map name it too, with the header's size. */
void q2_table_rebuild_adopt(struct qcow2_image *image, struct q2_table_rebuild *tables);

#endif
