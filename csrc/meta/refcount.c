/* SPDX-License-Identifier: MIT
 * Reference counts of host clusters: table -> block -> count (specification, "Host cluster management"). */
#include "base/mem.h"
#include "meta/meta.h"

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

int q2_refcount_read(struct q2_meta *meta, uint64_t cluster, uint64_t *count, struct qcow2_error *err)
{
	int rc = q2_refcount_load(meta, err);
	if (rc)
		return rc;
	const struct q2_geometry *g = &meta->geo;
	uint64_t block = cluster >> g->refblock_bits;
	uint64_t at = block < meta->reftable_entries ? meta->reftable[block] & Q2_REFTABLE_MASK : 0;
	if (!at) {
		*count = 0;
		return 0;
	}
	rc = q2_meta_bound(meta, "Reference count block", at, g->cluster_size, err);
	if (rc)
		return rc;
	/* The slice of the block that holds the count; no count crosses a byte, let alone a slice. */
	uint64_t index = cluster & ((1ull << g->refblock_bits) - 1);
	uint64_t byte = index << g->refcount_order >> 3;
	uint64_t slice = q2_round_down(byte, meta->cache.slice);
	uint8_t *bytes;
	rc = q2_cache_get(&meta->cache, q2_host_at(at + slice), &bytes, err);
	if (rc)
		return rc;
	*count = q2_refcount_get(bytes, index - (slice << 3 >> g->refcount_order), g->refcount_order);
	return 0;
}
