/* SPDX-License-Identifier: MIT
 * What every job is: long work that is done in steps, whatever it works on. */
#ifndef Q2_IMAGE_JOB_H
#define Q2_IMAGE_JOB_H

#include "image/hold.h"

struct q2_job_kind {
	/* As qcow2_job_step. */
	int (*step)(struct qcow2_job *job, uint64_t *done, uint64_t *total, struct qcow2_error *err);
	void (*free)(struct qcow2_job *job);
};

/* Every job begins with this. */
struct qcow2_job {
	const struct q2_job_kind *kind;
};

#endif
