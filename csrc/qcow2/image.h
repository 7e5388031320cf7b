/* SPDX-License-Identifier: MIT
 * Images: opening a disk inside a store, what it names, reading and mapping guest bytes. */
#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include "qcow2/store.h"

/* The header's fields, decoded (specification, "Header"). Version 2 has its defaults filled in. */
struct qcow2_header {
#define HEADER_FIELD(bits, name, offset) uint##bits##_t name;
#include "format/header.def"
#undef HEADER_FIELD
};

struct qcow2_image;

/*
 * The format of a store by its first bytes, or its last. gives: *format = "qcow2"; "unfinished" for what is left of an
 * image whose making was cut off; "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "qcow", "luks", "dmg", "bochs",
 * "cloop" for formats that this library does not read, and which are no raw disks; else "raw".
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_probe(struct qcow2_store *store, const char **format,
							  struct qcow2_error *err);

/*
 * Opens the qcow2 image in `store` (a reference is taken). Only the header cluster is read; tables are
 * read when they are first needed. Names of other files become facts, nothing else is opened.
 * fails: `format`, `corrupt`, `unsupported` (unknown incompatible features are named).
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_open(struct qcow2_store *store, struct qcow2_image **out,
							 struct qcow2_error *err);

/* The same for a check or a repair: header fields may say that tables lie outside the file or nowhere. What needs
 * such a table fails then. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_open_damaged(struct qcow2_store *store,
								 struct qcow2_image **out,
								 struct qcow2_error *err);

/* The store itself as a disk: its length rounded up to 512-byte sectors. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_open_raw(struct qcow2_store *store,
							     struct qcow2_image **out,
							     struct qcow2_error *err);

/* The disk as internal snapshot number `index` has it: a read-only image on the same store. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_open_snapshot(struct qcow2_image *image, uint32_t index,
								  struct qcow2_image **out,
								  struct qcow2_error *err);

/* Does a job (qcow2_copy_new, qcow2_check_new, qcow2_amend_new, ...) hold the image? From its making until its last step
 * or its end nobody else may call anything for its images and their layers: its threads use them. */
QCOW2_API QCOW2_NONNULL bool qcow2_image_is_held(const struct qcow2_image *image);

QCOW2_API QCOW2_NONNULL struct qcow2_image *qcow2_image_ref(struct qcow2_image *image);
/* The last reference closes the image and lets go of its stores and its backing image. NULL is fine. */
QCOW2_API void qcow2_image_unref(struct qcow2_image *image);

/*
 * Attaches what the image only names: its external data file, its backing image. A reference is taken.
 * fails: `conflict` when the image names no such thing or when the file is the image itself or already
 * part of its chain (by device and inode); `range` when the chain gets longer than 200 images.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_attach_data(struct qcow2_image *image,
								struct qcow2_store *store,
								struct qcow2_error *err);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_attach_backing(struct qcow2_image *image,
								   struct qcow2_image *backing,
								   struct qcow2_error *err);

/* NULL for raw images. */
QCOW2_API QCOW2_NONNULL const struct qcow2_header *qcow2_image_header(const struct qcow2_image *image);
QCOW2_API QCOW2_NONNULL uint64_t qcow2_image_size(const struct qcow2_image *image);
QCOW2_API QCOW2_NONNULL struct qcow2_store *qcow2_image_store(const struct qcow2_image *image); /* borrowed */
QCOW2_API QCOW2_NONNULL struct qcow2_store *qcow2_image_data_store(
	const struct qcow2_image *image); /* borrowed; NULL: not attached */
QCOW2_API QCOW2_NONNULL struct qcow2_image *qcow2_image_backing(
	const struct qcow2_image *image); /* borrowed; NULL: none */

/* Bytes that came from the file: exact, not NUL-ended, maybe with a NUL inside. NULL when absent. */
struct qcow2_bytes {
	const uint8_t *data;
	size_t length;
};
QCOW2_API QCOW2_NONNULL struct qcow2_bytes qcow2_image_backing_name(const struct qcow2_image *image);
QCOW2_API QCOW2_NONNULL struct qcow2_bytes qcow2_image_backing_format(const struct qcow2_image *image);
QCOW2_API QCOW2_NONNULL struct qcow2_bytes qcow2_image_data_name(const struct qcow2_image *image);

/* One header extension as it lies there; `word` names its type. gives 0, or `range` past the last. */
struct qcow2_extension {
	uint32_t type;
	uint64_t offset;
	struct qcow2_bytes data;
	const char *word;
};
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_extension(const struct qcow2_image *image, uint32_t index,
							      struct qcow2_extension *out,
							      struct qcow2_error *err);

/* Name of a feature bit (type 0 incompatible, 1 compatible, 2 autoclear): the specification's, else the
 * image's own feature name table's, else {NULL, 0}. *known: the specification has it. */
QCOW2_API QCOW2_NONNULL struct qcow2_bytes qcow2_image_feature_name(const struct qcow2_image *image,
								    unsigned type, unsigned bit, bool *known);

/* ---- reading and mapping ------------------------------------------------------------ */

/* Reads guest bytes. needs: offset + length <= size. Through the whole chain; what is named but not attached
 * is `missing` as soon as its bytes are needed. Encrypted images answer `unsupported`. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_read(struct qcow2_image *image, uint64_t offset,
							 void *buf, size_t length, struct qcow2_error *err);

enum qcow2_extent_kind {
	QCOW2_EXTENT_DATA,
	QCOW2_EXTENT_ZERO,        /* reads as zeros because a layer says so */
	QCOW2_EXTENT_UNALLOCATED, /* no layer has it: reads as zeros */
	QCOW2_EXTENT_COMPRESSED,
};

enum qcow2_extent_flags {
	QCOW2_EXTENT_HOLES = 1 << 0, /* ask the host for holes in every data run */
	QCOW2_EXTENT_LAYER = 1 << 1, /* this image only: UNALLOCATED stands for "ask the backing file" */
};

/* One run of the guest's disk. */
struct qcow2_extent {
	uint64_t offset, length; /* guest bytes */
	enum qcow2_extent_kind kind;
	uint32_t depth;            /* 0 this image, 1 its backing image, ... */
	bool present;              /* some layer has it (zeros past a short layer's end count as its own) */
	bool hole;                 /* kind ZERO because the host has a hole where the tables say data */
	bool copied;               /* COPIED is set: this data belongs to no snapshot */
	struct qcow2_image *image; /* the layer, borrowed */
	struct qcow2_store *store; /* where host_offset counts, borrowed; NULL when not attached or none */
	uint64_t host_offset;      /* UINT64_MAX: no place in a file */
	uint32_t host_length;      /* compressed: bytes of the stream's sectors */
	uint32_t within;           /* compressed: first byte inside the expanded cluster */
};

/*
 * The run that begins at `offset`, at most `limit` long. needs: limit > 0, offset + limit <= size. Holes of
 * raw images and of external data files are always asked for, those inside qcow2 files with
 * QCOW2_EXTENT_HOLES.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_extent(struct qcow2_image *image, uint64_t offset,
							   uint64_t limit, unsigned flags,
							   struct qcow2_extent *out, struct qcow2_error *err);

/* True when the file occupies clearly less than its metadata says is allocated, as after
 * preallocation=metadata: then asking the host for holes pays, and QEMU's map asks too. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_is_preallocated(struct qcow2_image *image,
								    bool *preallocated,
								    struct qcow2_error *err);

#endif
