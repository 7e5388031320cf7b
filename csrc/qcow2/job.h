/* SPDX-License-Identifier: MIT
 * Jobs: what all of them share, and those over whole disks: copy, compare, rebase, commit. */
#ifndef QCOW2_JOB_H
#define QCOW2_JOB_H

#include "qcow2/image.h"

struct qcow2_job;

/*
 * Long work is a job, whatever it does: copying, comparing, checking, repairing, amending. It is done in steps: a step returns
 * after about a tenth of a second with 1 (there is more), 0 (all is done) or the failure, which every later step repeats.
 * gives: *done of *total units of the job's own: bytes of the disk, of a check those of tables. Of several failures the one
 * first in the disk's order is told.
 * The images of a job belong to it until its last step, or until it is freed: the caller does not use them between the
 * steps. To cancel a job is to free it: a copy leaves its target as far as it came, all else the same disk.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_job_step(struct qcow2_job *job, uint64_t *done, uint64_t *total,
						       struct qcow2_error *err);

/* At any moment: joins the threads and lets go of everything. NULL is fine. */
QCOW2_API void qcow2_job_free(struct qcow2_job *job);

struct qcow2_copy_options {
	size_t struct_size;   /* QCOW2_COPY_OPTIONS_INIT sets it */
	uint64_t sparse_size; /* the shortest run of zeros that is left out of the target, a multiple of 512;
			       * 0: everything takes space */
	unsigned threads;     /* 0: one per processor */
	bool target_exists;   /* write into the target as it is; else it is emptied and resized first */
	bool target_is_zero;  /* with target_exists: all of it reads as zeros already */
	bool target_backing; /* with target_exists, a qcow2 image: where the source has nothing of its own the
			       * target is left alone; a new image does so when it has a backing file */
	bool salvage;        /* what cannot be read becomes zeros */
	bool strict;   /* an image file that ends before its data is a failure; else it reads as zeros */
	bool sync;     /* flush the target at the end */
	bool compress; /* into a qcow2 image: compressed clusters */
	bool bitmaps;  /* into a qcow2 image: the bitmaps of the one source too, but those in use */
	uint64_t rate; /* data bytes a second at most; 0: no limit */
	uint64_t start, length; /* the part of the one source that is copied; length 0: all of all */
};
#define QCOW2_COPY_OPTIONS_INIT                                                       \
	{                                                                             \
		.struct_size = sizeof(struct qcow2_copy_options), .sparse_size = 4096 \
	}

/*
 * Copies disks, one behind the other (each begins at a multiple of 512 bytes), into `target` as a raw disk.
 * What an existing target has behind the copy stays. References are taken. fails: `conflict` when the target
 * is a file that is read; `range` when an existing target is too small.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_copy_new(struct qcow2_image *const *sources, size_t count,
						       struct qcow2_store *target,
						       const struct qcow2_copy_options *options,
						       struct qcow2_job **out, struct qcow2_error *err);

/*
 * The same into a qcow2 image, which has to be writable (qcow2_image_begin). A target that was just created
 * (!target_exists; qcow2_create_open makes it) is hidden until the job's last step, so that what a kill leaves looks
 * like no image; its tables go to disk without flushes before that. With a backing file it receives what the source itself has,
 * not what the source's backing file shows. An existing one is written as by qcow2_image_write, and flushed.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_copy_image_new(struct qcow2_image *const *sources, size_t count,
							     struct qcow2_image *target,
							     const struct qcow2_copy_options *options,
							     struct qcow2_job **out, struct qcow2_error *err);

/* Bytes that `salvage` made zeros so far. 0 for jobs of other kinds. */
QCOW2_API QCOW2_NONNULL uint64_t qcow2_copy_lost(const struct qcow2_job *job);

/* Bytes of data so far that lie behind the end of their image file and are zeros in the target. gives: how many, and
 * where on the disk the first is and the last ends. 0 for jobs of other kinds. */
QCOW2_API QCOW2_NONNULL uint64_t qcow2_copy_missing(const struct qcow2_job *job, uint64_t *from,
						    uint64_t *to);

enum qcow2_difference {
	QCOW2_SAME,
	QCOW2_DIFFERENT_CONTENT,
	QCOW2_DIFFERENT_SIZE,       /* strict only */
	QCOW2_DIFFERENT_ALLOCATION, /* strict only */
};

/*
 * Compares two disks as the guest sees them. Where one has ended the other must be zeros. `strict`: sizes must
 * be equal, and everywhere both must be allocated in one way: data, compressed, zeros
 * with and without a place in a file, not allocated.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_compare_new(struct qcow2_image *a, struct qcow2_image *b,
							  bool strict, unsigned threads,
							  struct qcow2_job **out, struct qcow2_error *err);

/* The verdict, once a step returned 0. gives: *offset = the first sector that differs, or where the
 * allocation does; UINT64_MAX for other verdicts. */
QCOW2_API QCOW2_NONNULL enum qcow2_difference qcow2_compare_result(const struct qcow2_job *job,
								   uint64_t *offset);

/* ---- chains ------------------------------------------------------------ */

struct qcow2_rebase_options {
	size_t struct_size;              /* QCOW2_REBASE_OPTIONS_INIT sets it */
	struct qcow2_bytes name, format; /* to be stored; name.data NULL: none */
	bool compress;                   /* what is copied into the overlay */
	unsigned threads;                /* 0: one per processor */
};
#define QCOW2_REBASE_OPTIONS_INIT                                  \
	{                                                          \
		.struct_size = sizeof(struct qcow2_rebase_options) \
	}

/*
 * Puts `backing` (NULL: nothing) below the disk in place of what is there; what it shows never changes: where old
 * and new differ, the old is copied into the overlay first. needs: `overlay` writable, both chains attached.
 * At the end `backing` is attached. fails: `conflict` when a snapshot of the overlay would show something else.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_rebase_new(struct qcow2_image *overlay,
							 struct qcow2_image *backing,
							 const struct qcow2_rebase_options *options,
							 struct qcow2_job **out, struct qcow2_error *err);

struct qcow2_commit_options {
	size_t struct_size; /* QCOW2_COMMIT_OPTIONS_INIT sets it */
	bool keep;          /* leave the overlay as it is; else it is emptied at the end */
	uint64_t rate;      /* bytes a second at most; 0: no limit */
	unsigned threads;   /* 0: one per processor */
};
#define QCOW2_COMMIT_OPTIONS_INIT                                  \
	{                                                          \
		.struct_size = sizeof(struct qcow2_commit_options) \
	}

/*
 * Moves what the layers above `base` hold into `base`, which grows when it is shorter. needs: `base` is a writable
 * layer of the overlay's attached chain; the overlay is writable unless `keep`. upholds: what the overlay shows
 * never changes. fails: `conflict` when a snapshot of the overlay would show something else.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_commit_new(struct qcow2_image *overlay,
							 struct qcow2_image *base,
							 const struct qcow2_commit_options *options,
							 struct qcow2_job **out, struct qcow2_error *err);

#endif
