/* SPDX-License-Identifier: MIT
 * The snapshot table and the bitmap directory: read on first use, entries found by index. */
#include "base/be.h"
#include "base/mem.h"
#include "format/record.h"
#include "image/image.h"

#include <inttypes.h>

/* One entry may be cut by the end of what was read so far: read on, in steps of this. */
enum { STEP = 1 << 16 };

/*
 * Reads a table of `count` records from `at` on. Its length is known only from its entries, so it is
 * read in steps that never go past the file's end nor `most` bytes. gives: the bytes and where each entry
 * begins.
 */
static int read_records(struct qcow2_image *image, const char *what, uint64_t at, uint32_t count,
			uint64_t most, uint32_t (*measure)(const uint8_t *, uint64_t), uint8_t **out,
			struct q2_vec *starts, struct qcow2_error *err)
{
	q2_auto uint8_t *bytes = NULL;
	uint64_t have = 0, room = 0, pos = 0;
	/* Entries are padded to 8 bytes, but the last one of a file may have been written without its padding. */
	uint64_t stop = q2_round_up(image->meta.file_length, 8);
	uint64_t end = q2_min(most, stop > at ? stop - at : 0);
	struct q2_vec found = {0};
	int rc = 0;

	for (uint32_t i = 0; i < count;) {
		uint32_t length = bytes ? measure(bytes + pos, have - pos) : 0;
		if (length && length <= have - pos) {
			uint32_t *start = q2_vec_push(&found, sizeof *start);
			if (!start) {
				rc = q2_error_nomem(err);
				goto undo;
			}
			*start = (uint32_t)pos;
			pos += length;
			i++;
			continue;
		}
		if (have == end) {
			rc = q2_error_set(err, QCOW2_E_CORRUPT, at + pos,
					  "%s: entry %" PRIu32 " at offset %#" PRIx64 " runs past %s", what,
					  i, at + pos,
					  have == most ? "the table's limit" : "the end of the file");
			goto undo;
		}
		uint64_t step = q2_min(STEP, end - have);
		if (have + step > room) {
			room = q2_min(end, q2_max(have + step, room * 2));
			uint8_t *larger = realloc(bytes, room);
			if (!larger) {
				rc = q2_error_nomem(err);
				goto undo;
			}
			bytes = larger;
		}
		rc = qcow2_store_read(image->store, at + have, bytes + have, step, err);
		if (rc)
			goto undo;
		have += step;
	}
	*out = q2_take(&bytes);
	*starts = found;
	return 0;
undo:
	q2_vec_free(&found);
	return rc;
}

/* Length of the whole entry at `bytes`, more than `room` when it is cut, 0 when not even known. */
static uint32_t measure_snapshot(const uint8_t *bytes, uint64_t room)
{
	struct q2_snapshot_record r;
	if (room < Q2_SNAPSHOT_FIXED)
		return 0;
	q2_record_snapshot(bytes, room, &r);
	return r.length;
}

static uint32_t measure_bitmap(const uint8_t *bytes, uint64_t room)
{
	struct q2_bitmap_record r;
	if (room < Q2_BITMAP_FIXED)
		return 0;
	q2_record_bitmap(bytes, room, &r);
	return r.length;
}

static int load_snapshots(struct qcow2_image *image, struct qcow2_error *err)
{
	const struct qcow2_header *h = &image->meta.header;
	if (image->snapshots_loaded || image->raw)
		return 0;
	int rc = read_records(image, "Snapshot table", h->snapshots_offset, h->nb_snapshots,
			      Q2_MAX_SNAPSHOT_TABLE, measure_snapshot, &image->snapshot_table,
			      &image->snapshots, err);
	image->snapshots_loaded = !rc;
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_snapshot_count(struct qcow2_image *image, uint32_t *count, struct qcow2_error *err)
{
	int rc = load_snapshots(image, err);
	if (!rc)
		*count = (uint32_t)image->snapshots.count;
	return rc;
}

int qcow2_image_snapshot(struct qcow2_image *image, uint32_t index, struct qcow2_snapshot *out,
			 struct qcow2_error *err)
{
	int rc = load_snapshots(image, err);
	if (rc)
		return rc;
	if (index >= image->snapshots.count)
		return q2_image_blame(image,
				      q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
						   "There is no snapshot number %" PRIu32, index),
				      err);
	uint32_t start = ((uint32_t *)image->snapshots.items)[index];
	const uint8_t *bytes = image->snapshot_table + start;
	struct q2_snapshot_record r;
	q2_record_snapshot(bytes, UINT32_MAX, &r); /* whole: measured when it was read */
	*out = (struct qcow2_snapshot){
		.id = {bytes + r.id_at, r.id_length},
		.name = {bytes + r.name_at, r.name_length},
		.extra_data = {bytes + r.extra_at, r.extra_length},
		.offset = image->meta.header.snapshots_offset + start,
		.l1_offset = r.l1_table_offset,
		.l1_entries = r.l1_size,
		.date_sec = r.date_sec,
		.date_nsec = r.date_nsec,
		.vm_clock_nsec = r.vm_clock_nsec,
		.vm_state_size = r.vm_state_size,
		/* Old snapshots do not say: the disk had the size it has now (specification, "Snapshots"). */
		.size = r.disk_size == UINT64_MAX ? image->meta.header.size : r.disk_size,
		.icount = r.icount,
	};
	return 0;
}

int q2_image_bitmaps_extension(struct qcow2_image *image, struct q2_bitmaps_ext *ext, struct qcow2_error *err)
{
	*ext = (struct q2_bitmaps_ext){0};
	if (image->raw || !(image->meta.header.autoclear_features & Q2_AUTOCLEAR_BITMAPS))
		return 0;
	const struct q2_extension *e = q2_image_extension(image, (uint32_t)Q2_EXT_BITMAPS);
	return e ? q2_extension_bitmaps(image->head + e->offset, e->length, ext, err) : 0;
}

/* What makes one entry unfit to be shown. */
static int check_bitmap(const struct qcow2_image *image, uint32_t index, struct qcow2_error *err)
{
	uint32_t start = ((uint32_t *)image->bitmaps.items)[index];
	struct q2_bitmap_record r;
	q2_record_bitmap(image->bitmap_directory + start, UINT32_MAX, &r);
	if (r.granularity_bits < 9 || r.granularity_bits > 31)
		return q2_error_set(err, QCOW2_E_CORRUPT, image->bitmaps_at + start,
				    "Bitmap %" PRIu32 ": granularity of 2^%u bytes is outside 2^9-2^31",
				    index, r.granularity_bits);
	return 0;
}

void q2_image_add_serial(struct qcow2_image *image)
{
	uint64_t *serial = q2_vec_push(&image->bitmap_serials, sizeof *serial);
	/* Without memory all get new ones with the next reading. */
	if (serial)
		*serial = ++image->last_serial;
}

void q2_image_drop_serial(struct qcow2_image *image, uint32_t index)
{
	uint64_t *serials = image->bitmap_serials.items;
	image->bitmap_serials.count--;
	memmove(serials + index, serials + index + 1,
		(image->bitmap_serials.count - index) * sizeof *serials);
}

/* New numbers for all when it is not known which is whose. */
static int number_bitmaps(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_vec *serials = &image->bitmap_serials;
	if (serials->count == image->bitmaps.count)
		return 0;
	serials->count = 0;
	for (size_t i = 0; i < image->bitmaps.count; i++)
		q2_image_add_serial(image);
	return serials->count == image->bitmaps.count ? 0 : q2_error_nomem(err);
}

static int load_bitmaps(struct qcow2_image *image, struct qcow2_error *err)
{
	if (image->bitmaps_loaded)
		return 0;
	struct q2_bitmaps_ext ext;
	int rc = q2_image_bitmaps_extension(image, &ext, err);
	if (!rc && ext.count > Q2_MAX_BITMAPS)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET, "Too many bitmaps: %" PRIu32,
				  ext.count);
	if (!rc && ext.directory_size > Q2_MAX_BITMAP_DIRECTORY)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET,
				  "Bitmap directory too large: %" PRIu64 " bytes", ext.directory_size);
	if (!rc && ext.count)
		rc = q2_meta_bound(&image->meta, "Bitmap directory", ext.directory_offset, ext.directory_size,
				   err);
	if (!rc)
		rc = read_records(image, "Bitmap directory", ext.directory_offset, ext.count,
				  ext.directory_size, measure_bitmap, &image->bitmap_directory,
				  &image->bitmaps, err);
	image->bitmaps_at = ext.directory_offset;
	for (uint32_t i = 0; !rc && i < image->bitmaps.count; i++)
		rc = check_bitmap(image, i, err);
	if (!rc)
		rc = number_bitmaps(image, err);
	image->bitmaps_loaded = !rc;
	if (!rc)
		return 0;
	q2_vec_free(&image->bitmaps);
	free(q2_take(&image->bitmap_directory));
	return q2_image_blame(image, rc, err);
}

int qcow2_image_bitmap_count(struct qcow2_image *image, uint32_t *count, struct qcow2_error *err)
{
	int rc = load_bitmaps(image, err);
	if (!rc)
		*count = (uint32_t)image->bitmaps.count;
	return rc;
}

int qcow2_image_bitmap(struct qcow2_image *image, uint32_t index, struct qcow2_bitmap *out,
		       struct qcow2_error *err)
{
	int rc = load_bitmaps(image, err);
	if (rc)
		return rc;
	if (index >= image->bitmaps.count)
		return q2_image_blame(image,
				      q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
						   "There is no bitmap number %" PRIu32, index),
				      err);
	uint32_t start = ((uint32_t *)image->bitmaps.items)[index];
	const uint8_t *bytes = image->bitmap_directory + start;
	struct q2_bitmap_record r;
	q2_record_bitmap(bytes, UINT32_MAX, &r);
	*out = (struct qcow2_bitmap){
		.name = {bytes + r.name_at, r.name_length},
		.extra_data = {bytes + r.extra_at, r.extra_length},
		.offset = image->bitmaps_at + start,
		.table_offset = r.table_offset,
		.table_entries = r.table_entries,
		.flags = r.flags,
		.type = r.type,
		.granularity = 1ull << r.granularity_bits,
		.in_use = r.flags & Q2_BITMAP_IN_USE,
		.autoset = r.flags & Q2_BITMAP_AUTO,
		.serial = ((uint64_t *)image->bitmap_serials.items)[index],
	};
	return 0;
}

int qcow2_image_bitmap_find(struct qcow2_image *image, uint64_t serial, uint32_t *index,
			    struct qcow2_error *err)
{
	int rc = load_bitmaps(image, err);
	const uint64_t *serials = image->bitmap_serials.items;
	if (rc)
		return rc;
	/* A bitmap keeps its place until one before it goes. */
	if (*index < image->bitmaps.count && serials[*index] == serial)
		return 0;
	for (uint32_t i = 0; i < image->bitmaps.count; i++)
		if (serials[i] == serial) {
			*index = i;
			return 0;
		}
	return q2_image_blame(image,
			      q2_error_set(err, QCOW2_E_MISSING, Q2_NO_OFFSET,
					   "The bitmap is not there any more"),
			      err);
}

void q2_image_forget_bitmaps(struct qcow2_image *image)
{
	free(image->bitmap_directory);
	free(image->bitmap_table);
	image->bitmap_directory = NULL;
	image->bitmap_table = NULL;
	q2_vec_free(&image->bitmaps);
	image->bitmaps_loaded = false;
}
