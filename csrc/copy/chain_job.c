/* SPDX-License-Identifier: MIT
 * The job that commit and rebase are made of. */
#include "copy/chain_job.h"

#include "copy/reader.h"
#include "data/codec.h"
#include "data/zero.h"
#include "store/store.h"

#include <inttypes.h>
#include <string.h>

/* A unit is a window of the disk aligned to its own length, no shorter than a cluster: what is read of it is written
 * while it is still in a processor's own cache. Or a run of zeros, which the map deals with. */
#define UNIT ((uint64_t)512 << 10)
#define ZERO_UNIT ((uint64_t)1 << 30)
#define MAX_STRETCHES 128u
#define CHUNK ((uint64_t)256 << 10)

static uint64_t unit_of(const struct q2_chain_job *layers)
{
	return q2_max(UNIT, layers->target.image->raw ? 0 : layers->target.image->meta.geo.cluster_size);
}

struct chain_unit {
	size_t survey; /* 0: the disk */
	size_t count;
	struct q2_piece old[MAX_STRETCHES], new[MAX_STRETCHES]; /* in order, pairwise of the same bytes */
};

/* What is to be done to the target. */
struct op {
	enum { ZERO, WRITE, STREAM } kind;
	unsigned flags;          /* ZERO: of enum qcow2_zero_flags */
	uint64_t offset, length; /* STREAM: bytes of the stream */
	const uint8_t *buf;
};

struct chain_worker {
	struct q2_reader old_reader, new_reader;
	uint8_t *old;     /* the unit's bytes, from its window's start on */
	uint8_t *new;     /* of a chunk */
	uint8_t *streams; /* one behind the other */
	size_t packed;    /* bytes of them */
	struct q2_codec *codec;
	struct q2_vec ops;    /* struct op, in the disk's order */
	struct q2_vec places; /* see q2_image_writer_place */
};

/* Surveys only compare; what is done with the disk itself is its kind's. */
static bool compares(const struct q2_chain_job *layers, const struct chain_unit *unit)
{
	return unit->survey || layers->grain;
}

static uint64_t grain_of(const struct q2_chain_job *layers)
{
	return layers->grain ? layers->grain : 512;
}

/* ---- workers -------------------------------------------------------------------------------- */

static bool same_store(struct qcow2_store *a, struct qcow2_store *b)
{
	uint64_t id_a[2], id_b[2];
	if (a == b)
		return true;
	return qcow2_store_identity(a, id_a) && qcow2_store_identity(b, id_b) && id_a[0] == id_b[0] &&
	       id_a[1] == id_b[1];
}

bool q2_piece_same(const struct q2_piece *a, const struct q2_piece *b)
{
	if (q2_piece_is_zero(a) || q2_piece_is_zero(b))
		return q2_piece_is_zero(a) && q2_piece_is_zero(b);
	return a->kind == b->kind && a->host == b->host && a->within == b->within &&
	       same_store(a->store, b->store);
}

static int make_room(const struct q2_chain_job *layers, struct chain_worker *worker, struct qcow2_error *err)
{
	uint64_t unit = unit_of(layers);
	if (!worker->old)
		worker->old = q2_new_pages(unit);
	if (!worker->new && (layers->grain || layers->surveys))
		worker->new = q2_new_pages(q2_max(CHUNK, layers->grain));
	if (!worker->streams && layers->compress)
		worker->streams = q2_new_pages(unit);
	bool all = worker->old && (worker->new || !(layers->grain || layers->surveys)) &&
		   (worker->streams || !layers->compress);
	return all ? 0 : q2_error_nomem(err);
}

static int add_op(struct chain_worker *worker, struct op op, struct qcow2_error *err)
{
	struct op *last = worker->ops.count ? (struct op *)worker->ops.items + worker->ops.count - 1 : NULL;
	if (last && op.kind != STREAM && last->kind == op.kind && last->flags == op.flags &&
	    last->offset + last->length == op.offset &&
	    (op.kind == ZERO || last->buf + last->length == op.buf)) {
		last->length += op.length;
		return 0;
	}
	struct op *new = q2_vec_push(&worker->ops, sizeof *new);
	if (!new)
		return q2_error_nomem(err);
	*new = op;
	return 0;
}

/* One whole cluster becomes a stream; one that does not become smaller is written plainly. */
static int add_compressed(struct q2_chain_job *layers, struct chain_worker *worker, uint64_t offset,
			  uint64_t length, const uint8_t *buf, struct qcow2_error *err)
{
	struct qcow2_image *image = layers->target.image;
	uint32_t cluster = image->meta.geo.cluster_size;
	uint8_t *stream = worker->streams + worker->packed;
	size_t used = 0;
	int rc = 0;
	if (!worker->codec)
		rc = q2_codec_new(image->meta.header.compression_type, &worker->codec, err);
	if (!rc)
		rc = q2_codec_compress(worker->codec, buf, cluster, stream, cluster - 1, &used, err);
	if (rc)
		return rc;
	worker->packed += used;
	return used ? add_op(worker, (struct op){STREAM, 0, offset, used, stream}, err)
		    : add_op(worker, (struct op){WRITE, 0, offset, length, buf}, err);
}

/* Bytes that differ are to be written. */
static int add_run(struct q2_chain_job *layers, struct chain_worker *worker, uint64_t offset, uint8_t *buf,
		   uint64_t length, struct qcow2_error *err)
{
	if (q2_zero_test(buf, length))
		return add_op(worker, (struct op){ZERO, QCOW2_ZERO_OWN, offset, length, NULL}, err);
	if (!layers->compress)
		return add_op(worker, (struct op){WRITE, 0, offset, length, buf}, err);
	uint64_t cluster = layers->grain;
	for (int rc; length;) {
		uint64_t n = q2_min(cluster - offset % cluster, length);
		bool last = offset + n == layers->size;
		if (q2_zero_test(buf, n)) {
			rc = add_op(worker, (struct op){ZERO, QCOW2_ZERO_OWN, offset, n, NULL}, err);
		} else if (offset % cluster == 0 && (n == cluster || last)) {
			/* The unit's buffer reaches to the end of the cluster. */
			memset(buf + n, 0, cluster - n);
			rc = add_compressed(layers, worker, offset, n, buf, err);
		} else {
			rc = add_op(worker, (struct op){WRITE, 0, offset, n, buf}, err);
		}
		if (rc)
			return rc;
		offset += n;
		buf += n;
		length -= n;
	}
	return 0;
}

static int refuse(const struct q2_chain_job *layers, const struct chain_unit *unit, uint64_t offset,
		  struct qcow2_error *err)
{
	const char *path = qcow2_store_name(layers->views[unit->survey - 1]->store);
	char name[200];
	q2_error_escape(name, sizeof name, path, strlen(path));
	return q2_error_set(
		err, QCOW2_E_CONFLICT, offset,
		"Internal snapshot number %zu of '%s' shares the backing file and would show other bytes "
		"at offset %" PRIu64 "; delete it first",
		unit->survey, name, offset);
}

/* Compares the chunk, whose old bytes are `old`, grain by grain: what differs is to be written. */
static int settle(struct q2_chain_job *layers, struct chain_worker *worker, const struct chain_unit *unit,
		  uint64_t start, uint8_t *old, uint64_t length, struct qcow2_error *err)
{
	uint64_t grain = grain_of(layers);
	for (uint64_t at = 0, run = 0; at < length; at += run) {
		uint64_t differing = 0;
		run = 0;
		while (at + run < length) {
			uint64_t n = q2_min(grain - (start + at + run) % grain, length - at - run);
			if (!memcmp(old + at + run, worker->new + at + run, n)) {
				if (!differing)
					run += n;
				break;
			}
			differing = run += n;
		}
		if (!differing)
			continue;
		if (unit->survey)
			return refuse(layers, unit, start + at, err);
		int rc = add_run(layers, worker, start + at, old + at, differing, err);
		if (rc)
			return rc;
	}
	return 0;
}

static int read_chunk(struct q2_chain_job *layers, struct chain_worker *worker, const struct chain_unit *unit,
		      size_t i, uint64_t start, uint64_t length, struct qcow2_error *err)
{
	bool any_old = false, any_new = false, compare = compares(layers, unit);
	int rc = make_room(layers, worker, err);
	if (rc)
		return rc;
	uint8_t *old = worker->old + start % unit_of(layers);
	rc = q2_reader_fill(&worker->old_reader, unit->old + i, unit->count - i, start, length, old, &any_old,
			    err);
	if (!rc && compare)
		rc = q2_reader_fill(&worker->new_reader, unit->new + i, unit->count - i, start, length,
				    worker->new, &any_new, err);
	if (rc || (compare && !any_old && !any_new))
		return rc;
	if (!any_old)
		memset(old, 0, length);
	if (!compare)
		return add_op(worker, (struct op){WRITE, 0, start, length, old}, err);
	if (!any_new)
		memset(worker->new, 0, length);
	return settle(layers, worker, unit, start, old, length, err);
}

/* The next bytes to move together: from `start` in pair i on, through pairs that touch, to the next multiple of
 * the chunk's length. Zeros are not among them when all is written. gives: *next = the pair it ends in or before. */
static uint64_t chunk_end(const struct q2_chain_job *layers, const struct chain_unit *unit, size_t i,
			  uint64_t start, size_t *next)
{
	uint64_t chunk = q2_max(CHUNK, layers->grain), limit = q2_round_down(start, chunk) + chunk,
		 at = start;
	for (; i < unit->count && at < limit; i++) {
		const struct q2_piece *piece = &unit->old[i];
		if ((!compares(layers, unit) && q2_piece_is_zero(piece)) || piece->offset > at)
			break;
		at = q2_min(piece->offset + piece->length, limit);
		if (at == limit && piece->offset + piece->length > limit)
			break;
	}
	*next = i;
	return at;
}

/* What [start, stop) of the disk was read from will not be read again: its memory in the host serves the target. */
static void forget(const struct q2_chain_job *layers, const struct q2_piece *piece,
		   const struct q2_piece *end, uint64_t start, uint64_t stop)
{
	for (; layers->emptied && piece < end && piece->offset < stop; piece++) {
		if (piece->kind != QCOW2_EXTENT_DATA || piece->store != layers->emptied)
			continue;
		uint64_t from = q2_max(start, piece->offset),
			 to = q2_min(stop, piece->offset + piece->length);
		q2_store_forget(piece->store, piece->host + (from - piece->offset), to - from);
	}
}

/* Reads the unit and finds out what is to be written. */
static int read_unit(struct q2_chain_job *layers, struct chain_worker *worker, const struct chain_unit *unit,
		     uint64_t number, struct qcow2_error *err)
{
	uint64_t at = 0;
	int rc = 0;
	for (size_t i = 0; i < unit->count && !rc;) {
		const struct q2_piece *piece = &unit->old[i];
		uint64_t stop;
		at = q2_max(at, piece->offset);
		if (q2_pool_unwanted(layers->job.pool, number))
			break;
		if (!compares(layers, unit) && q2_piece_is_zero(piece)) {
			stop = piece->offset + piece->length;
			rc = add_op(worker, (struct op){ZERO, QCOW2_ZERO_UNMAP, at, stop - at, NULL}, err);
			i++;
		} else {
			size_t next;
			stop = chunk_end(layers, unit, i, at, &next);
			rc = read_chunk(layers, worker, unit, i, at, stop - at, err);
			i = next;
		}
		if (!rc)
			forget(layers, piece, unit->old + unit->count, at, stop);
		at = stop;
	}
	return rc;
}

/* needs: the unit entered. */
static int do_ops(struct q2_chain_job *layers, struct chain_worker *worker, struct qcow2_error *err)
{
	const struct op *op = worker->ops.items;
	int rc = 0;
	for (size_t i = 0; i < worker->ops.count && !rc; i++, op++) {
		if (op->kind == ZERO)
			rc = q2_image_writer_zero(&layers->target, op->offset, op->length, op->flags, err);
		else if (op->kind == STREAM)
			rc = q2_image_writer_stream(&layers->target, op->offset, op->buf,
						    (uint32_t)op->length, err);
		else
			rc = q2_image_writer_place(&layers->target, op->offset, op->buf, op->length,
						   &worker->places, err);
	}
	return rc;
}

static int run_unit(void *context, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct q2_chain_job *layers = context;
	struct chain_worker *worker = own;
	const struct chain_unit *unit = what;
	struct qcow2_error late;
	worker->ops.count = worker->packed = 0;
	int rc = read_unit(layers, worker, unit, number, err);
	/* In any case, so that the next unit has its turn. */
	int entered = q2_image_writer_enter(&layers->target, number, rc ? &late : err);
	rc = rc ? rc : entered;
	if (!rc && !q2_pool_unwanted(layers->job.pool, number))
		rc = do_ops(layers, worker, err);
	q2_image_writer_leave(&layers->target);
	rc = q2_image_writer_finish(&layers->target, &worker->places, rc, err);
	for (size_t i = 0; i < unit->count; i++)
		q2_job_did(&layers->job, unit->old[i].length);
	return rc;
}

static void end_worker(void *own)
{
	struct chain_worker *worker = own;
	q2_reader_free(&worker->old_reader);
	q2_reader_free(&worker->new_reader);
	q2_codec_free(worker->codec);
	q2_vec_free(&worker->ops);
	q2_vec_free(&worker->places);
	free(worker->old);
	free(worker->new);
	free(worker->streams);
}

/* ---- the coordinator ------------------------------------------------------------------------ */

static size_t survey_at(const struct q2_chain_job *layers, uint64_t position, uint64_t *start, uint64_t *end)
{
	const uint64_t *starts = layers->starts.items;
	size_t i = 0;
	while (i < layers->surveys && position >= starts[i + 1])
		i++;
	*start = starts[i];
	*end = i < layers->surveys ? starts[i + 1] : layers->job.end;
	return i < layers->surveys ? i + 1 : 0;
}

/* Lists stretches from `local` on, which is byte job->position, until the unit is at its end, or the time before it began. */
static int list(struct q2_chain_job *layers, struct chain_unit *unit, uint64_t start, uint64_t end,
		uint64_t deadline, struct qcow2_error *err)
{
	struct q2_pool_job *job = &layers->job;
	uint64_t window = 0; /* its end, once there is a first stretch */
	while (job->position < end && unit->count < MAX_STRETCHES) {
		uint64_t local = job->position - start;
		uint64_t limit = (unit->count ? window : end - start) - local;
		struct q2_chain_run stretch;
		int rc = layers->ops->find(layers, unit->survey, local, limit, &stretch, err);
		if (rc)
			return rc;
		if (!stretch.wanted) {
			q2_job_did(job, stretch.length);
		} else {
			bool zeros = !compares(layers, unit) && q2_piece_is_zero(&stretch.old);
			if (!unit->count)
				window = q2_min(q2_round_down(local, unit_of(layers)) + unit_of(layers),
						end - start);
			/* Long zeros go alone, beyond any window. */
			uint64_t most = zeros && !unit->count ? ZERO_UNIT : window - local;
			stretch.length = q2_min(stretch.length, most);
			unit->old[unit->count] = q2_piece_part(&stretch.old, local, stretch.length);
			unit->new[unit->count] = q2_piece_part(&stretch.new, local, stretch.length);
			unit->count++;
			if (!unit->survey && !zeros)
				job->weight += stretch.length;
		}
		job->position += stretch.length;
		/* Where a unit ends is the disk's to say, never the clock's: the file is to be the same on every run. */
		if (unit->count ? job->position - start >= window : q2_clock_now() >= deadline)
			break;
	}
	return 0;
}

static int fill(struct q2_pool_job *job, void *what, uint64_t deadline, bool *worth, struct qcow2_error *err)
{
	struct q2_chain_job *layers = (struct q2_chain_job *)job;
	struct chain_unit *unit = what;
	uint64_t start, end;
	unit->count = 0;
	job->weight = 0;
	unit->survey = survey_at(layers, job->position, &start, &end);
	if (!unit->survey && !layers->begun) {
		/* What the surveys find decides whether a byte is written at all. */
		q2_pool_wait_idle(job->pool, deadline);
		if (!q2_pool_idle(job->pool))
			return 0;
		/* Failed surveys are found out about before anything is sent. */
		if (q2_pool_stopped(job->pool))
			return 0;
		int rc = layers->ops->begin ? layers->ops->begin(layers, err) : 0;
		if (rc)
			return rc;
		layers->begun = true;
	}
	pthread_mutex_lock(&layers->target.gate);
	int rc = list(layers, unit, start, end, deadline, err);
	pthread_mutex_unlock(&layers->target.gate);
	*worth = unit->count > 0;
	return rc;
}

static int finish(struct q2_pool_job *job, int stopped, const struct qcow2_error *what,
		  struct qcow2_error *err)
{
	struct q2_chain_job *layers = (struct q2_chain_job *)job;
	(void)stopped; /* units only fail */
	(void)what;
	return layers->ops->finish(layers, err);
}

static void free_layers(struct q2_pool_job *job)
{
	struct q2_chain_job *layers = (struct q2_chain_job *)job;
	for (size_t i = 0; i < layers->surveys; i++)
		qcow2_image_unref(layers->views[i]);
	free(layers->views);
	q2_vec_free(&layers->starts);
	q2_image_writer_destroy(&layers->target);
	layers->ops->free(layers);
}

static const struct q2_pool_job_ops job_ops = {.fill = fill, .finish = finish, .free = free_layers};

void q2_chain_job_init(struct q2_chain_job *layers, const struct q2_chain_job_ops *ops,
		       struct qcow2_image *target)
{
	layers->job = (struct q2_pool_job){.base = {&q2_pool_job_kind}, .ops = &job_ops};
	layers->ops = ops;
	q2_image_writer_init(&layers->target, target);
}

int q2_chain_job_survey(struct q2_chain_job *layers, struct qcow2_image *image, struct qcow2_error *err)
{
	uint32_t count;
	int rc = qcow2_image_snapshot_count(image, &count, err);
	if (rc)
		return rc;
	layers->views = q2_new(count, sizeof *layers->views);
	if (!layers->views)
		return q2_error_nomem(err);
	while (layers->surveys < count && !rc) {
		rc = qcow2_image_open_snapshot(image, (uint32_t)layers->surveys,
					       &layers->views[layers->surveys], err);
		layers->surveys += !rc;
	}
	return rc;
}

int q2_chain_job_start(struct q2_chain_job *layers, uint64_t size, unsigned threads, struct qcow2_error *err)
{
	const struct q2_pool_work work = {.unit_size = sizeof(struct chain_unit),
					  .worker_size = sizeof(struct chain_worker),
					  .run = run_unit,
					  .is_news = q2_job_is_news,
					  .end_worker = end_worker};
	layers->size = size;
	for (size_t i = 0; i <= layers->surveys; i++) {
		uint64_t *start = q2_vec_push(&layers->starts, sizeof *start);
		if (!start)
			return q2_error_nomem(err);
		*start = layers->job.end;
		layers->job.end += i < layers->surveys ? layers->views[i]->size : size;
	}
	return q2_pool_new(&work, layers, threads, &layers->job.pool, err);
}
