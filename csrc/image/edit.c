/* SPDX-License-Identifier: MIT
 * What every change of an image shares: its beginning, its flush, its end. */
#include "base/be.h"
#include "data/codec.h"
#include "format/record.h"
#include "image/image.h"
#include "meta/map_edit.h"
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
		if (q2_live_metadata_has(&meta->guard, cluster, 1))
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
	image->changes = atomic_load(&image->store->changes);
	meta->data = meta->geo.external_data ? data : NULL;
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

int q2_edit_tables(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct qcow2_header *h = &meta->header;
	if (!image->begun)
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    "The image was not opened for writing");
	int rc = q2_writeback_check(meta, err);
	if (rc || image->raw)
		return rc;
	image->expanded_host = UINT64_MAX;
	if (!image->prepared) {
		bool lazy = h->version >= 3 && (h->compatible_features & Q2_COMPATIBLE_LAZY_REFCOUNTS);
		uint64_t autoclear = h->autoclear_features & Q2_AUTOCLEAR_KNOWN;
		if (lazy || autoclear != h->autoclear_features) {
			h->autoclear_features = autoclear;
			if (lazy)
				h->incompatible_features |= Q2_INCOMPATIBLE_DIRTY;
			rc = q2_writeback_header(meta, err);
			if (rc)
				return rc;
			meta->lazy = lazy;
		}
		image->prepared = true;
	}
	return q2_cache_is_full(&meta->cache) ? q2_writeback(meta, err) : 0;
}

int q2_edit_begin(struct qcow2_image *image, struct qcow2_error *err)
{
	struct qcow2_store *data;
	int rc = q2_edit_tables(image, err);
	if (rc || image->raw)
		return rc;
	if (image->meta.geo.external_data && !image->meta.data) {
		/* Begun for the tables alone. */
		rc = q2_image_data_store(image, &data, err);
		if (!rc && !qcow2_store_writable(data))
			rc = q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
					  "The external data file was opened read-only");
		if (rc)
			return rc;
		image->meta.data = data;
	}
	if (!image->edited) {
		rc = q2_track_begin(image, err);
		image->edited = !rc;
	}
	return rc;
}

struct qcow2_store *q2_edit_data(struct qcow2_image *image)
{
	if (image->meta.data) {
		image->meta.data_unsynced = true;
		return image->meta.data;
	}
	image->meta.unsynced = true;
	return image->store;
}

int q2_edit_reads_zero(struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero,
		       struct qcow2_error *err)
{
	*zero = true;
	length = offset < image->size ? q2_min(length, image->size - offset) : 0;
	while (length) {
		struct qcow2_extent extent;
		int rc = q2_chain_find(image, offset, length, 0, false, &extent, err);
		if (rc)
			return rc;
		if (extent.kind != QCOW2_EXTENT_ZERO && extent.kind != QCOW2_EXTENT_UNALLOCATED) {
			*zero = false;
			return 0;
		}
		offset += extent.length;
		length -= extent.length;
	}
	return 0;
}

int q2_edit_read(struct qcow2_image *image, uint64_t offset, void *buf, uint64_t length,
		 struct qcow2_error *err)
{
	uint64_t inside = offset < image->size ? q2_min(length, image->size - offset) : 0;
	memset((uint8_t *)buf + inside, 0, length - inside);
	return inside ? qcow2_image_read(image, offset, buf, inside, err) : 0;
}

int qcow2_image_flush(struct qcow2_image *image, struct qcow2_error *err)
{
	int rc = 0;
	if (!image->begun)
		return 0;
	if (image->raw)
		rc = q2_writeback_barrier(&image->meta, err);
	else
		rc = q2_writeback_flush(&image->meta, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

/* Devices and programs that move images by sectors see all of a file that ends with one. */
static int round_length(struct qcow2_image *image, struct qcow2_error *err)
{
	uint64_t length;
	int rc = qcow2_store_length(image->store, &length, err);
	if (rc || length % 512 == 0 || qcow2_store_is_device(image->store))
		return rc;
	image->meta.unsynced = true;
	rc = qcow2_store_resize(image->store, q2_round_up(length, 512), err);
	return rc ? q2_writeback_fail(&image->meta, rc, err) : 0;
}

int qcow2_image_finish(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	if (!image->begun)
		return 0;
	int rc = q2_writeback_check(meta, err);
	if (!rc)
		rc = q2_track_end(image, err);
	if (!rc && !image->raw)
		rc = q2_writeback_flush(meta, err);
	if (!rc && !image->raw && atomic_load(&image->store->changes) != image->changes)
		rc = round_length(image, err);
	rc = rc ? q2_image_blame(image, rc, err) : qcow2_image_flush(image, err);
	if (!rc && (meta->header.incompatible_features & Q2_INCOMPATIBLE_DIRTY)) {
		/* Every count is on disk before the bit that excused them goes. */
		meta->lazy = false;
		rc = q2_writeback_flush(meta, err);
		if (!rc) {
			meta->header.incompatible_features &= ~(uint64_t)Q2_INCOMPATIBLE_DIRTY;
			rc = q2_writeback_header(meta, err);
		}
		rc = q2_image_blame(image, rc, err);
	}
	if (!rc)
		image->begun = false;
	return rc;
}

int q2_image_hide(struct qcow2_image *image, struct qcow2_error *err)
{
	image->meta.hidden = true;
	return q2_writeback_header(&image->meta, err);
}

int q2_image_show(struct qcow2_image *image, bool flush, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	int rc = q2_track_end(image, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = round_length(image, err);
	/* Everything first, the magic last: when the caller wants it on disk, in that order there too. */
	if (!rc && flush) {
		/* Who made the file flushed nothing either. */
		meta->unsynced = true;
		meta->data_unsynced = meta->data != NULL;
		meta->hidden = false;
		rc = q2_writeback_barrier(meta, err);
		meta->hidden = true;
	}
	uint8_t magic[4];
	q2_store32(magic, Q2_MAGIC);
	if (!rc)
		rc = qcow2_store_write(meta->store, 0, magic, sizeof magic, err);
	if (rc)
		return rc;
	meta->hidden = false;
	meta->unsynced = flush; /* else nothing waits for a flush at the close */
	meta->data_unsynced = false;
	return q2_writeback_barrier(meta, err);
}
