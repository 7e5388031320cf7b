/* SPDX-License-Identifier: MIT
 * Writing into an open image from several threads.
 *
 * An image belongs to one thread at a time, so whoever looks at any image of the job, the coordinator who lists
 * them too, holds the *gate*. Bytes are written outside of it: a place is taken under the gate, filled without
 * it, and linked under it again. Only one thread writes at a time (*turn*): hosts let one writer into a file, and
 * the others would spin before it, while they could read. */
#ifndef Q2_COPY_TARGET_H
#define Q2_COPY_TARGET_H

#include "image/image.h"

#include <pthread.h>

struct q2_target {
	struct qcow2_image *image; /* borrowed */
	pthread_mutex_t gate, turn;
	uint64_t waiting; /* bytes written since the host was last told to begin with them */
};

/*
 * The three below: needs the gate free; the range inside the disk; no two calls at one time for the same cluster of
 * the image, and none for a range that an earlier call dealt with. fails: as qcow2_image_write.
 */
int q2_target_write(struct q2_target *target, uint64_t offset, const uint8_t *buf, uint64_t length,
		    struct qcow2_error *err);
/* One cluster as a compressed stream of `length` bytes. needs: no external data file. */
int q2_target_stream(struct q2_target *target, uint64_t offset, const uint8_t *stream, uint32_t length,
		     struct qcow2_error *err);
/* `flags`: enum qcow2_zero_flags. */
int q2_target_zero(struct q2_target *target, uint64_t offset, uint64_t length, unsigned flags,
		   struct qcow2_error *err);

#endif
