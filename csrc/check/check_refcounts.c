/* SPDX-License-Identifier: MIT
 * The refcount structures, and what they say beside what the census counted. */
#include "check/check.h"

#include "base/be.h"

#include <string.h>

/* Units handed to the threads at once. */
#define UNITS 32u

/* ---- refcount table ---------------------------------------------------------------------------- */

static void judge_reftable(struct q2_check *check, uint32_t index, uint64_t entry, enum qcow2_problem problem)
{
	struct qcow2_finding finding = q2_report_blank(problem);
	finding.index = index;
	finding.entry = entry;
	finding.entry_offset = check->header->refcount_table_offset + (uint64_t)index * 8;
	finding.host_offset = entry & Q2_REFTABLE_MASK;
	finding.host_length = check->geo->cluster_size;
	q2_report_add(&check->report, &finding);
}

/* The block that the entry names, 0 when there is none to follow. */
static uint64_t take_entry(struct q2_check *check, uint32_t index, uint64_t entry)
{
	uint32_t cluster_size = check->geo->cluster_size;
	uint64_t block = entry & Q2_REFTABLE_MASK;
	if (entry & ~Q2_REFTABLE_MASK)
		judge_reftable(check, index, entry, QCOW2_PROBLEM_REFTABLE_RESERVED);
	if (!q2_is_aligned(block, cluster_size)) {
		judge_reftable(check, index, entry, QCOW2_PROBLEM_REFBLOCK_UNALIGNED);
		return 0;
	}
	/* A block that the file's end cuts is broken, but what it still says is worth comparing. */
	if (block && !q2_fits(block, cluster_size, check->file_length))
		judge_reftable(check, index, entry, QCOW2_PROBLEM_REFBLOCK_OUTSIDE);
	return block < check->file_length ? block : 0;
}

struct named_block {
	uint64_t block;
	uint32_t index;
};

static int by_block(const void *a, const void *b)
{
	const struct named_block *x = a, *y = b;
	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return x->index < y->index ? -1 : x->index > y->index;
}

/* Marks and reports the entries whose block another entry has named before. */
static int find_aliases(struct q2_check *check, struct qcow2_error *err)
{
	uint64_t *table = check->reftable, last = 0;
	uint32_t count = 0;
	bool rising = true;
	for (uint32_t i = 0; i < check->reftable_entries; i++) {
		if (!table[i])
			continue;
		rising &= table[i] > last;
		last = table[i];
		count++;
	}
	if (rising)
		return 0;
	q2_auto struct named_block *list = q2_new(count, sizeof *list);
	if (!list)
		return q2_error_nomem(err);
	count = 0;
	for (uint32_t i = 0; i < check->reftable_entries; i++)
		if (table[i])
			list[count++] = (struct named_block){table[i], i};
	qsort(list, count, sizeof *list, by_block);
	for (uint32_t i = 1; i < count; i++) {
		if (list[i].block != list[i - 1].block)
			continue;
		judge_reftable(check, list[i].index, list[i].block, QCOW2_PROBLEM_REFBLOCK_SHARED);
		table[list[i].index] |= Q2_REFTABLE_ALIAS;
	}
	return 0;
}

static int read_reftable(struct q2_check *check, uint64_t bytes, struct qcow2_error *err)
{
	uint64_t base = check->header->refcount_table_offset, at, length;
	uint8_t *buffer = check->hands[0].buffer;
	struct q2_scan scan = {0};
	bool unread;
	int rc;
	check->reftable_entries = (uint32_t)(bytes / 8);
	check->reftable = q2_new(check->reftable_entries, sizeof *check->reftable);
	if (!check->reftable)
		return q2_error_nomem(err);
	q2_scan_over(&scan, check, base, bytes);
	while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
		q2_scan_read(check, &check->report, at, buffer, length, &unread);
		for (uint64_t i = 0; i < length; i += 8) {
			uint32_t index = (uint32_t)((at + i - base) / 8);
			uint64_t entry = q2_load64(buffer + i);
			if (entry)
				check->reftable[index] = take_entry(check, index, entry);
		}
	}
	return rc;
}

/* How many table entries the array's clusters or any block make worth looking at. */
static uint64_t entries_to_compare(const struct q2_check *check)
{
	uint64_t each = 1ull << check->geo->refblock_bits, count = check->reftable_entries;
	while (count && !check->reftable[count - 1])
		count--;
	return q2_max(count, q2_div_up(check->census.dense_count, each));
}

int q2_compare_reftable(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	(void)more;
	const struct q2_geometry *g = check->geo;
	uint64_t base = check->header->refcount_table_offset;
	uint64_t bytes = (uint64_t)check->header->refcount_table_clusters << g->cluster_bits;
	int rc = q2_scan_count(check, base, bytes, q2_census_word(Q2_OWNER_REFTABLE, 0, 1), err);
	if (rc)
		return rc;
	if (!bytes || !q2_scan_fits(check, base, bytes)) {
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_REFTABLE_MISSING);
		finding.host_offset = base;
		finding.host_length = bytes;
		q2_report_add(&check->report, &finding);
	} else {
		rc = read_reftable(check, bytes, err);
	}
	if (!rc)
		rc = find_aliases(check, err);
	for (uint32_t i = 0; !rc && i < check->reftable_entries; i++) {
		if (!check->reftable[i] || (check->reftable[i] & Q2_REFTABLE_ALIAS))
			continue;
		rc = q2_scan_count(check, check->reftable[i], g->cluster_size,
				   q2_census_word(Q2_OWNER_REFBLOCK, 0, 1), err);
		check->total += g->cluster_size;
	}
	check->entries = entries_to_compare(check);
	return rc;
}

/* ---- overlaps ---------------------------------------------------------------------------------- */

int q2_compare_overlaps(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	(void)more;
	struct q2_census *census = &check->census;
	unsigned bits = check->geo->cluster_bits;
	int rc = q2_census_settle(census, err);
	if (rc)
		return rc;
	for (size_t i = 0; i < census->overlaps.count; i++) {
		const struct q2_overlap *overlap = (struct q2_overlap *)census->overlaps.items + i;
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_OVERLAP);
		finding.count = overlap->count;
		finding.host_offset = overlap->start << bits;
		finding.host_length = overlap->count << bits;
		finding.first = q2_census_owner((enum q2_owner)overlap->first);
		finding.second = q2_census_owner((enum q2_owner)overlap->second);
		q2_report_add(&check->report, &finding);
	}
	check->report.found[QCOW2_PROBLEM_OVERLAP] += census->overlaps_lost;
	check->report.sum.omitted += census->overlaps_lost;
	return 0;
}

/* ---- counts ------------------------------------------------------------------------------------ */

/* One thread's comparison. */
struct bench {
	struct q2_check *check;
	struct q2_report *report;
	struct q2_vec wrong; /* struct q2_run_of_words: far clusters whose COPIED flags do not fit */
	uint64_t highest;
	bool dense_wrong, nomem;
};

/* `count` clusters from `cluster` on are stored with `stored` references and have those of `word`. */
static void report_counts(struct bench *bench, uint64_t cluster, uint64_t count, uint64_t stored,
			  uint32_t word)
{
	unsigned bits = bench->check->geo->cluster_bits, order = bench->check->geo->refcount_order;
	uint64_t counted = word & Q2_WORD_COUNT;
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_LEAK);
	finding.count = count;
	finding.host_offset = cluster << bits;
	finding.host_length = count << bits;
	finding.refcount = stored;
	finding.references = counted;
	if (stored < counted)
		finding.problem = counted > q2_refcount_max(order) ? QCOW2_PROBLEM_REFCOUNT_OVERFLOW
								   : QCOW2_PROBLEM_REFCOUNT_LOW;
	q2_report_add(bench->report, &finding);
}

/* Which mark says that some entry's COPIED flag does not fit this stored count? */
static inline uint32_t misfit(uint64_t stored)
{
	return stored == 1 ? Q2_WORD_UNCOPIED : Q2_WORD_COPIED;
}

static inline bool differs(uint64_t stored, uint32_t word)
{
	uint32_t counted = word & Q2_WORD_COUNT;
	return stored != counted && !(counted == Q2_WORD_COUNT && stored > counted);
}

static void judge_dense(struct bench *bench, uint64_t cluster, uint64_t stored)
{
	struct q2_census *census = &bench->check->census;
	uint32_t word = q2_census_near(census, cluster);
	if (differs(stored, word))
		report_counts(bench, cluster, 1, stored, word);
	if (word & misfit(stored)) {
		/* From here on the word says what is stored: the COPIED flags are judged by that. */
		q2_census_mark(census, cluster,
			       (word & ~Q2_WORD_COUNT) | Q2_WORD_WRONG |
				       (uint32_t)q2_min(stored, Q2_WORD_COUNT));
		bench->dense_wrong = true;
	}
}

static inline uint64_t stored_at(const uint8_t *counts, uint64_t index, unsigned order)
{
	/* The usual width, without the switch. */
	return !counts      ? 0
	       : order == 4 ? q2_load16(counts + 2 * index)
			    : q2_refcount_get(counts, index, order);
}

/* Clusters [from, to) of the array beside their counts, which begin at number `index` of `counts`. */
static void compare_dense(struct bench *bench, uint64_t from, uint64_t to, const uint8_t *counts,
			  uint64_t index)
{
	const struct q2_census *census = &bench->check->census;
	unsigned order = bench->check->geo->refcount_order;
	for (uint64_t c = from, same = from; c < to;) {
		/* Neighbours are mostly alike: what was judged once holds for the run. */
		uint32_t word = q2_census_near(census, c);
		uint64_t stored = stored_at(counts, index + (c - from), order);
		bool fits = stored == (word & Q2_WORD_COUNT) && !(word & misfit(stored));
		if (c >= same)
			same = q2_census_same(census, c, to);
		if (!fits)
			judge_dense(bench, c, stored);
		do
			c++;
		while (fits && c < same && stored_at(counts, index + (c - from), order) == stored);
		if (word | stored)
			bench->highest = c;
	}
}

/* `count` clusters of a run, or of no run (word 0), all stored alike. */
static void judge_far(struct bench *bench, uint64_t cluster, uint64_t count, uint64_t stored, uint32_t word)
{
	if (word || stored)
		bench->highest = q2_max(bench->highest, cluster + count);
	if (differs(stored, word))
		report_counts(bench, cluster, count, stored, word);
	if (word & misfit(stored)) {
		struct q2_run_of_words *item = q2_vec_push(&bench->wrong, sizeof *item);
		if (item)
			*item = (struct q2_run_of_words){cluster, (uint32_t)count,
							 (uint32_t)q2_min(stored, Q2_WORD_COUNT)};
		else
			bench->nomem = true;
	}
}

/* The next count that is not zero at or behind number `index`, `end` when there is none. */
static uint64_t next_count(const uint8_t *counts, uint64_t index, uint64_t end, unsigned order)
{
	while (index < end) {
		if (q2_refcount_get(counts, index, order))
			return index;
		/* Several counts in one byte are zero together. */
		uint64_t byte = index << order >> 3;
		index = order < 3 && !counts[byte] ? (byte + 1) << 3 >> order : index + 1;
	}
	return end;
}

/* The same for clusters behind the array. */
static void compare_far(struct bench *bench, uint64_t from, uint64_t to, const uint8_t *counts,
			uint64_t index)
{
	const struct q2_census *census = &bench->check->census;
	const struct q2_run_of_words *runs = census->runs.items;
	unsigned order = bench->check->geo->refcount_order;
	size_t r = q2_census_find(census, from);
	for (uint64_t c = from; c < to;) {
		bool inside = r < census->runs.count && runs[r].start <= c;
		uint64_t stop = to;
		if (r < census->runs.count)
			stop = q2_min(to, inside ? runs[r].start + runs[r].count : runs[r].start);
		if (!counts && inside) {
			judge_far(bench, c, stop - c, 0, runs[r].word);
		} else if (counts && inside) {
			for (uint64_t i = c; i < stop; i++)
				judge_far(bench, i, 1, q2_refcount_get(counts, index + (i - from), order),
					  runs[r].word);
		} else if (counts) {
			uint64_t i = next_count(counts, index + (c - from), index + (stop - from), order);
			if (i < index + (stop - from)) {
				c = from + (i - index);
				judge_far(bench, c, 1, q2_refcount_get(counts, i, order), 0);
				c++;
				continue;
			}
		}
		r += inside && stop == runs[r].start + runs[r].count;
		c = stop;
	}
}

bool q2_check_points_outside(const struct q2_check *check, const uint8_t *mended)
{
	static const enum qcow2_problem outside[] = {
		QCOW2_PROBLEM_L1_OUTSIDE,     QCOW2_PROBLEM_L2_OUTSIDE,
		QCOW2_PROBLEM_DATA_OUTSIDE,   QCOW2_PROBLEM_COMPRESSED_OUTSIDE,
		QCOW2_PROBLEM_CRYPTO_OUTSIDE, QCOW2_PROBLEM_SNAPSHOT_TABLE,
		QCOW2_PROBLEM_BITMAP_TABLE,   QCOW2_PROBLEM_BITMAP_TABLE_ENTRY,
		QCOW2_PROBLEM_OVERLAP,
	};
	bool found = !mended && check->report.sum.incomplete;
	for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
		found = found || (check->report.found[outside[i]] && !(mended && mended[outside[i]]));
	return found;
}

/* Clusters [from, to) beside `counts`, NULL: all are stored as 0. `aliased`: counts of other clusters too. */
static void compare(struct bench *bench, uint64_t from, uint64_t to, const uint8_t *counts, bool aliased)
{
	const struct q2_census *census = &bench->check->census;
	uint64_t end = q2_min(to, census->clusters), middle = q2_min(end, census->dense_count);
	if (from < middle)
		compare_dense(bench, from, middle, counts, 0);
	uint64_t far = q2_max(from, middle);
	if (far < end)
		compare_far(bench, far, end, counts, far - from);
	/* Behind the end of the file is nothing that could be referred to. */
	unsigned order = bench->check->geo->refcount_order;
	bool behind = counts && !aliased && !q2_check_points_outside(bench->check, NULL);
	for (uint64_t c = q2_max(from, end); behind && c < to; c++) {
		c = from + next_count(counts, c - from, to - from, order);
		if (c < to)
			report_counts(bench, c, 1, q2_refcount_get(counts, c - from, order), 0);
	}
}

/* An aliased block is read as long as there is budget for it. */
static bool may_read(struct q2_check *check, uint64_t block, struct q2_report *report)
{
	uint32_t cluster_size = check->geo->cluster_size;
	bool may = true;
	if (!(block & Q2_REFTABLE_ALIAS))
		return true;
	pthread_mutex_lock(&check->lock);
	may = check->aliased >= cluster_size;
	if (may)
		check->aliased -= cluster_size;
	pthread_mutex_unlock(&check->lock);
	report->sum.incomplete |= !may;
	return may;
}

/* All clusters that refcount table entry `index` is responsible for. */
static int compare_block(struct bench *bench, struct q2_hand *hand, uint64_t index, struct q2_scan *scan,
			 struct qcow2_error *err)
{
	struct q2_check *check = bench->check;
	const struct q2_geometry *g = check->geo;
	uint64_t block = index < check->reftable_entries ? check->reftable[index] : 0;
	uint64_t next = index << g->refblock_bits, end = next + (1ull << g->refblock_bits);
	uint64_t first = next, at, length;
	int rc = 0;
	if (block && !may_read(check, block, bench->report))
		return 0;
	bool aliased = check->report.found[QCOW2_PROBLEM_REFBLOCK_SHARED];
	block &= ~Q2_REFTABLE_ALIAS;
	if (block) {
		bool unread;
		q2_scan_over(scan, check, block, q2_min(g->cluster_size, check->file_length - block));
		while ((rc = q2_scan_next(scan, Q2_PIECE, &at, &length, err)) > 0) {
			uint64_t from = first + ((at - block) << 3 >> g->refcount_order);
			uint64_t to = first + ((at - block + length) << 3 >> g->refcount_order);
			compare(bench, next, from, NULL, false);
			q2_scan_read(check, bench->report, at, hand->buffer, length, &unread);
			/* What could not be read is not compared. */
			if (!unread)
				compare(bench, from, to, hand->buffer, aliased);
			next = to;
		}
	}
	compare(bench, next, end, NULL, false);
	return rc;
}

static size_t entries_a_unit(const struct q2_check *check)
{
	return q2_max(Q2_PIECE >> check->geo->cluster_bits, 1);
}

static int compare_unit(struct q2_check *check, struct q2_hand *hand, size_t unit, struct q2_report *report,
			struct qcow2_error *err)
{
	struct bench bench = {.check = check, .report = report};
	struct q2_scan scan = {0};
	uint64_t entries = check->entries;
	size_t each = entries_a_unit(check);
	int rc = 0;
	for (uint64_t i = (uint64_t)unit * each; !rc && i < q2_min(entries, (unit + 1) * each); i++)
		rc = compare_block(&bench, hand, i, &scan, err);
	/* Behind the last block there are only runs. */
	if (!rc && (unit + 1) * each >= entries)
		compare(&bench, entries << check->geo->refblock_bits, check->census.clusters, NULL, false);

	pthread_mutex_lock(&check->lock);
	check->highest = q2_max(check->highest, bench.highest);
	check->wrong |= bench.dense_wrong || bench.wrong.count;
	const struct q2_run_of_words *wrong = bench.wrong.items;
	for (size_t i = 0; i < bench.wrong.count; i++) {
		struct q2_run_of_words *item = q2_vec_push(&check->far_wrong, sizeof *item);
		if (item)
			*item = wrong[i];
		else
			bench.nomem = true;
	}
	pthread_mutex_unlock(&check->lock);
	q2_vec_free(&bench.wrong);
	if (!rc && bench.nomem)
		rc = q2_error_nomem(err);
	return rc;
}

int q2_compare_counts(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	size_t each = entries_a_unit(check);
	/* One unit at least, for the runs behind the last block. */
	size_t units = q2_max(q2_div_up(check->entries, each), 1);
	size_t count = q2_min(UNITS, units - check->position);
	int rc = q2_scan_units(check, compare_unit, check->position, count, err);
	check->position += count;
	check->done += (uint64_t)count * each << check->geo->cluster_bits;
	*more = check->position < units;
	return rc;
}
