/* SPDX-License-Identifier: MIT
 * One check as its passes see it.
 *
 * The passes, in order (check.c):
 *
 *   check_records.c     header, encryption header, snapshot table, bitmaps: counted and judged
 *   check_refcounts.c   refcount table and blocks counted
 *   check_tables.c      L1 tables, then each L2 table once, however many L1 entries reach it: entries judged, guest
 *                       clusters counted
 *   check_refcounts.c   what was counted beside what the refcount blocks say
 *   check_copied.c      where COPIED flags and refcounts do not fit, which entries are to blame
 *
 * Everything is read by this floor's own eyes and bounds, past caches, in large pieces (scan.c), so that one
 * broken structure does not hide the others. What lies in a hole of the host is zeros and is not read. */
#ifndef Q2_CHECK_CHECK_H
#define Q2_CHECK_CHECK_H

#include "check/census.h"
#include "image/job.h"

#include <pthread.h>

/* Tables are read in pieces of this; a multiple of every entry size. */
#define Q2_PIECE ((size_t)1 << 20)

/* What a pass found, and the guest's statistics. */
struct q2_report {
	struct q2_vec findings; /* struct qcow2_finding */
	struct qcow2_check_result sum;
	uint64_t found[QCOW2_PROBLEM_COUNT]; /* counted over all findings, kept as records or not */
	uint64_t most;
};

/* Set in check->reftable: an earlier entry names the same block. */
#define Q2_REFTABLE_ALIAS UINT64_C(1)

/* A table of 8-byte entries that may share its place with others of its kind. */
struct q2_table_place {
	uint64_t at, bytes;
	uint64_t owner; /* snapshot or bitmap number */
};

/* Bytes that `times` tables lie on, wholly inside table `owner`, which begins at `base`. */
struct q2_stretch {
	uint64_t at, bytes;
	uint64_t base, owner, times;
};

/* One L2 table, however often it is reached. */
struct q2_l2_table {
	uint64_t at;
	uint64_t snapshot; /* the first to reach it, QCOW2_NONE: the active L1 table */
	uint32_t l1_index; /* there */
	uint32_t times;    /* L1 entries that reach it, all snapshots' included; saturates */
	uint32_t active;   /* those of the active L1 table */
};

/* What a thread keeps between units. */
struct q2_hand {
	uint8_t *buffer;    /* Q2_PIECE bytes */
	struct q2_vec runs; /* struct q2_run_of_words */
};

struct q2_check {
	struct qcow2_job base;
	struct qcow2_image *image; /* a reference */
	struct q2_hold hold;       /* of the image, until the last step */
	struct qcow2_store *store;
	const struct qcow2_header *header;
	const struct q2_geometry *geo;
	uint64_t file_length; /* now; bytes */
	struct q2_census census;
	struct q2_report report;

	struct q2_vec snapshots; /* struct q2_table_place: L1 tables that can be followed */
	struct q2_vec l2;        /* struct q2_l2_table; sorted and unique once the L1 tables are read */
	size_t l2_compact;       /* as many of them were sorted and unique the last time */
	uint64_t *reftable;      /* host order; offsets of blocks that can be followed, else 0 */
	uint32_t reftable_entries;
	uint64_t entries; /* so many of them, some perhaps past the table's end, are compared */
	uint64_t aliased; /* bytes of refcount blocks that may still be read a second time */
	uint64_t highest; /* number of the last cluster in use + 1 */
	bool wrong;       /* some cluster is marked Q2_WORD_WRONG or has no place: look at COPIED */
	struct q2_vec
		same_names; /* uint64_t, sorted: directory entries of bitmaps whose name one before has */
	struct q2_vec far_wrong; /* struct q2_run_of_words, sorted: far ones that are, word = stored count */

	unsigned threads;
	struct q2_hand *hands;
	pthread_mutex_t lock; /* the census and `wrong` while threads run */

	unsigned pass;
	size_t position; /* of the pass, in units of its own */
	uint64_t done, total;
	struct qcow2_error failure;
};

/* ---- reporting (check.c) ---- */

/* A finding without numbers. */
struct qcow2_finding q2_report_blank(enum qcow2_problem problem);

/* Counts it and keeps it while there is room; runs of clusters grow. */
void q2_report_add(struct q2_report *report, const struct qcow2_finding *finding);

/* Adds all that `from` has, and empties it. */
void q2_report_append(struct q2_report *report, struct q2_report *from);

/* ---- reading (scan.c) ---- */

/* A walk over [at, end) that jumps over the host's holes. */
struct q2_scan {
	struct qcow2_store *store;
	uint64_t limit; /* the file's length */
	uint64_t at, end;
	uint64_t from, known; /* here the host's answer holds, for this range and for later ones */
	bool data;            /* and this is it */
};

/*
 * The next piece with data, at most `most` bytes, aligned to 16 bytes but for the scan's own ends. gives: 1 and
 * the piece; 0 at the end.
 */
int q2_scan_next(struct q2_scan *scan, uint64_t most, uint64_t *at, uint64_t *length,
		 struct qcow2_error *err);

/* Is any byte of [at, at + length) data for the host? Answers for rising `at` cost little. */
int q2_scan_has_data(struct q2_scan *scan, uint64_t at, uint64_t length, bool *data, struct qcow2_error *err);

/* A scan of [at, at + length); what an earlier one of the same file was told is kept. */
static inline void q2_scan_over(struct q2_scan *scan, const struct q2_check *check, uint64_t at,
				uint64_t length)
{
	scan->store = check->store;
	scan->limit = check->file_length;
	scan->at = at;
	scan->end = at + length;
}

/* The places where tables lie as disjoint stretches in the order of the file. Sorts `tables`. */
int q2_scan_tables(struct q2_table_place *tables, size_t count, struct q2_vec *stretches,
		   struct qcow2_error *err);

/* Does the region lie aligned, behind the header and inside the file? */
bool q2_scan_fits(const struct q2_check *check, uint64_t at, uint64_t bytes);

/* Adds a region's clusters to the census; what lies outside the file is left out. */
int q2_scan_count(struct q2_check *check, uint64_t at, uint64_t bytes, uint32_t word,
		  struct qcow2_error *err);

/* The same for the clusters of all these tables, which may share them. */
int q2_scan_count_tables(struct q2_check *check, const struct q2_vec *tables, enum q2_owner owner,
			 struct qcow2_error *err);

/* Reads; a failure of the host becomes a finding about [at, at + length), then *unread is true. */
void q2_scan_read(struct q2_check *check, struct q2_report *report, uint64_t at, void *buf, size_t length,
		  bool *unread);

/*
 * Runs units [first, first + count) on all threads. What they report is joined in their order; the failure of
 * the first one in order is returned.
 */
typedef int q2_unit_work(struct q2_check *check, struct q2_hand *hand, size_t unit, struct q2_report *report,
			 struct qcow2_error *err);
int q2_scan_units(struct q2_check *check, q2_unit_work *work, size_t first, size_t count,
		  struct qcow2_error *err);

/* ---- records (check_records.c) ---- */

struct q2_bitmap_record;

/* Bits of a bitmap table entry that must be zero; bit 0 as well where there is an offset. */
#define Q2_BITMAP_RESERVED 0xff000000000001feull
#define Q2_BITMAP_FLAGS_KNOWN (Q2_BITMAP_IN_USE | Q2_BITMAP_AUTO | Q2_BITMAP_EXTRA_COMPATIBLE)

/* The header extension of that type, NULL when there is none. */
const struct q2_extension *q2_check_extension(const struct q2_check *check, uint32_t type);

/* Can an entry of the bitmap directory, of a bitmap table say that? */
bool q2_check_bitmap_possible(const struct q2_check *check, const struct q2_bitmap_record *record);
bool q2_check_bits_possible(const struct q2_check *check, uint64_t entry);

/* Does something refer to a place behind the end of the file, but for problems that are flagged in `mended` (by kind; NULL:
 * none)? Then what is counted there is not leaked. (compare.c) */
bool q2_check_points_outside(const struct q2_check *check, const uint8_t *mended);

/* Has a bitmap before the one whose directory entry lies at `at` the same name? */
bool q2_check_has_same_name(const struct q2_check *check, uint64_t at);

/* ---- passes: each gives *more = call again ---- */

int q2_check_header(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_check_snapshots(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_check_bitmaps(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_compare_reftable(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_check_l1(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_check_l2(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_check_data_file(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_compare_overlaps(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_compare_counts(struct q2_check *check, bool *more, struct qcow2_error *err);
int q2_check_copied(struct q2_check *check, bool *more, struct qcow2_error *err);

/* The check behind a job; NULL for jobs of other kinds. */
struct q2_check *q2_check_of(const struct qcow2_job *job);

#endif
