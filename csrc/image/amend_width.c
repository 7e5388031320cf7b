/* SPDX-License-Identifier: MIT
 * Another width of reference counts: new table and blocks beside the old ones, made true by one header write that
 * carries the width, the table's place and its length. */
#include "image/amend.h"
#include "meta/refcount_rebuild.h"

#include <inttypes.h>
#include <string.h>

/* Most blocks that a refcount table within the limits can name. */
enum { MOST_BLOCKS = Q2_MAX_REFTABLE_BYTES / 8 };

/* The new structures in the making. */
struct width {
	unsigned order, block_bits;
	uint8_t *need;   /* MOST_BLOCKS flags: the block has a count that is not 0 */
	uint64_t blocks; /* how many are set */
	uint64_t table_clusters;
	uint8_t *old; /* one old block's bytes */
};

static void width_free(struct width *w)
{
	free(w->need);
	free(w->old);
}

static int width_init(struct qcow2_image *image, unsigned order, struct width *w, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	*w = (struct width){.order = order, .block_bits = g->cluster_bits + 3 - order};
	w->need = q2_new(MOST_BLOCKS, 1);
	w->old = q2_new_pages(g->cluster_size);
	return w->need && w->old ? 0 : q2_error_nomem(err);
}

/* Which new blocks are needed for the counts that are on disk? fails: `range`. */
static int scan(struct qcow2_image *image, struct width *w, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t most = q2_refcount_max(w->order), top = 0;
	memset(w->need, 0, MOST_BLOCKS);
	w->blocks = 0;
	for (uint32_t i = 0; i < meta->reftable_entries; i++) {
		uint64_t at = meta->reftable[i] & Q2_REFTABLE_MASK, first = (uint64_t)i << g->refblock_bits;
		int rc = at ? qcow2_store_read(image->store, at, w->old, g->cluster_size, err) : 0;
		if (rc)
			return rc;
		for (uint64_t j = 0; at && j < 1ull << g->refblock_bits; j++) {
			uint64_t count = q2_refcount_get(w->old, j, g->refcount_order);
			uint64_t block = (first + j) >> w->block_bits;
			if (!count)
				continue;
			if (count > most)
				return q2_error_set(
					err, QCOW2_E_RANGE, (first + j) << g->cluster_bits,
					"Cannot decrease refcount entry width to %u bits: Cluster at "
					"offset %#" PRIx64 " has a refcount of %" PRIu64,
					1u << w->order, (first + j) << g->cluster_bits, count);
			if (block >= MOST_BLOCKS)
				return q2_error_set(err, QCOW2_E_RANGE, (first + j) << g->cluster_bits,
						    "The reference count table would exceed %u bytes",
						    Q2_MAX_REFTABLE_BYTES);
			w->blocks += !w->need[block];
			w->need[block] = 1;
			top = block;
		}
	}
	w->table_clusters = q2_div_up((top + 1) * 8, g->cluster_size);
	return 0;
}

int q2_amend_width_check(struct qcow2_image *image, unsigned order, struct qcow2_error *err)
{
	struct width w = {0};
	/* The counts that the disk will have once all is written. */
	int rc = q2_writeback_in_time(&image->meta, err);
	if (!rc)
		rc = width_init(image, order, &w, err);
	if (!rc)
		rc = scan(image, &w, err);
	width_free(&w);
	return rc;
}

/* Takes the room for table and blocks; that itself may need more of them, so again until it holds. */
static int take_room(struct qcow2_image *image, struct width *w, struct q2_rebuild *counts, uint64_t *start,
		     struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	int rc = scan(image, w, err);
	while (!rc) {
		uint64_t room = w->blocks + w->table_clusters;
		rc = q2_rebuild_take(meta, counts, room, start, err);
		if (!rc)
			rc = q2_writeback_flush(meta, err);
		if (!rc)
			rc = scan(image, w, err);
		if (!rc && w->blocks + w->table_clusters <= room) {
			w->table_clusters = room - w->blocks; /* what is over makes the table longer */
			return 0;
		}
		if (!rc) {
			counts->taken.count--;
			rc = q2_alloc_abandon(meta, *start, room, err);
		}
	}
	return rc;
}

/* Fills a new block from the old ones. needs: they are on disk. */
static int convert_block(struct qcow2_image *image, struct width *w, uint64_t block, uint8_t *bytes,
			 struct qcow2_error *err)
{
	const struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t first = block << w->block_bits, end = (block + 1) << w->block_bits;
	memset(bytes, 0, g->cluster_size);
	for (uint64_t cluster = first; cluster < end;) {
		uint64_t stop = q2_min(end, ((cluster >> g->refblock_bits) + 1) << g->refblock_bits);
		uint64_t at = q2_refcount_block(meta, cluster);
		int rc = at ? qcow2_store_read(image->store, at, w->old, g->cluster_size, err) : 0;
		if (rc)
			return rc;
		uint64_t within = cluster & ((1ull << g->refblock_bits) - 1);
		for (uint64_t i = 0; at && i < stop - cluster; i++)
			q2_refcount_set(bytes, cluster - first + i, w->order,
					q2_refcount_get(w->old, within + i, g->refcount_order));
		cluster = stop;
	}
	return 0;
}

/* Writes table and blocks from cluster `start` on. gives: the table in host order. */
static int write_all(struct qcow2_image *image, struct width *w, uint64_t start, uint64_t *table,
		     struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t bytes = w->table_clusters << g->cluster_bits;
	uint64_t at = (start + w->table_clusters) << g->cluster_bits;
	q2_auto uint64_t *raw = q2_new(bytes, 1);
	q2_auto uint8_t *block = q2_new_pages(g->cluster_size);
	if (!raw || !block)
		return q2_error_nomem(err);
	for (uint64_t i = 0; i < bytes / 8 && i < MOST_BLOCKS; i++) {
		if (!w->need[i])
			continue;
		int rc = convert_block(image, w, i, block, err);
		if (!rc)
			rc = qcow2_store_write(image->store, at, block, g->cluster_size, err);
		if (rc)
			return rc;
		table[i] = at;
		raw[i] = htobe64(at);
		at += g->cluster_size;
	}
	return qcow2_store_write(image->store, start << g->cluster_bits, raw, bytes, err);
}

/* After the switch: the old table and blocks are free. */
static int adopt(struct qcow2_image *image, struct width *w, const struct qcow2_header *old, uint64_t *table,
		 struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	q2_auto uint64_t *old_table = q2_take(&meta->reftable);
	uint32_t old_entries = meta->reftable_entries;
	q2_cache_drop(&meta->cache);
	q2_refcount_follow(meta, table, (uint32_t)(w->table_clusters << (meta->geo.cluster_bits - 3)));
	q2_header_geometry(&meta->header, &meta->geo);
	meta->free_hint = 1;
	int rc = q2_alloc_release(meta, old->refcount_table_offset >> old->cluster_bits,
				  old->refcount_table_clusters, err);
	for (uint32_t i = 0; i < old_entries && !rc; i++)
		if (old_table[i] & Q2_REFTABLE_MASK)
			rc = q2_alloc_release(meta, (old_table[i] & Q2_REFTABLE_MASK) >> old->cluster_bits, 1,
					      err);
	return rc ? rc : q2_writeback_flush(meta, err);
}

int q2_amend_width(struct qcow2_image *image, unsigned order, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct q2_rebuild counts = {0};
	struct width w = {0};
	uint64_t start;
	q2_auto uint64_t *table = NULL;
	/* Counts are copied from the disk and switched with the rest, so from now on they are kept in time. */
	int rc = q2_writeback_in_time(meta, err);
	if (!rc)
		rc = width_init(image, order, &w, err);
	if (!rc)
		rc = take_room(image, &w, &counts, &start, err);
	if (!rc && w.table_clusters << meta->geo.cluster_bits > Q2_MAX_REFTABLE_BYTES)
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				  "The reference count table would exceed %u bytes", Q2_MAX_REFTABLE_BYTES);
	if (!rc && !(table = q2_new(w.table_clusters << meta->geo.cluster_bits, 1)))
		rc = q2_error_nomem(err);
	if (!rc)
		rc = write_all(image, &w, start, table, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	if (!rc) {
		const struct qcow2_header old = meta->header;
		meta->header.refcount_table_offset = start << meta->geo.cluster_bits;
		meta->header.refcount_table_clusters = (uint32_t)w.table_clusters;
		meta->header.refcount_order = order;
		rc = q2_writeback_header(meta, err);
		if (!rc) {
			q2_vec_free(&counts.taken);
			rc = adopt(image, &w, &old, q2_take(&table), err);
		}
	}
	q2_rebuild_undo(meta, &counts);
	width_free(&w);
	return rc;
}
