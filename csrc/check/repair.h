/* SPDX-License-Identifier: MIT
 * One repair as its passes see it.
 *
 * A repair works from a finished check. First it reads all tables once more and counts, in a census of what
 * *will be*, the references that are left when every wanted fix is made. Then it takes one of two ways:
 *
 *   in place   when only counts and words of entries change: raise counts, flush, write the sectors of changed
 *              entries, flush, lower counts. Every sector is old or new, and no order of them is worse than what
 *              was found.
 *   beside     for everything else: whatever changes is written to clusters that nothing reaches, together with
 *              a new refcount table and blocks that count what will be; one write of the header switches to it
 *              (invariant 5). At every instant the image is the old one or the new one.
 *
 *   repair_records.c header, encryption header, snapshot table, bitmaps
 *   repair_entry.c   what becomes of one entry
 *   repair_survey.c  L1 and L2 tables: counted, looked at
 *   repair_write.c   L1 and L2 tables: written
 *   repair_count.c   reference counts: what they will be, in place or built anew
 *   repair.c         the passes, free clusters, the switch */
#ifndef Q2_CHECK_REPAIR_H
#define Q2_CHECK_REPAIR_H

#include "check/check.h"

/* Marks in the words of the census of what will be. All its owners are Q2_OWNER_DATA: only counts matter. */
#define Q2_WORD_FRESH \
	Q2_WORD_COPIED /* taken by this repair: what the old counts say of it is worth nothing */
#define Q2_WORD_GONE Q2_WORD_UNCOPIED /* its only owner has moved away: no references */

/* Key of the move that stands for "a cluster of zeros". */
#define Q2_MOVE_ZEROS UINT64_C(1)

/* What several owners claim and gets a place of its own: a data cluster, or a compressed cluster's stream. */
struct q2_move {
	uint64_t key;   /* the cluster's host offset; the L2 word of a compressed one; Q2_MOVE_ZEROS */
	uint64_t refs;  /* entries that refer to it */
	uint64_t fresh; /* new host offset of its first cluster; 0 until it has one */
};

struct q2_kept_snapshot {
	size_t record; /* byte in `snapshot_table` */
	uint64_t l1_at;
	uint32_t l1_size, l1_new; /* entries now and in future; l1_size 0: not followed */
};

struct q2_kept_bitmap {
	size_t record; /* byte in `directory` */
	uint64_t table_at;
	uint32_t entries;
	bool moves;
};

/* What an entry says once it is repaired, but for its place and its COPIED flag, which follow from the counts. */
struct q2_mended {
	uint64_t word, bitmap;
	uint64_t key;        /* of the move that gives it its place; 0: it stays */
	uint64_t at, length; /* bytes of the image file that it refers to; length 0: none */
	bool compressed;
};

struct q2_repair {
	struct qcow2_job base;
	struct q2_check *check; /* finished; borrowed */
	struct qcow2_image *image;
	struct qcow2_store *store;
	const struct q2_geometry *geo;
	uint8_t wanted[QCOW2_PROBLEM_COUNT]; /* enum qcow2_repair_level */
	bool raise, lower;                   /* counts may go this way */
	bool incomplete; /* a table that is kept cannot be followed: counts must not go down */
	bool exact;      /* the old counts do not matter: raise, lower, nothing unknown */
	bool apart;      /* overlapping things get places of their own */
	bool beside;     /* the way that is taken */
	bool pair;       /* some count goes down to one and COPIED has to follow */

	struct q2_census will;  /* references as they will be */
	uint64_t file_clusters; /* clusters of the file as it was found */
	uint64_t end;           /* clusters that may be in use: the file's, and what was taken */
	uint64_t cursor, limit; /* where the next free cluster is looked for, and from where on none may be */
	uint64_t read_budget;   /* bytes of tables that may still be read: shared tables are read often */
	uint64_t room_budget;   /* bytes of new places that may still be given: what is shared gets many */
	uint64_t reach;         /* the file has to be at least so long, bytes */
	unsigned order;         /* refcount order of the repaired image */
	struct q2_vec moves;    /* struct q2_move; sorted and unique once all tables are counted */
	size_t moves_compact;

	uint64_t *l1;       /* the active L1 table as it will be, host order; NULL: it cannot be followed */
	uint8_t *l1_extra;  /* by entry: an earlier one has the same L2 table; NULL: no such */
	bool l1_moves;      /* the table itself gets another place */
	uint64_t *l2_fresh; /* by number in check->l2: 0 stays as it is, 1 changes, else its new offset */

	struct q2_vec snapshot_table; /* uint8_t: as it will be */
	struct q2_vec snapshots;      /* struct q2_kept_snapshot */
	uint64_t snapshots_bytes;     /* of the old table, as far as it was understood */
	bool snapshots_counted;       /* the old table is in `will` */
	bool snapshots_change;        /* the table has to be written anew */
	bool snapshots_frozen;        /* it must not: its end was not understood */
	struct q2_vec directory;      /* uint8_t: the bitmap directory as it will be */
	struct q2_vec bitmaps;        /* struct q2_kept_bitmap */
	bool bitmaps_change;
	uint64_t directory_at;

	struct q2_report copied;    /* COPIED flags that were set right */
	struct qcow2_header header; /* what the switch writes */

	uint8_t *buffer; /* Q2_PIECE bytes or a cluster, for tables */
	uint64_t buffer_at, buffer_end;
	uint8_t *table; /* a cluster, for the table under work */

	unsigned pass;
	size_t position;
	uint64_t done, total;
	struct qcow2_error failure;
	struct q2_hold hold; /* of the image, until the last step */
};

static inline bool q2_repair_wants(const struct q2_repair *repair, enum qcow2_problem problem)
{
	return repair->wanted[problem] != QCOW2_REPAIR_NOT;
}

/* Also what loses something. */
static inline bool q2_repair_asked(const struct q2_repair *repair, enum qcow2_problem problem)
{
	return repair->wanted[problem] == QCOW2_REPAIR_ASKED;
}

/* ---- clusters (repair.c) ---- */

/* Did the check meet two owners in one of the clusters of [at, at + length)? */
bool q2_repair_overlaps(const struct q2_repair *repair, uint64_t at, uint64_t length);

/* Counts `times` references to the clusters of [at, at + length), past the end of the file too. */
int q2_repair_refer(struct q2_repair *repair, uint64_t at, uint64_t length, uint64_t times,
		    struct qcow2_error *err);

/* Nothing is given away from `at` (bytes) on: what lies there must stay outside the file. */
void q2_repair_keep_out(struct q2_repair *repair, uint64_t at);

/* The owner of [at, at + length) has moved away. Nothing happens where there is another one. */
int q2_repair_leave(struct q2_repair *repair, uint64_t at, uint64_t length, struct qcow2_error *err);

/*
 * Takes clusters for `bytes` bytes in one piece that nothing reaches, in the old image or the new one. `refs`: how
 * many references they have. gives: *at. fails: `conflict` when there is no room.
 */
int q2_repair_take(struct q2_repair *repair, uint64_t bytes, uint64_t refs, uint64_t *at,
		   struct qcow2_error *err);

/* Writes to the image file. */
int q2_repair_write(struct q2_repair *repair, uint64_t at, const void *bytes, uint64_t length,
		    struct qcow2_error *err);

/* Writes those sectors of [at, at + length) in which `bytes` differs from `old`. */
int q2_repair_write_changes(struct q2_repair *repair, uint64_t at, const uint8_t *old, const uint8_t *bytes,
			    uint64_t length, struct qcow2_error *err);

/* Fails when more is read than the file can have without tables that share their place. */
int q2_repair_spend(struct q2_repair *repair, uint64_t bytes, struct qcow2_error *err);

/* ---- entries (repair_entry.c) ---- */

/* What becomes of the entry for `guest` (bytes); `first`: it is the active disk's entry for offset 0. */
void q2_repair_entry(const struct q2_repair *repair, uint64_t guest, bool first, uint64_t word,
		     uint64_t bitmap, struct q2_mended *out);

/* What becomes of an L1 entry, but for the place of its table and COPIED. */
uint64_t q2_repair_l1_entry(const struct q2_repair *repair, uint64_t entry);

/* ---- moves (repair_entry.c) ---- */

int q2_repair_move(struct q2_repair *repair, uint64_t key, uint64_t times, struct qcow2_error *err);
void q2_repair_sort_moves(struct q2_repair *repair);
const struct q2_move *q2_repair_find_move(const struct q2_repair *repair, uint64_t key);

/* ---- tables (repair_survey.c) ---- */

static inline const struct q2_l2_table *q2_repair_table_at(const struct q2_repair *repair, size_t number)
{
	return (const struct q2_l2_table *)repair->check->l2.items + number;
}

/* The number of the L2 table at `host` in check->l2, SIZE_MAX when the check met nothing in it. */
size_t q2_repair_find_table(const struct q2_repair *repair, uint64_t host);

/* Does an earlier entry of the active L1 table have the same L2 table, and is that to be mended? */
bool q2_repair_is_extra(const struct q2_repair *repair, uint32_t index);

/* Cluster 0 of the data file has data, but the disk's first entry does not say so, and that is to be mended. */
bool q2_repair_is_lost(const struct q2_repair *repair);

/*
 * Has table `number` mended in repair->table. `log`: it will be written, so its COPIED flags are told. gives: *old,
 * its bytes in the file, good until another table is read; *changed.
 */
int q2_repair_mended_table(struct q2_repair *repair, size_t number, bool log, const uint8_t **old,
			   bool *changed, struct qcow2_error *err);

/* The same for a copy that active L1 entry `l1_index` gets for its own: in a data file the place goes by that. */
int q2_repair_mended_copy(struct q2_repair *repair, size_t number, uint32_t l1_index,
			  struct qcow2_error *err);

/* Calls `work` for the tables from repair->position on, as many as are done between two looks at the clock. */
int q2_repair_each_table(struct q2_repair *repair, bool *more,
			 int (*work)(struct q2_repair *, size_t, struct qcow2_error *),
			 struct qcow2_error *err);

/* ---- counts (repair_count.c) ---- */

/* The count as the old refcount blocks have it. */
int q2_repair_stored(struct q2_repair *repair, uint64_t cluster, uint64_t *stored, struct qcow2_error *err);

/* References of a word of `will`. */
static inline uint64_t q2_repair_refs(uint32_t word)
{
	return word & Q2_WORD_GONE ? 0 : word & Q2_WORD_COUNT;
}

/* The count that the repaired image has for a cluster. needs: `will` is settled. */
int q2_repair_final(struct q2_repair *repair, uint64_t cluster, uint64_t *final, struct qcow2_error *err);

/*
 * What COPIED has to be for an entry of the active disk that points at `cluster`. gives: *word with the flag set
 * right; a flag that no count vouches for stays as it is.
 */
int q2_repair_flag(struct q2_repair *repair, uint64_t cluster, uint64_t *word, struct qcow2_error *err);

/* ---- passes: each gives *more = call again ---- */

typedef int q2_repair_pass(struct q2_repair *repair, bool *more, struct qcow2_error *err);

q2_repair_pass q2_repair_plan_side, q2_repair_plan_l1, q2_repair_plan_l2, q2_repair_choose_order;
q2_repair_pass q2_repair_survey, q2_repair_survey_l1, q2_repair_survey_counts;
q2_repair_pass q2_repair_raise, q2_repair_write_entries, q2_repair_lower;
q2_repair_pass q2_repair_place_moves, q2_repair_place_l2, q2_repair_place_l1, q2_repair_place_side;
q2_repair_pass q2_repair_build_counts;

#endif
