/* SPDX-License-Identifier: MIT
 * Worker threads for stepped jobs: units of work go out in order, run at the same time, and the earliest
 * one that stops the job decides.
 *
 * The *coordinator* is the caller's thread: it alone fills units and asks for verdicts. Where the system gives no
 * thread at all it also runs each unit, as it submits it. Units are numbered from 0 in the order they are
 * submitted. When unit n fails, all before it still run to their end and those after it are dropped: so the
 * failure that is reported is always the first in order, whatever the number of threads. */
#ifndef Q2_COPY_POOL_H
#define Q2_COPY_POOL_H

#include "base/clock.h"
#include "base/error.h"

#include <stdbool.h>

struct q2_pool;

/* What a pool works on. `unit_size` and `worker_size` are bytes of the job's own structs, zeroed once. */
struct q2_pool_work {
	size_t unit_size, worker_size;
	/*
	 * Runs in a worker thread, or in the coordinator. gives: 0; > 0: stops the job without a failure; < 0: fails it. Long units
	 * ask q2_pool_unwanted now and then and return 0 when it says so.
	 */
	int (*run)(void *job, void *worker, void *unit, uint64_t number, struct qcow2_error *err);
	/* In a worker: has so much been done that the coordinator wants to be woken, to tell of it? */
	bool (*is_news)(const void *job);
	/* Units are unwanted from now on that were not before: wakes those that wait for each other. NULL: none do. */
	void (*stopped)(void *job);
	/* Frees what a worker's struct holds; in the coordinator, after its thread has ended. */
	void (*end_worker)(void *worker);
};

/* threads 0: one per processor that this process may use. Threads are started when there is work. */
int q2_pool_new(const struct q2_pool_work *work, void *job, unsigned threads, struct q2_pool **out,
		struct qcow2_error *err);

/* Drops what was not begun, joins all threads. NULL is fine. */
void q2_pool_free(struct q2_pool *pool);

/* The next unit to fill, as it was left by its last use; NULL: all are in use. */
void *q2_pool_room(struct q2_pool *pool);

/* Sends the unit that q2_pool_room gave. */
void q2_pool_submit(struct q2_pool *pool);

/* Sleeps until there is room for several units or there is news, or `deadline` (of q2_clock_now); perhaps not as long.
 * After a stop all units are soon free. */
void q2_pool_wait_room(struct q2_pool *pool, uint64_t deadline);

/* Sleeps until the pool is idle, or `deadline`. */
void q2_pool_wait_idle(struct q2_pool *pool, uint64_t deadline);

/* Sleeps until the pool is nearly idle or there is news, or `deadline`; perhaps not as long. */
void q2_pool_wait_unit(struct q2_pool *pool, uint64_t deadline);

/* Nothing submitted is unfinished. */
bool q2_pool_idle(struct q2_pool *pool);

/* A unit stopped the job: nothing more need be submitted. */
bool q2_pool_stopped(struct q2_pool *pool);

/* needs: idle. gives: 0, or what the first unit that stopped the job returned, with its error. */
int q2_pool_verdict(struct q2_pool *pool, struct qcow2_error *err);

/* From a worker: an earlier unit than `number` stopped the job, or it is being freed. */
bool q2_pool_unwanted(struct q2_pool *pool, uint64_t number);

#endif
