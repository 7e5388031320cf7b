/* SPDX-License-Identifier: MIT
 * New L1 and L2 tables for the whole disk, beside the old ones. */
#include "image/table_rebuild.h"

#include "base/be.h"

/* Entries of one L2 table, read whole. *empty: it is a hole of the file, and was not read. */
static int read_l2(struct qcow2_image *image, uint64_t at, uint8_t *bytes, bool *empty,
		   struct qcow2_error *err)
{
	uint32_t size = image->meta.geo.cluster_size;
	uint64_t zeros = 0;
	int rc = q2_meta_bound(&image->meta, "L2 table", at, size, err);
	if (!rc)
		rc = q2_meta_zeros(&image->meta, at, size, &zeros, err);
	*empty = zeros == size;
	return rc || *empty ? rc : qcow2_store_read(image->store, at, bytes, size, err);
}

/* Counts of guest data change. What is metadata too does not lose its count because an L2 entry says so. */
static int count_data(struct q2_meta *meta, uint64_t first, uint64_t count, int delta,
		      struct qcow2_error *err)
{
	int rc = delta < 0 ? q2_map_check_data(meta, first, count, err) : 0;
	return rc ? rc : q2_refcount_add(meta, first, count, delta, err);
}

/* Adds `delta` to the counts of what the entries of one L2 table refer to. */
static int count_entries(struct q2_meta *meta, const uint8_t *table, int delta, struct qcow2_error *err)
{
	const struct q2_geometry *g = &meta->geo;
	uint64_t start = 0, run = 0;
	int rc = 0;
	for (uint32_t j = 0; j < 1u << g->l2_bits && !rc; j++) {
		struct q2_entry e = q2_entry_load(g, table + (size_t)j * g->l2_entry_size);
		uint64_t first = 0, n = q2_entry_clusters(g, &e, &first);
		if (n && first == start + run) {
			run += n;
			continue;
		}
		if (run && n)
			rc = count_data(meta, start, run, delta, err);
		if (n) {
			start = first;
			run = n;
		}
	}
	return rc || !run ? rc : count_data(meta, start, run, delta, err);
}

/* Keeps the changed blocks in memory few: the copies of the counts may go down at any time, nothing reaches them. */
static int write_counts(struct q2_meta *meta, struct qcow2_error *err)
{
	if (!q2_cache_is_full(&meta->cache))
		return 0;
	return q2_cache_write(&meta->cache, Q2_TABLE_REFBLOCK, false, err);
}

int q2_table_rebuild_count_own(struct qcow2_image *image, const uint64_t *l1, uint32_t entries, int delta,
			       struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	int rc = 0;
	for (uint32_t i = 0; i < entries && !rc; i++) {
		uint64_t at = l1[i] & Q2_OFFSET_MASK;
		if (at)
			rc = q2_refcount_add(meta, at >> meta->geo.cluster_bits, 1, delta, err);
		if (!rc)
			rc = write_counts(meta, err);
	}
	return rc;
}

int q2_table_rebuild_count(struct qcow2_image *image, const uint64_t *l1, uint32_t entries, int delta,
			   struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	q2_auto uint8_t *table = q2_new_pages(g->cluster_size);
	if (!table)
		return q2_error_nomem(err);
	for (uint32_t i = 0; i < entries; i++) {
		uint64_t at = l1[i] & Q2_OFFSET_MASK;
		if (!at)
			continue;
		bool empty;
		int rc = read_l2(image, at, table, &empty, err);
		if (!rc)
			rc = q2_refcount_add(meta, at >> g->cluster_bits, 1, delta, err);
		if (!rc && !empty)
			rc = count_entries(meta, table, delta, err);
		if (!rc)
			rc = write_counts(meta, err);
		if (rc)
			return rc;
	}
	return 0;
}

int q2_table_rebuild_try(struct qcow2_image *image, const uint64_t *l1, uint32_t entries, int delta,
			 struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	q2_auto uint8_t *table = q2_new_pages(meta->geo.cluster_size);
	int rc = table ? 0 : q2_error_nomem(err);
	for (uint32_t i = 0; i < entries && !rc && !q2_cache_is_full(&meta->cache); i++) {
		uint64_t at = l1[i] & Q2_OFFSET_MASK;
		bool empty = true;
		if (at)
			rc = read_l2(image, at, table, &empty, err);
		if (!empty && !rc)
			rc = count_entries(meta, table, delta, err);
	}
	return rc;
}

/* An empty table at `to`, inside the file, for which nothing is written. */
static int leave_hole(struct qcow2_image *image, uint64_t to, struct qcow2_error *err)
{
	uint64_t length, end = to + image->meta.geo.cluster_size;
	int rc = qcow2_store_length(image->store, &length, err);
	if (!rc && length > to)
		rc = qcow2_store_punch(image->store, to, q2_min(end, length) - to, err);
	return rc || length >= end ? rc : qcow2_store_resize(image->store, end, err);
}

void q2_table_rebuild_free(struct q2_table_rebuild *t)
{
	free(t->l1);
	q2_vec_free(&t->l2);
}

static uint32_t tables_of(const uint64_t *l1, uint32_t entries)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < entries; i++)
		n += (l1[i] & Q2_OFFSET_MASK) != 0;
	return n;
}

int q2_table_rebuild_take(struct qcow2_image *image, struct q2_table_rebuild *t, const uint64_t *l1,
			  uint32_t entries, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	int rc = 0;
	t->l1_entries = entries;
	t->l1_clusters = q2_div_up(entries * 8ull, meta->geo.cluster_size);
	if (t->l1_clusters)
		rc = q2_rebuild_take(meta, &t->counts, t->l1_clusters, &t->l1_at, err);
	for (uint64_t left = t->full ? entries : tables_of(l1, entries); left && !rc;) {
		struct q2_span span;
		rc = q2_alloc(meta, left, false, &span.start, &span.count, err);
		struct q2_span *taken = rc ? NULL : q2_vec_push(&t->counts.taken, sizeof *taken);
		struct q2_span *place = taken ? q2_vec_push(&t->l2, sizeof *place) : NULL;
		if (!rc && !place)
			rc = q2_error_nomem(err);
		if (rc)
			return rc;
		*taken = *place = span;
		q2_live_metadata_add(&meta->live, span.start, span.count);
		left -= span.count;
	}
	return rc;
}

int q2_table_rebuild_set_copied(struct qcow2_image *image, uint64_t guest, uint8_t *table,
				struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	(void)guest;
	for (uint32_t j = 0; j < 1u << g->l2_bits; j++) {
		uint8_t *entry = table + (size_t)j * g->l2_entry_size;
		struct q2_entry e = q2_entry_load(g, entry);
		uint64_t count = 0;
		if (e.compressed || !e.has_host)
			continue;
		int rc = q2_refcount_read(&image->meta, e.host.v >> g->cluster_bits, &count, err);
		if (rc)
			return rc;
		q2_store64(entry, count == 1 ? e.raw | Q2_COPIED : e.raw & ~Q2_COPIED);
	}
	return 0;
}

int q2_table_rebuild_write(struct qcow2_image *image, struct q2_table_rebuild *t, const uint64_t *l1,
			   q2_table_rebuild_convert *convert, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	const struct q2_span *places = t->l2.items;
	uint64_t used = 0;
	q2_auto uint8_t *table = q2_new_pages(g->cluster_size);
	q2_auto uint64_t *raw = q2_new(t->l1_clusters << g->cluster_bits, 1);
	t->l1 = q2_new(t->l1_entries, sizeof *t->l1);
	if (!table || !raw || !t->l1)
		return q2_error_nomem(err);
	for (uint32_t i = 0; i < t->l1_entries; i++) {
		uint64_t from = l1[i] & Q2_OFFSET_MASK;
		if (!from && !t->full)
			continue;
		uint64_t to = (places->start + used) << g->cluster_bits;
		if (++used == places->count) {
			places++;
			used = 0;
		}
		int rc = 0;
		bool empty = true, bare = !t->full;
		if (from)
			rc = read_l2(image, from, table, &empty, err);
		if (empty && !bare)
			memset(table, 0, g->cluster_size);
		/* No conversion makes something of entries that are nothing, but in a table that is to be full. */
		if (!rc && convert && !(empty && bare))
			rc = convert(image, (uint64_t)i << (g->cluster_bits + g->l2_bits), table, err);
		if (!rc && empty && bare)
			rc = leave_hole(image, to, err);
		else if (!rc)
			rc = qcow2_store_write(image->store, to, table, g->cluster_size, err);
		if (rc)
			return rc;
		t->l1[i] = to | Q2_COPIED;
		raw[i] = htobe64(t->l1[i]);
	}
	if (!t->l1_clusters)
		return 0;
	return qcow2_store_write(image->store, t->l1_at << g->cluster_bits, raw,
				 t->l1_clusters << g->cluster_bits, err);
}

void q2_table_rebuild_name(struct qcow2_image *image, const struct q2_table_rebuild *t)
{
	image->meta.header.l1_table_offset = t->l1_at << image->meta.geo.cluster_bits;
	image->meta.header.l1_size = t->l1_entries;
}

void q2_table_rebuild_adopt(struct qcow2_image *image, struct q2_table_rebuild *t)
{
	free(image->map.l1);
	image->map.l1 = q2_take(&t->l1);
	image->map.l1_entries = t->l1_entries;
	image->map.l1_offset = image->meta.header.l1_table_offset;
	image->size = image->map.size = image->meta.header.size;
}
