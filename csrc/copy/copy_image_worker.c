/* SPDX-License-Identifier: MIT
 * What the workers of the copy job into a qcow2 image do with a unit, in the three steps of copy_image_worker.h. */
#include "copy/copy_image_worker.h"

#include "base/mem.h"
#include "copy/reader.h"
#include "data/codec.h"
#include "data/zero.h"
#include "image/image.h"

#include <inttypes.h>
#include <string.h>

#define GRAIN 4096u /* of holes in what is written; hosts keep no smaller ones */
#define MAX_CLUSTERS (Q2_COPY_WINDOW_MAX / 512)

enum content { LEAVE, ZEROS, DATA, STREAM };

/* Bytes with a place: [from, from + length) of a worker's buffers goes to host. */
struct written_piece {
	uint64_t host;
	const uint8_t *from;
	uint64_t length;
};

struct image_worker {
	struct q2_reader reader;
	struct q2_codec *codec;
	uint8_t *buf;    /* the window's bytes */
	uint8_t *packed; /* its streams, one behind the other */
	uint8_t fate[MAX_CLUSTERS];
	uint32_t stream[MAX_CLUSTERS]; /* STREAM: its bytes */
	uint64_t bitmap[MAX_CLUSTERS]; /* DATA with extended L2: its subclusters */
	struct q2_vec places;          /* struct written_piece */
};

/* ---- step 1: what is there ------------------------------------------------------------------ */

static void mark_fates(const struct q2_copy *copy, struct image_worker *worker,
		       const struct q2_copy_unit *unit)
{
	uint32_t bits = copy->target->meta.geo.cluster_bits;
	size_t clusters = (size_t)q2_div_up(unit->end - unit->start, 1ull << bits);
	/* Where space has to be taken for everything, all of it is data. */
	memset(worker->fate, copy->sparse_size || copy->has_backing ? LEAVE : DATA, clusters);
	for (size_t i = 0; i < unit->count; i++) {
		const struct q2_piece *piece = &unit->pieces[i];
		if (q2_copy_unit_is_left_alone(copy, piece))
			continue;
		uint8_t fate = q2_piece_is_zero(piece) && copy->sparse_size ? ZEROS : DATA;
		uint64_t from = piece->offset - unit->start, to = from + piece->length;
		size_t first = (size_t)(from >> bits), last = (size_t)((to - 1) >> bits);
		for (size_t c = first; c <= last; c++) {
			/* Zeros in a part only, what is left alone in another: only reading can tell. */
			bool part = copy->has_backing &&
				    (from > (uint64_t)c << bits ||
				     to < q2_min((uint64_t)(c + 1) << bits, unit->end - unit->start));
			worker->fate[c] = (uint8_t)q2_max(worker->fate[c], part ? DATA : fate);
		}
	}
}

/* Reads the clusters that are data; what turns out to be zeros becomes ZEROS, if the run is long enough. */
static int read_data(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
		     struct qcow2_error *err)
{
	uint64_t cluster = copy->target->meta.geo.cluster_size, length = unit->end - unit->start;
	size_t clusters = (size_t)q2_div_up(length, cluster), next = 0;
	for (size_t c = 0; c < clusters; c = next) {
		for (next = c + 1; next < clusters && worker->fate[next] == worker->fate[c];)
			next++;
		if (worker->fate[c] != DATA)
			continue;
		uint64_t at = c * cluster, end = q2_min(next * cluster, length);
		bool any;
		int rc = q2_reader_fill(&worker->reader, unit->pieces, unit->count, unit->start + at,
					end - at, worker->buf + at, &any, err);
		if (rc)
			return rc;
		if (!any)
			memset(worker->buf + at, 0, end - at);
		memset(worker->buf + end, 0, next * cluster - end);
		/* A stream stands for a whole cluster, so any that is zeros is worth leaving out. */
		uint64_t enough = copy->compress ? cluster : copy->sparse_size;
		for (size_t z = c; copy->sparse_size && z < next;) {
			bool zero;
			uint64_t run =
				q2_zero_run(worker->buf + z * cluster, (next - z) * cluster, cluster, &zero);
			if (zero && run >= q2_min(enough, end - at))
				memset(worker->fate + z, ZEROS, run / cluster);
			z += run / cluster;
		}
	}
	return 0;
}

/* With extended L2 subclusters that are zeros take no space either, if the run is long enough. */
static void find_subclusters(const struct q2_copy *copy, struct image_worker *worker,
			     const struct q2_copy_unit *unit)
{
	const struct q2_geometry *g = &copy->target->meta.geo;
	uint64_t length = q2_round_up(unit->end - unit->start, g->cluster_size), end;
	for (uint64_t at = 0; at < length; at = end) {
		uint8_t fate = worker->fate[at >> g->cluster_bits];
		for (end = at + g->cluster_size;
		     end < length && worker->fate[end >> g->cluster_bits] == fate;)
			end += g->cluster_size;
		if (fate != DATA)
			continue;
		memset(worker->bitmap + (at >> g->cluster_bits), 0, ((end - at) >> g->cluster_bits) * 8);
		for (uint64_t run; at < end; at += run) {
			bool zero;
			run = q2_zero_run(worker->buf + at, end - at, 1u << g->subcluster_bits, &zero);
			zero = zero && run >= copy->sparse_size;
			for (uint64_t s = at; s < at + run; s += 1u << g->subcluster_bits) {
				unsigned bit = (unsigned)(s >> g->subcluster_bits) % 32;
				uint64_t *bitmap = &worker->bitmap[s >> g->cluster_bits];
				/* Zeros need saying where a backing file would show. */
				if (!zero)
					*bitmap |= 1ull << bit;
				else if (copy->has_backing)
					*bitmap |= 1ull << (32 + bit);
			}
		}
	}
}

static int compress_data(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
			 struct qcow2_error *err)
{
	uint64_t cluster = copy->target->meta.geo.cluster_size, packed = 0;
	size_t clusters = (size_t)q2_div_up(unit->end - unit->start, cluster);
	/* By the unit, so that threads do not matter; a few clusters alone would only ever gather debts. */
	int64_t slack = 0;
	bool is_run = cluster * 4 <= copy->window;
	int rc = 0;
	if (!worker->codec)
		rc = q2_codec_new(copy->target->meta.header.compression_type, &worker->codec, err);
	if (!rc && !worker->packed && !(worker->packed = q2_new_pages(copy->window)))
		rc = q2_error_nomem(err);
	for (size_t c = 0; c < clusters && !rc; c++) {
		size_t used;
		if (worker->fate[c] != DATA)
			continue;
		rc = q2_codec_compress_run(worker->codec, worker->buf + c * cluster, cluster,
					   worker->packed + packed, cluster - 1, is_run ? &slack : NULL,
					   &used, err);
		if (rc || !used)
			continue;
		worker->fate[c] = STREAM;
		worker->stream[c] = (uint32_t)used;
		packed += used;
	}
	return rc;
}

/* ---- step 2: places --------------------------------------------------------------------------- */

static int add_place(struct image_worker *worker, uint64_t host, const uint8_t *from, uint64_t length,
		     struct qcow2_error *err)
{
	struct written_piece *last = worker->places.count ? (struct written_piece *)worker->places.items +
								    worker->places.count - 1
							  : NULL;
	if (last && last->host + last->length == host && last->from + last->length == from) {
		last->length += length;
		return 0;
	}
	struct written_piece *place = q2_vec_push(&worker->places, sizeof *place);
	if (!place)
		return q2_error_nomem(err);
	*place = (struct written_piece){host, from, length};
	return 0;
}

/* The subclusters of clusters [c, next) that are there, the first at `host`, are to be written. */
static int add_subclusters(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
			   size_t c, size_t next, uint64_t host, struct qcow2_error *err)
{
	const struct q2_geometry *g = &copy->target->meta.geo;
	uint64_t first = (uint64_t)c << g->cluster_bits, length = unit->end - unit->start;
	uint64_t end = q2_min((uint64_t)next << g->cluster_bits, length), size = 1ull << g->subcluster_bits;
	int rc = 0;
	for (uint64_t at = first; at < end && !rc; at += size)
		if (worker->bitmap[at >> g->cluster_bits] >> ((at >> g->subcluster_bits) % 32) & 1)
			rc = add_place(worker, host + (at - first), worker->buf + at, q2_min(size, end - at),
				       err);
	return rc;
}

/* Places for clusters [c, next) of one fate, in a target that holds nothing there. */
static int place_new(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
		     size_t c, size_t next, uint64_t *packed, struct qcow2_error *err)
{
	uint64_t cluster = copy->target->meta.geo.cluster_size, length = unit->end - unit->start;
	bool sub = copy->target->meta.geo.extended_l2 && copy->sparse_size;
	int rc = 0;
	for (uint64_t got = 1; c < next && !rc; c += got) {
		uint64_t guest = unit->start + c * cluster, host;
		if (worker->fate[c] == STREAM) {
			uint32_t bytes = worker->stream[c];
			rc = q2_compress_place(copy->target, guest, bytes, &host, err);
			if (!rc)
				rc = add_place(worker, host, worker->packed + *packed, bytes, err);
			*packed += bytes;
			continue;
		}
		rc = q2_write_link(copy->target, guest, next - c, sub ? worker->bitmap + c : NULL, &host,
				   &got, err);
		if (!rc && sub)
			rc = add_subclusters(copy, worker, unit, c, c + got, host, err);
		else if (!rc)
			rc = add_place(worker, host, worker->buf + c * cluster,
				       q2_min(got * cluster, length - c * cluster), err);
	}
	return rc;
}

/* Writes bytes [at, end) of the unit; where the target shows zeros anyway, long zeros among them are left out. */
static int write_data(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
		      uint64_t at, uint64_t end, struct qcow2_error *err)
{
	bool all = !copy->is_zero || copy->has_backing || !copy->sparse_size;
	int rc = 0;
	for (uint64_t from = at; from < end && !rc; from = at) {
		bool zero = false;
		while (at < end) {
			uint64_t run = all ? end - at : q2_zero_run(worker->buf + at, end - at, GRAIN, &zero);
			zero = zero && run >= copy->sparse_size;
			if (zero && at > from)
				break;
			at += run;
			if (zero)
				from = at;
		}
		if (at > from)
			rc = qcow2_image_write(copy->target, unit->start + from, worker->buf + from,
					       at - from, err);
	}
	return rc;
}

/* Writes clusters [c, next) of one fate into a target that may hold anything there. */
static int write_over(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
		      size_t c, size_t next, struct qcow2_error *err)
{
	uint64_t cluster = copy->target->meta.geo.cluster_size, length = unit->end - unit->start;
	int rc = 0;
	if (!copy->compress)
		return write_data(copy, worker, unit, c * cluster, q2_min(next * cluster, length), err);
	for (; c < next && !rc; c++)
		rc = qcow2_image_write_compressed(copy->target, unit->start + c * cluster,
						  worker->buf + c * cluster,
						  q2_min(cluster, length - c * cluster), err);
	return rc;
}

static int take_places(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
		       struct qcow2_error *err)
{
	struct qcow2_image *target = copy->target;
	uint64_t cluster = target->meta.geo.cluster_size, length = unit->end - unit->start, packed = 0;
	size_t clusters = unit->zeros ? 0 : (size_t)q2_div_up(length, cluster), next = 0;
	/* Zeros need saying unless nothing shows there anyway. */
	bool say_zeros = !copy->is_zero || copy->has_backing;
	int rc = 0;
	worker->places.count = 0;
	if (unit->zeros && say_zeros)
		rc = qcow2_image_zero(target, unit->start, length, QCOW2_ZERO_UNMAP, err);
	for (size_t c = 0; c < clusters && !rc; c = next) {
		for (next = c + 1; next < clusters && worker->fate[next] == worker->fate[c];)
			next++;
		uint64_t at = c * cluster, bytes = q2_min(next * cluster, length) - at;
		if (worker->fate[c] == ZEROS && say_zeros)
			rc = qcow2_image_zero(target, unit->start + at, bytes, QCOW2_ZERO_UNMAP, err);
		else if (worker->fate[c] >= DATA && copy->fresh)
			rc = place_new(copy, worker, unit, c, next, &packed, err);
		else if (worker->fate[c] >= DATA)
			rc = write_over(copy, worker, unit, c, next, err);
	}
	return rc;
}

/* Waits for the unit's turn. gives: false when it will never come. Holds the lock on return. */
static bool wait_turn(struct q2_copy *copy, uint64_t number)
{
	pthread_mutex_lock(&copy->lock);
	while (copy->turn != number) {
		/* A unit before this one may fail without ever taking its turn; then `stopped` wakes us. */
		if (q2_pool_unwanted(copy->job.pool, number))
			return false;
		pthread_cond_wait(&copy->moved, &copy->lock);
	}
	return true;
}

static void stopped(void *context)
{
	struct q2_copy *copy = context;
	pthread_mutex_lock(&copy->lock);
	pthread_cond_broadcast(&copy->moved);
	pthread_mutex_unlock(&copy->lock);
}

/* *begun: the worker is at step 3 and has to leave it again. */
static int have_turn(struct q2_copy *copy, struct image_worker *worker, const struct q2_copy_unit *unit,
		     uint64_t number, bool *begun, struct qcow2_error *err)
{
	int rc = 0;
	*begun = false;
	if (!wait_turn(copy, number)) {
		pthread_mutex_unlock(&copy->lock);
		return 0;
	}
	if (copy->fresh && q2_write_is_full(copy->target, 2)) {
		while (copy->writing)
			pthread_cond_wait(&copy->moved, &copy->lock);
		rc = q2_write_tables(copy->target, err);
	}
	if (!rc)
		rc = take_places(copy, worker, unit, err);
	if (!rc) {
		copy->turn++;
		copy->writing++;
		*begun = true;
	}
	pthread_cond_broadcast(&copy->moved);
	pthread_mutex_unlock(&copy->lock);
	return rc;
}

/* ---- step 3 and the worker --------------------------------------------------------------------- */

static int write_places(struct q2_copy *copy, const struct image_worker *worker, struct qcow2_error *err)
{
	struct qcow2_store *store = qcow2_image_data_store(copy->target);
	const struct written_piece *places = worker->places.items;
	int rc = 0;
	for (size_t i = 0; i < worker->places.count && !rc; i++)
		rc = qcow2_store_write(store, places[i].host, places[i].from, places[i].length, err);
	return rc;
}

static int writing_failed(const struct q2_copy_unit *unit, int rc, struct qcow2_error *err)
{
	return q2_error_prefix(err, rc, "error while writing at byte %" PRIu64, unit->start);
}

static int run_unit(void *context, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct q2_copy *copy = context;
	struct image_worker *worker = own;
	const struct q2_copy_unit *unit = what;
	int rc = 0;
	worker->reader.salvage = copy->salvage;
	if (!worker->buf && !(worker->buf = q2_new_pages(copy->window)))
		return q2_error_nomem(err);
	if (!unit->zeros) {
		mark_fates(copy, worker, unit);
		rc = read_data(copy, worker, unit, err);
		if (!rc && copy->compress && copy->fresh)
			rc = compress_data(copy, worker, unit, err);
		if (!rc && copy->fresh && copy->sparse_size && copy->target->meta.geo.extended_l2)
			find_subclusters(copy, worker, unit);
	}
	atomic_fetch_add(&copy->lost, worker->reader.lost);
	worker->reader.lost = 0;
	if (rc || q2_pool_unwanted(copy->job.pool, number))
		return rc;
	bool begun;
	rc = have_turn(copy, worker, unit, number, &begun, err);
	if (!begun)
		return rc ? writing_failed(unit, rc, err) : 0;
	rc = write_places(copy, worker, err);
	pthread_mutex_lock(&copy->lock);
	copy->writing--;
	pthread_cond_broadcast(&copy->moved);
	pthread_mutex_unlock(&copy->lock);
	q2_job_did(&copy->job, unit->end - unit->start);
	return rc ? writing_failed(unit, rc, err) : 0;
}

static void end_worker(void *own)
{
	struct image_worker *worker = own;
	q2_reader_free(&worker->reader);
	q2_codec_free(worker->codec);
	q2_vec_free(&worker->places);
	free(worker->buf);
	free(worker->packed);
}

const struct q2_pool_work q2_copy_unit_work = {.unit_size = sizeof(struct q2_copy_unit),
					       .worker_size = sizeof(struct image_worker),
					       .run = run_unit,
					       .is_news = q2_job_is_news,
					       .stopped = stopped,
					       .end_worker = end_worker};
