/* SPDX-License-Identifier: MIT
 * The public face of all jobs. */
#include "image/job.h"

int qcow2_job_step(struct qcow2_job *job, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	return job->kind->step(job, done, total, err);
}

void qcow2_job_free(struct qcow2_job *job)
{
	if (job)
		job->kind->free(job);
}
