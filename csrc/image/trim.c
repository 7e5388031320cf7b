/* SPDX-License-Identifier: MIT
 * The space that nobody refers to any more goes back to the host.
 *
 * A refcount block counts itself, so the last ones of a file would keep it long for good. First the refcount table lets
 * go of such blocks, on disk, then the file ends behind the last cluster in use: cut off in between, they are leaked or
 * behind the end, never missed. */
#include "image/image.h"

/* Does the block of table entry `index` count nothing but, maybe, the cluster `own`? *counts_own: it does count that. */
static int is_idle(struct q2_meta *meta, uint32_t index, uint64_t own, bool *idle, bool *counts_own,
		   struct qcow2_error *err)
{
	uint64_t first = (uint64_t)index << meta->geo.refblock_bits;
	*idle = true;
	*counts_own = false;
	for (uint64_t i = 0; i < 1ull << meta->geo.refblock_bits && *idle; i++) {
		uint64_t count;
		int rc = q2_refcount_read(meta, first + i, &count, err);
		if (rc)
			return rc;
		if (count && first + i == own)
			*counts_own = true;
		else if (count)
			*idle = false;
	}
	return 0;
}

/*
 * Blocks, from the last one down, that count nothing or themselves alone leave the table in memory. gives: *gone is
 * set when there was one. Those that others count wait in pending_free.
 */
static int drop_blocks(struct q2_meta *meta, bool *gone, struct qcow2_error *err)
{
	*gone = false;
	for (uint32_t i = meta->reftable_entries; i-- > 1;) {
		uint64_t at = meta->reftable[i] & Q2_REFTABLE_MASK, cluster = at >> meta->geo.cluster_bits;
		bool idle, itself;
		if (!at)
			continue;
		int rc = is_idle(meta, i, cluster, &idle, &itself, err);
		if (!rc && !idle)
			continue;
		if (!rc)
			rc = q2_writeback_reftable(meta, i, err);
		if (!rc && !itself)
			rc = q2_alloc_release(meta, cluster, 1, err);
		if (rc)
			return rc;
		/* Its dirty counts say nothing any more; what it says of itself goes with it. */
		q2_cache_forget(&meta->cache, q2_host_at(at), meta->geo.cluster_size);
		if (itself)
			q2_live_metadata_remove(&meta->live, cluster);
		meta->reftable[i] = 0;
		*gone = true;
	}
	return 0;
}

/* The table on disk lets go of the blocks before anything else can take their place. */
static int give_up_blocks(struct q2_meta *meta, struct qcow2_error *err)
{
	bool gone = true;
	/* A block that counts others of the kind goes in a later round. */
	while (gone) {
		int rc = drop_blocks(meta, &gone, err);
		/* What memory has let go of the disk must not name: with half of that the image is at its end. */
		if (rc)
			return q2_writeback_fail(meta, rc, err);
		rc = gone ? q2_writeback_flush(meta, err) : 0;
		if (rc)
			return rc;
	}
	return 0;
}

/* Free clusters are punched, those at the end of the file cut off. */
static int give_back(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	unsigned bits = meta->geo.cluster_bits;
	uint64_t end = q2_div_up(meta->file_length, meta->geo.cluster_size), start, count;
	for (uint64_t at = 1; at < end; at = start + count) {
		int rc = q2_refcount_free_run(meta, at, end - at, &start, &count, err);
		if (rc || start >= end || !count)
			return rc;
		if (start + count >= end && !qcow2_store_is_device(image->store)) {
			rc = qcow2_store_resize(image->store, start << bits, err);
			meta->file_length = rc ? meta->file_length : start << bits;
			meta->virgin = rc ? meta->virgin : start;
		} else {
			rc = qcow2_store_punch(image->store, start << bits,
					       q2_min(count, end - start) << bits, err);
		}
		if (rc)
			return rc;
	}
	return 0;
}

int q2_image_trim(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	/* A count of zero has to mean that nobody refers to the cluster. */
	int rc = meta->unproven ? q2_data_counts_prove(meta, err) : 0;
	/* The refcount table is written when it changes. */
	if (!rc)
		rc = q2_writeback_in_time(meta, err);
	if (!rc)
		rc = give_up_blocks(meta, err);
	if (!rc)
		rc = give_back(image, err);
	return rc ? rc : q2_writeback_flush(meta, err);
}
