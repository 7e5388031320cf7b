/* SPDX-License-Identifier: MIT
 * Long changes of one image, done in steps on the caller's thread. */
#ifndef Q2_IMAGE_IMAGE_JOB_H
#define Q2_IMAGE_IMAGE_JOB_H

#include "image/job.h"

struct q2_image_job;

struct q2_image_job_ops {
	/* Works for a while; counts job->done up. gives: 1 when there is more, 0 when all is done. */
	int (*step)(struct q2_image_job *job, struct qcow2_error *err);
	/* Frees what the kind added and the struct itself. */
	void (*free)(struct q2_image_job *job);
};

/* Every kind of them begins with this. */
struct q2_image_job {
	struct qcow2_job base;
	const struct q2_image_job_ops *ops;
	struct qcow2_image *image; /* a reference */
	uint64_t done, total;      /* units of the kind's choice */
	struct q2_hold hold;       /* of the image, until the last step */
	bool over;                 /* the last step answered 0 */
	struct qcow2_error failure;
};

extern const struct q2_job_kind q2_image_job_kind;

/* The end of a kind's _new. `rc`: how it went so far. gives: *out with its hold on the image, or the job is freed. */
int q2_image_job_ready(struct q2_image_job *job, int rc, struct qcow2_job **out, struct qcow2_error *err);

/* A step ends soon after `deadline` has passed. */
uint64_t q2_image_job_deadline(void);
bool q2_image_job_late(uint64_t deadline);

#endif
