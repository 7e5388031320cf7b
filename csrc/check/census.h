/* SPDX-License-Identifier: MIT
 * The census: how many references to each host cluster there are, by which kind of owner.
 *
 * A cluster's *word* packs the count of its references (low bits, saturating), the kind of owner, and marks:
 *
 *   31 an active entry with COPIED points here | 30 an active entry without | 29 owners of different kinds
 *   28 the stored refcount is another one      | 27-24 owner | 23-0 references
 *
 * Words of the *near* clusters, those below `dense_count`, are kept by pages: a page whose clusters all have the same
 * word is that one word in `pages`; others, which say SPREAD there, lie in an array whose untouched pages cost
 * nothing. A file so sparse that the array would outgrow its budget has its far clusters in `runs`, sorted and
 * disjoint, fed by a log of what is new. */
#ifndef Q2_CHECK_CENSUS_H
#define Q2_CHECK_CENSUS_H

#include "base/error.h"
#include "base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define Q2_WORD_COPIED (1u << 31)
#define Q2_WORD_UNCOPIED (1u << 30)
#define Q2_WORD_OVERLAP (1u << 29)
#define Q2_WORD_WRONG (1u << 28)
#define Q2_WORD_OWNER_SHIFT 24
#define Q2_WORD_OWNER (15u << Q2_WORD_OWNER_SHIFT)
#define Q2_WORD_COUNT 0x00ffffffu /* the largest count: "this many or more" */

#define Q2_PAGE_BITS 10           /* a page of the host has so many words */
#define Q2_PAGE_SPREAD UINT32_MAX /* no word: there is no owner 15 */

enum q2_owner {
	Q2_OWNER_NONE,
	Q2_OWNER_DATA,
	Q2_OWNER_COMPRESSED,
	Q2_OWNER_L2,
	Q2_OWNER_SNAPSHOT_L1,
	/* From here on two of a kind are too many. */
	Q2_OWNER_L1,
	Q2_OWNER_HEADER,
	Q2_OWNER_REFTABLE,
	Q2_OWNER_REFBLOCK,
	Q2_OWNER_SNAPSHOTS,
	Q2_OWNER_BITMAP_DIRECTORY,
	Q2_OWNER_BITMAP_TABLE,
	Q2_OWNER_BITMAP_DATA,
	Q2_OWNER_CRYPTO,
	Q2_OWNER_COUNT
};

/* "L2 table", "guest data", ... */
const char *q2_census_owner(enum q2_owner owner);

/* Clusters [start, start + count), all with the same word. In a log: what to add to them. */
struct q2_run_of_words {
	uint64_t start;
	uint32_t count;
	uint32_t word;
};

/* Clusters that two kinds of owners claim; found while adding. */
struct q2_overlap {
	uint64_t start, count;
	uint8_t first, second; /* enum q2_owner */
};

struct q2_census {
	uint64_t clusters; /* in the file, a last part of one included */
	uint32_t *dense;
	uint64_t dense_count;
	size_t dense_bytes;
	_Atomic uint32_t *pages; /* one a page of `dense`: the word of them all, or Q2_PAGE_SPREAD */
	pthread_mutex_t spreading;
	struct q2_vec runs, log; /* struct q2_run_of_words */
	size_t most_runs;
	struct q2_vec overlaps; /* struct q2_overlap */
	uint64_t overlaps_lost; /* clusters there was no record left for */
};

/* needs: `clusters` of the file, `real` ones that the host holds. */
int q2_census_init(struct q2_census *census, uint64_t clusters, uint64_t real, struct qcow2_error *err);
void q2_census_free(struct q2_census *census);

/* The word that stands for `times` references by `owner`; `marks` are COPIED and UNCOPIED. */
static inline uint32_t q2_census_word(enum q2_owner owner, uint32_t marks, uint64_t times)
{
	return marks | (uint32_t)owner << Q2_WORD_OWNER_SHIFT |
	       (times < Q2_WORD_COUNT ? (uint32_t)times : Q2_WORD_COUNT);
}

/*
 * Adds the word to the clusters of the run. needs: start + count <= clusters; one caller at a time.
 * fails: `nomem`, `range` (too scattered for the budget).
 */
int q2_census_add(struct q2_census *census, uint64_t start, uint64_t count, uint32_t word,
		  struct qcow2_error *err);

/* Takes the log into the runs. From here on the census is only read and marked. */
int q2_census_settle(struct q2_census *census, struct qcow2_error *err);

/* The first run that ends behind `cluster`, as an index into `runs`. needs: settled. */
size_t q2_census_find(const struct q2_census *census, uint64_t cluster);

/* The word of one cluster. needs: settled, cluster < clusters. */
uint32_t q2_census_get(const struct q2_census *census, uint64_t cluster);

/* The word of a near cluster. */
static inline uint32_t q2_census_near(const struct q2_census *census, uint64_t cluster)
{
	uint32_t word = atomic_load_explicit(&census->pages[cluster >> Q2_PAGE_BITS], memory_order_acquire);
	return word == Q2_PAGE_SPREAD ? census->dense[cluster] : word;
}

/* How far the word of the near cluster `from` goes on, at most to `to`, a near cluster's number or their count. */
uint64_t q2_census_same(const struct q2_census *census, uint64_t from, uint64_t to);

/* Gives a near cluster another word, while others look at other clusters or do the same to them. */
void q2_census_mark(struct q2_census *census, uint64_t cluster, uint32_t word);

#endif
