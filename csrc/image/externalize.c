/* SPDX-License-Identifier: MIT
 * Externalize: the guest's clusters leave for an external data file that holds them already; one switch of the header
 * names new tables and new reference counts, which know of metadata alone. */
#include "base/be.h"
#include "image/amend.h"
#include "image/header_cluster.h"
#include "image/table_rebuild.h"

#include <inttypes.h>

static int refuse(struct qcow2_error *err, int code, const char *why)
{
	return q2_error_set(err, code, Q2_NO_OFFSET, "%s", why);
}

static int check(struct qcow2_image *image, bool raw, struct qcow2_error *err)
{
	uint32_t snapshots = 0;
	int rc = q2_edit_tables(image, err);
	if (rc)
		return rc;
	if (image->raw)
		return refuse(err, QCOW2_E_UNSUPPORTED, "A raw image has no metadata that could stay behind");
	if (image->meta.geo.external_data)
		return refuse(err, QCOW2_E_CONFLICT, "The image has an external data file already");
	if (image->meta.header.version < 3)
		return refuse(err, QCOW2_E_UNSUPPORTED,
			      "External data files need a version 3 image (amend -o compat=1.1)");
	rc = qcow2_image_snapshot_count(image, &snapshots, err);
	if (!rc && snapshots)
		return refuse(
			err, QCOW2_E_UNSUPPORTED,
			"An image with internal snapshots cannot have an external data file; delete them first");
	if (!rc && raw && image->backing_name.data)
		return refuse(
			err, QCOW2_E_CONFLICT,
			"An image whose raw data file is the disk has no backing file; rebase it first");
	return rc;
}

int qcow2_image_externalize_check(struct qcow2_image *image, bool raw, struct qcow2_error *err)
{
	return q2_image_blame(image, check(image, raw, err), err);
}

/* Entries of one table as they are with the data at its guest offset. */
static int move_out(struct qcow2_image *image, uint64_t guest, uint8_t *table, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	bool raw = image->meta.header.autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW;
	for (uint32_t j = 0; j < 1u << g->l2_bits; j++, guest += g->cluster_size) {
		uint8_t *entry = table + (size_t)j * g->l2_entry_size;
		struct q2_entry e = q2_entry_load(g, entry);
		if (e.invalid)
			return q2_error_set(err, QCOW2_E_CORRUPT, guest,
					    "L2 entry of guest offset %#" PRIx64 " contradicts itself",
					    guest);
		uint64_t word = 0, bitmap = (uint64_t)e.zero << 32 | e.alloc;
		if (guest >= image->size) {
			bitmap = 0; /* what lies behind the disk's end is nobody's */
		} else if (raw || e.compressed) {
			word = guest | Q2_COPIED;
			bitmap = UINT32_MAX;
		} else if (e.alloc) {
			word = guest | Q2_COPIED;
		} else if (e.zero && !g->extended_l2) {
			word = Q2_ZERO;
		}
		q2_entry_store(g, entry, word, bitmap);
	}
	return 0;
}

/* The data file's name comes first: without the feature bit nobody looks at it. */
static int store_name(struct qcow2_image *image, struct qcow2_bytes name, struct qcow2_error *err)
{
	struct q2_header_cluster head = {0};
	int rc = q2_header_cluster_load(image, &head, err);
	if (!rc)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_DATA_FILE, name.data,
					   (uint32_t)name.length, err);
	if (!rc)
		rc = q2_header_cluster_store(image, &head, err);
	q2_header_cluster_free(&head);
	return rc;
}

/* The disk's references all go, its tables with them. */
static int drop_old(struct qcow2_image *image, struct qcow2_error *err)
{
	uint64_t clusters = q2_div_up(image->map.l1_entries * 8ull, image->meta.geo.cluster_size);
	int rc = q2_table_rebuild_count(image, image->map.l1, image->map.l1_entries, -1, err);
	if (!rc && clusters)
		rc = q2_refcount_add(&image->meta, image->map.l1_offset >> image->meta.geo.cluster_bits,
				     clusters, -1, err);
	return rc;
}

static int move(struct qcow2_image *image, struct qcow2_store *data, bool raw, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct q2_table_rebuild t = {.full = raw};
	/* A longer L1 table than the disk needs says nothing of the disk. */
	uint32_t entries = (uint32_t)q2_header_l1_entries(&meta->geo, image->size);
	int rc = q2_table_rebuild_take(image, &t, image->map.l1, entries, err);
	if (!rc)
		rc = q2_rebuild_open(meta, &t.counts, err);
	if (!rc)
		rc = drop_old(image, err);
	if (rc)
		goto undo;
	meta->header.incompatible_features |= Q2_INCOMPATIBLE_DATA_FILE;
	if (raw)
		meta->header.autoclear_features |= Q2_AUTOCLEAR_DATA_FILE_RAW;
	else
		meta->header.autoclear_features &= ~(uint64_t)Q2_AUTOCLEAR_DATA_FILE_RAW;
	rc = q2_table_rebuild_write(image, &t, image->map.l1, move_out, err);
	if (rc)
		goto undo;
	q2_table_rebuild_name(image, &t);
	rc = q2_rebuild_switch(meta, &t.counts, err);
	if (rc)
		goto undo;
	q2_table_rebuild_adopt(image, &t);
	q2_header_geometry(&meta->header, &meta->geo);
	q2_cache_drop(&meta->cache);
	meta->stream_at = meta->stream_end = 0;
	image->data = qcow2_store_ref(data);
	q2_writeback_attach(meta, image->data);
	rc = q2_image_reload_header(image, err);
undo:
	q2_rebuild_undo(meta, &t.counts);
	q2_table_rebuild_free(&t);
	return rc;
}

/* Tables go to the lowest free places, so that the file becomes short. */
static int gather(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct q2_table_rebuild t = {0};
	const uint64_t *l1 = image->map.l1;
	int rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = q2_table_rebuild_take(image, &t, l1, image->map.l1_entries, err);
	if (!rc)
		rc = q2_rebuild_open(meta, &t.counts, err);
	if (!rc) /* the data file's clusters are not counted: the tables are all there is */
		rc = drop_old(image, err);
	if (!rc)
		rc = q2_table_rebuild_write(image, &t, l1, NULL, err);
	if (!rc) {
		q2_table_rebuild_name(image, &t);
		rc = q2_rebuild_switch(meta, &t.counts, err);
	}
	if (!rc) {
		q2_table_rebuild_adopt(image, &t);
		q2_cache_drop(&meta->cache);
		rc = q2_writeback_flush(meta, err);
	}
	q2_rebuild_undo(meta, &t.counts);
	q2_table_rebuild_free(&t);
	/* Blocks that count nothing any more are left out. */
	return rc ? rc : q2_amend_width(image, meta->header.refcount_order, err);
}

static int externalize(struct qcow2_image *image, struct qcow2_store *data, struct qcow2_bytes name, bool raw,
		       struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint64_t length;
	int rc = check(image, raw, err);
	if (!rc && !qcow2_store_writable(data))
		rc = refuse(err, QCOW2_E_READONLY, "The external data file was opened read-only");
	if (!rc)
		rc = qcow2_store_length(data, &length, err);
	if (!rc && length < image->size)
		rc = refuse(err, QCOW2_E_RANGE, "The data file is shorter than the disk");
	if (!rc && (!name.length || name.length > meta->geo.cluster_size))
		rc = refuse(err, QCOW2_E_RANGE, "The data file's name is empty or too long");
	/* What writes have set in bitmaps goes to disk, so that nothing is pending; counts are kept in time. */
	if (!rc)
		rc = q2_track_end(image, err);
	if (!rc)
		rc = q2_writeback_in_time(meta, err);
	if (!rc)
		rc = q2_map_load(&image->map, err);
	if (!rc && raw)
		rc = q2_data_file_cut(data, image->size, meta->geo.cluster_size, err);
	/* Invariant 3: the data is there before anything says so. */
	if (!rc)
		rc = qcow2_store_flush(data, err);
	if (!rc)
		rc = store_name(image, name, err);
	if (!rc)
		rc = move(image, data, raw, err);
	return rc;
}

int qcow2_image_externalize(struct qcow2_image *image, struct qcow2_store *data, struct qcow2_bytes name,
			    bool raw, struct qcow2_error *err)
{
	return q2_image_blame(image, externalize(image, data, name, raw, err), err);
}

int qcow2_image_gather(struct qcow2_image *image, struct qcow2_error *err)
{
	int rc = q2_edit_tables(image, err);
	if (!rc && (image->raw || !image->meta.geo.external_data))
		rc = refuse(err, QCOW2_E_CONFLICT, "The image has no external data file");
	if (!rc)
		rc = q2_track_end(image, err);
	if (!rc)
		rc = q2_writeback_in_time(&image->meta, err);
	if (!rc)
		rc = gather(image, err);
	if (!rc)
		rc = q2_image_trim(image, err);
	if (!rc)
		rc = q2_writeback_flush(&image->meta, err);
	return q2_image_blame(image, rc, err);
}
