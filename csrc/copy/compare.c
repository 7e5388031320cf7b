/* SPDX-License-Identifier: MIT
 * The comparison of two disks: the coordinator lists both, workers read where one of them has data. */
#include "base/addr.h"
#include "base/mem.h"
#include "copy/pool.h"
#include "copy/reader.h"
#include "data/zero.h"

#include <stdatomic.h>
#include <string.h>

#define SECTOR 512u
#define UNIT ((uint64_t)2 << 20)
#define MAX_PIECES 128u

/* Both sides' chunks stay in the processor's own cache. */
#define CHUNK ((size_t)128 << 10)

#define STEP_NSEC 100000000u

struct side {
	size_t count;
	struct q2_piece pieces[MAX_PIECES];
};

/* A window of both disks; what no piece covers is zeros. */
struct unit {
	uint64_t offset, length;
	struct side sides[2];
};

struct worker {
	struct q2_reader readers[2];
	uint8_t *bufs[2];
};

enum phase { COMPARING, DONE, FAILED };

struct qcow2_compare {
	struct q2_source sources[2];
	struct q2_pool *pool;
	bool strict;
	enum phase phase;
	uint64_t position, end;
	enum qcow2_difference listed; /* found by the listing alone, at `position` */
	enum qcow2_difference result;
	uint64_t offset; /* of the difference */
	struct qcow2_error failure;
	atomic_uint_least64_t done;
};

/* ---- workers -------------------------------------------------------------------------------- */

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t length)
{
	size_t at = 0;
	if (!memcmp(a, b, length))
		return length;
	while (!memcmp(a + at, b + at, q2_min(SECTOR, length - at)))
		at += SECTOR;
	return at;
}

static size_t first_data(const uint8_t *buf, size_t length)
{
	bool is_zero;
	size_t run = q2_zero_run(buf, length, SECTOR, &is_zero);
	return is_zero ? run : 0;
}

/* gives: in *at the first sector of the chunk that differs, `length`: none. */
static int compare_chunk(struct worker *worker, const struct unit *unit, uint64_t offset, size_t length,
			 size_t *at, struct qcow2_error *err)
{
	bool any[2];
	for (int i = 0; i < 2; i++) {
		const struct side *side = &unit->sides[i];
		if (!worker->bufs[i])
			worker->bufs[i] = q2_new_pages(CHUNK);
		if (!worker->bufs[i])
			return q2_error_nomem(err);
		int rc = q2_reader_fill(&worker->readers[i], side->pieces, side->count, offset, length,
					worker->bufs[i], &any[i], err);
		if (rc)
			return rc;
	}
	if (any[0] && any[1])
		*at = first_difference(worker->bufs[0], worker->bufs[1], length);
	else
		*at = any[0] || any[1] ? first_data(worker->bufs[any[0] ? 0 : 1], length) : length;
	return 0;
}

static int run_unit(void *job, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct qcow2_compare *compare = job;
	struct unit *unit = what;
	for (uint64_t at = 0; at < unit->length;) {
		size_t n = (size_t)q2_min(unit->length - at, CHUNK), same = 0;
		if (q2_pool_unwanted(compare->pool, number))
			break;
		int rc = compare_chunk(own, unit, unit->offset + at, n, &same, err);
		if (rc)
			return rc;
		if (same < n) {
			/* The error record carries it to conclude, if no earlier unit stops the job. */
			err->offset = unit->offset + at + same;
			return 1;
		}
		at += n;
		atomic_fetch_add_explicit(&compare->done, n, memory_order_relaxed);
	}
	return 0;
}

static void end_worker(void *own)
{
	struct worker *worker = own;
	for (int i = 0; i < 2; i++) {
		q2_reader_free(&worker->readers[i]);
		free(worker->bufs[i]);
	}
}

/* ---- the coordinator ------------------------------------------------------------------------ */

static bool same_allocation(const struct q2_piece *a, const struct q2_piece *b)
{
	return q2_piece_is_zero(a) == q2_piece_is_zero(b) && a->present == b->present;
}

static void add_piece(struct side *side, const struct q2_piece *piece)
{
	struct q2_piece *last = side->count ? &side->pieces[side->count - 1] : NULL;
	if (q2_piece_is_zero(piece))
		return;
	/* Cut only because the other side's piece ended: it goes on. */
	if (last && last->kind == piece->kind && last->store == piece->store &&
	    last->offset + last->length == piece->offset &&
	    (piece->kind == QCOW2_EXTENT_DATA
		     ? last->host + last->length == piece->host
		     : last->host == piece->host && last->within + last->length == piece->within)) {
		last->length += piece->length;
		return;
	}
	side->pieces[side->count++] = *piece;
}

/* The longest stretch from the position on that is of one kind on each side. */
static int find_both(struct qcow2_compare *compare, uint64_t limit, struct q2_piece pieces[2],
		     struct qcow2_error *err)
{
	for (int i = 0; i < 2; i++) {
		int rc = q2_source_find(&compare->sources[i], compare->position, limit, &pieces[i], err);
		if (rc)
			return rc;
		limit = pieces[i].length;
	}
	pieces[0].length = limit;
	return 0;
}

/* Lists until the unit's window is full, `deadline`, or a difference that the listing sees. */
static int fill_unit(struct qcow2_compare *compare, struct unit *unit, uint64_t deadline,
		     struct qcow2_error *err)
{
	uint64_t window = compare->end;
	unit->length = 0;
	unit->sides[0].count = unit->sides[1].count = 0;
	while (compare->position < window && unit->sides[0].count < MAX_PIECES &&
	       unit->sides[1].count < MAX_PIECES) {
		struct q2_piece pieces[2];
		int rc = find_both(compare, window - compare->position, pieces, err);
		if (rc)
			return rc;
		uint64_t n = pieces[0].length;
		bool both_zero = q2_piece_is_zero(&pieces[0]) && q2_piece_is_zero(&pieces[1]);
		/* Past the end of one there is no allocation to compare; strict sizes are equal anyway. */
		if (compare->strict && !same_allocation(&pieces[0], &pieces[1])) {
			compare->listed = QCOW2_DIFFERENT_ALLOCATION;
			break;
		}
		if (!both_zero && !unit->length) {
			unit->offset = compare->position;
			window = q2_min(compare->end, q2_round_down(compare->position, UNIT) + UNIT);
			n = q2_min(n, window - compare->position);
			pieces[0].length = pieces[1].length = n;
		}
		if (!both_zero || unit->length) {
			add_piece(&unit->sides[0], &pieces[0]);
			add_piece(&unit->sides[1], &pieces[1]);
			unit->length += n;
		} else {
			atomic_fetch_add_explicit(&compare->done, n, memory_order_relaxed);
		}
		compare->position += n;
		if (q2_pool_now() >= deadline)
			break;
	}
	return 0;
}

static bool all_listed(const struct qcow2_compare *compare)
{
	return compare->position == compare->end || compare->listed || compare->failure.code ||
	       q2_pool_stopped(compare->pool);
}

static void send_units(struct qcow2_compare *compare, uint64_t deadline)
{
	while (!all_listed(compare)) {
		struct unit *unit = q2_pool_room(compare->pool);
		int rc = unit ? fill_unit(compare, unit, deadline, &compare->failure) : 0;
		/* What was listed before a failure comes before it. */
		if (unit && unit->length)
			rc = q2_pool_submit(compare->pool, rc ? NULL : &compare->failure);
		if (rc || q2_pool_now() >= deadline)
			return;
		if (!unit)
			q2_pool_wait_room(compare->pool, deadline);
	}
}

/* What a unit met lies before what the listing met. */
static void conclude(struct qcow2_compare *compare)
{
	struct qcow2_error err;
	int rc = q2_pool_verdict(compare->pool, &err);
	q2_pool_free(compare->pool);
	compare->pool = NULL;
	compare->phase = DONE;
	if (rc < 0) {
		compare->failure = err;
		compare->phase = FAILED;
	} else if (rc > 0) {
		compare->result = QCOW2_DIFFERENT_CONTENT;
		compare->offset = err.offset;
	} else if (compare->failure.code) {
		compare->phase = FAILED;
	} else if (compare->listed) {
		compare->result = compare->listed;
		compare->offset = compare->position;
	}
}

int qcow2_compare_step(struct qcow2_compare *compare, uint64_t *done, uint64_t *total,
		       struct qcow2_error *err)
{
	uint64_t deadline = q2_pool_now() + STEP_NSEC;
	if (compare->phase == COMPARING) {
		send_units(compare, deadline);
		if (all_listed(compare)) {
			q2_pool_wait_idle(compare->pool, deadline);
			if (q2_pool_idle(compare->pool))
				conclude(compare);
		}
	}
	if (compare->phase == FAILED) {
		if (err)
			*err = compare->failure;
		return compare->failure.code;
	}
	*done = atomic_load_explicit(&compare->done, memory_order_relaxed);
	*total = compare->end;
	return compare->phase == COMPARING;
}

enum qcow2_difference qcow2_compare_result(const struct qcow2_compare *compare, uint64_t *offset)
{
	*offset = compare->offset;
	return compare->result;
}

void qcow2_compare_free(struct qcow2_compare *compare)
{
	if (!compare)
		return;
	q2_pool_free(compare->pool);
	q2_source_free(&compare->sources[0]);
	q2_source_free(&compare->sources[1]);
	free(compare);
}

int qcow2_compare_new(struct qcow2_image *a, struct qcow2_image *b, bool strict, unsigned threads,
		      struct qcow2_compare **out, struct qcow2_error *err)
{
	const struct q2_pool_work work = {.unit_size = sizeof(struct unit),
					  .worker_size = sizeof(struct worker),
					  .run = run_unit,
					  .end_worker = end_worker};
	struct qcow2_compare *compare = q2_new(1, sizeof *compare);
	if (!compare)
		return q2_error_nomem(err);
	compare->strict = strict;
	compare->offset = UINT64_MAX;
	int rc = q2_source_init(&compare->sources[0], &a, 1, false, err);
	if (!rc)
		rc = q2_source_init(&compare->sources[1], &b, 1, false, err);
	if (!rc)
		rc = q2_pool_new(&work, compare, threads, &compare->pool, err);
	if (rc) {
		qcow2_compare_free(compare);
		return rc;
	}
	compare->end = q2_max(compare->sources[0].length, compare->sources[1].length);
	if (strict && compare->sources[0].length != compare->sources[1].length) {
		compare->result = QCOW2_DIFFERENT_SIZE;
		compare->phase = DONE;
	}
	*out = compare;
	return 0;
}
