/* SPDX-License-Identifier: MIT
 * Space for what a disk grew by, taken before anything is written there. */
#ifndef Q2_IMAGE_PREALLOCATE_H
#define Q2_IMAGE_PREALLOCATE_H

#include "image/image.h"

/*
 * Gives every cluster of the disk from byte `from` to the disk's end a place, which reads as zeros: with METADATA
 * only the place, with FALLOC the host's space too, with FULL zeros written there.
 * needs: the range reads as zeros already and the map has the disk's new size; an external data file has its new
 * length. gives: nothing is committed yet.
 */
int q2_preallocate(struct qcow2_image *image, uint64_t from, enum qcow2_preallocation mode,
		   struct qcow2_error *err);

/* The same for bytes [from, to) of a file that holds the disk itself. needs: they read as zeros. */
int q2_preallocate_plain(struct qcow2_store *store, uint64_t from, uint64_t to, enum qcow2_preallocation mode,
			 struct qcow2_error *err);

#endif
