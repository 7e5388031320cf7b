/* SPDX-License-Identifier: MIT
 * The copy job: the coordinator lists the source's pieces and sends them out in units, workers read them and
 * give them to the sink. */
#include "base/addr.h"
#include "base/options.h"
#include "base/mem.h"
#include "copy/job.h"
#include "copy/reader.h"
#include "copy/copy_raw.h"

#include <string.h>

/* A unit is a window of the target, aligned to its own length, or a run of zeros of any length up to the
 * second bound, which keeps a job cancellable. */
#define UNIT ((uint64_t)2 << 20)
#define ZERO_UNIT ((uint64_t)1 << 30)
#define MAX_PIECES 128u

/*
 * What is read, searched for zeros and written in one go, while it is in the processor's own cache. Measured
 * from 64 KiB to 2 MiB with all in the host's page cache: 512 KiB to 1 MiB cost the least time and cycles.
 * copy_file_range costs as many cycles and does not find zeros; a mapped source saves a copy, but turns a
 * disk's read error or a file cut short into a signal.
 */
#define CHUNK ((uint64_t)512 << 10)

struct raw_unit {
	size_t count;
	struct q2_piece pieces[MAX_PIECES]; /* in order; gaps between them need nothing done */
};

struct raw_worker {
	struct q2_reader reader;
	uint8_t *buf;
	size_t room;
};

struct copy {
	struct q2_pool_job job;
	struct q2_source source;
	struct q2_copy_raw *sink;
	bool salvage;
	atomic_uint_least64_t lost; /* bytes that workers made zeros */
};

/* ---- workers -------------------------------------------------------------------------------- */

/* The next bytes to move together: from `start`, in pieces[i], through pieces that touch, to the next multiple
 * of CHUNK or the end of a compressed cluster that reaches over it. gives: the end; *next = the piece it is in
 * or before. */
static uint64_t chunk_end(const struct raw_unit *unit, size_t i, uint64_t start, size_t *next)
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

static int copy_chunk(struct copy *copy, struct raw_worker *worker, const struct raw_unit *unit, size_t i,
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

static int run_unit(void *context, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct copy *copy = context;
	struct raw_worker *worker = own;
	const struct raw_unit *unit = what;
	uint64_t at = 0;
	int rc = 0;
	worker->reader.salvage = copy->salvage;
	for (size_t i = 0; i < unit->count && !rc;) {
		const struct q2_piece *piece = &unit->pieces[i];
		uint64_t stop;
		at = q2_max(at, piece->offset);
		if (q2_pool_unwanted(copy->job.pool, number))
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
		q2_job_did(&copy->job, stop - at);
		at = stop;
	}
	atomic_fetch_add(&copy->lost, worker->reader.lost);
	worker->reader.lost = 0;
	return rc;
}

static void end_worker(void *own)
{
	struct raw_worker *worker = own;
	q2_reader_free(&worker->reader);
	free(worker->buf);
}

/* ---- the coordinator ------------------------------------------------------------------------ */

static int fill_unit(struct q2_pool_job *job, void *what, uint64_t deadline, bool *worth,
		     struct qcow2_error *err)
{
	struct copy *copy = (struct copy *)job;
	struct raw_unit *unit = what;
	uint64_t window = 0; /* its end, once there is a first piece */
	unit->count = 0;
	job->weight = 0;
	while (job->position < job->end && unit->count < MAX_PIECES) {
		uint64_t limit = (unit->count ? window : job->end) - job->position;
		struct q2_piece piece;
		int rc = q2_source_find(&copy->source, job->position, limit, &piece, err);
		if (rc)
			return rc;
		bool is_zero = q2_piece_is_zero(&piece);
		if (is_zero && !copy->sink->wants_zeros) {
			q2_job_did(job, piece.length);
		} else {
			if (!unit->count)
				window = q2_round_down(job->position, UNIT) + UNIT;
			/* Long zeros go alone, beyond any window. */
			uint64_t most = is_zero && !unit->count ? ZERO_UNIT : window - job->position;
			piece.length = q2_min(piece.length, most);
			unit->pieces[unit->count++] = piece;
			job->weight += is_zero ? 0 : piece.length;
			*worth = true;
		}
		job->position += piece.length;
		if ((unit->count && job->position >= window) || q2_clock_now() >= deadline)
			break;
	}
	return 0;
}

static int finish(struct q2_pool_job *job, int stopped, const struct qcow2_error *what,
		  struct qcow2_error *err)
{
	struct copy *copy = (struct copy *)job;
	(void)stopped; /* units only fail */
	(void)what;
	return copy->sink->ops->finish(copy->sink, err);
}

static void free_copy(struct q2_pool_job *job)
{
	struct copy *copy = (struct copy *)job;
	if (copy->sink)
		copy->sink->ops->free(copy->sink);
	q2_source_free(&copy->source);
	free(copy);
}

static const struct q2_pool_job_ops ops = {.fill = fill_unit, .finish = finish, .free = free_copy};

uint64_t qcow2_copy_lost(const struct qcow2_job *job)
{
	const struct copy *copy = (const struct copy *)job;
	return q2_pool_job_of(job, &ops) ? copy->source.lost + atomic_load(&copy->lost)
					 : q2_copy_image_lost(job);
}

uint64_t qcow2_copy_missing(const struct qcow2_job *job, uint64_t *from, uint64_t *to)
{
	const struct q2_source *source = q2_pool_job_of(job, &ops) ? &((const struct copy *)job)->source
								   : q2_copy_image_source(job);
	*from = source ? source->missing_from : 0;
	*to = source ? source->missing_to : 0;
	return source ? source->missing : 0;
}

static int check(const struct copy *copy, struct qcow2_store *target,
		 const struct qcow2_copy_options *options, struct qcow2_error *err)
{
	char name[256];
	const char *path = qcow2_store_name(target);
	if (options->sparse_size % 512)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "The sparse size of %llu bytes is no multiple of 512",
				    (unsigned long long)options->sparse_size);
	if (!q2_source_reads(&copy->source, target))
		return 0;
	q2_error_escape(name, sizeof name, path, strlen(path));
	return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
			    "'%s' is a file that is read: it cannot be the target too", name);
}

int qcow2_copy_new(struct qcow2_image *const *sources, size_t count, struct qcow2_store *target,
		   const struct qcow2_copy_options *given, struct qcow2_job **out, struct qcow2_error *err)
{
	struct qcow2_copy_options own;
	const struct qcow2_copy_options *options = &own;
	int taken = q2_options_take(&own, sizeof own, given, err);
	if (taken)
		return taken;
	const struct q2_pool_work work = {.unit_size = sizeof(struct raw_unit),
					  .worker_size = sizeof(struct raw_worker),
					  .run = run_unit,
					  .is_news = q2_job_is_news,
					  .end_worker = end_worker};
	struct copy *copy = q2_new(1, sizeof *copy);
	if (!copy)
		return q2_error_nomem(err);
	copy->job = (struct q2_pool_job){.base = {&q2_pool_job_kind}, .ops = &ops};
	copy->salvage = options->salvage;
	int rc = 0;
	for (size_t i = 0; i < count && !rc; i++)
		rc = q2_hold_take(&copy->job.hold, sources[i], err);
	if (!rc)
		rc = q2_source_init(&copy->source, sources, count, options->salvage, err);
	copy->source.strict = options->strict;
	if (!rc && options->length)
		rc = q2_source_cut(&copy->source, options->start, options->length, err);
	if (!rc)
		rc = check(copy, target, options, err);
	if (!rc)
		rc = q2_pool_new(&work, copy, options->threads, &copy->job.pool, err);
	/* Last: this is what changes the target. */
	if (!rc)
		rc = q2_copy_raw_writer(target, copy->source.length, options, &copy->sink, err);
	if (rc) {
		qcow2_job_free(&copy->job.base);
		return rc;
	}
	copy->job.end = copy->source.length;
	copy->job.rate = options->rate;
	*out = &copy->job.base;
	return 0;
}
