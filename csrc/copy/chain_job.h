/* SPDX-License-Identifier: MIT
 * The job that commit and rebase are made of: it goes over a disk, reads what one chain of layers holds, compares it
 * with what another shows, and writes into an image.
 *
 * Before the disk itself come *surveys*: views of the image's internal snapshots, which share its backing file.
 * They are only compared; when one would show something else than before, the job fails before it wrote a byte. */
#ifndef Q2_COPY_CHAIN_JOB_H
#define Q2_COPY_CHAIN_JOB_H

#include "copy/job.h"
#include "copy/source.h"
#include "copy/image_writer.h"

struct q2_chain_job;

/* What is to be done with a stretch of the disk. */
struct q2_chain_run {
	uint64_t length;     /* bytes */
	bool wanted;         /* else nothing */
	struct q2_piece old; /* what it shows */
	struct q2_piece new; /* what it would show if nothing were written */
};

struct q2_chain_job_ops {
	/* The stretch of survey number `survey` (from 1; 0: the disk) at `offset`, at most `limit` bytes. Called with
	 * the gate held. */
	int (*find)(struct q2_chain_job *, size_t survey, uint64_t offset, uint64_t limit,
		    struct q2_chain_run *, struct qcow2_error *);
	/* The surveys found nothing, the disk's turn has come; may be NULL. Called with the gate free. */
	int (*begin)(struct q2_chain_job *, struct qcow2_error *);
	/* All is written. */
	int (*finish)(struct q2_chain_job *, struct qcow2_error *);
	void (*free)(struct q2_chain_job *); /* what the kind added, and the struct */
};

/* Every kind begins with this; zeroed at first. */
struct q2_chain_job {
	struct q2_pool_job job;
	const struct q2_chain_job_ops *ops;
	struct q2_image_writer target;
	uint64_t size;               /* bytes of the disk */
	struct qcow2_store *emptied; /* borrowed: what is read of it will not be read again; NULL: none */
	uint32_t
		grain; /* compared and written in units of this, a power of two; 0: all is written, uncompared */
	bool compress;  /* needs: the grain is the target's cluster */
	bool begun;     /* the disk itself has its turn */
	size_t surveys; /* views of snapshots */
	struct qcow2_image **views;
	struct q2_vec starts; /* uint64_t: where each survey begins in the job, then the disk */
};

/* First of all: from here on qcow2_job_free frees the struct. needs: it is zeroed. */
void q2_chain_job_init(struct q2_chain_job *layers, const struct q2_chain_job_ops *ops,
		       struct qcow2_image *target);

/* Opens views of the image's snapshots, to be surveyed. needs: the image's tables are on disk. */
int q2_chain_job_survey(struct q2_chain_job *layers, struct qcow2_image *image, struct qcow2_error *err);

/* Last of all: `size` bytes of the disk itself. */
int q2_chain_job_start(struct q2_chain_job *layers, uint64_t size, unsigned threads, struct qcow2_error *err);

/* A piece that reads as zeros. */
static inline struct q2_piece q2_piece_zeros(uint64_t offset, uint64_t length)
{
	return (struct q2_piece){.offset = offset, .length = length, .kind = QCOW2_EXTENT_ZERO};
}

/* Do both read the very same bytes, as far as their places tell? */
bool q2_piece_same(const struct q2_piece *a, const struct q2_piece *b);

#endif
