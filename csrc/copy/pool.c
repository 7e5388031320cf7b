/* SPDX-License-Identifier: MIT
 * The worker threads: a ring of units under one lock. */
#include "copy/pool.h"

#include "base/mem.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

/* Units in the ring for each thread: one in work, and enough behind it to bridge the coordinator's pauses, which
 * are long where other processes want the processors too. */
#define UNITS_PER_THREAD 16u
#define MAX_THREADS 1024u

enum state {
	FREE,  /* the coordinator's */
	READY, /* waits for a worker */
	BUSY,  /* a worker's */
};

struct pool_worker {
	struct q2_pool *pool;
	pthread_t thread;
	void *own; /* the job's struct */
};

struct q2_pool {
	struct q2_pool_work work;
	void *job;
	unsigned threads; /* allowed */
	unsigned started;
	struct pool_worker *workers;
	void *alone; /* the job's struct for the coordinator, for want of threads */
	size_t ring; /* units in the ring: unit n lies in slot n % ring */
	uint8_t *units;

	pthread_mutex_t lock;
	pthread_cond_t ready;                /* to workers: there is a unit, or all ends */
	pthread_cond_t done;                 /* to the coordinator: a unit is free again */
	uint8_t *states;                     /* enum state of each slot */
	uint64_t submitted, taken, finished; /* counts of units */
	unsigned waiting;                    /* workers without work */
	bool ending;

	atomic_uint_least64_t stop; /* the number of the first unit that stopped the job; UINT64_MAX: none */
	int stop_code;
	struct qcow2_error stop_error;
};

static void *unit_at(struct q2_pool *pool, uint64_t number)
{
	return pool->units + number % pool->ring * pool->work.unit_size;
}

bool q2_pool_unwanted(struct q2_pool *pool, uint64_t number)
{
	return atomic_load_explicit(&pool->stop, memory_order_relaxed) < number;
}

/* Keeps the verdict of the lowest number. gives: did it become the verdict? needs: the lock. */
static bool keep_stop(struct q2_pool *pool, uint64_t number, int code, const struct qcow2_error *err)
{
	if (number >= atomic_load(&pool->stop))
		return false;
	atomic_store(&pool->stop, number);
	pool->stop_code = code;
	pool->stop_error = *err;
	return true;
}

/* needs: not the lock, which a worker may ask for while it holds a lock of the job's own. */
static void tell_stop(struct q2_pool *pool)
{
	if (pool->work.stopped)
		pool->work.stopped(pool->job);
}

/* Runs the next unit. needs: the lock, a unit that is not taken. */
static void run_next(struct q2_pool *pool, void *own)
{
	uint64_t number = pool->taken++;
	pool->states[number % pool->ring] = BUSY;
	if (!q2_pool_unwanted(pool, number)) {
		struct qcow2_error err = {0};
		pthread_mutex_unlock(&pool->lock);
		int code = pool->work.run(pool->job, own, unit_at(pool, number), number, &err);
		pthread_mutex_lock(&pool->lock);
		if (code && keep_stop(pool, number, code, &err)) {
			pthread_mutex_unlock(&pool->lock);
			tell_stop(pool);
			pthread_mutex_lock(&pool->lock);
		}
	}
	pool->states[number % pool->ring] = FREE;
	pool->finished++;
}

static void *worker_main(void *argument)
{
	struct pool_worker *worker = argument;
	struct q2_pool *pool = worker->pool;
	pthread_mutex_lock(&pool->lock);
	for (;;) {
		while (!pool->ending && pool->taken == pool->submitted) {
			pool->waiting++;
			pthread_cond_wait(&pool->ready, &pool->lock);
			pool->waiting--;
		}
		if (pool->ending)
			break;
		run_next(pool, worker->own);
		/* Nothing that the coordinator waits for becomes true before: see has_room, has_ended. */
		if (pool->submitted - pool->finished <= pool->ring / 2 || pool->work.is_news(pool->job))
			pthread_cond_signal(&pool->done);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* A thread more, if the system gives one. */
static void start_worker(struct q2_pool *pool)
{
	struct pool_worker *worker = &pool->workers[pool->started];
	sigset_t all, before;
	worker->pool = pool;
	worker->own = q2_new(1, pool->work.worker_size);
	if (!worker->own)
		return;
	/* The host program's signals are its own business: a new thread inherits the mask. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int os_errno = pthread_create(&worker->thread, NULL, worker_main, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!os_errno) {
		pool->started++;
		return;
	}
	free(worker->own);
	worker->own = NULL;
}

/* Without a thread the coordinator does what there is. */
static void work_alone(struct q2_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	while (pool->taken < pool->submitted)
		run_next(pool, pool->alone);
	pthread_mutex_unlock(&pool->lock);
}

int q2_pool_new(const struct q2_pool_work *work, void *job, unsigned threads, struct q2_pool **out,
		struct qcow2_error *err)
{
	struct q2_pool *pool = q2_new(1, sizeof *pool);
	pthread_condattr_t clock;
	if (!pool)
		return q2_error_nomem(err);
	pool->work = *work;
	pool->job = job;
	pool->threads = threads ? threads : q2_clock_processors();
	if (pool->threads > MAX_THREADS)
		pool->threads = MAX_THREADS;
	pool->ring = (size_t)pool->threads * UNITS_PER_THREAD;
	atomic_init(&pool->stop, UINT64_MAX);
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->ready, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&pool->done, &clock);
	pthread_condattr_destroy(&clock);
	pool->workers = q2_new(pool->threads, sizeof *pool->workers);
	pool->states = q2_new(pool->ring, 1);
	pool->units = q2_new(pool->ring, work->unit_size);
	pool->alone = q2_new(1, work->worker_size);
	if (!pool->workers || !pool->states || !pool->units || !pool->alone) {
		q2_pool_free(pool);
		return q2_error_nomem(err);
	}
	*out = pool;
	return 0;
}

void q2_pool_free(struct q2_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->ending = true;
	/* No unit is wanted any more, and the first one is not asked for its opinion. */
	atomic_store(&pool->stop, 0);
	pthread_cond_broadcast(&pool->ready);
	pthread_mutex_unlock(&pool->lock);
	tell_stop(pool);
	for (unsigned i = 0; i < pool->started; i++) {
		pthread_join(pool->workers[i].thread, NULL);
		pool->work.end_worker(pool->workers[i].own);
		free(pool->workers[i].own);
	}
	if (pool->alone)
		pool->work.end_worker(pool->alone);
	free(pool->alone);
	pthread_cond_destroy(&pool->done);
	pthread_cond_destroy(&pool->ready);
	pthread_mutex_destroy(&pool->lock);
	free(pool->workers);
	free(pool->states);
	free(pool->units);
	free(pool);
}

void *q2_pool_room(struct q2_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	bool is_free = pool->states[pool->submitted % pool->ring] == FREE;
	pthread_mutex_unlock(&pool->lock);
	return is_free ? unit_at(pool, pool->submitted) : NULL;
}

void q2_pool_submit(struct q2_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	pool->states[pool->submitted % pool->ring] = READY;
	pool->submitted++;
	bool helpless = pool->submitted - pool->taken > pool->waiting;
	pthread_cond_signal(&pool->ready);
	pthread_mutex_unlock(&pool->lock);
	/* Fewer hands than hoped for do the work too. */
	if (helpless && pool->started < pool->threads)
		start_worker(pool);
	if (!pool->started)
		work_alone(pool);
}

static bool has_room(const struct q2_pool *pool)
{
	/* One free unit alone would wake the coordinator for each: half a ring is worth it. */
	return pool->submitted - pool->finished <= pool->ring / 2 &&
	       pool->states[pool->submitted % pool->ring] == FREE;
}

static bool has_ended(const struct q2_pool *pool)
{
	return pool->finished == pool->submitted;
}

static struct timespec time_of(uint64_t deadline)
{
	return (struct timespec){.tv_sec = (time_t)(deadline / 1000000000u),
				 .tv_nsec = (long)(deadline % 1000000000u)};
}

/* One sleep, whatever ends it. */
static void wait_unless(struct q2_pool *pool, bool (*enough)(const struct q2_pool *), uint64_t deadline)
{
	struct timespec until = time_of(deadline);
	pthread_mutex_lock(&pool->lock);
	if (!enough(pool))
		pthread_cond_timedwait(&pool->done, &pool->lock, &until);
	pthread_mutex_unlock(&pool->lock);
}

void q2_pool_wait_room(struct q2_pool *pool, uint64_t deadline)
{
	wait_unless(pool, has_room, deadline);
}

void q2_pool_wait_idle(struct q2_pool *pool, uint64_t deadline)
{
	struct timespec until = time_of(deadline);
	pthread_mutex_lock(&pool->lock);
	while (!has_ended(pool) && !pthread_cond_timedwait(&pool->done, &pool->lock, &until))
		;
	pthread_mutex_unlock(&pool->lock);
}

void q2_pool_wait_unit(struct q2_pool *pool, uint64_t deadline)
{
	wait_unless(pool, has_ended, deadline);
}

bool q2_pool_idle(struct q2_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	bool idle = has_ended(pool);
	pthread_mutex_unlock(&pool->lock);
	return idle;
}

bool q2_pool_stopped(struct q2_pool *pool)
{
	return atomic_load(&pool->stop) != UINT64_MAX;
}

int q2_pool_verdict(struct q2_pool *pool, struct qcow2_error *err)
{
	int code = 0;
	pthread_mutex_lock(&pool->lock);
	if (atomic_load(&pool->stop) != UINT64_MAX) {
		code = pool->stop_code;
		if (err)
			*err = pool->stop_error;
	}
	pthread_mutex_unlock(&pool->lock);
	return code;
}
