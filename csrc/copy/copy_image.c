/* SPDX-License-Identifier: MIT
 * The copy job into a qcow2 image: its coordinator lists the source in units (copy_image_worker.h), then carries over the
 * bitmaps. */
#include "base/mem.h"
#include "base/options.h"
#include "copy/copy_image_worker.h"
#include "image/image.h"

#include <inttypes.h>

/* What is read is written, or packed, while it is still in a processor's own cache: half of one is much faster than
 * all of it. */
#define WINDOW ((uint64_t)512 << 10)
#define ZERO_UNIT ((uint64_t)1 << 30)

/* Long zeros from a window's start on: whole windows of them are one unit. gives: false when there are none. */
static bool fill_zeros(struct q2_copy *copy, struct q2_copy_unit *unit, const struct q2_piece *piece)
{
	struct q2_pool_job *job = &copy->job;
	if (!q2_piece_is_zero(piece) || job->position % copy->window || !copy->sparse_size ||
	    q2_copy_unit_is_left_alone(copy, piece))
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

static int fill_unit(struct q2_pool_job *job, void *what, uint64_t deadline, bool *worth,
		     struct qcow2_error *err)
{
	struct q2_copy *copy = (struct q2_copy *)job;
	struct q2_copy_unit *unit = what;
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
		bool idle = q2_copy_unit_is_left_alone(copy, &piece) ||
			    (skip_zeros && q2_piece_is_zero(&piece));
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
		if (q2_clock_now() >= deadline)
			return 0;
	}
	if (job->position >= job->end)
		return 0;
	unit->start = job->position;
	unit->end = q2_min(q2_round_down(job->position, copy->window) + copy->window, job->end);
	while (job->position < unit->end) {
		struct q2_piece *piece = &unit->pieces[unit->count];
		if (unit->count == Q2_COPY_MAX_PIECES)
			return q2_error_set(err, QCOW2_E_RANGE, job->position,
					    "The source is in more than %u pieces around byte %" PRIu64,
					    (unsigned)Q2_COPY_MAX_PIECES, job->position);
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
static int copy_bitmaps(struct q2_copy *copy, struct qcow2_error *err)
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

static int finish(struct q2_pool_job *job, int stopped, const struct qcow2_error *what,
		  struct qcow2_error *err)
{
	struct q2_copy *copy = (struct q2_copy *)job;
	(void)stopped; /* units only fail */
	(void)what;
	int rc = copy->bitmaps ? copy_bitmaps(copy, err) : 0;
	if (rc)
		return rc;
	if (copy->target->meta.hidden)
		return q2_image_show(copy->target, copy->flush, err);
	return qcow2_image_flush(copy->target, err);
}

static void free_copy(struct q2_pool_job *job)
{
	struct q2_copy *copy = (struct q2_copy *)job;
	q2_source_free(&copy->source);
	qcow2_image_unref(copy->target);
	pthread_cond_destroy(&copy->moved);
	pthread_mutex_destroy(&copy->lock);
	free(copy);
}

static const struct q2_pool_job_ops ops = {.fill = fill_unit, .finish = finish, .free = free_copy};

uint64_t q2_copy_image_lost(const struct qcow2_job *job)
{
	const struct q2_copy *copy = (const struct q2_copy *)job;
	return q2_pool_job_of(job, &ops) ? copy->source.lost + atomic_load(&copy->lost) : 0;
}

const struct q2_source *q2_copy_image_source(const struct qcow2_job *job)
{
	return q2_pool_job_of(job, &ops) ? &((const struct q2_copy *)job)->source : NULL;
}

static int check(const struct q2_copy *copy, struct qcow2_error *err)
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
			 const struct qcow2_copy_options *given, struct qcow2_job **out,
			 struct qcow2_error *err)
{
	struct qcow2_copy_options own;
	const struct qcow2_copy_options *options = &own;
	int taken = q2_options_take(&own, sizeof own, given, err);
	if (taken)
		return taken;
	struct q2_copy *copy = q2_new(1, sizeof *copy);
	if (!copy)
		return q2_error_nomem(err);
	copy->job = (struct q2_pool_job){.base = {&q2_pool_job_kind}, .ops = &ops};
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
	int rc = q2_hold_take(&copy->job.hold, target, err);
	for (size_t i = 0; i < count && !rc; i++)
		rc = q2_hold_take(&copy->job.hold, sources[i], err);
	if (!rc)
		rc = q2_source_init(&copy->source, sources, count, options->salvage, err);
	copy->source.strict = options->strict;
	if (!rc && options->length)
		rc = q2_source_cut(&copy->source, options->start, options->length, err);
	copy->is_overlay = !rc && count == 1 && copy->source.images[0]->backing;
	if (!rc)
		rc = check(copy, err);
	if (!rc)
		rc = q2_pool_new(&q2_copy_unit_work, copy, options->threads, &copy->job.pool, err);
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
		qcow2_job_free(&copy->job.base);
		return rc;
	}
	copy->job.end = copy->source.length;
	copy->job.rate = options->rate;
	*out = &copy->job.base;
	return 0;
}
