/* SPDX-License-Identifier: MIT
 * Writing into an open image from several threads, with the same file as the result of every run.
 *
 * An image belongs to one thread at a time, so whoever looks at any image of the job, the coordinator who lists them
 * too, holds the *gate*. Each unit of the pool passes three stages:
 *   1. q2_image_writer_enter waits for the unit's turn, in the order of the disk, and takes the gate. Zeros and streams are
 *      written at once, plain data gets its places: so places follow the disk's order with any number of threads.
 *   2. q2_image_writer_leave gives the turn to the next unit. The data is written to its places without the gate; one thread
 *      at a time writes, since a system lets one writer into a file and the others would spin before it.
 *   3. With the gate again the entries are made to name the places: never before the data is written (invariant 3).
 *
 * Tables that are full of changes are written down where no unit is between 1 and 3, at the same units on every run:
 * what is freed by it can be given out from there on. */
#ifndef Q2_COPY_IMAGE_WRITER_H
#define Q2_COPY_IMAGE_WRITER_H

#include "image/image.h"

#include <pthread.h>

struct q2_image_writer {
	struct qcow2_image *image; /* borrowed */
	pthread_mutex_t gate, writer;
	pthread_cond_t moved; /* with the gate: `next` or `flying` changed */
	uint64_t next;        /* the unit whose turn it is */
	unsigned flying;      /* units that have places and are not linked yet */
	uint64_t placed;      /* bytes that were given to the target since its tables were last looked at */
	uint64_t waiting;     /* bytes written since the system was last told to begin with them */
};

void q2_image_writer_init(struct q2_image_writer *target, struct qcow2_image *image);
void q2_image_writer_destroy(struct q2_image_writer *target);

/* Stage 1 of unit `number`. Every unit that runs has to enter and to leave, also one that failed or has nothing to
 * write. Holds the gate on return, whatever it answers. fails: as a commit. */
int q2_image_writer_enter(struct q2_image_writer *target, uint64_t number, struct qcow2_error *err);

/*
 * The three below: needs the unit entered, the range inside the disk, no other unit with the same cluster. fails: as
 * qcow2_image_write.
 *
 * q2_image_writer_place: `buf` has to live until q2_image_writer_finish; *places: what is still to be written
 * (struct target_place). q2_image_writer_stream: one cluster as a compressed stream of `length` bytes, into no external data file.
 * q2_image_writer_zero: flags of enum qcow2_zero_flags.
 */
int q2_image_writer_place(struct q2_image_writer *target, uint64_t offset, const uint8_t *buf,
			  uint64_t length, struct q2_vec *places, struct qcow2_error *err);
int q2_image_writer_stream(struct q2_image_writer *target, uint64_t offset, const uint8_t *stream,
			   uint32_t length, struct qcow2_error *err);
int q2_image_writer_zero(struct q2_image_writer *target, uint64_t offset, uint64_t length, unsigned flags,
			 struct qcow2_error *err);

/* The end of stage 1. */
void q2_image_writer_leave(struct q2_image_writer *target);

/* Stages 2 and 3. `rc`: how stage 1 ended; after a failure the places are given back. Empties *places. */
int q2_image_writer_finish(struct q2_image_writer *target, struct q2_vec *places, int rc,
			   struct qcow2_error *err);

#endif
