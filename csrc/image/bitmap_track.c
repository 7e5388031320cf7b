/* SPDX-License-Identifier: MIT
 * Persistent bitmaps that follow the guest's writes (flag "auto").
 *
 * While an image is written to, the truth about its auto bitmaps is in memory and the copies on disk carry
 * IN_USE: "inconsistent" (specification, "Bitmaps"). The end of writing stores the bits and takes the flag
 * off; a crash in between leaves the flag, and every reader knows that the bitmap cannot be trusted.
 *
 * The flag is one aligned 4-byte word in the directory and only ever changes by itself, so no cut can lose
 * a directory. Bits are held in *pages*, one a table entry, read when a write first touches them. */
#include "format/record.h"
#include "image/image.h"

#include "base/be.h"

#include <inttypes.h>

struct track {
	uint64_t flags_at; /* of the flags word in the file */
	uint32_t flags;
	unsigned granularity_bits;
	uint64_t table_at;
	uint32_t entries;
	uint64_t *table; /* host order, as on disk */
	uint8_t **pages; /* NULL: not touched */
};

void q2_track_free(struct qcow2_image *image)
{
	struct track *tracks = image->tracks.items;
	for (size_t i = 0; i < image->tracks.count; i++) {
		for (uint32_t p = 0; tracks[i].pages && p < tracks[i].entries; p++)
			free(tracks[i].pages[p]);
		free(tracks[i].pages);
		free(tracks[i].table);
	}
	q2_vec_free(&image->tracks);
}

static int write_flags(struct qcow2_image *image, const struct track *track, uint32_t flags,
		       struct qcow2_error *err)
{
	uint8_t bytes[4];
	q2_store32(bytes, flags);
	image->meta.unsynced = true;
	return qcow2_store_write(image->store, track->flags_at, bytes, sizeof bytes, err);
}

/* Sets or clears IN_USE of every tracked bitmap on disk, and waits until it is there. */
static int mark_in_use(struct qcow2_image *image, bool in_use, struct qcow2_error *err)
{
	struct track *tracks = image->tracks.items;
	int rc = 0;
	for (size_t i = 0; i < image->tracks.count && !rc; i++) {
		uint32_t flags = tracks[i].flags & ~Q2_BITMAP_IN_USE;
		rc = write_flags(image, &tracks[i], flags | (in_use ? Q2_BITMAP_IN_USE : 0), err);
	}
	return rc ? rc : q2_commit_barrier(&image->meta, err);
}

static int add_track(struct qcow2_image *image, uint32_t index, struct qcow2_error *err)
{
	struct qcow2_bitmap b;
	int rc = qcow2_image_bitmap(image, index, &b, err);
	/* An inconsistent one stays so; a disabled one does not follow writes. */
	if (rc || b.in_use || !b.autoset)
		return rc;
	if (b.type != 1 || (b.flags & ~7u) ||
	    (b.extra_data.length && !(b.flags & Q2_BITMAP_EXTRA_COMPATIBLE)))
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, b.offset,
				    "Bitmap %" PRIu32 " is of a kind that cannot follow writes", index);
	uint64_t bits = q2_div_up(image->size, b.granularity);
	uint32_t entries = (uint32_t)q2_div_up(bits, 8ull * image->meta.geo.cluster_size);
	if (b.table_entries < entries || b.table_entries > Q2_MAX_BITMAP_TABLE)
		return q2_error_set(err, QCOW2_E_CORRUPT, b.offset,
				    "Bitmap table of %" PRIu32 " entries does not fit the disk",
				    b.table_entries);
	struct track *track = q2_vec_push(&image->tracks, sizeof *track);
	if (!track)
		return q2_error_nomem(err);
	track->flags_at = b.offset + 12; /* the specification's place of "flags" in an entry */
	track->flags = b.flags;
	track->granularity_bits = (unsigned)__builtin_ctzll(b.granularity);
	track->table_at = b.table_offset;
	track->entries = entries;
	rc = q2_meta_read_table(&image->meta, "Bitmap table", b.table_offset, entries, &track->table, err);
	if (rc)
		return rc;
	track->pages = q2_new(entries, sizeof *track->pages);
	return track->pages ? 0 : q2_error_nomem(err);
}

int q2_track_begin(struct qcow2_image *image, struct qcow2_error *err)
{
	uint32_t count;
	int rc = qcow2_image_bitmap_count(image, &count, err);
	for (uint32_t i = 0; i < count && !rc; i++)
		rc = add_track(image, i, err);
	if (rc)
		q2_track_free(image);
	return rc || !image->tracks.count ? rc : mark_in_use(image, true, err);
}

static int load_page(struct qcow2_image *image, struct track *track, uint32_t number, struct qcow2_error *err)
{
	if (track->pages[number])
		return 0;
	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t at = track->table[number] & Q2_OFFSET_MASK;
	q2_auto uint8_t *page = q2_new_pages(cluster_size);
	if (!page)
		return q2_error_nomem(err);
	int rc = 0;
	if (at)
		rc = q2_meta_bound(&image->meta, "Bitmap data", at, cluster_size, err);
	else
		memset(page, track->table[number] & 1 ? 0xff : 0, cluster_size);
	if (!rc && at)
		rc = qcow2_store_read(image->store, at, page, cluster_size, err);
	if (!rc)
		track->pages[number] = q2_take(&page);
	return rc;
}

/* Sets bits [first, end) counted from the page's start. */
static void set_bits(uint8_t *page, uint64_t first, uint64_t end)
{
	while (first < end) {
		if (first % 8 == 0 && end - first >= 8) {
			uint64_t bytes = (end - first) / 8;
			memset(page + first / 8, 0xff, bytes);
			first += bytes * 8;
		} else {
			page[first / 8] |= (uint8_t)(1u << (first % 8));
			first++;
		}
	}
}

int q2_track_mark(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	uint64_t per_page = 8ull * image->meta.geo.cluster_size;
	struct track *tracks = image->tracks.items;
	for (size_t i = 0; i < image->tracks.count && length; i++) {
		uint64_t bit = offset >> tracks[i].granularity_bits;
		uint64_t end = ((offset + length - 1) >> tracks[i].granularity_bits) + 1;
		while (bit < end) {
			uint32_t page = (uint32_t)(bit / per_page);
			uint64_t stop = q2_min(end, (page + 1ull) * per_page);
			int rc = load_page(image, &tracks[i], page, err);
			if (rc)
				return rc;
			set_bits(tracks[i].pages[page], bit % per_page, bit % per_page + (stop - bit));
			bit = stop;
		}
	}
	return 0;
}

/* The pages of one bitmap: first their bytes, so that a table entry never names what is not there. */
static int store_pages(struct qcow2_image *image, struct track *track, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint32_t cluster_size = meta->geo.cluster_size;
	for (uint32_t p = 0; p < track->entries; p++) {
		if (!track->pages[p])
			continue;
		uint64_t at = track->table[p] & Q2_OFFSET_MASK;
		int rc = 0;
		if (!at) {
			uint64_t start, got;
			rc = q2_alloc(meta, 1, false, &start, &got, err);
			at = start << meta->geo.cluster_bits;
		}
		meta->unsynced = true;
		if (!rc)
			rc = qcow2_store_write(image->store, at, track->pages[p], cluster_size, err);
		if (rc)
			return rc;
		track->table[p] = at;
	}
	return 0;
}

static int store_table(struct qcow2_image *image, const struct track *track, struct qcow2_error *err)
{
	q2_auto uint64_t *raw = q2_new(track->entries, sizeof *raw);
	if (!raw)
		return q2_error_nomem(err);
	for (uint32_t p = 0; p < track->entries; p++)
		raw[p] = htobe64(track->table[p]);
	image->meta.unsynced = true;
	return qcow2_store_write(image->store, track->table_at, raw, track->entries * 8ull, err);
}

int q2_track_end(struct qcow2_image *image, struct qcow2_error *err)
{
	struct track *tracks = image->tracks.items;
	int rc = 0;
	if (!image->tracks.count)
		return 0;
	for (size_t i = 0; i < image->tracks.count && !rc; i++)
		rc = store_pages(image, &tracks[i], err);
	/* Counts and bits are on disk before the tables, the tables before the flag goes. */
	if (!rc)
		rc = q2_commit_flush(&image->meta, err);
	for (size_t i = 0; i < image->tracks.count && !rc; i++)
		rc = store_table(image, &tracks[i], err);
	if (!rc)
		rc = q2_commit_barrier(&image->meta, err);
	if (!rc)
		rc = mark_in_use(image, false, err);
	if (!rc)
		q2_track_free(image);
	return rc;
}
