/* SPDX-License-Identifier: MIT
 * Makes an image writable: proves that no live metadata would be handed out as free (SAFETY rule 4). */
#include "format/record.h"
#include "image/image.h"
#include "store/store.h"

#include <inttypes.h>

enum { PROVE_AT_ONCE = 16 << 20 }; /* bytes of L2 tables */

bool qcow2_image_writable(const struct qcow2_image *image)
{
	return image->begun;
}

/* As q2_alloc_verify. What other metadata has named already must be counted twice: with a count of one it would be
 * changed in place, and both with it. */
static int verify_again(struct q2_meta *meta, const char *what, uint64_t offset, uint64_t bytes,
			struct qcow2_error *err)
{
	unsigned bits = meta->geo.cluster_bits;
	uint64_t end = q2_div_up(offset + bytes, meta->geo.cluster_size);
	for (uint64_t cluster = offset >> bits; cluster < end; cluster++) {
		uint64_t count = 2;
		int rc = 0;
		if (q2_live_metadata_has(&meta->live, cluster, 1))
			rc = q2_refcount_read(meta, cluster, &count, err);
		if (!rc && count < 2)
			rc = q2_error_set(err, QCOW2_E_CORRUPT, cluster << bits,
					  "%s at offset %#" PRIx64
					  " is other metadata too, with a reference count of %" PRIu64
					  "; the image has to be repaired before it is written to",
					  what, cluster << bits, count);
		if (rc)
			return rc;
	}
	return q2_alloc_verify(meta, what, offset, bytes, err);
}

/* The snapshot's tables: every one has to be counted before the allocator may look for free clusters. */
static int verify_snapshots(struct qcow2_image *image, struct qcow2_error *err)
{
	uint32_t count;
	int rc = qcow2_image_snapshot_count(image, &count, err);
	/* Snapshot L1 tables of a sound image do not overlap, so together they fit the file. */
	uint64_t budget = image->meta.file_length;
	struct qcow2_snapshot snap = {0};
	for (uint32_t i = 0; !rc && i < count; i++) {
		rc = qcow2_image_snapshot(image, i, &snap, err);
		uint64_t bytes = (uint64_t)snap.l1_entries * 8;
		if (!rc && (bytes > Q2_MAX_L1_BYTES || bytes > budget))
			rc = q2_error_set(err, QCOW2_E_CORRUPT, snap.offset,
					  "Snapshot %" PRIu32 " has an L1 table that is too large", i);
		q2_auto uint64_t *l1 = NULL;
		if (!rc)
			rc = q2_meta_read_table(&image->meta, "Snapshot L1 table", snap.l1_offset,
						snap.l1_entries, &l1, err);
		if (!rc)
			rc = verify_again(&image->meta, "Snapshot L1 table", snap.l1_offset, bytes, err);
		uint64_t end = snap.l1_offset + bytes, start = snap.l1_offset, length = 0;
		do {
			if (!rc)
				rc = q2_meta_next_data(&image->meta, start + length, end, &start, &length,
						       err);
			for (uint64_t j = (start - snap.l1_offset) / 8;
			     !rc && j < (start - snap.l1_offset + length) / 8; j++) {
				uint64_t at = l1[j] & Q2_OFFSET_MASK;
				if (at)
					rc = verify_again(&image->meta, "Snapshot L2 table", at, 1, err);
				if (at && !rc)
					rc = q2_data_counts_table(&image->meta, at, err);
			}
		} while (!rc && length);
		budget -= rc ? 0 : bytes;
	}
	if (!rc && count)
		rc = q2_alloc_verify(&image->meta, "Snapshot table", image->meta.header.snapshots_offset,
				     snap.offset - image->meta.header.snapshots_offset + 1, err);
	return rc;
}

static int verify_bitmaps(struct qcow2_image *image, struct qcow2_error *err)
{
	uint32_t count;
	int rc = qcow2_image_bitmap_count(image, &count, err);
	/* As above: together the tables of a sound image fit the file. */
	uint64_t budget = image->meta.file_length;
	for (uint32_t i = 0; !rc && i < count; i++) {
		struct qcow2_bitmap b;
		rc = qcow2_image_bitmap(image, i, &b, err);
		uint64_t bytes = rc ? 0 : (uint64_t)b.table_entries * 8;
		if (!rc && (b.table_entries > Q2_MAX_BITMAP_TABLE || bytes > budget))
			rc = q2_error_set(err, QCOW2_E_CORRUPT, b.offset,
					  "Bitmap %" PRIu32 " has a table that is too large", i);
		q2_auto uint64_t *table = NULL;
		if (!rc)
			rc = q2_alloc_verify(&image->meta, "Bitmap directory", b.offset, 1, err);
		if (!rc && bytes)
			rc = q2_meta_read_table(&image->meta, "Bitmap table", b.table_offset, b.table_entries,
						&table, err);
		if (!rc && bytes)
			rc = verify_again(&image->meta, "Bitmap table", b.table_offset, bytes, err);
		for (uint32_t j = 0; !rc && bytes && j < b.table_entries; j++)
			if (table[j] & Q2_OFFSET_MASK)
				rc = verify_again(&image->meta, "Bitmap data", table[j] & Q2_OFFSET_MASK, 1,
						  err);
		budget -= rc ? 0 : bytes;
	}
	return rc;
}

/* Live metadata with a count of 0 would be handed out as free (SAFETY rule 4). */
static int verify_metadata(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct qcow2_header *h = &meta->header;
	q2_vec_free(&meta->l2_tables);
	int rc = q2_alloc_verify_blocks(meta, err);
	if (!rc)
		rc = q2_alloc_verify(meta, "Header", 0, 1, err);
	if (!rc)
		rc = q2_alloc_verify(meta, "Reference count table", h->refcount_table_offset,
				     (uint64_t)h->refcount_table_clusters << h->cluster_bits, err);
	if (!rc && h->l1_size)
		rc = q2_alloc_verify(meta, "L1 table", h->l1_table_offset, (uint64_t)h->l1_size * 8, err);
	if (!rc)
		rc = q2_map_load(&image->map, err);
	for (uint32_t i = 0; !rc && i < image->map.l1_entries; i++) {
		uint64_t at = image->map.l1[i] & Q2_OFFSET_MASK;
		if (at)
			rc = q2_alloc_verify(meta, "L2 table", at, 1, err);
		if (at && !rc)
			rc = q2_data_counts_table(meta, at, err);
	}
	if (!rc)
		rc = verify_snapshots(image, err);
	return rc ? rc : verify_bitmaps(image, err);
}

static int begin(struct qcow2_image *image, bool tables_only, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct qcow2_header *h = &meta->header;
	if (image->is_snapshot || !qcow2_store_writable(image->store))
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET, "The image was opened read-only");
	q2_writeback_settled(meta);
	image->changes = q2_store_changes(image->store);
	if (image->raw)
		return 0;
	if (h->incompatible_features & Q2_INCOMPATIBLE_CORRUPT)
		return q2_error_set(
			err, QCOW2_E_CORRUPT, 72,
			"The image is marked corrupt; it can only be read, or repaired (check -r all)");
	if (h->incompatible_features & Q2_INCOMPATIBLE_DIRTY)
		return q2_error_set(
			err, QCOW2_E_CORRUPT, 72,
			"The image was not closed and its reference counts are not up to date; repair it "
			"first (check -r all)");
	if (h->crypt_method)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, 32,
				    "The image is encrypted; writing to encrypted images is not supported");
	bool without = tables_only && meta->geo.external_data && !image->data;
	struct qcow2_store *data = NULL;
	int rc = without ? 0 : q2_image_data_store(image, &data, err);
	if (rc)
		return rc;
	if (data && !qcow2_store_writable(data))
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    "The external data file was opened read-only");
	rc = verify_metadata(image, err);
	if (rc)
		return rc;
	q2_writeback_attach(meta, meta->geo.external_data ? data : NULL);
	meta->virgin = q2_div_up(meta->file_length, meta->geo.cluster_size);
	meta->free_hint = 1;
	if (meta->geo.external_data) /* whose clusters are not counted */
		return 0;
	meta->unproven = meta->virgin;
	return q2_data_counts_cost(meta) <= PROVE_AT_ONCE ? q2_data_counts_prove(meta, err) : 0;
}

int qcow2_image_begin(struct qcow2_image *image, struct qcow2_error *err)
{
	if (image->begun)
		return 0;
	int rc = begin(image, false, err);
	image->begun = !rc;
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_begin_tables(struct qcow2_image *image, struct qcow2_error *err)
{
	if (image->begun)
		return 0;
	int rc = begin(image, true, err);
	image->begun = !rc;
	return rc ? q2_image_blame(image, rc, err) : 0;
}
