/* SPDX-License-Identifier: MIT
 * Amending: long changes of one image, and its external data file. */
#ifndef QCOW2_AMEND_H
#define QCOW2_AMEND_H

#include "qcow2/job.h"

struct qcow2_amend_options {
	size_t struct_size;           /* QCOW2_AMEND_OPTIONS_INIT sets it */
	uint32_t version;             /* 2 or 3; 0: as it is */
	uint32_t refcount_bits;       /* 0: as it is */
	int lazy_refcounts;           /* 1 on, 0 off, -1 as it is */
	int data_raw;                 /* the same: the external data file alone is the disk at every moment */
	struct qcow2_bytes data_name; /* data NULL: as it is; length 0: none is stored any more */
	bool set_backing; /* as `rebase -u`: the disk becomes what it is over the new backing file */
	struct qcow2_bytes backing_name, backing_format; /* data NULL: none */
	bool set_size, shrink;                           /* shrink: a smaller size is meant */
	uint64_t size;
};
#define QCOW2_AMEND_OPTIONS_INIT                                                                        \
	{                                                                                               \
		.struct_size = sizeof(struct qcow2_amend_options), .lazy_refcounts = -1, .data_raw = -1 \
	}

/*
 * Changes what can be changed of an image that exists. needs: qcow2_image_begin_tables or qcow2_image_begin. All that
 * can be refused is refused here; then each option is one switch of the header, and the disk's contents are the same
 * at every instant. fails: `range`, `conflict`, `unsupported`; `missing` when a raw data file is wanted and the data
 * file is not attached.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_amend_new(struct qcow2_image *image,
							const struct qcow2_amend_options *options,
							struct qcow2_job **out, struct qcow2_error *err);

/*
 * The guest's clusters move from the image file to `data`, an external data file of this name. needs:
 * qcow2_image_begin; `data` is writable, as long as the disk, and holds at each guest offset what this image alone
 * (without its backing file) has there, zeros elsewhere. upholds: one switch of the header, after which the image is
 * attached to `data`. raw: the file alone is the disk from then on. fails: as the check.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_externalize(struct qcow2_image *image,
								struct qcow2_store *data,
								struct qcow2_bytes name, bool raw,
								struct qcow2_error *err);
/* Makes the file of an image with an external data file as short as its metadata: tables go to the lowest free places,
 * the host gets the rest back. Again by switches of the header. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_gather(struct qcow2_image *image,
							   struct qcow2_error *err);
/* Refuses what cannot be externalized: snapshots, version 2, a raw data file beside a backing file. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_image_externalize_check(struct qcow2_image *image, bool raw,
								      struct qcow2_error *err);

/* The clusters of the external data file move into the image file; the data file is only read, and let go of. needs:
 * qcow2_image_begin. One switch of the header; given up before, nothing has happened. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_internalize_new(struct qcow2_image *image,
							      struct qcow2_job **out,
							      struct qcow2_error *err);

/* What makes an external data file differ from the disk; words and meanings are in divergences.def. */
enum qcow2_cause {
#define CAUSE(NAME, word, meaning) QCOW2_CAUSE_##NAME,
#include "image/divergences.def"
#undef CAUSE
	QCOW2_CAUSE_COUNT
};

struct qcow2_divergence {
	enum qcow2_cause cause;
	uint64_t offset, length; /* guest bytes; TAIL: bytes of the file behind the disk's end */
};

enum qcow2_resync {
	QCOW2_RESYNC_NONE,
	QCOW2_RESYNC_DATA,     /* the data file becomes what the guest reads */
	QCOW2_RESYNC_METADATA, /* every entry becomes plain data: the guest reads what the data file holds */
};

/*
 * Compares the external data file with the disk. needs: the data file is attached; for a resync qcow2_image_begin.
 * fails: `conflict` without a data file, and for METADATA when there is a backing file.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_verify_new(struct qcow2_image *image, enum qcow2_resync resync,
							 struct qcow2_job **out, struct qcow2_error *err);
/* Number `index` of those found so far, in the disk's order; NULL past the last that is kept. */
QCOW2_API QCOW2_NONNULL const struct qcow2_divergence *qcow2_verify_divergence(const struct qcow2_job *job,
									       uint64_t index);
/* How many there are, kept or not, and how many of them the resync has mended. */
QCOW2_API QCOW2_NONNULL void qcow2_verify_counts(const struct qcow2_job *job, uint64_t *found,
						 uint64_t *mended);
/* "zero", ... and a sentence without its period; NULL past the last. */
QCOW2_API const char *qcow2_cause_word(enum qcow2_cause cause, const char **meaning);

#endif
