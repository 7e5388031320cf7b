/* SPDX-License-Identifier: MIT
 * The copy job into a qcow2 image: workers read, find zeros, compress and write; places are given out in order.
 *
 * A unit is a window of the disk made of whole clusters of the target. Its worker
 *   1. reads it and decides for each cluster: leave alone, zeros, data (compressed when that helps);
 *   2. waits for its *turn*: units take places and link them in the target's tables in the order of the disk, so
 *      that the file is the same on every run and with any number of threads;
 *   3. writes its data to these places, beside the others.
 * The target's tables belong to who has the turn. They go to disk only when no worker is at step 3 (invariant 3).
 * A target that held something before is written in the turn itself, by the ordinary guest writes. */
#include "base/mem.h"
#include "copy/job.h"
#include "copy/reader.h"
#include "data/codec.h"
#include "data/zero.h"
#include "image/image.h"

#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#define WINDOW_MAX ((uint64_t)2 << 20) /* the largest cluster */
/* What is read is written, or packed, while it is still in a processor's own cache: half of one is much faster than
 * all of it. */
#define WINDOW ((uint64_t)512 << 10)
#define ZERO_UNIT ((uint64_t)1 << 30)
#define SECTOR 512u
#define GRAIN 4096u                            /* of holes in what is written; hosts keep no smaller ones */
#define MAX_PIECES (2 * (WINDOW_MAX / SECTOR)) /* a disk may end inside a sector */
#define MAX_CLUSTERS (WINDOW_MAX / 512)

struct unit {
	uint64_t start, end; /* of the disk: whole clusters, but for the disk's end */
	bool zeros;          /* all of it, of any length: no pieces */
	size_t count;
	struct q2_piece pieces[MAX_PIECES]; /* in order; gaps need nothing done */
};

enum fate { LEAVE, ZEROS, DATA, STREAM };

/* Bytes with a place: [from, from + length) of a worker's buffers goes to host. */
struct place {
	uint64_t host;
	const uint8_t *from;
	uint64_t length;
};

struct worker {
	struct q2_reader reader;
	struct q2_codec *codec;
	uint8_t *buf;    /* the window's bytes */
	uint8_t *packed; /* its streams, one behind the other */
	uint8_t fate[MAX_CLUSTERS];
	uint32_t stream[MAX_CLUSTERS]; /* STREAM: its bytes */
	uint64_t bitmap[MAX_CLUSTERS]; /* DATA with extended L2: its subclusters */
	struct q2_vec places;          /* struct place */
};

struct copy {
	struct qcow2_job job;
	struct q2_source source;
	struct qcow2_image *target;
	uint64_t sparse_size;
	uint64_t window; /* bytes */
	bool compress, salvage, flush, bitmaps;
	bool fresh;       /* no cluster of the target has a place yet */
	bool is_zero;     /* all of it reads as zeros: what is zeros needs nothing done */
	bool has_backing; /* the target shows its backing file where it has nothing */
	bool is_overlay;  /* the source is one image with a backing file */

	pthread_mutex_t lock;
	pthread_cond_t moved;
	uint64_t turn;    /* number of the unit whose turn it is */
	unsigned writing; /* workers at step 3 */
	atomic_uint_least64_t lost;
};

/* ---- step 1: what is there ------------------------------------------------------------------ */

/* Does the piece leave the target's backing file visible? Not where the source shows none itself. */
static bool is_left_alone(const struct copy *copy, const struct q2_piece *piece)
{
	return copy->has_backing && copy->is_overlay && !(piece->allocation & Q2_ALLOCATION_TOP);
}

static void mark_fates(const struct copy *copy, struct worker *worker, const struct unit *unit)
{
	uint32_t bits = copy->target->meta.geo.cluster_bits;
	size_t clusters = (size_t)q2_div_up(unit->end - unit->start, 1ull << bits);
	/* Where space has to be taken for everything, all of it is data. */
	memset(worker->fate, copy->sparse_size || copy->has_backing ? LEAVE : DATA, clusters);
	for (size_t i = 0; i < unit->count; i++) {
		const struct q2_piece *piece = &unit->pieces[i];
		if (is_left_alone(copy, piece))
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
static int read_data(struct copy *copy, struct worker *worker, const struct unit *unit,
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
static void find_subclusters(const struct copy *copy, struct worker *worker, const struct unit *unit)
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

static int compress_data(struct copy *copy, struct worker *worker, const struct unit *unit,
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

static int add_place(struct worker *worker, uint64_t host, const uint8_t *from, uint64_t length,
		     struct qcow2_error *err)
{
	struct place *last =
		worker->places.count ? (struct place *)worker->places.items + worker->places.count - 1 : NULL;
	if (last && last->host + last->length == host && last->from + last->length == from) {
		last->length += length;
		return 0;
	}
	struct place *place = q2_vec_push(&worker->places, sizeof *place);
	if (!place)
		return q2_error_nomem(err);
	*place = (struct place){host, from, length};
	return 0;
}

/* The subclusters of clusters [c, next) that are there, the first at `host`, are to be written. */
static int add_subclusters(struct copy *copy, struct worker *worker, const struct unit *unit, size_t c,
			   size_t next, uint64_t host, struct qcow2_error *err)
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
static int place_new(struct copy *copy, struct worker *worker, const struct unit *unit, size_t c, size_t next,
		     uint64_t *packed, struct qcow2_error *err)
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
		rc = q2_write_place(copy->target, guest, next - c, sub ? worker->bitmap + c : NULL, &host,
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
static int write_data(struct copy *copy, struct worker *worker, const struct unit *unit, uint64_t at,
		      uint64_t end, struct qcow2_error *err)
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
static int write_over(struct copy *copy, struct worker *worker, const struct unit *unit, size_t c,
		      size_t next, struct qcow2_error *err)
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

static int take_places(struct copy *copy, struct worker *worker, const struct unit *unit,
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
static bool wait_turn(struct copy *copy, uint64_t number)
{
	pthread_mutex_lock(&copy->lock);
	while (copy->turn != number) {
		struct timespec until;
		/* A unit before this one may fail without ever taking its turn. */
		if (q2_pool_unwanted(copy->job.pool, number))
			return false;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 20000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&copy->moved, &copy->lock, &until);
	}
	return true;
}

/* *begun: the worker is at step 3 and has to leave it again. */
static int have_turn(struct copy *copy, struct worker *worker, const struct unit *unit, uint64_t number,
		     bool *begun, struct qcow2_error *err)
{
	struct q2_meta *meta = &copy->target->meta;
	int rc = 0;
	*begun = false;
	if (!wait_turn(copy, number)) {
		pthread_mutex_unlock(&copy->lock);
		return 0;
	}
	if (copy->fresh && q2_cache_is_full(&meta->cache)) {
		while (copy->writing)
			pthread_cond_wait(&copy->moved, &copy->lock);
		rc = q2_commit(meta, err);
	}
	if (!rc)
		rc = take_places(copy, worker, unit, err);
	q2_edit_data(copy->target); /* marks what step 3 writes as not yet flushed */
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

static int write_places(struct copy *copy, const struct worker *worker, struct qcow2_error *err)
{
	struct qcow2_store *store = qcow2_image_data_store(copy->target);
	const struct place *places = worker->places.items;
	int rc = 0;
	for (size_t i = 0; i < worker->places.count && !rc; i++)
		rc = qcow2_store_write(store, places[i].host, places[i].from, places[i].length, err);
	return rc;
}

static int writing_failed(const struct unit *unit, int rc, struct qcow2_error *err)
{
	return q2_error_prefix(err, rc, "error while writing at byte %" PRIu64, unit->start);
}

static int run_unit(void *context, void *own, void *what, uint64_t number, struct qcow2_error *err)
{
	struct copy *copy = context;
	struct worker *worker = own;
	const struct unit *unit = what;
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
	struct worker *worker = own;
	q2_reader_free(&worker->reader);
	q2_codec_free(worker->codec);
	q2_vec_free(&worker->places);
	free(worker->buf);
	free(worker->packed);
}

/* ---- the coordinator --------------------------------------------------------------------------- */

/* Long zeros from a window's start on: whole windows of them are one unit. gives: false when there are none. */
static bool fill_zeros(struct copy *copy, struct unit *unit, const struct q2_piece *piece)
{
	struct qcow2_job *job = &copy->job;
	if (!q2_piece_is_zero(piece) || job->position % copy->window || !copy->sparse_size ||
	    is_left_alone(copy, piece))
		return false;
	uint64_t length = q2_min(piece->length, ZERO_UNIT);
	if (job->position + length < job->end)
		length = q2_round_down(length, copy->window);
	if (!length)
		return false;
	unit->zeros = true;
	unit->start = job->position;
	unit->end = job->position += length;
	return true;
}

static int fill_unit(struct qcow2_job *job, void *what, uint64_t deadline, bool *worth,
		     struct qcow2_error *err)
{
	struct copy *copy = (struct copy *)job;
	struct unit *unit = what;
	bool skip_zeros = copy->is_zero && !copy->has_backing && copy->sparse_size;
	unit->zeros = false;
	unit->count = 0;
	job->weight = 0;
	/* Over what needs nothing done, to the first window that does. */
	while (job->position < job->end) {
		struct q2_piece piece;
		int rc = q2_source_find(&copy->source, job->position, job->end - job->position, &piece, err);
		if (rc)
			return rc;
		bool idle = is_left_alone(copy, &piece) || (skip_zeros && q2_piece_is_zero(&piece));
		if (!idle && fill_zeros(copy, unit, &piece)) {
			*worth = true;
			return 0;
		}
		uint64_t to = q2_round_down(job->position + piece.length, copy->window);
		if (!idle || (to <= job->position && job->position + piece.length < job->end))
			break;
		if (job->position + piece.length >= job->end)
			to = job->end;
		q2_job_did(job, to - job->position);
		job->position = to;
		if (q2_host_now() >= deadline)
			return 0;
	}
	if (job->position >= job->end)
		return 0;
	unit->start = job->position;
	unit->end = q2_min(q2_round_down(job->position, copy->window) + copy->window, job->end);
	while (job->position < unit->end) {
		struct q2_piece *piece = &unit->pieces[unit->count];
		if (unit->count == MAX_PIECES)
			return q2_error_set(err, QCOW2_E_RANGE, job->position,
					    "The source is in more than %u pieces around byte %" PRIu64,
					    (unsigned)MAX_PIECES, job->position);
		int rc = q2_source_find(&copy->source, job->position, unit->end - job->position, piece, err);
		if (rc)
			return rc;
		job->position += piece->length;
		job->weight += q2_piece_is_zero(piece) ? 0 : piece->length;
		unit->count += !(skip_zeros && q2_piece_is_zero(piece));
	}
	*worth = true;
	return 0;
}

/* The bitmaps of the source that are sound. The target's disk has all its contents by now. */
static int copy_bitmaps(struct copy *copy, struct qcow2_error *err)
{
	struct qcow2_image *source = copy->source.images[0], *target = copy->target;
	uint32_t count, made;
	int rc = qcow2_image_bitmap_count(source, &count, err);
	for (uint32_t i = 0; !rc && i < count; i++) {
		struct qcow2_bitmap bitmap;
		rc = qcow2_image_bitmap(source, i, &bitmap, err);
		if (rc || bitmap.in_use)
			continue;
		rc = qcow2_image_bitmap_add(target, bitmap.name, bitmap.granularity, bitmap.autoset, err);
		if (!rc)
			rc = qcow2_image_bitmap_count(target, &made, err);
		if (!rc)
			rc = qcow2_image_bitmap_merge(target, made - 1, source, i, err);
	}
	return rc;
}

static int finish(struct qcow2_job *job, int stopped, const struct qcow2_error *what, struct qcow2_error *err)
{
	struct copy *copy = (struct copy *)job;
	(void)stopped; /* units only fail */
	(void)what;
	int rc = copy->bitmaps ? copy_bitmaps(copy, err) : 0;
	if (rc)
		return rc;
	if (copy->target->meta.hidden)
		return q2_image_show(copy->target, copy->flush, err);
	return qcow2_image_flush(copy->target, err);
}

static void free_copy(struct qcow2_job *job)
{
	struct copy *copy = (struct copy *)job;
	q2_source_free(&copy->source);
	qcow2_image_unref(copy->target);
	pthread_cond_destroy(&copy->moved);
	pthread_mutex_destroy(&copy->lock);
	free(copy);
}

static const struct q2_job_ops ops = {.fill = fill_unit, .finish = finish, .free = free_copy};

uint64_t q2_copy_image_lost(const struct qcow2_job *job)
{
	const struct copy *copy = (const struct copy *)job;
	return job->ops == &ops ? copy->source.lost + atomic_load(&copy->lost) : 0;
}

static int check(const struct copy *copy, struct qcow2_error *err)
{
	const struct qcow2_image *target = copy->target;
	if (!qcow2_image_writable(target))
		return q2_error_set(err, QCOW2_E_READONLY, UINT64_MAX,
				    "The target was not opened for writing");
	if (target->raw)
		return q2_error_set(err, QCOW2_E_CONFLICT, UINT64_MAX, "The target is a raw image");
	if (copy->compress && target->meta.geo.external_data)
		return q2_error_set(err, QCOW2_E_CONFLICT, UINT64_MAX,
				    "Clusters in an external data file cannot be compressed");
	if (copy->source.length > target->size)
		return q2_error_set(err, QCOW2_E_RANGE, UINT64_MAX,
				    "output file is smaller than input file: %llu bytes, %llu are needed",
				    (unsigned long long)target->size,
				    (unsigned long long)copy->source.length);
	if (q2_source_reads(&copy->source, target->store) ||
	    (target->data && q2_source_reads(&copy->source, target->data)))
		return q2_error_set(err, QCOW2_E_CONFLICT, UINT64_MAX,
				    "The target is a file that is read: it cannot be both");
	return 0;
}

/* No cluster of the disk has a place, as in images made without preallocation. */
static int holds_nothing(struct qcow2_image *image, bool *nothing, struct qcow2_error *err)
{
	int rc = q2_map_load(&image->map, err);
	*nothing = true;
	for (uint32_t i = 0; !rc && i < image->map.l1_entries; i++)
		*nothing = *nothing && !image->map.l1[i];
	return rc;
}

int qcow2_copy_image_new(struct qcow2_image *const *sources, size_t count, struct qcow2_image *target,
			 const struct qcow2_copy_options *options, struct qcow2_job **out,
			 struct qcow2_error *err)
{
	const struct q2_pool_work work = {.unit_size = sizeof(struct unit),
					  .worker_size = sizeof(struct worker),
					  .run = run_unit,
					  .end_worker = end_worker};
	struct copy *copy = q2_new(1, sizeof *copy);
	if (!copy)
		return q2_error_nomem(err);
	copy->job.ops = &ops;
	pthread_mutex_init(&copy->lock, NULL);
	pthread_cond_init(&copy->moved, NULL);
	copy->target = qcow2_image_ref(target);
	copy->sparse_size = options->sparse_size;
	copy->window = q2_max(WINDOW, target->meta.geo.cluster_size);
	copy->compress = options->compress;
	copy->salvage = options->salvage;
	copy->flush = options->sync;
	copy->bitmaps = options->bitmaps && count == 1;
	copy->is_zero = !options->target_exists || options->target_is_zero;
	copy->has_backing = options->target_exists ? options->target_backing : !!target->backing_name.data;
	int rc = q2_source_init(&copy->source, sources, count, options->salvage, err);
	if (!rc && options->length)
		rc = q2_source_cut(&copy->source, options->start, options->length, err);
	copy->is_overlay = !rc && count == 1 && copy->source.images[0]->backing;
	if (!rc)
		rc = check(copy, err);
	if (!rc)
		rc = q2_pool_new(&work, copy, options->threads, &copy->job.pool, err);
	if (!rc && !options->target_exists) {
		rc = target->meta.hidden ? 0 : q2_image_hide(target, err);
		/* Nobody uses a hidden image, so nothing need say that it is being written to. */
		target->prepared = true;
	}
	if (!rc)
		rc = q2_edit_begin(target, err);
	if (!rc && !options->target_exists)
		rc = holds_nothing(target, &copy->fresh, err);
	if (rc) {
		qcow2_job_free(&copy->job);
		return rc;
	}
	copy->job.end = copy->source.length;
	copy->job.rate = options->rate;
	*out = &copy->job;
	return 0;
}
