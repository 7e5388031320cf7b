/* SPDX-License-Identifier: MIT
 * The bits of one persistent bitmap in memory. */
#include "image/bitmap_pages.h"

#include "format/record.h"

#include <inttypes.h>
#include <string.h>

uint32_t q2_bitmap_pages_entries(const struct qcow2_image *image, uint64_t size, unsigned granularity_bits)
{
	uint64_t bits = q2_div_up(size, 1ull << granularity_bits);
	return (uint32_t)q2_div_up(bits, 8ull * image->meta.geo.cluster_size);
}

int q2_bitmap_pages_load(struct qcow2_image *image, const struct qcow2_bitmap *bitmap,
			 struct q2_bitmap_pages *bits, struct qcow2_error *err)
{
	*bits = (struct q2_bitmap_pages){.granularity_bits = (unsigned)__builtin_ctzll(bitmap->granularity)};
	if (bitmap->type != 1 || (bitmap->flags & ~7u) ||
	    (bitmap->extra_data.length && !(bitmap->flags & Q2_BITMAP_EXTRA_COMPATIBLE)))
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, bitmap->offset,
				    "Bitmap at offset %#" PRIx64 " is of a kind that cannot be changed",
				    bitmap->offset);
	/* On disk bitmaps and the header's size change together; image->size may be ahead while a disk grows. */
	uint64_t needed = q2_div_up(q2_div_up(image->meta.header.size, bitmap->granularity),
				    8ull * image->meta.geo.cluster_size);
	if (bitmap->table_entries < needed || bitmap->table_entries > Q2_MAX_BITMAP_TABLE)
		return q2_error_set(err, QCOW2_E_CORRUPT, bitmap->offset,
				    "Bitmap table of %" PRIu32 " entries does not fit the disk",
				    bitmap->table_entries);
	bits->entries = bitmap->table_entries;
	int rc = q2_meta_read_table(&image->meta, "Bitmap table", bitmap->table_offset, bits->entries,
				    &bits->table, err);
	if (!rc && !(bits->pages = q2_new(bits->entries, sizeof *bits->pages)))
		rc = q2_error_nomem(err);
	if (rc)
		q2_bitmap_pages_free(bits);
	return rc;
}

void q2_bitmap_pages_free(struct q2_bitmap_pages *bits)
{
	for (uint32_t p = 0; bits->pages && p < bits->entries; p++)
		free(bits->pages[p]);
	free(bits->pages);
	free(bits->table);
	*bits = (struct q2_bitmap_pages){0};
}

static int load_page(struct qcow2_image *image, struct q2_bitmap_pages *bits, uint32_t number,
		     struct qcow2_error *err)
{
	if (bits->pages[number])
		return 0;
	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t at = bits->table[number] & Q2_OFFSET_MASK;
	q2_auto uint8_t *page = q2_new_pages(cluster_size);
	if (!page)
		return q2_error_nomem(err);
	int rc = 0;
	if (at)
		rc = q2_meta_bound(&image->meta, "Bitmap data", at, cluster_size, err);
	else
		memset(page, bits->table[number] & 1 ? 0xff : 0, cluster_size);
	if (!rc && at)
		rc = qcow2_store_read(image->store, at, page, cluster_size, err);
	if (!rc)
		bits->pages[number] = q2_take(&page);
	return rc;
}

/* Bits [first, end) counted from the page's start. */
static void change_bits(uint8_t *page, uint64_t first, uint64_t end, bool value)
{
	while (first < end) {
		if (first % 8 == 0 && end - first >= 8) {
			uint64_t bytes = (end - first) / 8;
			memset(page + first / 8, value ? 0xff : 0, bytes);
			first += bytes * 8;
			continue;
		}
		uint8_t mask = (uint8_t)(1u << (first % 8));
		page[first / 8] = (uint8_t)(value ? page[first / 8] | mask : page[first / 8] & ~mask);
		first++;
	}
}

int q2_bitmap_pages_change(struct qcow2_image *image, struct q2_bitmap_pages *bits, uint64_t offset,
			   uint64_t length, bool value, struct qcow2_error *err)
{
	uint64_t per_page = 8ull * image->meta.geo.cluster_size;
	if (!length)
		return 0;
	uint64_t bit = offset >> bits->granularity_bits;
	uint64_t end = ((offset + length - 1) >> bits->granularity_bits) + 1;
	while (bit < end) {
		uint32_t page = (uint32_t)(bit / per_page);
		uint64_t stop = q2_min(end, (page + 1ull) * per_page);
		int rc = load_page(image, bits, page, err);
		if (rc)
			return rc;
		change_bits(bits->pages[page], bit % per_page, bit % per_page + (stop - bit), value);
		bit = stop;
	}
	return 0;
}

int q2_bitmap_pages_resize(struct qcow2_image *image, struct q2_bitmap_pages *bits, uint64_t size,
			   struct qcow2_error *err)
{
	uint64_t per_page = 8ull * image->meta.geo.cluster_size;
	uint64_t kept = q2_div_up(q2_min(size, image->meta.header.size), 1ull << bits->granularity_bits);
	uint32_t entries = q2_bitmap_pages_entries(image, size, bits->granularity_bits),
		 page = (uint32_t)(kept / per_page);
	/* What an entry or a page says behind the shorter disk's end is no bit of it. */
	if (page < bits->entries && kept % per_page && bits->table[page]) {
		int rc = load_page(image, bits, page, err);
		if (rc)
			return rc;
		change_bits(bits->pages[page], kept % per_page, per_page, false);
	}
	q2_auto uint64_t *table = q2_new(entries, sizeof *table);
	q2_auto uint8_t **pages = q2_new(entries, sizeof *pages);
	if (!table || !pages)
		return q2_error_nomem(err);
	uint32_t both = (uint32_t)q2_min(bits->entries, q2_div_up(kept, per_page));
	for (uint32_t p = 0; p < both; p++) {
		table[p] = bits->table[p];
		pages[p] = bits->pages[p];
		bits->pages[p] = NULL;
	}
	unsigned granularity_bits = bits->granularity_bits;
	q2_bitmap_pages_free(bits);
	*bits = (struct q2_bitmap_pages){granularity_bits, entries, q2_take(&table), q2_take(&pages)};
	return 0;
}
