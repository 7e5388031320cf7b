/* SPDX-License-Identifier: MIT
 * Creating images. */
#ifndef QCOW2_CREATE_H
#define QCOW2_CREATE_H

#include "qcow2/store.h"

enum qcow2_preallocation {
	QCOW2_PREALLOCATION_OFF,
	QCOW2_PREALLOCATION_METADATA, /* every cluster mapped, the data's space a hole in the file */
	QCOW2_PREALLOCATION_FALLOC,   /* ... and asked of the host */
	QCOW2_PREALLOCATION_FULL,     /* ... and written with zeros */
};

/* What a new image shall be. Names are borrowed for the call; data NULL: none. */
struct qcow2_create_options {
	size_t struct_size;     /* QCOW2_CREATE_OPTIONS_INIT sets it */
	uint64_t size;          /* bytes of the disk; rounded up to 512 */
	uint32_t version;       /* 2 or 3 */
	uint32_t cluster_size;  /* bytes */
	uint32_t refcount_bits; /* 1, 2, 4, ... 64 */
	uint32_t compression;   /* 0 deflate, 1 zstd */
	enum qcow2_preallocation preallocation;
	bool lazy_refcounts, extended_l2;
	struct qcow2_bytes backing_name, backing_format;
	struct qcow2_bytes data_name; /* the guest's clusters go to an external data file of this name */
	bool data_raw;                /* that file alone is the disk at every moment */
	bool keep_data;               /* it has contents, which become the disk's: it is only read */
	bool keep_holes;              /* with keep_data: map its holes too, else they become zero clusters */
	bool nocow;                   /* ask the host for no copy-on-write; a host that knows none is fine */
};
#define QCOW2_CREATE_OPTIONS_INIT                                                                        \
	{                                                                                                \
		.struct_size = sizeof(struct qcow2_create_options), .version = 3, .cluster_size = 65536, \
		.refcount_bits = 16                                                                      \
	}

/* Refuses what contradicts itself or the limits, before anything is made. fails: `conflict`, `range`,
 * `unsupported`. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_create_check(const struct qcow2_create_options *options,
							   struct qcow2_error *err);

/*
 * Makes `store` a new image; what it held is gone. needs: `data` writable (with keep_data: readable) when
 * data_name is set, else NULL. The data file becomes as long as the disk and reads as zeros.
 * upholds: until all of the image is on stable storage the store does not begin with the magic, so that
 * no half-made image is taken for one.
 * fails: as qcow2_create_check; `conflict` when `data` is `store`, or does not fit the disk with keep_data.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_create(struct qcow2_store *store, struct qcow2_store *data,
						     const struct qcow2_create_options *options,
						     struct qcow2_error *err);

/*
 * The same for a copy that comes next: the image is open and writable, its data file is attached, and the stores are never
 * let go of in between. It stays unfinished, marked so in place of its magic, and nothing is flushed, until a copy into it
 * ends (qcow2_copy_image_new); an image without one stays unfinished for good.
 */
QCOW2_API QCOW2_CHECK int qcow2_create_open(struct qcow2_store *store, struct qcow2_store *data,
					    const struct qcow2_create_options *options,
					    struct qcow2_image **out, struct qcow2_error *err);

/* Makes `store` a raw disk of `size` bytes of zeros (METADATA is refused: `conflict`). */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_create_raw(struct qcow2_store *store, uint64_t size,
							 enum qcow2_preallocation preallocation, bool nocow,
							 struct qcow2_error *err);

/* Does the host leave out copy-on-write for this store? false where it does not know such a thing. */
QCOW2_API QCOW2_NONNULL bool qcow2_create_has_nocow(struct qcow2_store *store);

#endif
