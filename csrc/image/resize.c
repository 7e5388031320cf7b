/* SPDX-License-Identifier: MIT
 * The disk's size, and with it the bitmaps: grown or shrunk with one switch of the header (invariant 5). */
#include "image/image.h"
#include "image/preallocate.h"

#include <inttypes.h>

/* A larger L1 table beside the old one; the header names it with one write. The disk's size stays. */
static int grow_l1(struct qcow2_image *image, uint64_t size, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t entries = q2_header_l1_entries(g, size);
	if (entries > Q2_MAX_L1_BYTES / 8)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "A disk of %" PRIu64 " bytes needs an L1 table above %u bytes", size,
				    Q2_MAX_L1_BYTES);
	/* What is pending speaks of the old table's place. */
	int rc = q2_writeback(meta, err);
	uint64_t clusters = q2_div_up(entries * 8, g->cluster_size), start, got;
	q2_auto uint64_t *l1 = q2_new(entries, sizeof *l1);
	q2_auto uint64_t *raw = q2_new(clusters << g->cluster_bits, 1);
	if (!rc && (!l1 || !raw))
		rc = q2_error_nomem(err);
	if (!rc)
		rc = q2_alloc(meta, clusters, true, &start, &got, err);
	if (rc)
		return rc;
	memcpy(l1, image->map.l1, (size_t)image->map.l1_entries * 8);
	for (uint64_t i = 0; i < entries; i++)
		raw[i] = htobe64(l1[i]);
	rc = qcow2_store_write(meta->store, start << g->cluster_bits, raw, clusters << g->cluster_bits, err);
	if (rc) {
		q2_alloc_abandon(meta, start, clusters, NULL);
		return rc;
	}
	/* The counts of the new table are on disk before the header names it, lazy or not. */
	rc = q2_writeback_counts(meta, err);
	if (rc)
		return rc;
	uint64_t old = meta->header.l1_table_offset, old_bytes = meta->header.l1_size * 8ull;
	q2_live_metadata_add(&meta->live, start, clusters);
	meta->header.l1_table_offset = start << g->cluster_bits;
	meta->header.l1_size = (uint32_t)entries;
	rc = q2_writeback_header(meta, err);
	if (rc)
		return rc;
	free(image->map.l1);
	image->map.l1 = q2_take(&l1);
	image->map.l1_offset = meta->header.l1_table_offset;
	image->map.l1_entries = (uint32_t)entries;
	return old_bytes ? q2_alloc_release(meta, old >> g->cluster_bits,
					    q2_div_up(old_bytes, g->cluster_size), err)
			 : 0;
}

/*
 * Everything the grown part would show reads as zeros before the size on disk says it is there: entries left
 * over from a larger disk, the rest of the last cluster, a backing file longer than the disk, old bytes of a
 * data file that was longer all along. needs: in memory the disk has its new size already.
 */
static int clear_grown(struct qcow2_image *image, uint64_t old, uint64_t size, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint32_t cluster_size = meta->geo.cluster_size;
	uint64_t low = q2_round_up(old, cluster_size), high = q2_round_up(size, cluster_size);
	uint64_t length = 0, backing = image->backing ? image->backing->size : 0;
	bool raw = meta->data && (meta->header.autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW);
	int rc = meta->data ? qcow2_store_length(meta->data, &length, err) : 0;
	if (!rc && length > old)
		rc = qcow2_store_punch(meta->data, old, q2_min(length, size) - old, err);
	/* A raw data file is the disk, so all entries say "data, here". */
	const struct q2_map_state here = {.kind = Q2_MAP_DATA, .host = q2_host_at(low)};
	if (!rc && low < high && raw)
		rc = q2_edit_begin(image, err);
	if (!rc && low < high)
		rc = raw ? q2_map_set_range(&image->map, low, high, &here, err)
			 : q2_unmap_clusters(image, low, high, err);
	if (!rc && low > old)
		rc = qcow2_image_zero(image, old, q2_min(size, low) - old, 0, err);
	/* Whole clusters, so that entries say it and nothing has to be written. */
	if (!rc && backing > low && size > low)
		rc = qcow2_image_zero(image, low, q2_min(size, q2_round_up(backing, cluster_size)) - low, 0,
				      err);
	return rc;
}

static int grow(struct qcow2_image *image, uint64_t size, enum qcow2_preallocation mode,
		struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint64_t old = image->size;
	int rc = 0;
	if (q2_header_l1_entries(&meta->geo, size) > image->map.l1_entries)
		rc = grow_l1(image, size, err);
	if (rc)
		return rc;
	image->size = image->map.size = size;
	rc = clear_grown(image, old, size, err);
	if (!rc)
		rc = q2_data_file_resize(image, size, err);
	if (!rc && meta->data)
		rc = q2_preallocate_plain(meta->data, old, size, mode, err);
	if (!rc && mode != QCOW2_PREALLOCATION_OFF)
		rc = q2_preallocate(image, old, mode, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = q2_bitmaps_resize(image, size, err);
	if (rc)
		image->size = image->map.size = old;
	return rc;
}

/*
 * Whoever grows the disk again, another program too, must not show what stood behind its end: in the last cluster the
 * disk's own bytes there become zeros. needs: on disk the disk is smaller already, in memory it ends with its cluster.
 */
static int clear_rest(struct qcow2_image *image, uint64_t size, struct qcow2_error *err)
{
	for (uint64_t at = size; at < image->size;) {
		struct q2_run run;
		int rc = q2_map_find(&image->map, q2_guest_at(at), image->size - at, &run, err);
		if (!rc && (run.kind == Q2_SUB_DATA || run.kind == Q2_SUB_COMPRESSED))
			rc = qcow2_image_zero(image, at, run.length, 0, err);
		if (rc)
			return rc;
		at += run.length;
	}
	return 0;
}

/* First the size, then what lies behind it: cut off in between, that is merely still allocated. */
static int shrink(struct qcow2_image *image, uint64_t size, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint32_t cluster_size = meta->geo.cluster_size;
	uint64_t low = q2_round_up(size, cluster_size), high = q2_round_up(image->size, cluster_size);
	int rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = q2_map_check_release(&image->map, low, high, err);
	if (!rc)
		rc = q2_bitmaps_resize(image, size, err);
	if (rc)
		return rc;
	image->size = image->map.size = low;
	rc = clear_rest(image, size, err);
	image->size = image->map.size = size;
	if (!rc && low < high)
		rc = q2_unmap_tables(image, low, high, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = q2_data_file_resize(image, size, err);
	return rc ? rc : q2_image_trim(image, err);
}

static int resize_raw(struct qcow2_image *image, uint64_t size, enum qcow2_preallocation mode,
		      struct qcow2_error *err)
{
	uint64_t old;
	int rc = qcow2_store_length(image->store, &old, err);
	if (!rc)
		rc = qcow2_store_resize(image->store, size, err);
	if (!rc)
		rc = q2_preallocate_plain(image->store, old, size, mode, err);
	if (!rc)
		image->size = q2_round_up(size, 512);
	return rc;
}

static int change_size(struct qcow2_image *image, uint64_t size, bool may_shrink,
		       enum qcow2_preallocation mode, struct qcow2_error *err)
{
	uint32_t snapshots = 0;
	int rc = q2_edit_begin(image, err);
	/* A raw file may end inside the disk's last sector. */
	if (rc || (size == image->size && !image->raw))
		return rc;
	if (size > INT64_MAX - 511)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "A disk of %" PRIu64 " bytes is too large", size);
	if (size < image->size && !may_shrink)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "Shrinking to %" PRIu64
				    " bytes would lose what lies behind; it has to be asked for",
				    size);
	if (image->raw)
		return resize_raw(image, size, mode, err);
	rc = qcow2_image_snapshot_count(image, &snapshots, err);
	/* Entries of version 2 snapshots do not say how large the disk was. */
	if (!rc && snapshots && image->meta.header.version < 3)
		rc = q2_error_set(err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET,
				  "A version 2 image that has snapshots cannot be resized");
	if (!rc)
		rc = q2_bitmaps_check_size(image, size, err);
	if (rc)
		return rc;
	return size > image->size ? grow(image, size, mode, err) : shrink(image, size, err);
}

/* What lies behind the end of the smaller disk is in no bitmap, so none has to follow. */
static int resize(struct qcow2_image *image, uint64_t size, bool may_shrink, enum qcow2_preallocation mode,
		  struct qcow2_error *err)
{
	int rc = q2_track_end(image, err);
	image->edited = true;
	if (!rc)
		rc = change_size(image, size, may_shrink, mode, err);
	image->edited = false;
	return rc;
}

int qcow2_image_resize(struct qcow2_image *image, uint64_t size, unsigned flags,
		       enum qcow2_preallocation preallocation, struct qcow2_error *err)
{
	int rc = 0;
	if (preallocation != QCOW2_PREALLOCATION_OFF && size < image->size)
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				  "Preallocation can only be used for growing images");
	else if (image->raw && preallocation == QCOW2_PREALLOCATION_METADATA)
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				  "Unsupported preallocation mode: metadata");
	else
		rc = resize(image, size, flags & QCOW2_RESIZE_SHRINK, preallocation, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
