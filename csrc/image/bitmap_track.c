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
#include "image/bitmap_pages.h"

#include "base/be.h"

#include <inttypes.h>

enum {
	FLAGS_AT = 12
}; /* where an entry of the directory has its flags (specification, "Bitmap directory") */

struct track {
	uint64_t flags_at; /* of the flags word in the file */
	uint32_t flags;
	uint64_t table_at;
	struct q2_bitmap_pages bits;
};

void q2_track_free(struct qcow2_image *image)
{
	struct track *tracks = image->tracks.items;
	for (size_t i = 0; i < image->tracks.count; i++)
		q2_bitmap_pages_free(&tracks[i].bits);
	q2_vec_free(&image->tracks);
}

static int write_flags(struct qcow2_image *image, const struct track *track, uint32_t flags,
		       struct qcow2_error *err)
{
	uint8_t bytes[4];
	q2_store32(bytes, flags);
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
	return rc ? q2_writeback_fail(&image->meta, rc, err) : q2_writeback_barrier(&image->meta, err);
}

static int add_track(struct qcow2_image *image, uint32_t index, struct qcow2_error *err)
{
	struct qcow2_bitmap b;
	int rc = qcow2_image_bitmap(image, index, &b, err);
	/* An inconsistent one stays so; a disabled one does not follow writes. */
	if (rc || b.in_use || !b.autoset)
		return rc;
	struct track *track = q2_vec_push(&image->tracks, sizeof *track);
	if (!track)
		return q2_error_nomem(err);
	track->flags_at = b.offset + FLAGS_AT;
	track->flags = b.flags;
	track->table_at = b.table_offset;
	return q2_bitmap_pages_load(image, &b, &track->bits, err);
}

int q2_track_begin(struct qcow2_image *image, struct qcow2_error *err)
{
	uint32_t count;
	int rc = qcow2_image_bitmap_count(image, &count, err);
	for (uint32_t i = 0; i < count && !rc; i++)
		rc = add_track(image, i, err);
	if (!rc && image->tracks.count)
		rc = mark_in_use(image, true, err);
	if (rc) /* the next write begins anew */
		q2_track_free(image);
	return rc;
}

const struct q2_bitmap_pages *q2_track_pages(const struct qcow2_image *image,
					     const struct qcow2_bitmap *bitmap)
{
	const struct track *tracks = image->tracks.items;
	for (size_t i = 0; i < image->tracks.count; i++)
		if (tracks[i].flags_at == bitmap->offset + FLAGS_AT)
			return &tracks[i].bits;
	return NULL;
}

int q2_track_mark(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	struct track *tracks = image->tracks.items;
	int rc = 0;
	for (size_t i = 0; i < image->tracks.count && !rc; i++)
		rc = q2_bitmap_pages_change(image, &tracks[i].bits, offset, length, true, err);
	return rc;
}

/* The pages of one bitmap: first their bytes, so that a table entry never names what is not there. */
static int store_pages(struct qcow2_image *image, struct q2_bitmap_pages *bits, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint32_t cluster_size = meta->geo.cluster_size;
	for (uint32_t p = 0; p < bits->entries; p++) {
		if (!bits->pages[p])
			continue;
		uint64_t at = bits->table[p] & Q2_OFFSET_MASK;
		int rc = 0;
		if (!at) {
			uint64_t start, got;
			rc = q2_alloc(meta, 1, false, &start, &got, err);
			at = start << meta->geo.cluster_bits;
		}
		if (!rc)
			rc = qcow2_store_write(image->store, at, bits->pages[p], cluster_size, err);
		if (rc)
			return rc;
		q2_cache_forget(&meta->cache, q2_host_at(at), cluster_size);
		bits->table[p] = at;
	}
	return 0;
}

static int store_table(struct qcow2_image *image, const struct track *track, struct qcow2_error *err)
{
	q2_auto uint64_t *raw = q2_new(track->bits.entries, sizeof *raw);
	if (!raw)
		return q2_error_nomem(err);
	for (uint32_t p = 0; p < track->bits.entries; p++)
		raw[p] = htobe64(track->bits.table[p]);
	return qcow2_store_write(image->store, track->table_at, raw, track->bits.entries * 8ull, err);
}

int q2_track_end(struct qcow2_image *image, struct qcow2_error *err)
{
	struct track *tracks = image->tracks.items;
	int rc = 0;
	image->edited = false; /* the next write marks them again, also those that are new by then */
	if (!image->tracks.count)
		return 0;
	for (size_t i = 0; i < image->tracks.count && !rc; i++)
		rc = store_pages(image, &tracks[i].bits, err);
	/* Counts and bits are on disk before the tables, the tables before the flag goes. */
	if (!rc)
		rc = q2_writeback_flush(&image->meta, err);
	for (size_t i = 0; i < image->tracks.count && !rc; i++)
		rc = store_table(image, &tracks[i], err);
	if (!rc)
		rc = q2_writeback_barrier(&image->meta, err);
	if (!rc)
		rc = mark_in_use(image, false, err);
	if (rc)
		return q2_writeback_fail(&image->meta, rc, err);
	q2_track_free(image);
	q2_image_forget_bitmaps(image);
	return 0;
}
