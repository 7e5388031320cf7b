/* SPDX-License-Identifier: MIT
 * The copy job: the coordinator lists the source's pieces and sends them out in units, workers read them and
 * give them to the sink. */
#include "base/addr.h"
#include "base/mem.h"
#include "copy/pool.h"
#include "copy/reader.h"
#include "copy/sink.h"

#include <stdatomic.h>
#include <string.h>

/* A unit is a window of the target, aligned to its own length, or a run of zeros of any length up to the
 * second bound, which keeps a job cancellable. */
#define UNIT ((uint64_t)2 << 20)
#define ZERO_UNIT ((uint64_t)1 << 30)
#define MAX_PIECES 128u

/* What is read, searched for zeros and written while it is still in the processor's own cache. */
#define CHUNK ((uint64_t)256 << 10)

#define STEP_NSEC 100000000u

struct unit {
	size_t count;
	struct q2_piece pieces[MAX_PIECES]; /* in order; gaps between them need nothing done */
};

struct worker {
	struct q2_reader reader;
	uint8_t *buf;
	size_t room;
};

enum phase { COPYING, DONE, FAILED };

struct qcow2_copy {
	struct q2_source source;
	struct q2_sink *sink;
	struct q2_pool *pool;
	bool salvage;
	enum phase phase;
	uint64_t position, end;     /* bytes of the target: listed so far, in all */
	struct qcow2_error failure; /* of the listing until all units are done, then the job's */
	atomic_uint_least64_t done, lost;
};

/* ---- workers -------------------------------------------------------------------------------- */

/* The next bytes to move together: from `start`, in pieces[i], through pieces that touch, to the next multiple
 * of CHUNK or the end of a compressed cluster that reaches over it. gives: the end; *next = the piece it is in
 * or before. */
static uint64_t chunk_end(const struct unit *unit, size_t i, uint64_t start, size_t *next)
{
	uint64_t limit = q2_round_down(start, CHUNK) + CHUNK, at = start;
	for (; i < unit->count && at < limit; i++) {
		const struct q2_piece *piece = &unit->pieces[i];
		if (q2_piece_is_zero(piece) || piece->offset > at)
			break;
		at = piece->offset + piece->length;
		if (piece->kind != QCOW2_EXTENT_COMPRESSED && at > limit) {
			at = limit;
			break;
		}
	}
	*next = i;
	return at;
}

static int copy_chunk(struct qcow2_copy *copy, struct worker *worker, const struct unit *unit, size_t i,
		      uint64_t start, size_t length, struct qcow2_error *err)
{
	bool any;
	if (worker->room < length) {
		free(worker->buf);
		worker->room = 0;
		worker->buf = q2_new_pages(q2_max(length, CHUNK));
		if (!worker->buf)
			return q2_error_nomem(err);
		worker->room = q2_max(length, CHUNK);
	}
	int rc = q2_reader_fill(&worker->reader, unit->pieces + i, unit->count - i, start, length,
				worker->buf, &any, err);
	return rc ? rc : copy->sink->ops->write(copy->sink, start, worker->buf, length, err);
}

static int run_unit(void *job, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct qcow2_copy *copy = job;
	struct worker *worker = own;
	const struct unit *unit = what;
	uint64_t at = 0;
	int rc = 0;
	worker->reader.salvage = copy->salvage;
	for (size_t i = 0; i < unit->count && !rc;) {
		const struct q2_piece *piece = &unit->pieces[i];
		uint64_t stop;
		at = q2_max(at, piece->offset);
		if (q2_pool_unwanted(copy->pool, number))
			break;
		if (q2_piece_is_zero(piece)) {
			rc = copy->sink->ops->zero(copy->sink, at, piece->length, err);
			stop = at + piece->length;
			i++;
		} else {
			size_t next;
			stop = chunk_end(unit, i, at, &next);
			rc = copy_chunk(copy, worker, unit, i, at, stop - at, err);
			i = next;
		}
		atomic_fetch_add_explicit(&copy->done, stop - at, memory_order_relaxed);
		at = stop;
	}
	atomic_fetch_add(&copy->lost, worker->reader.lost);
	worker->reader.lost = 0;
	return rc;
}

static void end_worker(void *own)
{
	struct worker *worker = own;
	q2_reader_free(&worker->reader);
	free(worker->buf);
}

/* ---- the coordinator ------------------------------------------------------------------------ */

/*
 * Lists from the position on into `unit` until its window is full. gives: 0, also with nothing in it when
 * there was only what needs no work or when `deadline` is over.
 */
static int fill_unit(struct qcow2_copy *copy, struct unit *unit, uint64_t deadline, struct qcow2_error *err)
{
	uint64_t window = 0; /* its end, once there is a first piece */
	unit->count = 0;
	while (copy->position < copy->end && unit->count < MAX_PIECES) {
		uint64_t limit = (unit->count ? window : copy->end) - copy->position;
		struct q2_piece piece;
		int rc = q2_source_find(&copy->source, copy->position, limit, &piece, err);
		if (rc)
			return rc;
		bool is_zero = q2_piece_is_zero(&piece);
		if (is_zero && !copy->sink->wants_zeros) {
			copy->position += piece.length;
			atomic_fetch_add_explicit(&copy->done, piece.length, memory_order_relaxed);
		} else {
			if (!unit->count)
				window = q2_round_down(copy->position, UNIT) + UNIT;
			/* Long zeros go alone, beyond any window. */
			uint64_t most = is_zero && !unit->count ? ZERO_UNIT : window - copy->position;
			piece.length = q2_min(piece.length, most);
			unit->pieces[unit->count++] = piece;
			copy->position += piece.length;
		}
		if ((unit->count && copy->position >= window) || q2_pool_now() >= deadline)
			break;
	}
	return 0;
}

/* Lists and sends until all is sent, the job is stopped, or `deadline`. */
static int send_units(struct qcow2_copy *copy, uint64_t deadline, struct qcow2_error *err)
{
	while (copy->position < copy->end && !q2_pool_stopped(copy->pool)) {
		struct unit *unit = q2_pool_room(copy->pool);
		int rc = unit ? fill_unit(copy, unit, deadline, err) : 0;
		/* What was listed before a failure comes before it. */
		int sent = unit && unit->count ? q2_pool_submit(copy->pool, rc ? NULL : err) : 0;
		if (rc || sent)
			return rc ? rc : sent;
		if (q2_pool_now() >= deadline)
			return 0;
		if (!unit)
			q2_pool_wait_room(copy->pool, deadline);
	}
	return 0;
}

/* All is listed and done, or something failed: the verdict. gives: 0 or the failure, which comes first. */
static int conclude(struct qcow2_copy *copy)
{
	struct qcow2_error err;
	/* What a unit met lies before what the listing met. */
	int rc = q2_pool_verdict(copy->pool, &err);
	q2_pool_free(copy->pool);
	copy->pool = NULL;
	if (rc)
		copy->failure = err;
	if (!copy->failure.code)
		copy->sink->ops->finish(copy->sink, &copy->failure);
	copy->phase = copy->failure.code ? FAILED : DONE;
	return copy->failure.code;
}

int qcow2_copy_step(struct qcow2_copy *copy, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	uint64_t deadline = q2_pool_now() + STEP_NSEC;
	if (copy->phase == COPYING) {
		if (!copy->failure.code)
			send_units(copy, deadline, &copy->failure);
		if (copy->position == copy->end || copy->failure.code || q2_pool_stopped(copy->pool)) {
			q2_pool_wait_idle(copy->pool, deadline);
			if (q2_pool_idle(copy->pool))
				conclude(copy);
		}
	}
	if (copy->phase == FAILED) {
		if (err)
			*err = copy->failure;
		return copy->failure.code;
	}
	*done = atomic_load_explicit(&copy->done, memory_order_relaxed);
	*total = copy->end;
	return copy->phase == COPYING;
}

uint64_t qcow2_copy_lost(const struct qcow2_copy *copy)
{
	return copy->source.lost + atomic_load_explicit(&copy->lost, memory_order_relaxed);
}

void qcow2_copy_free(struct qcow2_copy *copy)
{
	if (!copy)
		return;
	q2_pool_free(copy->pool);
	if (copy->sink)
		copy->sink->ops->free(copy->sink);
	q2_source_free(&copy->source);
	free(copy);
}

int qcow2_copy_new(struct qcow2_image *const *sources, size_t count, struct qcow2_store *target,
		   const struct qcow2_copy_options *options, struct qcow2_copy **out, struct qcow2_error *err)
{
	const struct q2_pool_work work = {.unit_size = sizeof(struct unit),
					  .worker_size = sizeof(struct worker),
					  .run = run_unit,
					  .end_worker = end_worker};
	struct qcow2_copy *copy = q2_new(1, sizeof *copy);
	if (!copy)
		return q2_error_nomem(err);
	copy->salvage = options->salvage;
	int rc = q2_source_init(&copy->source, sources, count, options->salvage, err);
	if (!rc && options->sparse_size % 512)
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				  "The sparse size of %llu bytes is no multiple of 512",
				  (unsigned long long)options->sparse_size);
	if (!rc && q2_source_reads(&copy->source, target)) {
		char name[256];
		const char *path = qcow2_store_name(target);
		q2_error_escape(name, sizeof name, path, strlen(path));
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				  "'%s' is a file that is read: it cannot be the target too", name);
	}
	if (!rc)
		rc = q2_pool_new(&work, copy, options->threads, &copy->pool, err);
	/* Last: this is what changes the target. */
	if (!rc)
		rc = q2_sink_raw(target, copy->source.length, options, &copy->sink, err);
	if (rc) {
		qcow2_copy_free(copy);
		return rc;
	}
	copy->end = copy->source.length;
	*out = copy;
	return 0;
}
