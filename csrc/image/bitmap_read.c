/* SPDX-License-Identifier: MIT
 * Which parts of the disk a persistent bitmap names. While an image is written to, the truth about bitmaps that follow
 * writes is in memory: it is read there. */
#include "image/bitmap_pages.h"

#include "format/record.h"

#include <inttypes.h>

/* The bitmap's table in memory; one at a time, since they are walked one after the other. */
static int load_bitmap_table(struct qcow2_image *image, uint32_t index, const struct qcow2_bitmap *bitmap,
			     struct qcow2_error *err)
{
	if (image->bitmap_table && image->bitmap_table_of == index)
		return 0;
	if (bitmap->type != 1)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, bitmap->offset, "Unknown bitmap type %u",
				    bitmap->type);
	/* A bit a granule, eight a byte, a cluster's worth of bytes an entry. */
	uint64_t bytes = q2_div_up(q2_div_up(image->size, bitmap->granularity), 8);
	uint64_t needed = q2_div_up(bytes, image->meta.geo.cluster_size);
	if (bitmap->table_entries > Q2_MAX_BITMAP_TABLE || bitmap->table_entries < needed)
		return q2_error_set(err, QCOW2_E_CORRUPT, bitmap->offset,
				    "Bitmap table of %" PRIu32 " entries does not fit a disk of %" PRIu64
				    " bytes",
				    bitmap->table_entries, image->size);
	q2_auto uint64_t *table = NULL;
	int rc = q2_meta_read_table(&image->meta, "Bitmap table", bitmap->table_offset, (uint32_t)needed,
				    &table, err);
	/* Bits that are named again and again would make a walk longer than the file. */
	if (!rc)
		rc = q2_meta_distinct(table, (uint32_t)needed, Q2_OFFSET_MASK, "Bitmap data", err);
	if (rc)
		return rc;
	free(image->bitmap_table);
	image->bitmap_table = q2_take(&table);
	image->bitmap_table_of = index;
	return 0;
}

/* How many granules from `first` on (at most `most`) have the value of the first. needs: bits in `bytes`
 * counted from the lowest of each byte. */
static uint64_t same_bits(const uint8_t *bytes, uint64_t first, uint64_t most, bool value)
{
	uint64_t n = 0;
	uint8_t whole = value ? 0xff : 0;
	while (n < most) {
		uint64_t bit = first + n;
		if (bit % 8 == 0 && most - n >= 8 && bytes[bit / 8] == whole)
			n += 8;
		else if ((bytes[bit / 8] >> (bit % 8) & 1) == value)
			n++;
		else
			break;
	}
	return n;
}

/* The run of one value at granule `first` within one table entry, at most `most` granules. `pages`: what memory has of
 * the bitmap, NULL: nothing. */
static int bitmap_piece(struct qcow2_image *image, const struct q2_bitmap_pages *pages, uint64_t first,
			uint64_t most, bool *dirty, uint64_t *run, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t per_entry = (uint64_t)g->cluster_size * 8;
	uint64_t entry = first / per_entry, within = first % per_entry;
	most = q2_min(most, per_entry - within);
	if (pages && pages->pages[entry]) {
		const uint8_t *page = pages->pages[entry];
		*dirty = page[within / 8] >> (within % 8) & 1;
		*run = same_bits(page, within, most, *dirty);
		return 0;
	}
	uint64_t raw = image->bitmap_table[entry], at = raw & Q2_OFFSET_MASK;
	if (!at) {
		*dirty = raw & 1;
		*run = most;
		return 0;
	}
	int rc = q2_meta_bound(&image->meta, "Bitmap data", at, g->cluster_size, err);
	if (rc)
		return rc;
	uint32_t slice_bits = image->meta.cache.slice * 8;
	uint64_t slice = within / slice_bits;
	uint8_t *bytes;
	rc = q2_cache_get(&image->meta.cache, q2_host_at(at + slice * image->meta.cache.slice), &bytes, err);
	if (rc)
		return rc;
	uint64_t bit = within % slice_bits;
	*dirty = bytes[bit / 8] >> (bit % 8) & 1;
	*run = same_bits(bytes, bit, q2_min(most, slice_bits - bit), *dirty);
	return 0;
}

int qcow2_image_bitmap_extent(struct qcow2_image *image, uint32_t index, uint64_t offset, uint64_t limit,
			      bool *dirty, uint64_t *length, struct qcow2_error *err)
{
	struct qcow2_bitmap bitmap;
	int rc = qcow2_image_bitmap(image, index, &bitmap, err);
	if (rc)
		return rc;
	if (!limit || !q2_fits(offset, limit, image->size))
		rc = q2_error_set(err, QCOW2_E_RANGE, offset,
				  "Range at %" PRIu64 " of %" PRIu64
				  " bytes lies outside the disk of %" PRIu64 " bytes",
				  offset, limit, image->size);
	else
		rc = load_bitmap_table(image, index, &bitmap, err);
	if (rc)
		return q2_image_blame(image, rc, err);
	const struct q2_bitmap_pages *pages = q2_track_pages(image, &bitmap);
	bool first = false;
	uint64_t granule = offset / bitmap.granularity;
	uint64_t end = q2_div_up(offset + limit, bitmap.granularity), next = granule;
	while (next < end) {
		bool value;
		uint64_t run;
		rc = bitmap_piece(image, pages, next, end - next, &value, &run, err);
		if (rc)
			return q2_image_blame(image, rc, err);
		if (next == granule)
			first = value;
		else if (value != first)
			break;
		next += run;
	}
	*dirty = first;
	*length = q2_min(next * bitmap.granularity, offset + limit) - offset;
	return 0;
}
