/* SPDX-License-Identifier: MIT
 * Long changes of one image, done in steps on the caller's thread. */
#include "image/image_job.h"

#include "base/clock.h"

uint64_t q2_image_job_deadline(void)
{
	return q2_clock_now() + Q2_STEP_NSEC;
}

bool q2_image_job_late(uint64_t deadline)
{
	return q2_clock_now() >= deadline;
}

int q2_image_job_ready(struct q2_image_job *job, int rc, struct qcow2_job **out, struct qcow2_error *err)
{
	if (!rc)
		rc = q2_hold_take(&job->hold, job->image, err);
	if (rc)
		qcow2_job_free(&job->base);
	else
		*out = &job->base;
	return rc;
}

static int step(struct qcow2_job *base, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	struct q2_image_job *job = (struct q2_image_job *)base;
	if (!job->over && !job->failure.code) {
		struct qcow2_error own = {0};
		int rc = job->ops->step(job, &own);
		if (rc < 0) {
			q2_image_blame(job->image, rc, &own);
			job->failure = own;
		}
		job->over = !rc;
		if (rc <= 0)
			q2_hold_end(&job->hold);
	}
	if (job->failure.code) {
		if (err)
			*err = job->failure;
		return job->failure.code;
	}
	*done = job->over ? job->total : job->done;
	*total = job->total;
	return !job->over;
}

static void free_job(struct qcow2_job *base)
{
	struct q2_image_job *job = (struct q2_image_job *)base;
	struct qcow2_image *image = job->image;
	struct q2_hold hold = job->hold;
	job->ops->free(job);
	q2_hold_end(&hold);
	qcow2_image_unref(image);
}

const struct q2_job_kind q2_image_job_kind = {.step = step, .free = free_job};
