/* SPDX-License-Identifier: MIT
 * Stores: bytes with an address, in files, in memory, or wherever a program has them. */
#ifndef QCOW2_STORE_H
#define QCOW2_STORE_H

#include "qcow2/error.h"

struct qcow2_store;

enum qcow2_store_flags {
	QCOW2_STORE_WRITE = 1 << 0,       /* open for writing too */
	QCOW2_STORE_CREATE = 1 << 1,      /* make the file when it is not there (implies WRITE) */
	QCOW2_STORE_EXCLUSIVE = 1 << 2,   /* with CREATE: fail `exists` when it is there */
	QCOW2_STORE_TRUNCATE = 1 << 3,    /* with WRITE: length 0 after the locks are held */
	QCOW2_STORE_FORCE_SHARE = 1 << 4, /* take no locks and refuse nobody (read-only opens only) */
	QCOW2_STORE_NO_DEVICE = 1 << 5,   /* regular files only: block devices are refused */
	QCOW2_STORE_UNLOCKED = 1 << 6,    /* no locks at all, writable or not (locking=off) */
};

/*
 * Opens a regular file or block device, non-blocking, and refuses everything else (`refused`).
 * Takes QEMU's byte-range OFD locks on the way: readers share with readers, a writer excludes all
 * (`locked` otherwise). gives: a store with one reference.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_file(const char *path, unsigned flags,
							 struct qcow2_store **out, struct qcow2_error *err);

/* A store in memory, `length` bytes of zeros, or a copy of `bytes` when not NULL. Grows on write. */
QCOW2_API QCOW2_CHECK int qcow2_store_memory(const void *bytes, uint64_t length, struct qcow2_store **out,
					     struct qcow2_error *err);

/*
 * Bytes that a program has itself, in any place: what it can do with them. Each call gives 0 or the positive errno of its
 * failure (EIO, ENOSPC, ...), and reads or writes all of `length`. `opaque` is the program's own.
 *
 * Calls come from the library's threads too, at most `concurrency` at once. The store belongs to the library while it is
 * open: its length is asked for once.
 */
struct qcow2_store_ops {
	size_t struct_size;   /* QCOW2_STORE_OPS_INIT sets it */
	unsigned concurrency; /* calls that may run at once; 0 and 1: one after the other */
	int (*length)(void *opaque, uint64_t *length);
	/* needs: offset + length <= the store's length. */
	int (*read)(void *opaque, uint64_t offset, void *buf, size_t length);
	/* Grows the store when needed. NULL: the store is for reading only. */
	int (*write)(void *opaque, uint64_t offset, const void *buf, size_t length);
	/* All writes that returned are on stable storage. NULL: they are when they return. */
	int (*flush)(void *opaque);
	/* The range, inside the store, reads as zeros from now on. NULL, or ENOTSUP: zeros are written. */
	int (*punch)(void *opaque, uint64_t offset, uint64_t length);
	/* New bytes are zeros. NULL: the store keeps the length that it has, as a block device. */
	int (*resize)(void *opaque, uint64_t length);
	/* Bytes that the storage really spends. NULL: the length. */
	int (*allocated)(void *opaque, uint64_t *bytes);
	/* As qcow2_store_extent, inside the store; *is_data is 0 or 1. NULL: all is data. */
	int (*extent)(void *opaque, uint64_t offset, uint64_t limit, int *is_data, uint64_t *length);
	/* The last reference went. NULL: there is nothing to do. */
	void (*close)(void *opaque);
};
#define QCOW2_STORE_OPS_INIT                                  \
	{                                                     \
		.struct_size = sizeof(struct qcow2_store_ops) \
	}

/*
 * A store that consists of the program's own functions; `ops` is copied, `name` is for messages. fails: `range` without
 * struct_size, length or read; as `length` does. Then `close` is not called.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_custom(const struct qcow2_store_ops *ops, void *opaque,
							   const char *name, struct qcow2_store **out,
							   struct qcow2_error *err);

/* What a trace tells of. */
enum qcow2_trace_event {
	QCOW2_TRACE_READ = 1 << 0,
	QCOW2_TRACE_WRITE = 1 << 1,
	QCOW2_TRACE_FLUSH = 1 << 2,
	QCOW2_TRACE_PUNCH = 1 << 3,
	QCOW2_TRACE_ALLOCATE = 1 << 4,
	QCOW2_TRACE_RESIZE = 1 << 5,
	QCOW2_TRACE_EXTENT = 1 << 6,
};

/*
 * A store around another one that writes a line to the file descriptor `fd` for each call of these `events` when the call is
 * over: name, event, offset+length in bytes, the owner of the place (header, L1, L2 of a guest offset, refcount table or block,
 * snapshot table, data) and "ok" or the error's word. needs: `fd` stays open as long as the store.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_trace(struct qcow2_store *inner, int fd, unsigned events,
							  struct qcow2_store **out, struct qcow2_error *err);

QCOW2_API QCOW2_NONNULL struct qcow2_store *qcow2_store_ref(struct qcow2_store *store);

/* Drops a reference; the last one closes. Errors of the last flush do not hide here: who wrote
 * calls qcow2_store_flush first and looks at its answer. NULL is fine. */
QCOW2_API void qcow2_store_unref(struct qcow2_store *store);

/* Reads exactly `length` bytes; bytes past the end of the store read as zeros. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_read(struct qcow2_store *store, uint64_t offset,
							 void *buf, size_t length, struct qcow2_error *err);
/* Writes exactly `length` bytes, growing the store when needed. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_write(struct qcow2_store *store, uint64_t offset,
							  const void *buf, size_t length,
							  struct qcow2_error *err);
/* All writes that returned are on stable storage when this returns 0. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_flush(struct qcow2_store *store, struct qcow2_error *err);
/* Makes the range read as zeros, giving space back to the host where it can; never grows. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_punch(struct qcow2_store *store, uint64_t offset,
							  uint64_t length, struct qcow2_error *err);
/* Sets the length; new bytes are zeros. A block device only accepts lengths it has. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_resize(struct qcow2_store *store, uint64_t length,
							   struct qcow2_error *err);
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_length(struct qcow2_store *store, uint64_t *length,
							   struct qcow2_error *err);
/* Bytes the host really spends (st_blocks * 512); the length where the host does not say. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_allocated(struct qcow2_store *store, uint64_t *bytes,
							      struct qcow2_error *err);

/*
 * Is there data at `offset`? gives: *is_data, and in *length how far that answer holds (at least 1,
 * at most `limit`, which must be > 0). Past the end: not data, *length = limit. A store that cannot
 * tell answers "data".
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_store_extent(struct qcow2_store *store, uint64_t offset,
							   uint64_t limit, bool *is_data, uint64_t *length,
							   struct qcow2_error *err);

/* The name it was opened by, for messages; "memory" and the like for stores without one. */
QCOW2_API QCOW2_NONNULL const char *qcow2_store_name(struct qcow2_store *store);
QCOW2_API QCOW2_NONNULL bool qcow2_store_writable(struct qcow2_store *store);
/* (device, inode) of the file behind it, to find loops; false when there is none. */
QCOW2_API QCOW2_NONNULL bool qcow2_store_identity(struct qcow2_store *store, uint64_t id[2]);
QCOW2_API QCOW2_NONNULL bool qcow2_store_is_device(struct qcow2_store *store);

#endif
