/* SPDX-License-Identifier: MIT
 * What the tables of one image file share: the store, the geometry, the header, the cache. */
#ifndef Q2_META_META_H
#define Q2_META_META_H

#include "base/mem.h"
#include "format/entry.h"
#include "meta/cache.h"
#include "meta/live_metadata.h"

/* A stretch of host clusters, or of the external data file (bytes, see pending_punch). */
struct q2_span {
	uint64_t start, count;
};

/* Adds a span to a list of them, or lengthens the last one that it follows. fails: `nomem`; the list is as it was. */
int q2_span_push(struct q2_vec *list, uint64_t start, uint64_t count, struct qcow2_error *err);

/* An entry of the active L1 table that waits to be written. It is named by its index: where the table lies is the
 * header's to say when the entry goes down. */
struct q2_l1_word {
	uint64_t index, value; /* host order */
};

struct q2_meta {
	struct qcow2_store *store; /* borrowed from the image */
	struct qcow2_header header;
	struct q2_geometry geo;
	uint64_t file_length; /* bytes; every table lies below it (SAFETY rule 2) */
	struct q2_cache cache;
	/* What the host said last about holes: [from, to) is data or not, as long as the store was not changed. */
	struct {
		uint64_t from, to, changes;
		bool is_data;
	} seen;

	uint64_t *reftable; /* host order; NULL until the first use */
	uint32_t reftable_entries;

	/* ---- writing (alloc.c, writeback.c); all zero while nothing was written ---- */
	struct qcow2_store *data; /* borrowed: the external data file, NULL without one */
	bool lazy; /* the dirty bit is on disk and refcount blocks may wait for the close; writeback.c's alone */
	bool hidden;                  /* a new image in the making: another magic on disk, no barriers */
	uint64_t synced, data_synced; /* store->changes that the last flush covers: image file, data file */
	uint64_t free_hint;           /* no cluster below it is free */
	struct q2_live_metadata live; /* invariant 6: clusters of live metadata */
	uint64_t virgin;              /* clusters from here on were never written: they read as zeros */
	uint64_t unproven;       /* clusters below may hold data though their count is 0 (data_counts.c) */
	struct q2_vec l2_tables; /* uint64_t: the tables that would tell, until they have */
	struct q2_vec l1_words;  /* struct q2_l1_word: links waiting for what they point at */
	struct q2_vec reftable_words;   /* uint32_t: entries of `reftable` that the table on disk lacks */
	struct q2_vec pending_free;     /* struct q2_span: unlinked, their counts go down after the flush */
	uint64_t pending_clusters;      /* how many clusters these spans have */
	struct q2_vec pending_punch;    /* struct q2_span in bytes: give back space of the data file */
	uint64_t stream_at, stream_end; /* free bytes behind the last compressed stream; equal: none */
	bool punch_freed;               /* give the space of freed clusters back to the host */
	struct qcow2_error failure;     /* invariant 7: the first failed metadata write; code 0: none */
};

void q2_meta_free(struct q2_meta *meta);

/*
 * Does a table of `bytes` at `at` lie aligned, behind the header and inside the file? `what` names it
 * ("L2 table"). fails: `corrupt`.
 */
int q2_meta_bound(const struct q2_meta *meta, const char *what, uint64_t at, uint64_t bytes,
		  struct qcow2_error *err);

/* Reads a table of big-endian 64-bit entries whole, in host order. gives: an array to free().
 * needs: bytes == entries * 8 within the limits of header.h; bounds it itself. */
int q2_meta_read_table(struct q2_meta *meta, const char *what, uint64_t at, uint32_t entries, uint64_t **out,
		       struct qcow2_error *err);

/*
 * How many bytes of a table from `at` on, at most `limit`, are zeros because the file has a hole there: they need not be
 * read, however many there are (SAFETY rule 10). gives: *length, 0 where there may be data.
 */
int q2_meta_zeros(struct q2_meta *meta, uint64_t at, uint64_t limit, uint64_t *length,
		  struct qcow2_error *err);

/* The next stretch of a table's bytes [at, end) that may be other than zeros. gives: *start, *length; 0: there is none. */
int q2_meta_next_data(struct q2_meta *meta, uint64_t at, uint64_t end, uint64_t *start, uint64_t *length,
		      struct qcow2_error *err);

/* Refuses a table (host order) that names one offset twice. */
int q2_meta_distinct(const uint64_t *table, uint32_t entries, uint64_t mask, const char *what,
		     struct qcow2_error *err);

/* ---- reference counts (refcount.c) ------------------------------------------------------------- */

/* The refcount table in memory; reads it on first use. */
int q2_refcount_load(struct q2_meta *meta, struct qcow2_error *err);

/*
 * The header on disk names another refcount table, whole on disk, which memory follows from now on. Takes over `table`
 * (host order). What the old table still lacked is nobody's business any more: its place may belong to others soon.
 */
void q2_refcount_follow(struct q2_meta *meta, uint64_t *table, uint32_t entries);

/* Host offset of the block that counts `cluster`, 0 when there is none. needs: the table is loaded. */
static inline uint64_t q2_refcount_block(const struct q2_meta *meta, uint64_t cluster)
{
	uint64_t index = cluster >> meta->geo.refblock_bits;
	return index < meta->reftable_entries ? meta->reftable[index] & Q2_REFTABLE_MASK : 0;
}

/*
 * The free run at or after `from`: *start its first cluster, *count how many follow one another, at most
 * `most`. Past the last block everything is free. Never cluster 0.
 */
int q2_refcount_free_run(struct q2_meta *meta, uint64_t from, uint64_t most, uint64_t *start, uint64_t *count,
			 struct qcow2_error *err);

/*
 * Adds `delta` (+1, -1) to the counts of [cluster, cluster + count). needs: their blocks exist. fails:
 * `range` when a count would overflow, `corrupt` when it would fall below zero; then none was changed.
 */
int q2_refcount_add(struct q2_meta *meta, uint64_t cluster, uint64_t count, int delta,
		    struct qcow2_error *err);

/* Would every count of the range stand the change? fails: as q2_refcount_add. needs: the table is loaded. */
int q2_refcount_check(struct q2_meta *meta, uint64_t cluster, uint64_t count, int delta,
		      struct qcow2_error *err);

/* The count of host cluster number `cluster`; 0 where no block exists. */
int q2_refcount_read(struct q2_meta *meta, uint64_t cluster, uint64_t *count, struct qcow2_error *err);

/* ---- allocation (alloc.c) ---------------------------------------------------------------------- */

/*
 * Live metadata whose count is 0 would be handed out as free: such an image is refused before the first write
 * (SAFETY rule 4). `what` names the table. What is verified is guarded from then on. fails: `corrupt`.
 */
int q2_alloc_verify(struct q2_meta *meta, const char *what, uint64_t offset, uint64_t bytes,
		    struct qcow2_error *err);

/* The same for the refcount blocks, which must also be distinct. */
int q2_alloc_verify_blocks(struct q2_meta *meta, struct qcow2_error *err);

/*
 * Takes free clusters and raises their counts to one (in the cache; invariant 2 is commit's). gives: *start,
 * and *got of them in one piece: `want` when `exact`, else as many as the first free place has.
 * fails: `nospace` past the largest offset, `range` when the refcount table cannot grow further.
 */
int q2_alloc(struct q2_meta *meta, uint64_t want, bool exact, uint64_t *start, uint64_t *got,
	     struct qcow2_error *err);

/* Gives back clusters that no table names, neither on disk nor in the cache (an undone q2_alloc). */
int q2_alloc_abandon(struct q2_meta *meta, uint64_t start, uint64_t count, struct qcow2_error *err);

/* One reference to each of these clusters was just unlinked in the cache: their counts go down, and they
 * can be used again, after the unlinking is on disk. */
int q2_alloc_release(struct q2_meta *meta, uint64_t start, uint64_t count, struct qcow2_error *err);

/*
 * Guest data with a count of 0 would be handed out as free, too. To know, all L2 tables have to be read: at once when
 * they are few, else when the first cluster inside the file is about to be handed out. (data_counts.c)
 */
/* One more L2 table of the disk or a snapshot, which is inside the file. */
int q2_data_counts_table(struct q2_meta *meta, uint64_t at, struct qcow2_error *err);
/* Bytes that q2_data_counts_prove will read. */
uint64_t q2_data_counts_cost(const struct q2_meta *meta);
/* fails: `corrupt`. */
int q2_data_counts_prove(struct q2_meta *meta, struct qcow2_error *err);

/* ---- order of writes (writeback.c) ---------------------------------------------------------------- */

/* What the stores hold so far waits for no flush; the next barrier flushes both, written or not. */
void q2_writeback_settled(struct q2_meta *meta);
void q2_writeback_unsettled(struct q2_meta *meta);

/* Guest data goes to this store (NULL: the image file itself) from now on; what it holds so far waits for no flush. */
void q2_writeback_attach(struct q2_meta *meta, struct qcow2_store *data);

/* Entry `index` of the active L1 table is to be `value` on disk. */
int q2_writeback_l1(struct q2_meta *meta, uint64_t index, uint64_t value, struct qcow2_error *err);

/* Entry `index` of the refcount table in memory is to be on disk. */
int q2_writeback_reftable(struct q2_meta *meta, uint32_t index, struct qcow2_error *err);

/*
 * Takes the changed tables down in the order that keeps invariants 1-3 at every instant:
 *   A  fresh tables (nothing reaches them) and raised refcounts      --- flush, data file first ---
 *   C  refcount table entries that name fresh blocks                 --- flush ---
 *   D  L2 entries and L1 entries                                     --- flush, when something was unlinked ---
 *   F  lower the counts of what was unlinked; give space back
 * fails: as the store; the image is then failed for good (invariant 7).
 */
int q2_writeback(struct q2_meta *meta, struct qcow2_error *err);

/* The header on disk has the dirty bit: refcount blocks may wait from now on. */
void q2_writeback_lazily(struct q2_meta *meta);

/* Commits, and has everything on stable storage: the guest's flush. */
int q2_writeback_flush(struct q2_meta *meta, struct qcow2_error *err);

/* The same with every count, lazy or not: for a header that is about to name what they count. */
int q2_writeback_counts(struct q2_meta *meta, struct qcow2_error *err);

/* The same; from now on counts are kept in time on disk, also where they were lazy. The dirty bit stays until the end of
 * writing. */
int q2_writeback_in_time(struct q2_meta *meta, struct qcow2_error *err);

/* Data file and image file on stable storage, when they were written since the last time. fails: as the store;
 * the image is then failed for good. */
int q2_writeback_barrier(struct q2_meta *meta, struct qcow2_error *err);

/* Records the first failure of a metadata write; gives its code. */
int q2_writeback_fail(struct q2_meta *meta, int code, struct qcow2_error *err);

/* 0, or the recorded failure again. */
int q2_writeback_check(const struct q2_meta *meta, struct qcow2_error *err);

/*
 * Writes the header's fields (meta->header) with ONE write inside the first 512 bytes: the switch of
 * invariant 5. needs: all that the new fields point at is on stable storage. Flushes.
 */
int q2_writeback_header(struct q2_meta *meta, struct qcow2_error *err);

/* The same with what follows the fields: `length` bytes, at most a sector, that begin with them. */
int q2_writeback_start(struct q2_meta *meta, uint8_t *bytes, size_t length, struct qcow2_error *err);

#endif
