/* SPDX-License-Identifier: MIT
 * Writing: guest bytes, size, internal snapshots, persistent bitmaps. */
#ifndef QCOW2_WRITE_H
#define QCOW2_WRITE_H

#include "qcow2/create.h"
#include "qcow2/image.h"

/*
 * Makes an image writable. needs: its store is writable, data file attached and writable when it has one; not a
 * snapshot view. Refuses images marked corrupt, images with encryption, and images whose live metadata has
 * reference counts of 0 (`corrupt`). A dirty image (lazy refcounts, not closed) answers `corrupt` too: it has to
 * be repaired first. Nothing is written yet; unknown autoclear bits go before the first write.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_begin(struct qcow2_image *image, struct qcow2_error *err);

/* The same, but an external data file need not be attached: what changes tables alone works, what needs guest data
 * is `missing` until it is. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_begin_tables(struct qcow2_image *image,
								 struct qcow2_error *err);
QCOW2_API QCOW2_NONNULL bool qcow2_image_writable(const struct qcow2_image *image);

/*
 * The four below: needs offset + length <= size. Data reaches the file at once, tables at the latest with
 * qcow2_image_flush; after a crash every sector is old or new. After a failed write of metadata every later
 * call answers with the first error.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_write(struct qcow2_image *image, uint64_t offset,
							  const void *buf, size_t length,
							  struct qcow2_error *err);

enum qcow2_zero_flags {
	QCOW2_ZERO_UNMAP = 1 << 0, /* give the host its space back where whole clusters become zeros */
	QCOW2_ZERO_OWN = 1 << 1,   /* also where only the backing file is zeros: it is about to change */
};
/* Makes the range read as zeros. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_zero(struct qcow2_image *image, uint64_t offset,
							 uint64_t length, unsigned flags,
							 struct qcow2_error *err);

/* Lets go of the whole clusters in the range, which then read as zeros; what they only touch is left alone.
 * Version 2 images with a backing file have no way to say "zeros" and are left alone too. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_discard(struct qcow2_image *image, uint64_t offset,
							    uint64_t length, struct qcow2_error *err);

/* Writes one cluster compressed. needs: offset aligned to the cluster, length a cluster or up to the disk's
 * end. What does not become smaller is written plainly. fails: `conflict` with an external data file. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_write_compressed(struct qcow2_image *image,
								     uint64_t offset, const void *buf,
								     size_t length, struct qcow2_error *err);

/* Everything that was written is on stable storage when this returns 0. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_flush(struct qcow2_image *image, struct qcow2_error *err);

/* Flushes, clears the dirty bit. The image stays open but read-only. Repeats the first error of a failed
 * image. A read-only image answers 0. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_finish(struct qcow2_image *image,
							   struct qcow2_error *err);

enum qcow2_resize_flags {
	QCOW2_RESIZE_SHRINK = 1 << 0, /* allow a smaller size: what lies behind it is lost */
};
/*
 * Another size of the disk; the new part reads as zeros and gets its space at once when a preallocation says so. fails:
 * `conflict` for a smaller size without QCOW2_RESIZE_SHRINK or with a preallocation, and for METADATA with a raw image.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_resize(struct qcow2_image *image, uint64_t size,
							   unsigned flags,
							   enum qcow2_preallocation preallocation,
							   struct qcow2_error *err);

/*
 * Stores another name and format of the backing file, by one switch of the header; name.data NULL: none. Nothing
 * is opened, attached or compared: what the disk shows is the caller's business. fails: `nospace` when the header
 * cluster has no room; `conflict` for raw images and external raw data files.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_set_backing(struct qcow2_image *image,
								struct qcow2_bytes name,
								struct qcow2_bytes format,
								struct qcow2_error *err);

/*
 * Internal snapshots (specification, "Snapshots"). needs: a writable image without external data file. Each is
 * one switch of the header: after a crash it happened or it did not. fails: `range` when a reference count
 * would not fit its width, before anything changed; `unsupported` with an external data file.
 */
struct timespec;
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_snapshot_create(struct qcow2_image *image,
								    struct qcow2_bytes name,
								    const struct timespec *when,
								    struct qcow2_error *err);
/* The disk becomes what snapshot number `index` has, its size too. What the disk had is lost. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_snapshot_apply(struct qcow2_image *image, uint32_t index,
								   struct qcow2_error *err);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_snapshot_delete(struct qcow2_image *image, uint32_t index,
								    struct qcow2_error *err);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_snapshot_rename(struct qcow2_image *image, uint32_t index,
								    struct qcow2_bytes name,
								    struct qcow2_error *err);

/*
 * Persistent bitmaps (specification, "Bitmaps"): each change replaces the directory by one switch of the
 * header. needs: a writable version 3 image. A bitmap marked in use is inconsistent and can only be removed
 * (`conflict`). index: as qcow2_image_bitmap.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_add(struct qcow2_image *image,
							       struct qcow2_bytes name, uint64_t granularity,
							       bool enabled, struct qcow2_error *err);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_remove(struct qcow2_image *image, uint32_t index,
								  struct qcow2_error *err);
/* An enabled bitmap (flag "auto") follows every write. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_enable(struct qcow2_image *image, uint32_t index,
								  bool enabled, struct qcow2_error *err);
/* Sets or clears the bits of every granule that the range touches. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_change(struct qcow2_image *image, uint32_t index,
								  uint64_t offset, uint64_t length,
								  bool dirty, struct qcow2_error *err);
/* Adds the bits of another bitmap, of this or another image of the same size, of any granularity. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_merge(struct qcow2_image *image, uint32_t index,
								 struct qcow2_image *source,
								 uint32_t source_index,
								 struct qcow2_error *err);

#endif
