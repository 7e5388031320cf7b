/* SPDX-License-Identifier: MIT
 * The bits of one persistent bitmap in memory (specification, "Bitmaps").
 *
 * A table entry stands for a cluster's worth of bits, a *page*: at an offset, or all zeros or all ones without
 * one. Pages are read when they are first touched; memory follows what is touched, not the disk's size. */
#ifndef Q2_IMAGE_BITMAP_PAGES_H
#define Q2_IMAGE_BITMAP_PAGES_H

#include "image/image.h"

struct q2_bitmap_pages {
	unsigned granularity_bits;
	uint32_t entries;
	uint64_t *table; /* host order, as on disk */
	uint8_t **pages; /* NULL: not touched */
};

/* How many table entries a bitmap of this granularity has for a disk of `size` bytes. */
uint32_t q2_bitmap_pages_entries(const struct qcow2_image *image, uint64_t size, unsigned granularity_bits);

/* Reads the table of a bitmap. fails: `corrupt`, `unsupported` for a type other than dirty tracking. */
int q2_bitmap_pages_load(struct qcow2_image *image, const struct qcow2_bitmap *bitmap,
			 struct q2_bitmap_pages *bits, struct qcow2_error *err);
void q2_bitmap_pages_free(struct q2_bitmap_pages *bits);

/* Sets or clears every granule that the guest range touches. */
int q2_bitmap_pages_change(struct qcow2_image *image, struct q2_bitmap_pages *bits, uint64_t offset,
			   uint64_t length, bool value, struct qcow2_error *err);

/* As many bits as a disk of `size` bytes needs in place of the disk that meta.header.size tells of: bits that are new
 * are clear. */
int q2_bitmap_pages_resize(struct qcow2_image *image, struct q2_bitmap_pages *bits, uint64_t size,
			   struct qcow2_error *err);

/* The bits of a bitmap that follows writes; NULL: what is on disk is all of it. (bitmap_track.c) */
const struct q2_bitmap_pages *q2_track_pages(const struct qcow2_image *image,
					     const struct qcow2_bitmap *bitmap);

#endif
