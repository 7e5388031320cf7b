/* SPDX-License-Identifier: MIT
 * Emptying an image: nothing of the disk is its own any more, its backing file shows everywhere.
 *
 * An image without snapshots and bitmaps consists of its header and its tables then, whatever it held: new ones are
 * built behind the end of the file, switched to by one write of the header (invariant 5), built again behind the
 * header cluster, switched to, and the file is cut off behind them. Others let go of their clusters one by one. */
#include "base/be.h"
#include "image/image.h"
#include "store/kind.h"

/* The tables of an empty image from cluster `base` on: refcount table, refcount blocks, L1 table. */
struct layout {
	uint64_t base, end; /* clusters */
	uint64_t table, blocks, l1;
};

/* One block counts the header cluster, the others the tables themselves. */
static uint64_t first_block(const struct q2_geometry *g, uint64_t base)
{
	return base >> g->refblock_bits;
}

static uint64_t blocks_for(const struct q2_geometry *g, uint64_t base, uint64_t end)
{
	uint64_t first = first_block(g, base), n = ((end - 1) >> g->refblock_bits) - first + 1;
	return first ? n + 1 : n;
}

static struct layout plan(const struct q2_meta *meta, uint64_t base)
{
	const struct q2_geometry *g = &meta->geo;
	struct layout l = {.base = base, .table = 1, .blocks = 1};
	l.l1 = q2_div_up(meta->header.l1_size * 8ull, g->cluster_size);
	for (;;) { /* settles: each round only adds what the last one's additions need */
		l.end = base + l.table + l.blocks + l.l1;
		uint64_t blocks = blocks_for(g, base, l.end);
		uint64_t table = q2_div_up((((l.end - 1) >> g->refblock_bits) + 1) * 8, g->cluster_size);
		if (blocks <= l.blocks && table <= l.table)
			return l;
		l.blocks = q2_max(l.blocks, blocks);
		l.table = q2_max(l.table, table);
	}
}

/* Writes block number `index` of the table to cluster `at`. */
static int write_block(const struct q2_meta *meta, const struct layout *l, uint64_t index, uint64_t at,
		       struct qcow2_error *err)
{
	const struct q2_geometry *g = &meta->geo;
	uint64_t low = index << g->refblock_bits, high = (index + 1) << g->refblock_bits;
	q2_auto uint8_t *block = q2_new(g->cluster_size, 1);
	if (!block)
		return q2_error_nomem(err);
	if (!low)
		q2_refcount_set(block, 0, g->refcount_order, 1);
	for (uint64_t c = q2_max(low, l->base); c < q2_min(high, l->end); c++)
		q2_refcount_set(block, c - low, g->refcount_order, 1);
	return qcow2_store_write(meta->store, at << g->cluster_bits, block, g->cluster_size, err);
}

/* Writes all of the tables. gives: *entries = the refcount table in host order. */
static int write_tables(struct q2_meta *meta, const struct layout *l, uint64_t **entries,
			struct qcow2_error *err)
{
	const struct q2_geometry *g = &meta->geo;
	uint64_t bytes = l->table << g->cluster_bits, at = l->base + l->table,
		 first = first_block(g, l->base);
	q2_auto uint64_t *table = q2_new(bytes, 1), *raw = q2_new(bytes, 1);
	if (!table || !raw)
		return q2_error_nomem(err);
	int rc = 0;
	for (uint64_t i = 0; i < l->blocks && !rc; i++) {
		uint64_t index = first ? (i ? first + i - 1 : 0) : i;
		table[index] = (at + i) << g->cluster_bits;
		raw[index] = htobe64(table[index]);
		rc = write_block(meta, l, index, at + i, err);
	}
	if (!rc)
		rc = qcow2_store_write(meta->store, l->base << g->cluster_bits, raw, bytes, err);
	if (!rc && l->l1)
		rc = q2_store_write_zeros(meta->store, (l->end - l->l1) << g->cluster_bits,
					  l->l1 << g->cluster_bits, err);
	if (!rc)
		*entries = q2_take(&table);
	return rc;
}

/* Memory speaks of the empty tables from now on. */
static int adopt(struct qcow2_image *image, const struct layout *l, uint64_t **entries)
{
	struct q2_meta *meta = &image->meta;
	q2_refcount_follow(meta, q2_take(entries), (uint32_t)(l->table << (meta->geo.cluster_bits - 3)));
	q2_cache_drop(&meta->cache);
	q2_live_metadata_free(&meta->live);
	meta->live = (struct q2_live_metadata){0};
	meta->free_hint = 1;
	/* There is no guest data, and where the tables were that would have told of it others may lie. */
	meta->unproven = 0;
	q2_vec_free(&meta->l2_tables);
	meta->file_length = q2_max(meta->file_length, l->end << meta->geo.cluster_bits);
	meta->virgin = q2_max(meta->virgin, l->end);
	meta->stream_at = meta->stream_end = 0;
	image->map.l1_offset = meta->header.l1_table_offset;
	if (image->map.l1)
		memset(image->map.l1, 0, image->map.l1_entries * sizeof *image->map.l1);
	image->map.last.length = 0;
	image->expanded_host = UINT64_MAX;
	int rc = q2_live_metadata_add(&meta->live, 0, 1);
	return rc ? rc : q2_live_metadata_add(&meta->live, l->base, l->end - l->base);
}

/* Builds the tables at `l` and lets the header name them. */
static int move_to(struct qcow2_image *image, const struct layout *l, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	q2_auto uint64_t *entries = NULL;
	int rc = write_tables(meta, l, &entries, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	if (rc)
		return q2_writeback_fail(meta, rc, err);
	meta->header.refcount_table_offset = l->base << meta->geo.cluster_bits;
	meta->header.refcount_table_clusters = (uint32_t)l->table;
	meta->header.l1_table_offset = l->l1 ? (l->end - l->l1) << meta->geo.cluster_bits : 0;
	rc = q2_writeback_header(meta, err);
	if (rc)
		return rc;
	return adopt(image, l, &entries) ? q2_writeback_fail(meta, q2_error_nomem(err), err) : 0;
}

/* The file ends behind the last table. */
static int cut_off(struct qcow2_image *image, const struct layout *l, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint64_t end = l->end << meta->geo.cluster_bits, length;
	int rc = qcow2_store_length(image->store, &length, err);
	if (rc || length <= end)
		return rc;
	rc = qcow2_store_resize(image->store, end, err);
	if (!rc) {
		meta->file_length = end;
		meta->virgin = l->end;
	}
	return rc;
}

/* Is the disk all that the file holds? */
static int is_plain(struct qcow2_image *image, bool *plain, struct qcow2_error *err)
{
	uint32_t snapshots = 0, bitmaps = 0;
	int rc = qcow2_image_snapshot_count(image, &snapshots, err);
	if (!rc)
		rc = qcow2_image_bitmap_count(image, &bitmaps, err);
	*plain = !rc && !snapshots && !bitmaps && !image->meta.geo.external_data && !image->tracks.count;
	for (size_t i = 0; i < image->extensions.count && *plain; i++) {
		/* One that we do not know may own clusters. */
		const struct q2_extension *ext = (struct q2_extension *)image->extensions.items + i;
		*plain = ext->type == (uint32_t)Q2_EXT_BACKING_FORMAT ||
			 ext->type == (uint32_t)Q2_EXT_FEATURE_NAMES;
	}
	return rc;
}

static int empty(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	bool plain;
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = is_plain(image, &plain, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = q2_map_load(&image->map, err);
	if (rc)
		return rc;
	struct layout behind = plan(meta, q2_div_up(meta->file_length, meta->geo.cluster_size));
	struct layout front = plan(meta, 1);
	bool room = front.end <= behind.base &&
		    behind.table << meta->geo.cluster_bits <= Q2_MAX_REFTABLE_BYTES &&
		    behind.end <= 1ull << (56 - meta->geo.cluster_bits);
	/* A device has no room behind its end. */
	if (!plain || !room || qcow2_store_is_device(image->store)) {
		rc = q2_unmap_clusters(image, 0, q2_round_up(image->size, meta->geo.cluster_size), err);
		return rc ? rc : q2_writeback_flush(meta, err);
	}
	rc = move_to(image, &behind, err);
	if (!rc)
		rc = move_to(image, &front, err);
	if (!rc)
		rc = cut_off(image, &front, err);
	return rc ? rc : q2_writeback_flush(meta, err);
}

int q2_image_empty(struct qcow2_image *image, struct qcow2_error *err)
{
	int rc = empty(image, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
