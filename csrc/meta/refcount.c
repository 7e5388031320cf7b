/* SPDX-License-Identifier: MIT
 * Reference counts of host clusters: table -> block -> count (specification, "Host cluster management"). */
#include "meta/meta.h"

#include <inttypes.h>

int q2_refcount_load(struct q2_meta *meta, struct qcow2_error *err)
{
	if (meta->reftable)
		return 0;
	uint32_t entries = meta->header.refcount_table_clusters << (meta->geo.cluster_bits - 3);
	int rc = q2_meta_read_table(meta, "Reference count table", meta->header.refcount_table_offset,
				    entries, &meta->reftable, err);
	if (!rc)
		meta->reftable_entries = entries;
	return rc;
}

void q2_refcount_follow(struct q2_meta *meta, uint64_t *table, uint32_t entries)
{
	free(meta->reftable);
	meta->reftable = table;
	meta->reftable_entries = entries;
	meta->reftable_words.count = 0;
}

/* One slice of counts. */
struct piece {
	uint64_t first; /* cluster number of the slice's first count */
	uint64_t count; /* counts in the slice */
	uint8_t *bytes;
};

/* The slice that counts `cluster`, for reading or for editing. needs: its block is at `block`. */
static int slice_of(struct q2_meta *meta, uint64_t block, uint64_t cluster, bool edit, struct piece *piece,
		    struct qcow2_error *err)
{
	const struct q2_geometry *g = &meta->geo;
	int rc = q2_meta_bound(meta, "Reference count block", block, g->cluster_size, err);
	if (rc)
		return rc;
	/* No count crosses a byte, let alone a slice. */
	piece->count = ((uint64_t)meta->cache.slice << 3) >> g->refcount_order;
	piece->first = q2_round_down(cluster, piece->count);
	uint64_t index = piece->first & ((1ull << g->refblock_bits) - 1);
	q2_host at = q2_host_at(block + (index << g->refcount_order >> 3));
	return edit ? q2_cache_edit(&meta->cache, at, Q2_TABLE_REFBLOCK, &piece->bytes, err)
		    : q2_cache_get(&meta->cache, at, &piece->bytes, err);
}

int q2_refcount_read(struct q2_meta *meta, uint64_t cluster, uint64_t *count, struct qcow2_error *err)
{
	int rc = q2_refcount_load(meta, err);
	if (rc)
		return rc;
	uint64_t block = q2_refcount_block(meta, cluster);
	struct piece piece;
	*count = 0;
	if (!block)
		return 0;
	rc = slice_of(meta, block, cluster, false, &piece, err);
	if (!rc)
		*count = q2_refcount_get(piece.bytes, cluster - piece.first, meta->geo.refcount_order);
	return rc;
}

int q2_refcount_free_run(struct q2_meta *meta, uint64_t from, uint64_t most, uint64_t *start, uint64_t *count,
			 struct qcow2_error *err)
{
	int rc = q2_refcount_load(meta, err);
	if (rc)
		return rc;
	unsigned order = meta->geo.refcount_order;
	uint64_t covered = (uint64_t)meta->reftable_entries << meta->geo.refblock_bits;
	uint64_t cluster = q2_max(from, 1), run = 0;

	while (run < most) {
		if (cluster >= covered) { /* past every block: free without end */
			cluster += most - run;
			run = most;
			break;
		}
		uint64_t block = q2_refcount_block(meta, cluster);
		if (!block) {
			uint64_t next = ((cluster >> meta->geo.refblock_bits) + 1) << meta->geo.refblock_bits;
			uint64_t n = q2_min(next - cluster, most - run);
			cluster += n;
			run += n;
			continue;
		}
		struct piece piece;
		rc = slice_of(meta, block, cluster, false, &piece, err);
		if (rc)
			return rc;
		uint64_t end = piece.first + piece.count;
		while (cluster < end && run < most) {
			bool used = q2_refcount_get(piece.bytes, cluster - piece.first, order) != 0;
			if (used && run)
				goto out;
			run += !used;
			cluster++;
		}
	}
out:
	*start = cluster - run;
	*count = run;
	return 0;
}

int q2_refcount_check(struct q2_meta *meta, uint64_t cluster, uint64_t count, int delta,
		      struct qcow2_error *err)
{
	unsigned order = meta->geo.refcount_order;
	uint64_t max = q2_refcount_max(order);
	for (uint64_t end = cluster + count; cluster < end;) {
		uint64_t block = q2_refcount_block(meta, cluster);
		struct piece piece;
		if (!block)
			return q2_error_set(err, QCOW2_E_CORRUPT, cluster << meta->geo.cluster_bits,
					    "Cluster %" PRIu64 " is in use but has no reference count",
					    cluster);
		int rc = slice_of(meta, block, cluster, false, &piece, err);
		if (rc)
			return rc;
		for (; cluster < end && cluster < piece.first + piece.count; cluster++) {
			uint64_t value = q2_refcount_get(piece.bytes, cluster - piece.first, order);
			if (delta > 0 && value == max)
				return q2_error_set(err, QCOW2_E_RANGE, cluster << meta->geo.cluster_bits,
						    "Reference count of cluster %" PRIu64
						    " would exceed %u bits",
						    cluster, 1u << order);
			if (delta < 0 && value == 0)
				return q2_error_set(err, QCOW2_E_CORRUPT, cluster << meta->geo.cluster_bits,
						    "Reference count of cluster %" PRIu64
						    " is lower than its references",
						    cluster);
		}
	}
	return 0;
}

int q2_refcount_add(struct q2_meta *meta, uint64_t cluster, uint64_t count, int delta,
		    struct qcow2_error *err)
{
	unsigned order = meta->geo.refcount_order;
	int rc = q2_refcount_load(meta, err);
	if (!rc)
		rc = q2_refcount_check(meta, cluster, count, delta, err);
	if (rc)
		return rc;
	for (uint64_t end = cluster + count; cluster < end;) {
		struct piece piece;
		rc = slice_of(meta, q2_refcount_block(meta, cluster), cluster, true, &piece, err);
		if (rc)
			return rc;
		for (; cluster < end && cluster < piece.first + piece.count; cluster++) {
			uint64_t index = cluster - piece.first;
			uint64_t value = q2_refcount_get(piece.bytes, index, order);
			q2_refcount_set(piece.bytes, index, order, value + (uint64_t)(int64_t)delta);
			if (delta < 0 && value == 1)
				q2_live_metadata_remove(&meta->live, cluster);
		}
	}
	return 0;
}
