/* SPDX-License-Identifier: MIT
 * The comparison of two disks: the coordinator lists both, workers read where one of them has data. */
#include "base/addr.h"
#include "base/mem.h"
#include "copy/job.h"
#include "copy/reader.h"
#include "data/zero.h"

#include <string.h>

#define SECTOR 512u
#define UNIT ((uint64_t)1 << 20)
#define MAX_PIECES 128u

/* Both sides' chunks stay in the processor's own cache. */
#define CHUNK ((size_t)128 << 10)

struct side {
	size_t count;
	struct q2_piece pieces[MAX_PIECES];
};

/* A window of both disks; what no piece covers is zeros. */
struct compare_unit {
	uint64_t offset, length;
	struct side sides[2];
};

struct compare_worker {
	struct q2_reader readers[2];
	uint8_t *bufs[2];
};

struct compare {
	struct q2_pool_job job;
	struct q2_source sources[2];
	bool strict;
	enum qcow2_difference result; /* what the listing alone sees lies at the job's position */
	uint64_t offset;              /* of the difference */
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
static int compare_chunk(struct compare_worker *worker, const struct compare_unit *unit, uint64_t offset,
			 size_t length, size_t *at, struct qcow2_error *err)
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

static int run_unit(void *context, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct compare *compare = context;
	struct compare_unit *unit = what;
	for (uint64_t at = 0; at < unit->length;) {
		size_t n = (size_t)q2_min(unit->length - at, CHUNK), same = 0;
		if (q2_pool_unwanted(compare->job.pool, number))
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
		q2_job_did(&compare->job, n);
	}
	return 0;
}

static void end_worker(void *own)
{
	struct compare_worker *worker = own;
	for (int i = 0; i < 2; i++) {
		q2_reader_free(&worker->readers[i]);
		free(worker->bufs[i]);
	}
}

/* ---- the coordinator ------------------------------------------------------------------------ */

/* Where to say that the allocation differs: where a run begins that ends the disk on one side and does not on
 * the other, else right here. */
static uint64_t allocation_offset(const struct compare *compare)
{
	uint64_t offset = compare->job.position;
	for (int i = 0; i < 2; i++) {
		const struct q2_piece *run = &compare->sources[i].current;
		if (run->offset + run->length >= compare->job.end)
			offset = q2_min(offset, run->offset);
	}
	return offset;
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
static int find_both(struct compare *compare, uint64_t limit, struct q2_piece pieces[2],
		     struct qcow2_error *err)
{
	for (int i = 0; i < 2; i++) {
		int rc = q2_source_find(&compare->sources[i], compare->job.position, limit, &pieces[i], err);
		if (rc)
			return rc;
		limit = pieces[i].length;
	}
	pieces[0].length = limit;
	return 0;
}

static int fill_unit(struct q2_pool_job *job, void *what, uint64_t deadline, bool *worth,
		     struct qcow2_error *err)
{
	struct compare *compare = (struct compare *)job;
	struct compare_unit *unit = what;
	uint64_t window = job->end;
	unit->length = 0;
	unit->sides[0].count = unit->sides[1].count = 0;
	while (job->position < window && unit->sides[0].count < MAX_PIECES &&
	       unit->sides[1].count < MAX_PIECES) {
		struct q2_piece pieces[2];
		int rc = find_both(compare, window - job->position, pieces, err);
		if (rc)
			return rc;
		uint64_t n = pieces[0].length;
		bool both_zero = q2_piece_is_zero(&pieces[0]) && q2_piece_is_zero(&pieces[1]);
		if (compare->strict &&
		    ((pieces[0].allocation ^ pieces[1].allocation) & ~(unsigned)Q2_ALLOCATION_TOP)) {
			compare->result = QCOW2_DIFFERENT_ALLOCATION;
			compare->offset = allocation_offset(compare);
			job->listed = true;
			break;
		}
		if (!both_zero && !unit->length) {
			unit->offset = job->position;
			window = q2_min(job->end, q2_round_down(job->position, UNIT) + UNIT);
			n = q2_min(n, window - job->position);
		}
		if (both_zero && !unit->length) {
			q2_job_did(job, n);
		} else {
			for (int i = 0; i < 2; i++) {
				pieces[i].length = n;
				add_piece(&unit->sides[i], &pieces[i]);
			}
			unit->length += n;
			*worth = true;
		}
		job->position += n;
		if (q2_clock_now() >= deadline)
			break;
	}
	return 0;
}

static int finish(struct q2_pool_job *job, int stopped, const struct qcow2_error *what,
		  struct qcow2_error *err)
{
	struct compare *compare = (struct compare *)job;
	(void)err; /* nothing is written */
	/* Units lie before the place where the listing stopped, but not always before what it tells. */
	if (stopped && (!compare->result || what->offset < compare->offset)) {
		compare->result = QCOW2_DIFFERENT_CONTENT;
		compare->offset = what->offset;
	}
	return 0;
}

static void free_compare(struct q2_pool_job *job)
{
	struct compare *compare = (struct compare *)job;
	q2_source_free(&compare->sources[0]);
	q2_source_free(&compare->sources[1]);
	free(compare);
}

static const struct q2_pool_job_ops ops = {.fill = fill_unit, .finish = finish, .free = free_compare};

enum qcow2_difference qcow2_compare_result(const struct qcow2_job *job, uint64_t *offset)
{
	const struct compare *compare = (const struct compare *)job;
	bool known = q2_pool_job_of(job, &ops) && compare->job.phase == Q2_JOB_DONE;
	*offset = known ? compare->offset : UINT64_MAX;
	return known ? compare->result : QCOW2_SAME;
}

int qcow2_compare_new(struct qcow2_image *a, struct qcow2_image *b, bool strict, unsigned threads,
		      struct qcow2_job **out, struct qcow2_error *err)
{
	const struct q2_pool_work work = {.unit_size = sizeof(struct compare_unit),
					  .worker_size = sizeof(struct compare_worker),
					  .run = run_unit,
					  .is_news = q2_job_is_news,
					  .end_worker = end_worker};
	struct compare *compare = q2_new(1, sizeof *compare);
	if (!compare)
		return q2_error_nomem(err);
	compare->job = (struct q2_pool_job){.base = {&q2_pool_job_kind}, .ops = &ops};
	compare->strict = strict;
	compare->offset = UINT64_MAX;
	int rc = q2_hold_take(&compare->job.hold, a, err);
	if (!rc)
		rc = q2_hold_take(&compare->job.hold, b, err);
	if (!rc)
		rc = q2_source_init(&compare->sources[0], &a, 1, false, err);
	if (!rc)
		rc = q2_source_init(&compare->sources[1], &b, 1, false, err);
	if (!rc)
		rc = q2_pool_new(&work, compare, threads, &compare->job.pool, err);
	if (rc) {
		qcow2_job_free(&compare->job.base);
		return rc;
	}
	compare->job.end = q2_max(compare->sources[0].length, compare->sources[1].length);
	if (strict && compare->sources[0].length != compare->sources[1].length) {
		compare->result = QCOW2_DIFFERENT_SIZE;
		compare->job.listed = true;
	}
	*out = &compare->job.base;
	return 0;
}
