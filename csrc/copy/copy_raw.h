/* SPDX-License-Identifier: MIT
 * Where a copy goes: what every kind of target implements. */
#ifndef Q2_COPY_COPY_RAW_H
#define Q2_COPY_COPY_RAW_H

#include "base/error.h"

struct q2_copy_raw;

struct q2_copy_raw_ops {
	/* Takes bytes of the disk. Called by workers, several at a time, in any order; ranges never overlap. */
	int (*write)(struct q2_copy_raw *, uint64_t offset, const uint8_t *buf, size_t length,
		     struct qcow2_error *);
	/* The range reads as zeros. Called as `write` is, and only when `wants_zeros`. */
	int (*zero)(struct q2_copy_raw *, uint64_t offset, uint64_t length, struct qcow2_error *);
	/* All has been written. Called once, by the coordinator. */
	int (*finish)(struct q2_copy_raw *, struct qcow2_error *);
	void (*free)(struct q2_copy_raw *);
};

/* Every kind of sink begins with this. */
struct q2_copy_raw {
	const struct q2_copy_raw_ops *ops;
	bool wants_zeros; /* false: what is not written is zeros already */
};

/*
 * A store as a raw disk of `length` bytes (a new target is resized to it; an existing one must have it).
 * A reference is taken. fails: `range` when an existing target is too small.
 */
int q2_copy_raw_writer(struct qcow2_store *store, uint64_t length, const struct qcow2_copy_options *options,
		       struct q2_copy_raw **out, struct qcow2_error *err);

#endif
