/* SPDX-License-Identifier: MIT
 * The library's one public header: qcow2 disk images as C objects.
 *
 * In the order one meets things: errors, stores (bytes with an address), images (a disk inside a
 * store), reading and mapping, tables as they lie on disk, jobs.
 *
 * Rules for every function here
 *   - 0 or a negative QCOW2_E_*; the last parameter receives the record of the failure and may be
 *     NULL. Out parameters are untouched on failure unless said otherwise.
 *   - Offsets and lengths are bytes in uint64_t unless a name says clusters, sectors or entries.
 *   - No globals, no printing, no callbacks. One image belongs to one thread at a time; stores
 *     may be read and written from several.
 *   - The library never opens a file that an image names: it reports the name, the caller opens
 *     and attaches.
 */
#ifndef QCOW2_H
#define QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QCOW2_VERSION "0.1.0"

/* ---- errors ------------------------------------------------------------------------------- */

/* What went wrong, in numbers; the words are in kinds.def. 0 is "no error". */
enum qcow2_kind {
	QCOW2_OK = 0,
#define KIND(name, word) QCOW2_KIND_##name,
#include "base/kinds.def"
#undef KIND
	QCOW2_KIND_COUNT
};

/* Return codes: 0 or one of these negatives. */
enum qcow2_code {
#define KIND(name, word) QCOW2_E_##name = -QCOW2_KIND_##name,
#include "base/kinds.def"
#undef KIND
	QCOW2_E_NONE = 0
};

/*
 * The record of one failure. The caller owns it (usually on the stack) and may pass NULL when only
 * the code matters. `text` is a whole sentence for people, without a trailing newline or period;
 * bytes that came from a file are escaped in it. `offset` is the byte in the file or disk that the
 * sentence speaks of, UINT64_MAX when there is none.
 */
struct qcow2_error {
	int code;     /* enum qcow2_code */
	int os_errno; /* the host's errno, 0 when the host was not the cause */
	uint64_t offset;
	char text[488];
};

/* The word for a code ("io", "corrupt", ...), "none" for 0, never NULL. */
const char *qcow2_error_word(int code);

/* ---- stores: bytes with an address -------------------------------------------------------- */

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
int qcow2_store_memory(const void *bytes, uint64_t length, struct qcow2_store **out,
		       struct qcow2_error *err);

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
int qcow2_store_punch(struct qcow2_store *store, uint64_t offset, uint64_t length,
		      struct qcow2_error *err);
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
size_t qcow2_store_power_count(struct qcow2_store *power);
/* One operation of the record. */
struct qcow2_power_op {
	char kind; /* 'w' write, 'p' punch, 'r' resize, 'f' flush */
	uint64_t offset, length;
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

/* ---- images ------------------------------------------------------------------------------- */

/* The header's fields, decoded (specification, "Header"). Version 2 has its defaults filled in. */
struct qcow2_header {
#define HEADER_FIELD(bits, name, offset) uint##bits##_t name;
#include "format/header.def"
#undef HEADER_FIELD
};

#endif
