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

/* What decodes and encodes a compression type in this build (0 deflate, 1 zstd): "libdeflate 1.14",
 * "zlib 1.2.13", ...; NULL when it was built without. */
const char *qcow2_codec_backend(int compression);

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

/* ---- images ------------------------------------------------------------------------------- */

/* The header's fields, decoded (specification, "Header"). Version 2 has its defaults filled in. */
struct qcow2_header {
#define HEADER_FIELD(bits, name, offset) uint##bits##_t name;
#include "format/header.def"
#undef HEADER_FIELD
};

struct qcow2_image;

/* Does the store begin with qcow2's magic? */
int qcow2_image_probe(struct qcow2_store *store, bool *is_qcow2, struct qcow2_error *err);

/*
 * Opens the qcow2 image in `store` (a reference is taken). Only the header cluster is read; tables are
 * read when they are first needed. Names of other files become facts, nothing else is opened.
 * fails: `format`, `corrupt`, `unsupported` (unknown incompatible features are named).
 */
int qcow2_image_open(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err);

/* The same for a check or a repair: header fields may say that tables lie outside the file or nowhere. What needs
 * such a table fails then. */
int qcow2_image_open_damaged(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err);

/* An image that qcow2_create made hidden: it is shown by the end of the copy into it (qcow2_copy_image_new). */
int qcow2_image_open_hidden(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err);

/* The store itself as a disk: its length rounded up to 512-byte sectors. */
int qcow2_image_open_raw(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err);

/* The disk as internal snapshot number `index` has it: a read-only image on the same store. */
int qcow2_image_open_snapshot(struct qcow2_image *image, uint32_t index, struct qcow2_image **out,
			      struct qcow2_error *err);

struct qcow2_image *qcow2_image_ref(struct qcow2_image *image);
/* The last reference closes the image and lets go of its stores and its backing image. NULL is fine. */
void qcow2_image_unref(struct qcow2_image *image);

/*
 * Attaches what the image only names: its external data file, its backing image. A reference is taken.
 * fails: `conflict` when the image names no such thing or when the file is the image itself or already
 * part of its chain (by device and inode); `range` when the chain gets longer than 200 images.
 */
int qcow2_image_attach_data(struct qcow2_image *image, struct qcow2_store *store, struct qcow2_error *err);
int qcow2_image_attach_backing(struct qcow2_image *image, struct qcow2_image *backing,
			       struct qcow2_error *err);

/* NULL for raw images. */
const struct qcow2_header *qcow2_image_header(const struct qcow2_image *image);
uint64_t qcow2_image_size(const struct qcow2_image *image);
struct qcow2_store *qcow2_image_store(const struct qcow2_image *image); /* borrowed */
struct qcow2_store *qcow2_image_data_store(
	const struct qcow2_image *image);                                 /* borrowed; NULL: not attached */
struct qcow2_image *qcow2_image_backing(const struct qcow2_image *image); /* borrowed; NULL: none */

/* Bytes that came from the file: exact, not NUL-ended, maybe with a NUL inside. NULL when absent. */
struct qcow2_bytes {
	const uint8_t *data;
	size_t length;
};
struct qcow2_bytes qcow2_image_backing_name(const struct qcow2_image *image);
struct qcow2_bytes qcow2_image_backing_format(const struct qcow2_image *image);
struct qcow2_bytes qcow2_image_data_name(const struct qcow2_image *image);

/* One header extension as it lies there; `word` names its type. gives 0, or `range` past the last. */
struct qcow2_extension {
	uint32_t type;
	uint64_t offset;
	struct qcow2_bytes data;
	const char *word;
};
int qcow2_image_extension(const struct qcow2_image *image, uint32_t index, struct qcow2_extension *out,
			  struct qcow2_error *err);

/* Name of a feature bit (type 0 incompatible, 1 compatible, 2 autoclear): the specification's, else the
 * image's own feature name table's, else {NULL, 0}. *known: the specification has it. */
struct qcow2_bytes qcow2_image_feature_name(const struct qcow2_image *image, unsigned type, unsigned bit,
					    bool *known);

/* ---- reading and mapping ------------------------------------------------------------------ */

/* Reads guest bytes. needs: offset + length <= size. Through the whole chain; what is named but not attached
 * is `missing` as soon as its bytes are needed. Encrypted images answer `unsupported`. */
int qcow2_image_read(struct qcow2_image *image, uint64_t offset, void *buf, size_t length,
		     struct qcow2_error *err);

enum qcow2_extent_kind {
	QCOW2_EXTENT_DATA,
	QCOW2_EXTENT_ZERO,        /* reads as zeros because a layer says so */
	QCOW2_EXTENT_UNALLOCATED, /* no layer has it: reads as zeros */
	QCOW2_EXTENT_COMPRESSED,
};

enum qcow2_extent_flags {
	QCOW2_EXTENT_HOLES = 1 << 0, /* ask the host for holes in every data run */
	QCOW2_EXTENT_LAYER = 1 << 1, /* this image only: UNALLOCATED stands for "ask the backing file" */
};

/* One run of the guest's disk. */
struct qcow2_extent {
	uint64_t offset, length; /* guest bytes */
	enum qcow2_extent_kind kind;
	uint32_t depth;            /* 0 this image, 1 its backing image, ... */
	bool present;              /* some layer has it (zeros past a short layer's end count as its own) */
	bool hole;                 /* kind ZERO because the host has a hole where the tables say data */
	bool copied;               /* COPIED is set: this data belongs to no snapshot */
	struct qcow2_image *image; /* the layer, borrowed */
	struct qcow2_store *store; /* where host_offset counts, borrowed; NULL when not attached or none */
	uint64_t host_offset;      /* UINT64_MAX: no place in a file */
	uint32_t host_length;      /* compressed: bytes of the stream's sectors */
	uint32_t within;           /* compressed: first byte inside the expanded cluster */
};

/*
 * The run that begins at `offset`, at most `limit` long. needs: limit > 0, offset + limit <= size. Holes of
 * raw images and of external data files are always asked for, those inside qcow2 files with
 * QCOW2_EXTENT_HOLES.
 */
int qcow2_image_extent(struct qcow2_image *image, uint64_t offset, uint64_t limit, unsigned flags,
		       struct qcow2_extent *out, struct qcow2_error *err);

/* True when the file occupies clearly less than its metadata says is allocated, as after
 * preallocation=metadata: then asking the host for holes pays, and QEMU's map asks too. */
int qcow2_image_is_preallocated(struct qcow2_image *image, bool *preallocated, struct qcow2_error *err);

/* ---- writing ------------------------------------------------------------------------------ */

/*
 * Makes an image writable. needs: its store is writable, data file attached and writable when it has one; not a
 * snapshot view. Refuses images marked corrupt, images with encryption, and images whose live metadata has
 * reference counts of 0 (`corrupt`). A dirty image (lazy refcounts, not closed) answers `corrupt` too: it has to
 * be repaired first. Nothing is written yet; unknown autoclear bits go before the first write.
 */
int qcow2_image_begin(struct qcow2_image *image, struct qcow2_error *err);

/* The same, but an external data file need not be attached: what changes tables alone works, what needs guest data
 * is `missing` until it is. */
int qcow2_image_begin_tables(struct qcow2_image *image, struct qcow2_error *err);
bool qcow2_image_writable(const struct qcow2_image *image);

/*
 * The four below: needs offset + length <= size. Data reaches the file at once, tables at the latest with
 * qcow2_image_flush; after a crash every sector is old or new. After a failed write of metadata every later
 * call answers with the first error.
 */
int qcow2_image_write(struct qcow2_image *image, uint64_t offset, const void *buf, size_t length,
		      struct qcow2_error *err);

enum qcow2_zero_flags {
	QCOW2_ZERO_UNMAP = 1 << 0, /* give the host its space back where whole clusters become zeros */
	QCOW2_ZERO_OWN = 1 << 1,   /* also where only the backing file is zeros: it is about to change */
};
/* Makes the range read as zeros. */
int qcow2_image_zero(struct qcow2_image *image, uint64_t offset, uint64_t length, unsigned flags,
		     struct qcow2_error *err);

/* Lets go of the whole clusters in the range, which then read as zeros; what they only touch is left alone.
 * Version 2 images with a backing file have no way to say "zeros" and are left alone too. */
int qcow2_image_discard(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err);

/* Writes one cluster compressed. needs: offset aligned to the cluster, length a cluster or up to the disk's
 * end. What does not become smaller is written plainly. fails: `conflict` with an external data file. */
int qcow2_image_write_compressed(struct qcow2_image *image, uint64_t offset, const void *buf, size_t length,
				 struct qcow2_error *err);

/* Everything that was written is on stable storage when this returns 0. */
int qcow2_image_flush(struct qcow2_image *image, struct qcow2_error *err);

/* Flushes, clears the dirty bit. The image stays open but read-only. Repeats the first error of a failed
 * image. A read-only image answers 0. */
int qcow2_image_finish(struct qcow2_image *image, struct qcow2_error *err);

/* Lowest-level resize, no preallocation: see QCOW2_RESIZE_SHRINK. */
enum qcow2_resize_flags {
	QCOW2_RESIZE_SHRINK = 1 << 0, /* allow a smaller size: what lies behind it is lost */
};
int qcow2_image_resize(struct qcow2_image *image, uint64_t size, unsigned flags, struct qcow2_error *err);

/*
 * Internal snapshots (specification, "Snapshots"). needs: a writable image without external data file. Each is
 * one switch of the header: after a crash it happened or it did not. fails: `range` when a reference count
 * would not fit its width, before anything changed; `unsupported` with an external data file.
 */
struct timespec;
int qcow2_image_snapshot_create(struct qcow2_image *image, const char *name, const struct timespec *when,
				struct qcow2_error *err);
/* The disk becomes what snapshot number `index` has, its size too. What the disk had is lost. */
int qcow2_image_snapshot_apply(struct qcow2_image *image, uint32_t index, struct qcow2_error *err);
int qcow2_image_snapshot_delete(struct qcow2_image *image, uint32_t index, struct qcow2_error *err);
int qcow2_image_snapshot_rename(struct qcow2_image *image, uint32_t index, const char *name,
				struct qcow2_error *err);

/*
 * Persistent bitmaps (specification, "Bitmaps"): each change replaces the directory by one switch of the
 * header. needs: a writable version 3 image. A bitmap marked in use is inconsistent and can only be removed
 * (`conflict`). index: as qcow2_image_bitmap.
 */
int qcow2_image_bitmap_add(struct qcow2_image *image, struct qcow2_bytes name, uint64_t granularity,
			   bool enabled, struct qcow2_error *err);
int qcow2_image_bitmap_remove(struct qcow2_image *image, uint32_t index, struct qcow2_error *err);
/* An enabled bitmap (flag "auto") follows every write. */
int qcow2_image_bitmap_enable(struct qcow2_image *image, uint32_t index, bool enabled,
			      struct qcow2_error *err);
/* Sets or clears the bits of every granule that the range touches. */
int qcow2_image_bitmap_change(struct qcow2_image *image, uint32_t index, uint64_t offset, uint64_t length,
			      bool dirty, struct qcow2_error *err);
/* Adds the bits of another bitmap, of this or another image of the same size, of any granularity. */
int qcow2_image_bitmap_merge(struct qcow2_image *image, uint32_t index, struct qcow2_image *source,
			     uint32_t source_index, struct qcow2_error *err);

/* ---- tables as they lie on disk ----------------------------------------------------------- */

/* Entries are raw, in host order. fails: `range` for an index past the table, `corrupt`. */
int qcow2_image_l1_entry(struct qcow2_image *image, uint64_t index, uint64_t *raw, struct qcow2_error *err);
/* gives: *host_offset = where the entry lies in the file, 0 when there is no L2 table (words are 0). */
int qcow2_image_l2_entry(struct qcow2_image *image, uint64_t l1_index, uint64_t l2_index, uint64_t *raw,
			 uint64_t *bitmap, uint64_t *host_offset, struct qcow2_error *err);
/* What an L2 entry means, without judging whether its offsets are possible. */
struct qcow2_l2_entry {
	const char *
		kind; /* "data", "zero", "unallocated", "compressed", "mixed" (subclusters differ), "invalid" */
	bool has_host, copied;
	uint64_t host_offset;     /* the cluster, or the first byte of the compressed stream */
	uint32_t host_length;     /* compressed: bytes of the sectors */
	uint32_t allocated, zero; /* subcluster bits; bit 0 alone without extended L2 */
	uint64_t reserved;        /* reserved bits that are set */
};
void qcow2_image_l2_decode(const struct qcow2_image *image, uint64_t raw, uint64_t bitmap,
			   struct qcow2_l2_entry *out);
int qcow2_image_reftable_entry(struct qcow2_image *image, uint64_t index, uint64_t *raw,
			       struct qcow2_error *err);
/* Reference count of host cluster number `cluster`. */
int qcow2_image_refcount(struct qcow2_image *image, uint64_t cluster, uint64_t *count,
			 struct qcow2_error *err);
/* L1 entries, L2 entries a table, refcount table entries, subclusters a cluster; 0 for raw images. */
struct qcow2_geometry {
	uint64_t l1_entries, l2_entries, reftable_entries, subclusters, cluster_size, refcount_bits;
};
struct qcow2_geometry qcow2_image_geometry(const struct qcow2_image *image);

/* One entry of the snapshot table. Pointers live as long as the image is not written to. */
struct qcow2_snapshot {
	struct qcow2_bytes id, name, extra_data;
	uint64_t offset; /* of the entry in the file */
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec, vm_state_size;
	uint64_t size;   /* bytes of the disk then */
	uint64_t icount; /* UINT64_MAX: not recorded */
};
int qcow2_image_snapshot_count(struct qcow2_image *image, uint32_t *count, struct qcow2_error *err);
int qcow2_image_snapshot(struct qcow2_image *image, uint32_t index, struct qcow2_snapshot *out,
			 struct qcow2_error *err);

/* One entry of the bitmap directory. */
struct qcow2_bitmap {
	struct qcow2_bytes name, extra_data;
	uint64_t offset; /* of the entry in the file */
	uint64_t table_offset;
	uint32_t table_entries, flags;
	uint8_t type;
	uint64_t granularity; /* bytes */
	bool in_use, autoset; /* flag bits 0 and 1 */
};
/* 0 when the image has no bitmaps extension or the autoclear bit says that it is stale. */
int qcow2_image_bitmap_count(struct qcow2_image *image, uint32_t *count, struct qcow2_error *err);
int qcow2_image_bitmap(struct qcow2_image *image, uint32_t index, struct qcow2_bitmap *out,
		       struct qcow2_error *err);
/* The dirty or clean run at `offset`: as qcow2_image_extent. */
int qcow2_image_bitmap_extent(struct qcow2_image *image, uint32_t index, uint64_t offset, uint64_t limit,
			      bool *dirty, uint64_t *length, struct qcow2_error *err);

/* ---- jobs --------------------------------------------------------------------------------- */

struct qcow2_job;

/*
 * Long work is done in steps, by worker threads: a step returns after about a tenth of a second with 1 (there
 * is more), 0 (all is done) or the failure, which every later step repeats. gives: *done of *total bytes of the
 * disk are dealt with. Of several failures the one first in the disk's order is told.
 * The images of a job belong to it until it is freed: the caller does not use them between the steps.
 */
int qcow2_job_step(struct qcow2_job *job, uint64_t *done, uint64_t *total, struct qcow2_error *err);

/* At any moment: joins the threads and lets go of everything. NULL is fine. */
void qcow2_job_free(struct qcow2_job *job);

struct qcow2_copy_options {
	uint64_t sparse_size; /* the shortest run of zeros that is left out of the target, a multiple of 512;
			       * 0: everything takes space */
	unsigned threads;     /* 0: one per processor */
	bool target_exists;   /* write into the target as it is; else it is emptied and resized first */
	bool target_is_zero;  /* with target_exists: all of it reads as zeros already */
	bool target_backing; /* with target_exists, a qcow2 image: where the source has nothing of its own the
			       * target is left alone; a new image does so when it has a backing file */
	bool salvage;        /* what cannot be read becomes zeros */
	bool sync;           /* flush the target at the end */
	bool compress;       /* into a qcow2 image: compressed clusters */
	bool bitmaps;        /* into a qcow2 image: the bitmaps of the one source too, but those in use */
	uint64_t rate;       /* data bytes a second at most; 0: no limit */
	uint64_t start, length; /* the part of the one source that is copied; length 0: all of all */
};

/*
 * Copies disks, one behind the other (each begins at a multiple of 512 bytes), into `target` as a raw disk.
 * What an existing target has behind the copy stays. References are taken. fails: `conflict` when the target
 * is a file that is read; `range` when an existing target is too small.
 */
int qcow2_copy_new(struct qcow2_image *const *sources, size_t count, struct qcow2_store *target,
		   const struct qcow2_copy_options *options, struct qcow2_job **out, struct qcow2_error *err);

/*
 * The same into a qcow2 image, which has to be writable (qcow2_image_begin). A target that was just created
 * (!target_exists) is hidden until the job's last step, so that what a kill leaves looks like no image; its
 * tables go to disk without flushes before that. With a backing file it receives what the source itself has,
 * not what the source's backing file shows. An existing one is written as by qcow2_image_write, and flushed.
 */
int qcow2_copy_image_new(struct qcow2_image *const *sources, size_t count, struct qcow2_image *target,
			 const struct qcow2_copy_options *options, struct qcow2_job **out,
			 struct qcow2_error *err);

/* Bytes that `salvage` made zeros so far. 0 for jobs of other kinds. */
uint64_t qcow2_copy_lost(const struct qcow2_job *job);

enum qcow2_difference {
	QCOW2_SAME,
	QCOW2_DIFFERENT_CONTENT,
	QCOW2_DIFFERENT_SIZE,       /* strict only */
	QCOW2_DIFFERENT_ALLOCATION, /* strict only */
};

/*
 * Compares two disks as the guest sees them. Where one has ended the other must be zeros. `strict`: sizes must
 * be equal, and everywhere both must be allocated in one way: data, compressed, zeros
 * with and without a place in a file, not allocated.
 */
int qcow2_compare_new(struct qcow2_image *a, struct qcow2_image *b, bool strict, unsigned threads,
		      struct qcow2_job **out, struct qcow2_error *err);

/* The verdict, once a step returned 0. gives: *offset = the first sector that differs, or where the
 * allocation does; UINT64_MAX for other verdicts. */
enum qcow2_difference qcow2_compare_result(const struct qcow2_job *job, uint64_t *offset);

/* ---- checking ----------------------------------------------------------------------------- */

/* What a check can find; words and meanings are in problems.def. */
enum qcow2_problem {
#define PROBLEM(NAME, word, severity, repair, meaning, loss) QCOW2_PROBLEM_##NAME,
#include "check/problems.def"
#undef PROBLEM
	QCOW2_PROBLEM_COUNT
};

enum qcow2_severity {
	QCOW2_SEVERITY_NOTE,       /* worth knowing, nothing is broken */
	QCOW2_SEVERITY_LEAK,       /* space is wasted */
	QCOW2_SEVERITY_CORRUPTION, /* data is or may become wrong */
	QCOW2_SEVERITY_UNREADABLE, /* the check could not look */
};

enum qcow2_repair_level {
	QCOW2_REPAIR_NOT,   /* is not repaired */
	QCOW2_REPAIR_SAFE,  /* is repaired where nothing is lost that anybody could read */
	QCOW2_REPAIR_ASKED, /* is repaired, whatever that loses */
};

struct qcow2_problem_facts {
	const char *word;
	enum qcow2_severity severity;
	enum qcow2_repair_level
		repair;      /* the level that it takes to repair all of its cases; NOT: none does */
	const char *meaning; /* a sentence without its period */
	const char *loss;    /* what repairing loses; "" when it cannot be repaired */
};
/* NULL past the last. */
const struct qcow2_problem_facts *qcow2_problem_facts(enum qcow2_problem problem);

/* A number that a finding does not have. */
#define QCOW2_NONE UINT64_MAX

/* One finding: a problem, where, how often. Numbers that have no meaning for the problem are QCOW2_NONE. */
struct qcow2_finding {
	enum qcow2_problem problem;
	uint64_t count; /* clusters or entries of the run that this record stands for, at least 1 */
	uint64_t host_offset, host_length;
	uint64_t guest_offset, guest_length; /* in the disk, or in the disk of `snapshot` */
	uint64_t refcount, references;       /* as stored, as counted, of each cluster of the run */
	uint64_t entry, bitmap;              /* the entry's raw words */
	uint64_t entry_offset;               /* where the entry lies in the file */
	uint64_t index;                      /* of the entry in its table, of the bitmap */
	uint64_t snapshot;                   /* index in the snapshot table */
	const char *first, *second;          /* OVERLAP: what the two are, else NULL; L1_OUTSIDE: first */
};

struct qcow2_check_result {
	uint64_t corruptions, leaks, unreadable; /* counted over all findings, kept as records or not */
	uint64_t found[QCOW2_PROBLEM_COUNT];     /* the same by problem */
	uint64_t findings, omitted;              /* records kept, records there was no room for */
	/* Some table could not be followed: what it reaches was not counted, so leaks may be none. */
	bool incomplete;
	uint64_t image_end_offset; /* behind the last cluster in use, bytes */
	uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters; /* guest's */
};

struct qcow2_check_options {
	uint64_t most;    /* records kept; 0: 100,000 */
	unsigned threads; /* 0: one per processor */
};

struct qcow2_check;

/*
 * Checks the image in steps: counts the references to every host cluster from all structures, compares them
 * with the refcount blocks, judges every entry. Reads only, each table once, and nothing that the host has a
 * hole for. Memory: a stated minimum and 8 bytes a cluster that the host really holds.
 * fails: `conflict` for raw images and views of snapshots; `range` when a file is too scattered for that memory.
 */
int qcow2_check_new(struct qcow2_image *image, const struct qcow2_check_options *options,
		    struct qcow2_check **out, struct qcow2_error *err);
/* As qcow2_job_step; bytes are those of tables. */
int qcow2_check_step(struct qcow2_check *check, uint64_t *done, uint64_t *total, struct qcow2_error *err);
/* needs: the last step returned 0. Borrowed. */
const struct qcow2_check_result *qcow2_check_result(const struct qcow2_check *check);
/* Record number `index` below result->findings; borrowed, NULL past the last. */
const struct qcow2_finding *qcow2_check_finding(const struct qcow2_check *check, uint64_t index);
void qcow2_check_free(struct qcow2_check *check);

/* Clears the dirty and the corrupt bit. needs: a finished check of a writable store that found no corruption,
 * and no write since. fails: `conflict` else. */
int qcow2_check_accept(struct qcow2_check *check, struct qcow2_error *err);

struct qcow2_repair;

/* Which level each problem is repaired at: `leaks`, what wastes space; `all`, whatever is safe. Others are NOT. */
void qcow2_repair_want(uint8_t wanted[QCOW2_PROBLEM_COUNT], bool leaks, bool all);

/*
 * Repairs what a check found. needs: the check is finished and outlives the repair, its image is on a writable
 * store and was not begun; no write since the check. Counts are put right in place, or built anew and switched
 * by one write of the header with everything else that changes; COPIED flags follow them in any case. upholds:
 * at every instant the disk, its snapshots and bitmaps show what they showed, and a second repair finds
 * an image that it can repair. Neither the dirty nor the corrupt bit is cleared: check again, then accept.
 * fails: `readonly`; `conflict` when something could not be read, when leaks alone are wanted and a table cannot
 * be followed, and when there is no room for new tables; `range`. Before the switch nothing has changed.
 */
int qcow2_repair_new(struct qcow2_check *check, const uint8_t wanted[QCOW2_PROBLEM_COUNT],
		     struct qcow2_repair **out, struct qcow2_error *err);
/* As qcow2_job_step; bytes are those of tables. */
int qcow2_repair_step(struct qcow2_repair *repair, uint64_t *done, uint64_t *total, struct qcow2_error *err);
/* COPIED flags that were put right, and which: records as qcow2_check_finding. */
uint64_t qcow2_repair_flags_fixed(const struct qcow2_repair *repair);
const struct qcow2_finding *qcow2_repair_finding(const struct qcow2_repair *repair, uint64_t index);
void qcow2_repair_free(struct qcow2_repair *repair);

/* ---- creating ----------------------------------------------------------------------------- */

enum qcow2_preallocation {
	QCOW2_PREALLOCATION_OFF,
	QCOW2_PREALLOCATION_METADATA, /* every cluster mapped, the data's space a hole in the file */
	QCOW2_PREALLOCATION_FALLOC,   /* ... and asked of the host */
	QCOW2_PREALLOCATION_FULL,     /* ... and written with zeros */
};

/* What a new image shall be. Names are borrowed for the call; data NULL: none. */
struct qcow2_create_options {
	uint64_t size;          /* bytes of the disk; rounded up to 512 */
	uint32_t version;       /* 2 or 3 */
	uint32_t cluster_size;  /* bytes */
	uint32_t refcount_bits; /* 1, 2, 4, ... 64 */
	uint32_t compression;   /* 0 deflate, 1 zstd */
	enum qcow2_preallocation preallocation;
	bool lazy_refcounts, extended_l2;
	struct qcow2_bytes backing_name, backing_format;
	struct qcow2_bytes data_name; /* the guest's clusters go to an external data file of this name */
	bool data_raw;                /* that file alone is the disk at every moment */
	bool keep_data;               /* it has contents, which become the disk's: it is only read */
	bool keep_holes;              /* with keep_data: map its holes too, else they become zero clusters */
	bool nocow;                   /* ask the host for no copy-on-write; a host that knows none is fine */
	bool hidden;                  /* leave the magic out, and flush nothing: a copy into it comes next */
};

/* Refuses what contradicts itself or the limits, before anything is made. fails: `conflict`, `range`,
 * `unsupported`. */
int qcow2_create_check(const struct qcow2_create_options *options, struct qcow2_error *err);

/*
 * Makes `store` a new image; what it held is gone. needs: `data` writable (with keep_data: readable) when
 * data_name is set, else NULL. The data file becomes as long as the disk and reads as zeros.
 * upholds: until all of the image is on stable storage the store does not begin with the magic, so that
 * no half-made image is taken for one.
 * fails: as qcow2_create_check; `conflict` when `data` is `store`, or does not fit the disk with keep_data.
 */
int qcow2_create(struct qcow2_store *store, struct qcow2_store *data,
		 const struct qcow2_create_options *options, struct qcow2_error *err);

/* Makes `store` a raw disk of `size` bytes of zeros (METADATA is refused: `conflict`). */
int qcow2_create_raw(struct qcow2_store *store, uint64_t size, enum qcow2_preallocation preallocation,
		     bool nocow, struct qcow2_error *err);

/* Does the host leave out copy-on-write for this store? false where it does not know such a thing. */
bool qcow2_create_has_nocow(struct qcow2_store *store);

/* ---- chains ------------------------------------------------------------------------------- */

/* As qcow2_image_resize to a larger size; the new part gets its space at once. fails: `conflict` for a smaller
 * size, and for METADATA with a raw image. */
int qcow2_image_grow(struct qcow2_image *image, uint64_t size, enum qcow2_preallocation preallocation,
		     struct qcow2_error *err);

/*
 * Stores another name and format of the backing file, by one switch of the header; name.data NULL: none. Nothing
 * is opened, attached or compared: what the disk shows is the caller's business. fails: `nospace` when the header
 * cluster has no room; `conflict` for raw images and external raw data files.
 */
int qcow2_image_set_backing(struct qcow2_image *image, struct qcow2_bytes name, struct qcow2_bytes format,
			    struct qcow2_error *err);

struct qcow2_rebase_options {
	struct qcow2_bytes name, format; /* to be stored; name.data NULL: none */
	bool compress;                   /* what is copied into the overlay */
	unsigned threads;                /* 0: one per processor */
};

/*
 * Puts `backing` (NULL: nothing) below the disk in place of what is there; what it shows never changes: where old
 * and new differ, the old is copied into the overlay first. needs: `overlay` writable, both chains attached.
 * At the end `backing` is attached. fails: `conflict` when a snapshot of the overlay would show something else.
 */
int qcow2_rebase_new(struct qcow2_image *overlay, struct qcow2_image *backing,
		     const struct qcow2_rebase_options *options, struct qcow2_job **out,
		     struct qcow2_error *err);

struct qcow2_commit_options {
	bool keep;        /* leave the overlay as it is; else it is emptied at the end */
	uint64_t rate;    /* bytes a second at most; 0: no limit */
	unsigned threads; /* 0: one per processor */
};

/*
 * Moves what the layers above `base` hold into `base`, which grows when it is shorter. needs: `base` is a writable
 * layer of the overlay's attached chain; the overlay is writable unless `keep`. upholds: what the overlay shows
 * never changes. fails: `conflict` when a snapshot of the overlay would show something else.
 */
int qcow2_commit_new(struct qcow2_image *overlay, struct qcow2_image *base,
		     const struct qcow2_commit_options *options, struct qcow2_job **out,
		     struct qcow2_error *err);

/* ---- amending ------------------------------------------------------------------------------ */

/*
 * Long changes of one image, done in steps on the caller's thread: a step returns after about a tenth of a second
 * with 1 (there is more), 0 (all is done) or the failure, which every later step repeats. gives: *done of *total.
 * A task given up in the middle leaves the same disk, with a part of the change done. Between the steps the image is
 * not used otherwise.
 */
struct qcow2_task;
int qcow2_task_step(struct qcow2_task *task, uint64_t *done, uint64_t *total, struct qcow2_error *err);
/* NULL is fine. */
void qcow2_task_free(struct qcow2_task *task);

struct qcow2_amend_options {
	uint32_t version;             /* 2 or 3; 0: as it is */
	uint32_t refcount_bits;       /* 0: as it is */
	int lazy_refcounts;           /* 1 on, 0 off, -1 as it is */
	int data_raw;                 /* the same: the external data file alone is the disk at every moment */
	struct qcow2_bytes data_name; /* data NULL: as it is */
	bool set_backing; /* as `rebase -u`: the disk becomes what it is over the new backing file */
	struct qcow2_bytes backing_name, backing_format; /* data NULL: none */
	bool set_size, shrink;                           /* shrink: a smaller size is meant */
	uint64_t size;
};

/*
 * Changes what can be changed of an image that exists. needs: qcow2_image_begin_tables or qcow2_image_begin. All that
 * can be refused is refused here; then each option is one switch of the header, and the disk's contents are the same
 * at every instant. fails: `range`, `conflict`, `unsupported`; `missing` when a raw data file is wanted and the data
 * file is not attached.
 */
int qcow2_amend_new(struct qcow2_image *image, const struct qcow2_amend_options *options,
		    struct qcow2_task **out, struct qcow2_error *err);

/*
 * The guest's clusters move from the image file to `data`, an external data file of this name. needs:
 * qcow2_image_begin; `data` is writable, as long as the disk, and holds at each guest offset what this image alone
 * (without its backing file) has there, zeros elsewhere. upholds: one switch of the header, after which the image is
 * attached to `data`. raw: the file alone is the disk from then on. fails: as the check.
 */
int qcow2_image_externalize(struct qcow2_image *image, struct qcow2_store *data, struct qcow2_bytes name,
			    bool raw, struct qcow2_error *err);
/* Makes the file of an image with an external data file as short as its metadata: tables go to the lowest free places,
 * the host gets the rest back. Again by switches of the header. */
int qcow2_image_gather(struct qcow2_image *image, struct qcow2_error *err);
/* Refuses what cannot be externalized: snapshots, version 2, a raw data file beside a backing file. */
int qcow2_image_externalize_check(struct qcow2_image *image, bool raw, struct qcow2_error *err);

/* The clusters of the external data file move into the image file; the data file is only read, and let go of. needs:
 * qcow2_image_begin. One switch of the header; given up before, nothing has happened. */
int qcow2_internalize_new(struct qcow2_image *image, struct qcow2_task **out, struct qcow2_error *err);

/* What makes an external data file differ from the disk; words and meanings are in divergences.def. */
enum qcow2_cause {
#define CAUSE(NAME, word, meaning) QCOW2_CAUSE_##NAME,
#include "image/divergences.def"
#undef CAUSE
	QCOW2_CAUSE_COUNT
};

struct qcow2_divergence {
	enum qcow2_cause cause;
	uint64_t offset, length; /* guest bytes; TAIL: bytes of the file behind the disk's end */
};

enum qcow2_resync {
	QCOW2_RESYNC_NONE,
	QCOW2_RESYNC_DATA,     /* the data file becomes what the guest reads */
	QCOW2_RESYNC_METADATA, /* every entry becomes plain data: the guest reads what the data file holds */
};

/*
 * Compares the external data file with the disk. needs: the data file is attached; for a resync qcow2_image_begin.
 * fails: `conflict` without a data file, and for METADATA when there is a backing file.
 */
int qcow2_verify_new(struct qcow2_image *image, enum qcow2_resync resync, struct qcow2_task **out,
		     struct qcow2_error *err);
/* Number `index` of those found so far, in the disk's order; NULL past the last that is kept. */
const struct qcow2_divergence *qcow2_verify_divergence(const struct qcow2_task *task, uint64_t index);
/* How many there are, kept or not, and how many of them the resync has mended. */
void qcow2_verify_counts(const struct qcow2_task *task, uint64_t *found, uint64_t *mended);
/* "zero", ... and a sentence without its period; NULL past the last. */
const char *qcow2_cause_word(enum qcow2_cause cause, const char **meaning);

#endif
