/* SPDX-License-Identifier: MIT
 * Tables as they lie on disk. */
#ifndef QCOW2_TABLE_H
#define QCOW2_TABLE_H

#include "qcow2/image.h"

/* Entries are raw, in host order. fails: `range` for an index past the table, `corrupt`. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_l1_entry(struct qcow2_image *image, uint64_t index,
							     uint64_t *raw, struct qcow2_error *err);
/* gives: *host_offset = where the entry lies in the file, 0 when there is no L2 table (words are 0). */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_l2_entry(struct qcow2_image *image, uint64_t l1_index,
							     uint64_t l2_index, uint64_t *raw,
							     uint64_t *bitmap, uint64_t *host_offset,
							     struct qcow2_error *err);
/* What an L2 entry means, without judging whether its offsets are possible. */
struct qcow2_l2_entry {
	const char *
		kind; /* "data", "zero", "unallocated", "compressed", "mixed" (subclusters differ), "invalid" */
	bool has_host, copied;
	uint64_t host_offset;     /* the cluster, or the first byte of the compressed stream */
	uint32_t host_length;     /* compressed: bytes of the sectors */
	uint32_t allocated, zero; /* subcluster bits; bit 0 alone without extended L2 */
	uint64_t reserved;        /* reserved bits that are set */
};
QCOW2_API QCOW2_NONNULL void qcow2_image_l2_decode(const struct qcow2_image *image, uint64_t raw,
						   uint64_t bitmap, struct qcow2_l2_entry *out);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_reftable_entry(struct qcow2_image *image, uint64_t index,
								   uint64_t *raw, struct qcow2_error *err);
/* Reference count of host cluster number `cluster`. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_refcount(struct qcow2_image *image, uint64_t cluster,
							     uint64_t *count, struct qcow2_error *err);
/* L1 entries, L2 entries a table, refcount table entries, subclusters a cluster; 0 for raw images. */
struct qcow2_geometry {
	uint64_t l1_entries, l2_entries, reftable_entries, subclusters, cluster_size, refcount_bits;
};
QCOW2_API QCOW2_NONNULL struct qcow2_geometry qcow2_image_geometry(const struct qcow2_image *image);

/* One entry of the snapshot table. Pointers live as long as the image is not written to. */
struct qcow2_snapshot {
	struct qcow2_bytes id, name, extra_data;
	uint64_t offset; /* of the entry in the file */
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec, vm_state_size;
	uint64_t size;   /* bytes of the disk then */
	uint64_t icount; /* UINT64_MAX: not recorded */
};
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_snapshot_count(struct qcow2_image *image, uint32_t *count,
								   struct qcow2_error *err);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_snapshot(struct qcow2_image *image, uint32_t index,
							     struct qcow2_snapshot *out,
							     struct qcow2_error *err);

/* One entry of the bitmap directory. */
struct qcow2_bitmap {
	struct qcow2_bytes name, extra_data;
	uint64_t offset; /* of the entry in the file */
	uint64_t table_offset;
	uint32_t table_entries, flags;
	uint8_t type;
	uint64_t granularity; /* bytes */
	bool in_use, autoset; /* flag bits 0 and 1 */
	/* A number that this open image gave to this bitmap and gives to no other, whatever moves to its index. */
	uint64_t serial;
};
/* 0 when the image has no bitmaps extension or the autoclear bit says that it is stale. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_count(struct qcow2_image *image, uint32_t *count,
								 struct qcow2_error *err);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap(struct qcow2_image *image, uint32_t index,
							   struct qcow2_bitmap *out, struct qcow2_error *err);
/* Where the bitmap of this serial number is now. *index: a guess on the way in. fails: `missing` when it was removed. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_find(struct qcow2_image *image, uint64_t serial,
								uint32_t *index, struct qcow2_error *err);
/* The dirty or clean run at `offset`: as qcow2_image_extent. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_bitmap_extent(struct qcow2_image *image, uint32_t index,
								  uint64_t offset, uint64_t limit,
								  bool *dirty, uint64_t *length,
								  struct qcow2_error *err);

#endif
