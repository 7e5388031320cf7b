/* SPDX-License-Identifier: MIT
 * The units of the copy job into a qcow2 image (copy_image.c): workers read, find zeros, compress and write; places
 * are given out in order.
 *
 * A unit is a window of the disk made of whole clusters of the target. Its worker
 *   1. reads it and decides for each cluster: leave alone, zeros, data (compressed when that helps);
 *   2. waits for its *turn*: units take places and link them in the target's tables in the order of the disk, so
 *      that the file is the same on every run and with any number of threads;
 *   3. writes its data to these places, beside the others.
 * The target's tables belong to who has the turn. They go to disk only when no worker is at step 3 (invariant 3).
 * A target that held something before is written in the turn itself, by the ordinary guest writes. */
#ifndef Q2_COPY_COPY_IMAGE_WORKER_H
#define Q2_COPY_COPY_IMAGE_WORKER_H

#include "copy/job.h"
#include "copy/source.h"

#include <pthread.h>
#include <stdatomic.h>

#define Q2_COPY_WINDOW_MAX ((uint64_t)2 << 20) /* the largest cluster */
/* A disk may end inside a sector. */
#define Q2_COPY_MAX_PIECES (2 * (Q2_COPY_WINDOW_MAX / 512))

struct q2_copy_unit {
	uint64_t start, end; /* of the disk: whole clusters, but for the disk's end */
	bool zeros;          /* all of it, of any length: no pieces */
	size_t count;
	struct q2_piece pieces[Q2_COPY_MAX_PIECES]; /* in order; gaps need nothing done */
};

struct q2_copy {
	struct q2_pool_job job;
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

extern const struct q2_pool_work q2_copy_unit_work;

/* Does the piece leave the target's backing file visible? Not where the source shows none itself. */
static inline bool q2_copy_unit_is_left_alone(const struct q2_copy *copy, const struct q2_piece *piece)
{
	return copy->has_backing && copy->is_overlay && !(piece->allocation & Q2_ALLOCATION_TOP);
}

#endif
