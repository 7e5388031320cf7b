/* SPDX-License-Identifier: MIT
 * The job that commit and rebase are made of. */
#include "copy/layers.h"

#include "copy/reader.h"
#include "data/codec.h"
#include "data/zero.h"
#include "store/store.h"

#include <inttypes.h>
#include <string.h>

/* A unit is a window of the disk aligned to its own length, which no cluster is longer than; or a run of zeros,
 * which the map deals with. */
#define UNIT ((uint64_t)2 << 20)
#define ZERO_UNIT ((uint64_t)1 << 30)
#define MAX_STRETCHES 128u
#define CHUNK ((uint64_t)256 << 10)

struct unit {
	size_t survey; /* 0: the disk */
	size_t count;
	struct q2_piece old[MAX_STRETCHES], new[MAX_STRETCHES]; /* in order, pairwise of the same bytes */
};

struct worker {
	struct q2_reader old_reader, new_reader;
	uint8_t *old, *new, *stream;
	size_t room;
	struct q2_codec *codec;
};

/* Surveys only compare; what is done with the disk itself is its kind's. */
static bool compares(const struct q2_layers *layers, const struct unit *unit)
{
	return unit->survey || layers->grain;
}

static uint64_t grain_of(const struct q2_layers *layers)
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

static int make_room(struct worker *worker, size_t length, struct qcow2_error *err)
{
	if (worker->room >= length)
		return 0;
	free(worker->old);
	free(worker->new);
	worker->room = 0;
	worker->old = q2_new_pages(length);
	worker->new = q2_new_pages(length);
	if (!worker->old || !worker->new)
		return q2_error_nomem(err);
	worker->room = length;
	return 0;
}

/* Writes one whole cluster as a stream; one that does not become smaller plainly. */
static int write_compressed(struct q2_layers *layers, struct worker *worker, uint64_t offset,
			    const uint8_t *buf, struct qcow2_error *err)
{
	struct qcow2_image *image = layers->target.image;
	uint32_t cluster = image->meta.geo.cluster_size;
	size_t used = 0;
	int rc = 0;
	if (!worker->codec)
		rc = q2_codec_new(image->meta.header.compression_type, &worker->codec, err);
	if (!rc && !worker->stream && !(worker->stream = q2_new_pages(cluster)))
		rc = q2_error_nomem(err);
	if (!rc)
		rc = q2_codec_compress(worker->codec, buf, cluster, worker->stream, cluster - 1, &used, err);
	if (rc || !used)
		return rc ? rc : q2_target_write(&layers->target, offset, buf, cluster, err);
	return q2_target_stream(&layers->target, offset, worker->stream, (uint32_t)used, err);
}

/* Writes bytes that differ. */
static int write_run(struct q2_layers *layers, struct worker *worker, uint64_t offset, uint8_t *buf,
		     uint64_t length, struct qcow2_error *err)
{
	if (q2_zero_test(buf, length))
		return q2_target_zero(&layers->target, offset, length, QCOW2_ZERO_OWN, err);
	if (!layers->compress)
		return q2_target_write(&layers->target, offset, buf, length, err);
	uint64_t cluster = layers->grain;
	for (int rc; length;) {
		uint64_t n = q2_min(cluster - offset % cluster, length);
		bool last = offset + n == layers->size;
		if (q2_zero_test(buf, n)) {
			rc = q2_target_zero(&layers->target, offset, n, QCOW2_ZERO_OWN, err);
		} else if (offset % cluster == 0 && (n == cluster || last)) {
			/* The chunk's buffer reaches to the end of the cluster. */
			memset(buf + n, 0, cluster - n);
			rc = write_compressed(layers, worker, offset, buf, err);
		} else {
			rc = q2_target_write(&layers->target, offset, buf, n, err);
		}
		if (rc)
			return rc;
		offset += n;
		buf += n;
		length -= n;
	}
	return 0;
}

static int refuse(const struct q2_layers *layers, const struct unit *unit, uint64_t offset,
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

/* Compares the chunk grain by grain and writes what differs. */
static int settle(struct q2_layers *layers, struct worker *worker, const struct unit *unit, uint64_t start,
		  uint64_t length, struct qcow2_error *err)
{
	uint64_t grain = grain_of(layers);
	for (uint64_t at = 0, run = 0; at < length; at += run) {
		uint64_t differing = 0;
		run = 0;
		while (at + run < length) {
			uint64_t n = q2_min(grain - (start + at + run) % grain, length - at - run);
			if (!memcmp(worker->old + at + run, worker->new + at + run, n)) {
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
		int rc = write_run(layers, worker, start + at, worker->old + at, differing, err);
		if (rc)
			return rc;
	}
	return 0;
}

static int move_chunk(struct q2_layers *layers, struct worker *worker, const struct unit *unit, size_t i,
		      uint64_t start, uint64_t length, struct qcow2_error *err)
{
	bool any_old = false, any_new = false, compare = compares(layers, unit);
	int rc = make_room(worker, q2_max(length, CHUNK) + layers->grain, err);
	if (!rc)
		rc = q2_reader_fill(&worker->old_reader, unit->old + i, unit->count - i, start, length,
				    worker->old, &any_old, err);
	if (!rc && compare)
		rc = q2_reader_fill(&worker->new_reader, unit->new + i, unit->count - i, start, length,
				    worker->new, &any_new, err);
	if (rc || (compare && !any_old && !any_new))
		return rc;
	if (!compare)
		return q2_target_write(&layers->target, start, worker->old, length, err);
	if (!any_old)
		memset(worker->old, 0, length);
	if (!any_new)
		memset(worker->new, 0, length);
	return settle(layers, worker, unit, start, length, err);
}

/* The next bytes to move together: from `start` in pair i on, through pairs that touch, to the next multiple of
 * the chunk's length. Zeros are not among them when all is written. gives: *next = the pair it ends in or before. */
static uint64_t chunk_end(const struct q2_layers *layers, const struct unit *unit, size_t i, uint64_t start,
			  size_t *next)
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
static void forget(const struct q2_layers *layers, const struct q2_piece *piece, const struct q2_piece *end,
		   uint64_t start, uint64_t stop)
{
	for (; layers->emptied && piece < end && piece->offset < stop; piece++) {
		if (piece->kind != QCOW2_EXTENT_DATA || piece->store != layers->emptied)
			continue;
		uint64_t from = q2_max(start, piece->offset),
			 to = q2_min(stop, piece->offset + piece->length);
		q2_store_forget(piece->store, piece->host + (from - piece->offset), to - from);
	}
}

static int run_unit(void *context, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct q2_layers *layers = context;
	struct worker *worker = own;
	const struct unit *unit = what;
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
			rc = q2_target_zero(&layers->target, at, stop - at, QCOW2_ZERO_UNMAP, err);
			i++;
		} else {
			size_t next;
			stop = chunk_end(layers, unit, i, at, &next);
			rc = move_chunk(layers, worker, unit, i, at, stop - at, err);
			i = next;
		}
		if (!rc)
			forget(layers, piece, unit->old + unit->count, at, stop);
		q2_job_did(&layers->job, stop - at);
		at = stop;
	}
	return rc;
}

static void end_worker(void *own)
{
	struct worker *worker = own;
	q2_reader_free(&worker->old_reader);
	q2_reader_free(&worker->new_reader);
	q2_codec_free(worker->codec);
	free(worker->old);
	free(worker->new);
	free(worker->stream);
}

/* ---- the coordinator ------------------------------------------------------------------------ */

static size_t survey_at(const struct q2_layers *layers, uint64_t position, uint64_t *start, uint64_t *end)
{
	const uint64_t *starts = layers->starts.items;
	size_t i = 0;
	while (i < layers->surveys && position >= starts[i + 1])
		i++;
	*start = starts[i];
	*end = i < layers->surveys ? starts[i + 1] : layers->job.end;
	return i < layers->surveys ? i + 1 : 0;
}

/* Lists stretches from `local` on, which is byte job->position, until the unit or the time is at its end. */
static int list(struct q2_layers *layers, struct unit *unit, uint64_t start, uint64_t end, uint64_t deadline,
		struct qcow2_error *err)
{
	struct qcow2_job *job = &layers->job;
	uint64_t window = 0; /* its end, once there is a first stretch */
	while (job->position < end && unit->count < MAX_STRETCHES) {
		uint64_t local = job->position - start;
		uint64_t limit = (unit->count ? window : end - start) - local;
		struct q2_stretch stretch;
		int rc = layers->ops->find(layers, unit->survey, local, limit, &stretch, err);
		if (rc)
			return rc;
		if (!stretch.wanted) {
			q2_job_did(job, stretch.length);
		} else {
			bool zeros = !compares(layers, unit) && q2_piece_is_zero(&stretch.old);
			if (!unit->count)
				window = q2_min(q2_round_down(local, UNIT) + UNIT, end - start);
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
		if ((unit->count && job->position - start >= window) || q2_host_now() >= deadline)
			break;
	}
	return 0;
}

static int fill(struct qcow2_job *job, void *what, uint64_t deadline, bool *worth, struct qcow2_error *err)
{
	struct q2_layers *layers = (struct q2_layers *)job;
	struct unit *unit = what;
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

static int finish(struct qcow2_job *job, int stopped, const struct qcow2_error *what, struct qcow2_error *err)
{
	struct q2_layers *layers = (struct q2_layers *)job;
	(void)stopped; /* units only fail */
	(void)what;
	return layers->ops->finish(layers, err);
}

static void free_layers(struct qcow2_job *job)
{
	struct q2_layers *layers = (struct q2_layers *)job;
	for (size_t i = 0; i < layers->surveys; i++)
		qcow2_image_unref(layers->views[i]);
	free(layers->views);
	q2_vec_free(&layers->starts);
	pthread_mutex_destroy(&layers->target.gate);
	pthread_mutex_destroy(&layers->target.turn);
	layers->ops->free(layers);
}

static const struct q2_job_ops job_ops = {.fill = fill, .finish = finish, .free = free_layers};

void q2_layers_init(struct q2_layers *layers, const struct q2_layers_ops *ops, struct qcow2_image *target)
{
	layers->job.ops = &job_ops;
	layers->ops = ops;
	layers->target.image = target;
	pthread_mutex_init(&layers->target.gate, NULL);
	pthread_mutex_init(&layers->target.turn, NULL);
}

int q2_layers_survey(struct q2_layers *layers, struct qcow2_image *image, struct qcow2_error *err)
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

int q2_layers_start(struct q2_layers *layers, uint64_t size, unsigned threads, struct qcow2_error *err)
{
	const struct q2_pool_work work = {.unit_size = sizeof(struct unit),
					  .worker_size = sizeof(struct worker),
					  .run = run_unit,
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
