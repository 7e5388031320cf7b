/* SPDX-License-Identifier: MIT
 * Zero clusters become what version 2 can say: nothing where there is no backing file, else clusters of zeros.
 *
 * The disk's own tables are changed as every write changes them. Tables of snapshots are changed in place, entry by
 * entry, after what the new entries refer to is counted and on disk: every entry alone says the same as before. */
#include "image/amend.h"
#include "image/image_job.h"

/* Clusters that are given places at once. */
enum { MOST_AT_ONCE = 1 << 14 };

/* Makes fresh clusters read as zeros; `virgin` is where those begin that were never written. */
static int clear_clusters(struct qcow2_image *image, uint64_t start, uint64_t count, uint64_t virgin,
			  struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	unsigned bits = meta->geo.cluster_bits;
	uint64_t used = start < virgin ? q2_min(count, virgin - start) : 0, length;
	int rc = used ? qcow2_store_punch(image->store, start << bits, used << bits, err) : 0;
	if (!rc)
		rc = qcow2_store_length(image->store, &length, err);
	/* An entry never refers behind the end of the file. */
	if (!rc && length < (start + count) << bits)
		rc = qcow2_store_resize(image->store, (start + count) << bits, err);
	return rc;
}

/* Gives up to `most` clusters from guest offset `guest` on places of zeros. gives: *done of them. */
static int give_zeros(struct qcow2_image *image, uint64_t guest, uint64_t most, uint64_t *done,
		      struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	unsigned bits = meta->geo.cluster_bits;
	uint64_t virgin = meta->virgin;
	struct q2_map_place place;
	int rc = q2_map_prepare(&image->map, q2_guest_at(guest), q2_min(most, MOST_AT_ONCE) << bits, false,
				&place, err);
	if (rc)
		return rc;
	*done = place.count;
	rc = clear_clusters(image, place.host.v >> bits, place.count, virgin, err);
	if (!rc)
		return q2_map_commit(&image->map, &place, NULL, err);
	q2_map_abandon(&image->map, &place);
	return rc;
}

int q2_expand_disk(struct qcow2_image *image, uint64_t *at, uint64_t deadline, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t end = (uint64_t)image->map.l1_entries << (g->cluster_bits + g->l2_bits);
	bool backed = image->backing_name.data;
	while (*at < end) {
		struct q2_run run = {0};
		int rc = q2_edit_tables(image, err);
		if (!rc)
			rc = q2_map_find(&image->map, q2_guest_at(*at), end - *at, &run, err);
		uint64_t done = run.length >> g->cluster_bits;
		if (!rc && run.kind == Q2_SUB_ZERO && backed)
			rc = give_zeros(image, *at, done, &done, err);
		else if (!rc && run.kind == Q2_SUB_ZERO)
			rc = q2_unmap_clusters(image, *at, *at + run.length, err);
		if (rc)
			return rc;
		*at += done << g->cluster_bits;
		if (q2_image_job_late(deadline))
			return *at < end;
	}
	return 0;
}

/* Fresh clusters for the zeros of one table of a snapshot, each counted once for every user of the table. */
static int take_zeros(struct qcow2_image *image, uint64_t *cluster, uint64_t users, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint64_t virgin = meta->virgin, got;
	int rc = q2_alloc(meta, 1, false, cluster, &got, err);
	if (!rc)
		rc = clear_clusters(image, *cluster, 1, virgin, err);
	for (uint64_t i = 1; i < users && !rc; i++)
		rc = q2_refcount_add(meta, *cluster, 1, 1, err);
	return rc;
}

/* One reference a user of the table is to be dropped. */
static int drop_later(struct q2_vec *drops, uint64_t cluster, uint64_t users, struct qcow2_error *err)
{
	for (uint64_t i = 0; i < users; i++) {
		struct q2_span *span = q2_vec_push(drops, sizeof *span);
		if (!span)
			return q2_error_nomem(err);
		*span = (struct q2_span){cluster, 1};
	}
	return 0;
}

/* Changes the zero entries of one table in memory. gives: whether there were any. */
static int expand_table(struct qcow2_image *image, uint8_t *table, uint64_t users, struct q2_vec *drops,
			bool *changed, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	*changed = false;
	for (uint32_t j = 0; j < 1u << g->l2_bits; j++) {
		uint8_t *entry = table + (size_t)j * g->l2_entry_size;
		struct q2_entry e = q2_entry_load(g, entry);
		uint64_t word = 0, cluster = 0;
		int rc = 0;
		if (e.compressed || q2_entry_sub(&e, 0) != Q2_SUB_ZERO)
			continue;
		if (image->backing_name.data) {
			rc = take_zeros(image, &cluster, users, err);
			word = cluster << g->cluster_bits | (users == 1 ? Q2_COPIED : 0);
		}
		if (!rc && e.has_host)
			rc = drop_later(drops, e.host.v >> g->cluster_bits, users, err);
		if (rc)
			return rc;
		q2_entry_store(g, entry, word, 0);
		*changed = true;
	}
	return 0;
}

int q2_expand_snapshot(struct qcow2_image *image, uint32_t index, struct q2_vec *drops,
		       struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	struct qcow2_snapshot s = {0};
	q2_auto uint64_t *l1 = NULL;
	q2_auto uint8_t *table = q2_new_pages(g->cluster_size);
	int rc = table ? q2_writeback_flush(meta, err) : q2_error_nomem(err);
	if (!rc)
		rc = qcow2_image_snapshot(image, index, &s, err);
	if (!rc && s.l1_entries > Q2_MAX_L1_BYTES / 8)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, s.offset, "Snapshot L1 table too large");
	if (!rc)
		rc = q2_meta_read_table(meta, "Snapshot L1 table", s.l1_offset, s.l1_entries, &l1, err);
	for (uint32_t i = 0; !rc && i < s.l1_entries; i++) {
		uint64_t at = l1[i] & Q2_OFFSET_MASK, users;
		bool changed = false;
		if (!at)
			continue;
		rc = q2_meta_bound(meta, "L2 table", at, g->cluster_size, err);
		if (!rc)
			rc = q2_refcount_read(meta, at >> g->cluster_bits, &users, err);
		if (!rc)
			rc = qcow2_store_read(image->store, at, table, g->cluster_size, err);
		if (!rc)
			rc = expand_table(image, table, users, drops, &changed, err);
		if (rc || !changed)
			continue;
		/* What the entries refer to is counted and on disk first; what they let go of is dropped later. */
		rc = q2_writeback_flush(meta, err);
		if (rc)
			continue;
		rc = qcow2_store_write(image->store, at, table, g->cluster_size, err);
		q2_cache_forget(&meta->cache, q2_host_at(at), g->cluster_size);
		if (!rc)
			rc = q2_writeback_barrier(meta, err);
		if (rc)
			q2_writeback_fail(meta, rc, err);
	}
	return rc;
}
