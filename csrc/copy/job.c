/* SPDX-License-Identifier: MIT
 * Steps: lists and sends for a while, or waits for the workers, and concludes when all is done. */
#include "copy/job.h"

/* How long a step takes, about: often enough for a progress display, and to be cancelled. */
#define STEP_NSEC 100000000u

static bool all_listed(const struct qcow2_job *job)
{
	return job->listed || job->failure.code || job->position == job->end || q2_pool_stopped(job->pool);
}

static void send_units(struct qcow2_job *job, uint64_t deadline)
{
	while (!all_listed(job)) {
		void *unit = q2_pool_room(job->pool);
		bool worth = false;
		struct qcow2_error err;
		/* A record may be left by something that was got over: only the code says that it failed. */
		if (unit && job->ops->fill(job, unit, deadline, &worth, &err))
			job->failure = err;
		/* A failure of the listing lies behind what was listed, one of the sending before it. */
		if (worth && q2_pool_submit(job->pool, &err))
			job->failure = err;
		if (q2_pool_now() >= deadline)
			return;
		if (!unit)
			q2_pool_wait_room(job->pool, deadline);
	}
}

static void conclude(struct qcow2_job *job)
{
	struct qcow2_error what = {0};
	/* What a unit met lies before what the listing met. */
	int stopped = q2_pool_verdict(job->pool, &what);
	q2_pool_free(job->pool);
	job->pool = NULL;
	if (stopped < 0)
		job->failure = what;
	else if (stopped > 0)
		job->failure = (struct qcow2_error){0};
	struct qcow2_error err;
	if (!job->failure.code && job->ops->finish(job, stopped, &what, &err))
		job->failure = err;
	job->phase = job->failure.code ? Q2_JOB_FAILED : Q2_JOB_DONE;
}

int qcow2_job_step(struct qcow2_job *job, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	uint64_t deadline = q2_pool_now() + STEP_NSEC;
	if (job->phase == Q2_JOB_RUNNING) {
		send_units(job, deadline);
		if (all_listed(job)) {
			q2_pool_wait_idle(job->pool, deadline);
			if (q2_pool_idle(job->pool))
				conclude(job);
		}
	}
	if (job->phase == Q2_JOB_FAILED) {
		if (err)
			*err = job->failure;
		return job->failure.code;
	}
	*done = atomic_load_explicit(&job->done, memory_order_relaxed);
	*total = job->end;
	return job->phase == Q2_JOB_RUNNING;
}

void qcow2_job_free(struct qcow2_job *job)
{
	if (!job)
		return;
	q2_pool_free(job->pool);
	job->ops->free(job);
}
