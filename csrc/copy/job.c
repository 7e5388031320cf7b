/* SPDX-License-Identifier: MIT
 * Steps: lists and sends for a while, or waits for the workers, and concludes when all is done. */
#include "copy/job.h"

#include <time.h>

static bool all_listed(const struct q2_pool_job *job)
{
	return job->listed || job->failure.code || job->position == job->end || q2_pool_stopped(job->pool);
}

/* Sleeps until the rate allows the next unit. gives: false when that is behind the deadline. */
static bool wait_turn_of_rate(struct q2_pool_job *job, uint64_t deadline)
{
	uint64_t now = q2_clock_now();
	if (!job->rate)
		return true;
	if (!job->started)
		job->started = now;
	double wait = (double)job->sent / (double)job->rate * 1e9 - (double)(now - job->started);
	if (wait <= 0)
		return true;
	bool late = now + wait > (double)deadline;
	uint64_t most = deadline > now ? deadline - now : 0, length = late ? most : (uint64_t)wait;
	struct timespec t = {.tv_sec = (time_t)(length / 1000000000u),
			     .tv_nsec = (long)(length % 1000000000u)};
	nanosleep(&t, NULL); /* a signal may end it early: then the step returns early */
	return !late;
}

bool q2_job_is_news(const void *what)
{
	const struct q2_pool_job *job = what;
	uint64_t done = atomic_load_explicit(&job->done, memory_order_relaxed);
	uint64_t told = atomic_load_explicit(&job->told, memory_order_relaxed);
	return done > told && done - told >= job->end / 100;
}

static void send_units(struct q2_pool_job *job, uint64_t deadline)
{
	while (!all_listed(job)) {
		void *unit = q2_pool_room(job->pool);
		bool worth = false;
		struct qcow2_error err;
		if (unit && !wait_turn_of_rate(job, deadline))
			return;
		/* A record may be left by something that was got over: only the code says that it failed. */
		if (unit && job->ops->fill(job, unit, deadline, &worth, &err))
			job->failure = err;
		if (worth) {
			q2_pool_submit(job->pool);
			job->sent += job->weight;
		}
		if (q2_clock_now() >= deadline || q2_job_is_news(job))
			return;
		if (!unit)
			q2_pool_wait_room(job->pool, deadline);
	}
}

static void conclude(struct q2_pool_job *job)
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
	q2_hold_end(&job->hold);
}

static int step(struct qcow2_job *base, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	struct q2_pool_job *job = (struct q2_pool_job *)base;
	uint64_t deadline = q2_clock_now() + Q2_STEP_NSEC;
	atomic_store(&job->told, atomic_load_explicit(&job->done, memory_order_relaxed));
	if (job->phase == Q2_JOB_RUNNING) {
		send_units(job, deadline);
		while (all_listed(job) && !q2_pool_idle(job->pool) && !q2_job_is_news(job) &&
		       q2_clock_now() < deadline)
			q2_pool_wait_unit(job->pool, deadline);
		if (all_listed(job) && q2_pool_idle(job->pool))
			conclude(job);
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

static void free_job(struct qcow2_job *base)
{
	struct q2_pool_job *job = (struct q2_pool_job *)base;
	q2_pool_free(job->pool);
	q2_hold_end(&job->hold);
	job->ops->free(job);
}

const struct q2_job_kind q2_pool_job_kind = {.step = step, .free = free_job};

const struct q2_pool_job *q2_pool_job_of(const struct qcow2_job *job, const struct q2_pool_job_ops *ops)
{
	const struct q2_pool_job *found = (const struct q2_pool_job *)job;
	return job->kind == &q2_pool_job_kind && found->ops == ops ? found : NULL;
}
