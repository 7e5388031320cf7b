/* SPDX-License-Identifier: MIT
 * The skeleton of stepped jobs that list a disk, hand units to workers, and conclude. */
#ifndef Q2_COPY_JOB_H
#define Q2_COPY_JOB_H

#include "copy/pool.h"
#include "image/job.h"

#include <stdatomic.h>

struct q2_source;
struct q2_pool_job;

struct q2_pool_job_ops {
	/*
	 * Lists the disk from job->position on into `unit`, until it is full, job->end, or `deadline`. gives:
	 * *worth = the unit holds work (also on failure: what comes before it). May set job->listed early. Sets
	 * job->weight to the unit's bytes of data when the job has a rate.
	 */
	int (*fill)(struct q2_pool_job *, void *unit, uint64_t deadline, bool *worth, struct qcow2_error *);
	/* All units are done and none failed. `stopped`: what the one that stopped the job returned, `what` its
	 * error record, else 0. Called once. */
	int (*finish)(struct q2_pool_job *, int stopped, const struct qcow2_error *what,
		      struct qcow2_error *);
	/* Frees the struct and what the job added to it; the pool has ended. */
	void (*free)(struct q2_pool_job *);
};

enum q2_phase { Q2_JOB_RUNNING, Q2_JOB_DONE, Q2_JOB_FAILED };

/* Every kind of them begins with this; zeroed but for base, ops, pool, end. */
struct q2_pool_job {
	struct qcow2_job base;
	const struct q2_pool_job_ops *ops;
	struct q2_pool *pool; /* NULL once all is done */
	struct q2_hold hold;  /* of all images that the job reads or writes, while it is running */
	enum q2_phase phase;
	uint64_t position, end; /* bytes of the disk: listed so far, in all */
	bool listed;            /* nothing more will be sent, wherever the position is */
	uint64_t rate;          /* bytes of data a second at most; 0: no limit */
	uint64_t started, sent; /* with a rate: since when (q2_clock_now; 0: nothing yet), how many bytes */
	uint64_t weight;        /* of the unit filled last */
	struct qcow2_error failure; /* of the listing until all units are done, then the job's */
	atomic_uint_least64_t done; /* bytes of the disk dealt with; workers count up too */
	atomic_uint_least64_t told; /* of them when the step began */
};

extern const struct q2_job_kind q2_pool_job_kind;

/* The job if it is one of these and of the kind that `ops` stand for, else NULL. */
const struct q2_pool_job *q2_pool_job_of(const struct qcow2_job *job, const struct q2_pool_job_ops *ops);

/* As qcow2_copy_lost, for copies into images (copy_image.c). */
uint64_t q2_copy_image_lost(const struct qcow2_job *job);
/* Their source; NULL for jobs of other kinds. */
const struct q2_source *q2_copy_image_source(const struct qcow2_job *job);

/* Has so much more been done since the step began that it is worth telling? For q2_pool_work. */
bool q2_job_is_news(const void *job);

static inline void q2_job_did(struct q2_pool_job *job, uint64_t bytes)
{
	atomic_fetch_add_explicit(&job->done, bytes, memory_order_relaxed);
}

#endif
