/* SPDX-License-Identifier: MIT
 * Internal snapshots: take, apply, delete, rename. Each is one switch of the header (invariant 5).
 *
 * A snapshot keeps the L1 and L2 tables that the disk had; the disk goes on with copies of its own, in which
 * COPIED says the truth about the counts after the change (invariant 4). Counts are one a reference: a
 * cluster that the disk and two snapshots show has 3, whether they share L2 tables or not. */
#include "base/be.h"
#include "format/record.h"
#include "image/amend.h"
#include "image/table_rebuild.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

/* Counts of up to so many bits (as a power of two) overflow after a few snapshots. */
enum { NARROW_ORDER = 3 };

/* A change of the disk's tables and of the snapshot table. */
struct change {
	struct q2_table_rebuild tables;
	uint64_t table_at; /* the new snapshot table's place, cluster number */
	uint64_t table_clusters;
	const uint64_t *ended; /* where the L1 table of a snapshot lies that is no more; NULL: none ends */
};

/* Takes the places for a new L1 of `entries`, its L2 tables and a snapshot table of `table_bytes`. */
static int take_places(struct qcow2_image *image, struct change *change, const uint64_t *l1, uint32_t entries,
		       uint64_t table_bytes, struct qcow2_error *err)
{
	change->table_clusters = q2_div_up(table_bytes, image->meta.geo.cluster_size);
	int rc = 0;
	if (change->table_clusters)
		rc = q2_rebuild_take(&image->meta, &change->tables.counts, change->table_clusters,
				     &change->table_at, err);
	return rc ? rc : q2_table_rebuild_take(image, &change->tables, l1, entries, err);
}

/* ---- the snapshot table ---------------------------------------------------------------------- */

/* A table made of the old entries with `skip` left out (UINT32_MAX: none), the bytes of `replace` in its place
 * when given, and `add` at the end. gives: an array to free(). */
static int build_table(struct qcow2_image *image, uint32_t skip, const struct q2_vec *replace,
		       const struct q2_vec *add, struct q2_vec *out, uint32_t *count, struct qcow2_error *err)
{
	const uint32_t *starts = image->snapshots.items;
	*count = 0;
	for (uint32_t i = 0; i <= image->snapshots.count; i++) {
		const uint8_t *bytes;
		size_t length;
		if (i == image->snapshots.count || (i == skip && replace)) {
			const struct q2_vec *from = i == skip ? replace : add;
			if (!from)
				continue;
			bytes = from->items;
			length = from->count;
		} else if (i == skip) {
			continue;
		} else {
			struct q2_snapshot_record r;
			bytes = image->snapshot_table + starts[i];
			q2_record_snapshot(bytes, UINT32_MAX, &r);
			length = r.length;
		}
		if (!q2_vec_append(out, bytes, length, 1))
			return q2_error_nomem(err);
		++*count;
	}
	if (*count > Q2_MAX_SNAPSHOTS || out->count > Q2_MAX_SNAPSHOT_TABLE)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "The snapshot table would be too large");
	return 0;
}

/* The bytes of one entry (specification, "Snapshots"), padded to 8. */
static int make_record(const struct qcow2_snapshot *s, struct q2_vec *out, struct qcow2_error *err)
{
	uint8_t fixed[Q2_SNAPSHOT_FIXED];
	static const uint8_t padding[8];
	q2_store64(fixed, s->l1_offset);
	q2_store32(fixed + 8, s->l1_entries);
	q2_store16(fixed + 12, (uint16_t)s->id.length);
	q2_store16(fixed + 14, (uint16_t)s->name.length);
	q2_store32(fixed + 16, s->date_sec);
	q2_store32(fixed + 20, s->date_nsec);
	q2_store64(fixed + 24, s->vm_clock_nsec);
	q2_store32(fixed + 32, (uint32_t)q2_min(s->vm_state_size, UINT32_MAX));
	q2_store32(fixed + 36, (uint32_t)s->extra_data.length);
	bool whole = q2_vec_append(out, fixed, sizeof fixed, 1) &&
		     q2_vec_append(out, s->extra_data.data, s->extra_data.length, 1) &&
		     q2_vec_append(out, s->id.data, s->id.length, 1) &&
		     q2_vec_append(out, s->name.data, s->name.length, 1) &&
		     q2_vec_append(out, padding, -out->count & 7, 1);
	return whole ? 0 : q2_error_nomem(err);
}

/* Writes the table to its place and lets the header name it. */
static int write_table(struct qcow2_image *image, const struct change *change, const struct q2_vec *table,
		       uint32_t count, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	meta->header.nb_snapshots = count;
	meta->header.snapshots_offset = table->count ? change->table_at << meta->geo.cluster_bits : 0;
	if (!table->count)
		return 0;
	uint64_t bytes = change->table_clusters << meta->geo.cluster_bits;
	q2_auto uint8_t *padded = q2_new(bytes, 1);
	if (!padded)
		return q2_error_nomem(err);
	memcpy(padded, table->items, table->count);
	return qcow2_store_write(image->store, meta->header.snapshots_offset, padded, bytes, err);
}

/* The new counts do without the old snapshot table. */
static int drop_table(struct qcow2_image *image, uint64_t at, uint64_t bytes, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	if (!bytes)
		return 0;
	return q2_refcount_add(&image->meta, at >> g->cluster_bits, q2_div_up(bytes, g->cluster_size), -1,
			       err);
}

/* ---- the operations ---------------------------------------------------------------------------- */

static int begin(struct qcow2_image *image, struct qcow2_error *err)
{
	uint32_t count = 0;
	int rc = q2_edit_begin(image, err);
	if (!rc && (image->raw || image->meta.geo.external_data))
		rc = q2_error_set(err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET,
				  image->raw ? "A raw image has no snapshots"
					     : "An image with an external data file has no snapshots");
	if (!rc)
		rc = qcow2_image_snapshot_count(image, &count, err);
	if (!rc)
		rc = q2_map_load(&image->map, err);
	/* Counts are copied from the disk and switched with the rest, so from now on they are kept in time. The
	 * dirty bit stays until the end of writing. */
	return rc ? rc : q2_writeback_in_time(&image->meta, err);
}

/* What the switch let go of is free, and the snapshot list is read anew. */
static int end(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	/* The cluster that the last compressed stream lies in may be free now. */
	meta->stream_at = meta->stream_end = 0;
	free(image->snapshot_table);
	image->snapshot_table = NULL;
	q2_vec_free(&image->snapshots);
	image->snapshots_loaded = false;
	return q2_writeback_flush(meta, err);
}

/*
 * A change begins: places for a copy of the tables in `l1`, for a snapshot table of `table_bytes`, and for new counts, which
 * are still as the old ones.
 */
static int open_change(struct qcow2_image *image, struct change *change, const uint64_t *l1, uint32_t entries,
		       uint64_t table_bytes, struct qcow2_error *err)
{
	int rc = take_places(image, change, l1, entries, table_bytes, err);
	return rc ? rc : q2_rebuild_open(&image->meta, &change->tables.counts, err);
}

/* One reference of an L1 table goes. */
static int drop_l1(struct qcow2_image *image, uint64_t at, uint64_t entries, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	if (!entries)
		return 0;
	return q2_refcount_add(&image->meta, at >> g->cluster_bits, q2_div_up(entries * 8, g->cluster_size),
			       -1, err);
}

/* The disk's tables are copied for their COPIED flags; the old ones lose the disk's reference. */
static int renew_tables(struct qcow2_image *image, struct change *change, struct qcow2_error *err)
{
	const struct q2_map *map = &image->map;
	int rc = q2_table_rebuild_count_own(image, map->l1, map->l1_entries, -1, err);
	if (!rc)
		rc = drop_l1(image, map->l1_offset, map->l1_entries, err);
	if (!rc)
		rc = q2_table_rebuild_write(image, &change->tables, map->l1, q2_table_rebuild_set_copied,
					    err);
	return rc;
}

/* The change ends: with the one switch of the header, or, when `rc` says that it failed, with nothing. gives: rc, or how the
 * switch failed. */
static int close_change(struct qcow2_image *image, struct change *change, int rc, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	if (!rc) {
		q2_table_rebuild_name(image, &change->tables);
		rc = q2_rebuild_switch(meta, &change->tables.counts, err);
	}
	if (!rc) {
		q2_table_rebuild_adopt(image, &change->tables);
		q2_cache_drop(&meta->cache);
		if (change->ended)
			q2_view_end(image, *change->ended);
		rc = end(image, err);
	}
	q2_rebuild_undo(meta, &change->tables.counts);
	q2_table_rebuild_free(&change->tables);
	return rc;
}

/* Bytes of the snapshot table on disk. */
static uint64_t table_bytes(struct qcow2_image *image)
{
	if (!image->snapshots.count)
		return 0;
	struct q2_snapshot_record r;
	uint32_t last = ((uint32_t *)image->snapshots.items)[image->snapshots.count - 1];
	q2_record_snapshot(image->snapshot_table + last, UINT32_MAX, &r);
	return last + (uint64_t)r.length;
}

/* The smallest number above all numeric ids, as QEMU gives them. */
static void next_id(struct qcow2_image *image, char out[24])
{
	uint64_t highest = 0;
	for (uint32_t i = 0; i < image->snapshots.count; i++) {
		struct qcow2_snapshot s;
		char text[24] = "";
		if (!qcow2_image_snapshot(image, i, &s, NULL) && s.id.length < sizeof text) {
			memcpy(text, s.id.data, s.id.length);
			highest = q2_max(highest, strtoull(text, NULL, 10));
		}
	}
	snprintf(out, 24, "%" PRIu64, highest + 1);
}

/*
 * Do the counts hold when what `gone` refers to loses a reference and what `come` refers to gets one? Only narrow ones
 * are tried: for the others this is so well-nigh always, and where it is not the switch never comes.
 */
static int counts_fit(struct qcow2_image *image, const uint64_t *gone, uint32_t gone_entries,
		      const uint64_t *come, uint32_t come_entries, struct qcow2_error *err)
{
	if (image->meta.geo.refcount_order > NARROW_ORDER)
		return 0;
	int rc = q2_table_rebuild_try(image, gone, gone_entries, -1, err);
	if (!rc)
		rc = q2_table_rebuild_try(image, come, come_entries, 1, err);
	q2_cache_drop(&image->meta.cache);
	return rc;
}

int qcow2_image_snapshot_create(struct qcow2_image *image, struct qcow2_bytes name,
				const struct timespec *when, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct change change = {0};
	struct q2_vec record = {0}, table = {0};
	uint32_t count = 0;
	char id[24];
	uint8_t extra[24];
	int rc = begin(image, err);
	if (!rc && name.length > UINT16_MAX)
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "The snapshot's name is too long");
	if (rc)
		return q2_image_blame(image, rc, err);
	next_id(image, id);
	q2_store64(extra, 0); /* no VM state */
	q2_store64(extra + 8, image->size);
	q2_store64(extra + 16, UINT64_MAX); /* no instruction count */
	struct qcow2_snapshot s = {
		.id = {(const uint8_t *)id, strlen(id)},
		.name = name,
		.extra_data = {extra, sizeof extra},
		.l1_offset = image->map.l1_offset,
		.l1_entries = image->map.l1_entries,
		.date_sec = (uint32_t)when->tv_sec,
		.date_nsec = (uint32_t)when->tv_nsec,
	};
	uint64_t old_table = meta->header.snapshots_offset, old_bytes = table_bytes(image);
	const uint64_t *l1 = image->map.l1;
	rc = make_record(&s, &record, err);
	if (!rc)
		rc = build_table(image, UINT32_MAX, NULL, &record, &table, &count, err);
	if (!rc)
		rc = counts_fit(image, NULL, 0, l1, image->map.l1_entries, err);
	if (!rc)
		rc = open_change(image, &change, l1, image->map.l1_entries, table.count, err);
	/* The snapshot keeps the disk's tables; the disk refers once more to all the data, by tables of its own. What
	 * a count loses it loses first, so that no count is refused that would fit in the end. */
	if (!rc)
		rc = q2_table_rebuild_count_own(image, l1, image->map.l1_entries, -1, err);
	if (!rc)
		rc = q2_table_rebuild_count(image, l1, image->map.l1_entries, 1, err);
	if (!rc)
		rc = q2_table_rebuild_write(image, &change.tables, l1, q2_table_rebuild_set_copied, err);
	if (!rc)
		rc = write_table(image, &change, &table, count, err);
	if (!rc)
		rc = drop_table(image, old_table, old_bytes, err);
	rc = close_change(image, &change, rc, err);
	q2_vec_free(&record);
	q2_vec_free(&table);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

/* Reads a snapshot's L1 table. */
static int snapshot_l1(struct qcow2_image *image, uint32_t index, struct qcow2_snapshot *s, uint64_t **l1,
		       struct qcow2_error *err)
{
	int rc = qcow2_image_snapshot(image, index, s, err);
	if (!rc && s->l1_entries > Q2_MAX_L1_BYTES / 8)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, s->offset, "Snapshot L1 table too large");
	if (!rc)
		rc = q2_meta_read_table(&image->meta, "Snapshot L1 table", s->l1_offset, s->l1_entries, l1,
					err);
	return rc;
}

int qcow2_image_snapshot_apply(struct qcow2_image *image, uint32_t index, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	struct change change = {0};
	struct qcow2_snapshot s = {0};
	q2_auto uint64_t *snap = NULL, *from = NULL;
	int rc = begin(image, err);
	if (!rc)
		rc = snapshot_l1(image, index, &s, &snap, err);
	if (!rc && s.size > INT64_MAX)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, s.offset, "Snapshot disk size is too large");
	/* Large enough for the disk as it was then; entries past the snapshot's (its VM state) come along. */
	uint64_t entries = rc ? 0 : q2_max(s.l1_entries, q2_header_l1_entries(g, s.size));
	if (!rc && entries > Q2_MAX_L1_BYTES / 8)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, s.offset, "Snapshot disk size is too large");
	uint32_t bitmaps = 0;
	if (!rc)
		rc = qcow2_image_bitmap_count(image, &bitmaps, err);
	if (!rc && bitmaps && s.size != image->size)
		rc = q2_error_set(
			err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
			"The snapshot's disk has another size than the one that the bitmaps tell of; "
			"resize the disk to %" PRIu64 " bytes first",
			s.size);
	if (!rc && !(from = q2_new(entries, sizeof *from)))
		rc = q2_error_nomem(err);
	if (rc)
		return q2_image_blame(image, rc, err);
	memcpy(from, snap, s.l1_entries * 8ull);
	const uint64_t *old = image->map.l1;
	uint32_t old_entries = image->map.l1_entries;
	rc = counts_fit(image, old, old_entries, from, (uint32_t)entries, err);
	if (!rc)
		rc = q2_track_mark(image, 0, image->size, err);
	if (!rc)
		rc = open_change(image, &change, from, (uint32_t)entries, 0, err);
	/* The disk's old tables and data lose its reference, then those of the snapshot get it, whose L2 tables stay
	 * its own: the disk has copies. In this order no count is refused that would fit in the end. */
	if (!rc)
		rc = q2_table_rebuild_count(image, old, old_entries, -1, err);
	if (!rc)
		rc = drop_l1(image, image->map.l1_offset, old_entries, err);
	if (!rc)
		rc = q2_table_rebuild_count_own(image, from, (uint32_t)entries, -1, err);
	if (!rc)
		rc = q2_table_rebuild_count(image, from, (uint32_t)entries, 1, err);
	if (!rc)
		rc = q2_table_rebuild_write(image, &change.tables, from, q2_table_rebuild_set_copied, err);
	if (!rc)
		meta->header.size = s.size;
	rc = close_change(image, &change, rc, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_snapshot_delete(struct qcow2_image *image, uint32_t index, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct change change = {0};
	struct q2_vec table = {0};
	struct qcow2_snapshot s = {0};
	q2_auto uint64_t *snap = NULL;
	uint32_t count = 0;
	int rc = begin(image, err);
	if (!rc)
		rc = snapshot_l1(image, index, &s, &snap, err);
	if (!rc && q2_view_is_held(image, s.l1_offset))
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				  "A job that has not ended reads the snapshot");
	if (rc)
		return q2_image_blame(image, rc, err);
	uint64_t old_table = meta->header.snapshots_offset, old_bytes = table_bytes(image);
	change.ended = &s.l1_offset;
	rc = build_table(image, index, NULL, NULL, &table, &count, err);
	if (!rc)
		rc = open_change(image, &change, image->map.l1, image->map.l1_entries, table.count, err);
	if (!rc)
		rc = q2_table_rebuild_count(image, snap, s.l1_entries, -1, err);
	if (!rc)
		rc = drop_l1(image, s.l1_offset, s.l1_entries, err);
	if (!rc)
		rc = renew_tables(image, &change, err);
	if (!rc)
		rc = write_table(image, &change, &table, count, err);
	if (!rc)
		rc = drop_table(image, old_table, old_bytes, err);
	rc = close_change(image, &change, rc, err);
	q2_vec_free(&table);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

/* Makes `table` the snapshot table, by one switch of the header. */
static int replace_table(struct qcow2_image *image, const struct q2_vec *table, uint32_t count,
			 struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct change change = {0};
	const struct qcow2_header saved = meta->header;
	uint64_t old_table = saved.snapshots_offset, old_bytes = table_bytes(image);
	int rc = take_places(image, &change, NULL, 0, table->count, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = write_table(image, &change, table, count, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	/* Freed with the flush behind the switch; where that fails, so does the image. */
	if (!rc && old_bytes)
		rc = q2_alloc_release(meta, old_table >> meta->geo.cluster_bits,
				      q2_div_up(old_bytes, meta->geo.cluster_size), err);
	if (!rc)
		rc = q2_writeback_header(meta, err);
	if (!rc) {
		q2_vec_free(&change.tables.counts.taken);
		rc = end(image, err);
	} else {
		meta->header = saved;
	}
	q2_rebuild_undo(meta, &change.tables.counts);
	q2_table_rebuild_free(&change.tables);
	return rc;
}

int qcow2_image_snapshot_rename(struct qcow2_image *image, uint32_t index, struct qcow2_bytes name,
				struct qcow2_error *err)
{
	struct q2_vec record = {0}, table = {0};
	struct qcow2_snapshot s;
	uint32_t count = 0;
	int rc = begin(image, err);
	if (!rc)
		rc = qcow2_image_snapshot(image, index, &s, err);
	if (!rc && name.length > UINT16_MAX)
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "The snapshot's name is too long");
	if (rc)
		return q2_image_blame(image, rc, err);
	s.name = name;
	rc = make_record(&s, &record, err);
	if (!rc)
		rc = build_table(image, index, &record, NULL, &table, &count, err);
	if (!rc)
		rc = replace_table(image, &table, count, err);
	q2_vec_free(&record);
	q2_vec_free(&table);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

/* What version 3 wants of every snapshot: the size of its VM state in 64 bits and that of its disk. */
enum { LEAST_EXTRA = 16 };

int q2_snapshot_complete(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_vec table = {0};
	uint32_t count = 0;
	bool lacking = false;
	int rc = begin(image, err);
	if (!rc)
		rc = qcow2_image_snapshot_count(image, &count, err);
	for (uint32_t i = 0; i < count && !rc; i++) {
		struct qcow2_snapshot s;
		uint8_t extra[LEAST_EXTRA];
		rc = qcow2_image_snapshot(image, i, &s, err);
		if (!rc && s.extra_data.length < LEAST_EXTRA) {
			q2_store64(extra, s.vm_state_size);
			q2_store64(extra + 8, s.size);
			s.extra_data = (struct qcow2_bytes){extra, sizeof extra};
			lacking = true;
		}
		if (!rc)
			rc = make_record(&s, &table, err);
	}
	if (!rc && lacking)
		rc = replace_table(image, &table, count, err);
	q2_vec_free(&table);
	return rc;
}

int q2_snapshot_let_go(struct qcow2_image *image, const struct q2_span *spans, size_t count,
		       struct qcow2_error *err)
{
	struct change change = {0};
	int rc = begin(image, err);
	if (rc)
		return rc;
	rc = open_change(image, &change, image->map.l1, image->map.l1_entries, 0, err);
	for (size_t i = 0; i < count && !rc; i++)
		rc = q2_refcount_add(&image->meta, spans[i].start, spans[i].count, -1, err);
	if (!rc)
		rc = renew_tables(image, &change, err);
	return close_change(image, &change, rc, err);
}
