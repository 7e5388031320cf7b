/* SPDX-License-Identifier: MIT
 * Stores: bytes with an address, in files, in memory, and wrapped for crash and fault specs. */
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
int qcow2_store_file(const char *path, unsigned flags, struct qcow2_store **out, struct qcow2_error *err);

/* A store in memory, `length` bytes of zeros, or a copy of `bytes` when not NULL. Grows on write. */
int qcow2_store_memory(const void *bytes, uint64_t length, struct qcow2_store **out, struct qcow2_error *err);

struct qcow2_store *qcow2_store_ref(struct qcow2_store *store);

/* Drops a reference; the last one closes. Errors of the last flush do not hide here: who wrote
 * calls qcow2_store_flush first and looks at its answer. NULL is fine. */
void qcow2_store_unref(struct qcow2_store *store);

/* Reads exactly `length` bytes; bytes past the end of the store read as zeros. */
int qcow2_store_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		     struct qcow2_error *err);
/* Writes exactly `length` bytes, growing the store when needed. */
int qcow2_store_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
		      struct qcow2_error *err);
/* All writes that returned are on stable storage when this returns 0. */
int qcow2_store_flush(struct qcow2_store *store, struct qcow2_error *err);
/* Makes the range read as zeros, giving space back to the host where it can; never grows. */
int qcow2_store_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err);
/* Sets the length; new bytes are zeros. A block device only accepts lengths it has. */
int qcow2_store_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err);
int qcow2_store_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err);
/* Bytes the host really spends (st_blocks * 512); the length where the host does not say. */
int qcow2_store_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err);

/*
 * Is there data at `offset`? gives: *is_data, and in *length how far that answer holds (at least 1,
 * at most `limit`, which must be > 0). Past the end: not data, *length = limit. A store that cannot
 * tell answers "data".
 */
int qcow2_store_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
		       uint64_t *length, struct qcow2_error *err);

/* The name it was opened by, for messages; "memory" and the like for stores without one. */
const char *qcow2_store_name(struct qcow2_store *store);
bool qcow2_store_writable(struct qcow2_store *store);
/* (device, inode) of the file behind it, to find loops; false when there is none. */
bool qcow2_store_identity(struct qcow2_store *store, uint64_t id[2]);
bool qcow2_store_is_device(struct qcow2_store *store);

/*
 * For crash specs. A power store records the writes, resizes, punches and flushes that pass through
 * it into `inner`'s copy. `qcow2_store_power_replay` rebuilds, into a new memory store, what a disk
 * could hold after a power cut: operations [0, count) of the record, of which those not covered by a
 * flush within the prefix survive only if their bit in `keep` (one byte per operation, NULL = all
 * kept) is non-zero; with `torn` != SIZE_MAX the write number `torn` stops after `torn_bytes`.
 */
int qcow2_store_power(struct qcow2_store *inner, struct qcow2_store **out, struct qcow2_error *err);
/* Numbers the operations of both stores in one sequence. needs: both are power stores, `power` with no record
 * yet. fails: `conflict`. */
int qcow2_store_power_join(struct qcow2_store *power, struct qcow2_store *other, struct qcow2_error *err);
size_t qcow2_store_power_count(struct qcow2_store *power);
/* One operation of the record. */
struct qcow2_power_op {
	char kind; /* 'w' write, 'p' punch, 'r' resize, 'f' flush */
	uint64_t offset, length;
	uint64_t sequence; /* grows with every operation, in joined stores over all of them */
};
int qcow2_store_power_op(struct qcow2_store *power, size_t index, struct qcow2_power_op *op,
			 struct qcow2_error *err);
int qcow2_store_power_replay(struct qcow2_store *power, size_t count, const uint8_t *keep, size_t torn,
			     size_t torn_bytes, struct qcow2_store **out, struct qcow2_error *err);

/*
 * For fault specs. The call number `nth` (from 1, counted over the kinds in `kinds`, a string of
 * 'r' read 'w' write 'f' flush 'p' punch 's' resize) fails with `os_errno`; later ones too when
 * `sticky`. nth 0 only counts.
 */
int qcow2_store_fault(struct qcow2_store *inner, const char *kinds, uint64_t nth, int os_errno, bool sticky,
		      struct qcow2_store **out, struct qcow2_error *err);
uint64_t qcow2_store_fault_calls(struct qcow2_store *fault);

#endif
