/* SPDX-License-Identifier: MIT
 * The store vtable: what every kind of store implements. The public functions of qcow2.h
 * (qcow2_store_read ...) bound the arguments, then call these slots.
 *
 * Thread rule: read, write, punch, extent, flush and length may be called from several threads on one
 * store at once; resize and close may not.
 */
#ifndef Q2_STORE_STORE_H
#define Q2_STORE_STORE_H

#include "base/error.h"

#include <stdatomic.h>

struct q2_store_ops {
	const char *kind; /* "file", "memory", "power", "fault" */
	/* Exactly length bytes, zeros past the end. */
	int (*read)(struct qcow2_store *, uint64_t offset, void *buf, size_t length, struct qcow2_error *);
	int (*write)(struct qcow2_store *, uint64_t offset, const void *buf, size_t length,
		     struct qcow2_error *);
	int (*flush)(struct qcow2_store *, struct qcow2_error *);
	/* Reads as zeros afterwards; the length never changes. Falls back to writing zeros itself. */
	int (*punch)(struct qcow2_store *, uint64_t offset, uint64_t length, struct qcow2_error *);
	/* Asks the host to have the space at hand (fallocate), reading as zeros where it was a hole;
	 * grows the store. NULL: the caller writes zeros. */
	int (*allocate)(struct qcow2_store *, uint64_t offset, uint64_t length, struct qcow2_error *);
	int (*resize)(struct qcow2_store *, uint64_t length, struct qcow2_error *);
	int (*length)(struct qcow2_store *, uint64_t *length, struct qcow2_error *);
	int (*allocated)(struct qcow2_store *, uint64_t *bytes, struct qcow2_error *);
	/* NULL: cannot tell, everything up to the length is data. */
	int (*extent)(struct qcow2_store *, uint64_t offset, uint64_t limit, bool *is_data, uint64_t *length,
		      struct qcow2_error *);
	/* A file descriptor for copy_file_range and the like, -1 when there is none (also for wrappers,
	 * which must see every byte). NULL: none. */
	int (*descriptor)(struct qcow2_store *);
	void (*close)(struct qcow2_store *); /* frees the struct too */
};

/* Every kind of store begins with this. */
struct qcow2_store {
	const struct q2_store_ops *ops;
	atomic_uint refs;
	atomic_ullong changes; /* see q2_store_changes */
	bool writable;
	bool is_device;
	bool has_identity;
	uint64_t identity[2];
	char *name; /* owned; freed by the kind's close */
};

/*
 * How many calls have changed bytes, holes or the length. A call counts when it is over, also one that failed: whoever
 * reads the number, then flushes, knows that the flush covers all calls that the number has.
 */
static inline uint64_t q2_store_changes(struct qcow2_store *store)
{
	return atomic_load_explicit(&store->changes, memory_order_acquire);
}

/* -1, or a descriptor that reads and writes the very bytes of the store. */
static inline int q2_store_descriptor(struct qcow2_store *store)
{
	return store->ops->descriptor ? store->ops->descriptor(store) : -1;
}

/* A flush will come: the host may begin to write down what it holds of the store. A hint alone: what goes wrong
 * the flush tells. */
void q2_store_begin_flush(struct qcow2_store *store);

/* A hint: the range's bytes in the host's cache will not be read again. */
void q2_store_forget(struct qcow2_store *store, uint64_t offset, uint64_t length);

/* See the `allocate` slot; writes zeros when the kind has none. */
int q2_store_allocate(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err);

/*
 * Copies bytes between two stores inside the kernel (copy_file_range) when both have descriptors, else
 * through a buffer. Past the source's end the target receives zeros.
 */
int q2_store_copy(struct qcow2_store *from, uint64_t from_offset, struct qcow2_store *to, uint64_t to_offset,
		  uint64_t length, struct qcow2_error *err);

#endif
