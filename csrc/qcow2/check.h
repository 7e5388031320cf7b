/* SPDX-License-Identifier: MIT
 * Checking and repairing. */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "qcow2/job.h"

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
QCOW2_API const struct qcow2_problem_facts *qcow2_problem_facts(enum qcow2_problem problem);

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
	int os_errno;                        /* UNREADABLE: the host's errno; else 0 */
	const char *first, *second;          /* OVERLAP: what the two are, else NULL; L1_OUTSIDE: first */
};

struct qcow2_check_result {
	uint64_t corruptions, leaks, unreadable; /* counted over all findings, kept as records or not */
	uint64_t findings, omitted;              /* records kept, records there was no room for */
	/* Some table could not be followed: what it reaches was not counted, so leaks may be none. */
	bool incomplete;
	uint64_t image_end_offset; /* behind the last cluster in use, bytes */
	uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters; /* guest's */
};

struct qcow2_check_options {
	size_t struct_size; /* QCOW2_CHECK_OPTIONS_INIT sets it */
	uint64_t most;      /* records kept; 0: 50,000 */
	unsigned threads;   /* 0: one per processor */
};
#define QCOW2_CHECK_OPTIONS_INIT                                  \
	{                                                         \
		.struct_size = sizeof(struct qcow2_check_options) \
	}

/*
 * A job that checks the image: counts the references to every host cluster from all structures, compares them
 * with the refcount blocks, judges every entry. Reads only, each table once, and nothing that the host has a
 * hole for. Memory: a stated minimum and 8 bytes a cluster that the host really holds.
 * fails: `conflict` for raw images and views of snapshots; `range` when a file is too scattered for that memory.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_check_new(struct qcow2_image *image,
							const struct qcow2_check_options *options,
							struct qcow2_job **out, struct qcow2_error *err);
/* needs: the last step returned 0. Borrowed. */
QCOW2_API QCOW2_NONNULL const struct qcow2_check_result *qcow2_check_result(const struct qcow2_job *check);
/* How often one problem was found, kept as records or not; 0 past the last problem. */
QCOW2_API QCOW2_NONNULL uint64_t qcow2_check_found(const struct qcow2_job *check, enum qcow2_problem problem);
/* Record number `index` below result->findings; borrowed, NULL past the last. */
QCOW2_API QCOW2_NONNULL const struct qcow2_finding *qcow2_check_finding(const struct qcow2_job *check,
									uint64_t index);

/* Clears the dirty and the corrupt bit. needs: a finished check of a writable store that found no corruption,
 * and no write since. fails: `conflict` else. */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_check_accept(struct qcow2_job *check, struct qcow2_error *err);

/* Which level each problem is repaired at: `leaks`, what wastes space; `all`, whatever is safe. Others are NOT. */
QCOW2_API void qcow2_repair_want(uint8_t wanted[QCOW2_PROBLEM_COUNT], bool leaks, bool all);

/*
 * A job that repairs what a check found. needs: the check is finished and outlives the repair, its image is on a writable
 * store and was not begun; no write since the check. Counts are put right in place, or built anew and switched
 * by one write of the header with everything else that changes; COPIED flags follow them in any case. upholds:
 * at every instant the disk, its snapshots and bitmaps show what they showed, and a second repair finds
 * an image that it can repair. Neither the dirty nor the corrupt bit is cleared: check again, then accept.
 * fails: `readonly`; `conflict` when something could not be read, when leaks alone are wanted and a table cannot
 * be followed, and when there is no room for new tables; `range`. Before the switch nothing has changed.
 */
QCOW2_API QCOW2_CHECK QCOW2_NONNULL int qcow2_repair_new(struct qcow2_job *check,
							 const uint8_t wanted[QCOW2_PROBLEM_COUNT],
							 struct qcow2_job **out, struct qcow2_error *err);
/* COPIED flags that were put right, and which: records as qcow2_check_finding. */
QCOW2_API QCOW2_NONNULL uint64_t qcow2_repair_flags_fixed(const struct qcow2_job *repair);
QCOW2_API QCOW2_NONNULL const struct qcow2_finding *qcow2_repair_finding(const struct qcow2_job *repair,
									 uint64_t index);

#endif
