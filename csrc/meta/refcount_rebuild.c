/* SPDX-License-Identifier: MIT
 * Whole-image changes: new reference counts beside the old ones, switched by the header. */
#include "meta/refcount_rebuild.h"

#include "base/be.h"

int q2_rebuild_take(struct q2_meta *meta, struct q2_rebuild *counts, uint64_t count, uint64_t *start,
		    struct qcow2_error *err)
{
	uint64_t got;
	int rc = q2_alloc(meta, count, true, start, &got, err);
	if (rc)
		return rc;
	struct q2_span *span = q2_vec_push(&counts->taken, sizeof *span);
	if (!span) {
		q2_alloc_abandon(meta, *start, count, NULL);
		return q2_error_nomem(err);
	}
	*span = (struct q2_span){*start, count};
	q2_live_metadata_add(&meta->live, *start, count);
	return 0;
}

static uint32_t block_count(const struct q2_meta *meta)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < meta->reftable_entries; i++)
		n += (meta->reftable[i] & Q2_REFTABLE_MASK) != 0;
	return n;
}

/* Room for table and blocks. Taking it may itself add blocks or even grow the table: again until it holds. */
static int take_room(struct q2_meta *meta, struct q2_rebuild *counts, uint64_t *start,
		     struct qcow2_error *err)
{
	for (;;) {
		uint64_t need = meta->header.refcount_table_clusters + (uint64_t)block_count(meta);
		int rc = q2_rebuild_take(meta, counts, need, start, err);
		if (rc)
			return rc;
		if (meta->header.refcount_table_clusters + (uint64_t)block_count(meta) <= need)
			return 0;
		counts->taken.count--;
		rc = q2_alloc_abandon(meta, *start, need, err);
		if (rc)
			return rc;
	}
}

int q2_rebuild_open(struct q2_meta *meta, struct q2_rebuild *counts, struct qcow2_error *err)
{
	const struct q2_geometry *g = &meta->geo;
	uint64_t start;
	/* The copies are made from the disk, so from now on counts are kept in time there. */
	int rc = q2_writeback_in_time(meta, err);
	counts->old_header = meta->header;
	if (!rc)
		rc = take_room(meta, counts, &start, err);
	/* The counts of all that was taken are on disk before anything else: after a crash it is leaked. */
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	q2_auto uint64_t *table = rc ? NULL : q2_new(meta->reftable_entries, sizeof *table);
	if (!rc && !table)
		rc = q2_error_nomem(err);
	if (rc)
		return rc;
	counts->old_header = meta->header; /* the table may have grown */
	uint64_t at = (start + meta->header.refcount_table_clusters) << g->cluster_bits;
	for (uint32_t i = 0; i < meta->reftable_entries && !rc; i++) {
		uint64_t from = meta->reftable[i] & Q2_REFTABLE_MASK;
		if (!from)
			continue;
		table[i] = at;
		q2_auto uint8_t *block = q2_new_pages(g->cluster_size);
		if (!block)
			return q2_error_nomem(err);
		rc = qcow2_store_read(meta->store, from, block, g->cluster_size, err);
		if (!rc)
			rc = qcow2_store_write(meta->store, at, block, g->cluster_size, err);
		at += g->cluster_size;
	}
	if (rc)
		return rc;
	counts->old_table = meta->reftable;
	counts->old_entries = meta->reftable_entries;
	meta->reftable = q2_take(&table);
	meta->header.refcount_table_offset = start << g->cluster_bits;
	counts->open = true;
	return 0;
}

/* After the switch the old table and blocks belong to nobody: the new counts say so from the beginning, so that
 * nothing can fail once the header is written. */
static int let_go_of_old(struct q2_meta *meta, const struct q2_rebuild *counts, struct qcow2_error *err)
{
	unsigned bits = meta->geo.cluster_bits;
	const struct qcow2_header *old = &counts->old_header;
	int rc = q2_refcount_add(meta, old->refcount_table_offset >> bits, old->refcount_table_clusters, -1,
				 err);
	for (uint32_t i = 0; i < counts->old_entries && !rc; i++)
		if (counts->old_table[i] & Q2_REFTABLE_MASK)
			rc = q2_refcount_add(meta, (counts->old_table[i] & Q2_REFTABLE_MASK) >> bits, 1, -1,
					     err);
	return rc;
}

int q2_rebuild_switch(struct q2_meta *meta, struct q2_rebuild *counts, struct qcow2_error *err)
{
	q2_auto uint64_t *raw = q2_new(meta->reftable_entries, sizeof *raw);
	if (!raw)
		return q2_error_nomem(err);
	int rc = let_go_of_old(meta, counts, err);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < meta->reftable_entries; i++)
		raw[i] = htobe64(meta->reftable[i]);
	rc = qcow2_store_write(meta->store, meta->header.refcount_table_offset, raw,
			       meta->reftable_entries * 8ull, err);
	/* Nothing on disk reaches the copies yet, so their order does not matter. */
	if (!rc)
		rc = q2_cache_write(&meta->cache, Q2_TABLE_REFBLOCK, false, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	if (rc)
		return rc;
	rc = q2_writeback_header(meta, err);
	if (rc)
		return rc;
	meta->free_hint = 1; /* what lost its last reference lies anywhere */
	free(counts->old_table);
	q2_vec_free(&counts->taken);
	*counts = (struct q2_rebuild){0};
	return 0;
}

void q2_rebuild_undo(struct q2_meta *meta, struct q2_rebuild *counts)
{
	if (counts->open) {
		/* Whatever the cache has of the copies is worth nothing. */
		q2_cache_drop(&meta->cache);
		free(meta->reftable);
		meta->reftable = counts->old_table;
		meta->reftable_entries = counts->old_entries;
		meta->header = counts->old_header;
		/* They are live again, if the copies had let go of them already. */
		q2_live_metadata_add(&meta->live,
				     meta->header.refcount_table_offset >> meta->geo.cluster_bits,
				     meta->header.refcount_table_clusters);
		for (uint32_t i = 0; i < meta->reftable_entries; i++)
			if (meta->reftable[i] & Q2_REFTABLE_MASK)
				q2_live_metadata_add(&meta->live,
						     (meta->reftable[i] & Q2_REFTABLE_MASK) >>
							     meta->geo.cluster_bits,
						     1);
	}
	for (size_t i = 0; i < counts->taken.count && !meta->failure.code; i++) {
		const struct q2_span *span = (struct q2_span *)counts->taken.items + i;
		q2_alloc_abandon(meta, span->start, span->count, NULL);
	}
	q2_vec_free(&counts->taken);
	*counts = (struct q2_rebuild){0};
}
