/* SPDX-License-Identifier: MIT
 * Reference counts of a repaired image: what they are, put right in place, or built anew. */
#include "check/repair.h"

#include "base/be.h"

#include <inttypes.h>
#include <string.h>

/* ---- what a count will be ---------------------------------------------------------------------- */

int q2_repair_stored(struct q2_repair *repair, uint64_t cluster, uint64_t *stored, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	const struct q2_check *check = repair->check;
	struct q2_cache *cache = &repair->image->meta.cache;
	uint64_t index = cluster >> g->refblock_bits;
	uint64_t block = index < check->reftable_entries ? check->reftable[index] & ~Q2_REFTABLE_ALIAS : 0;
	uint64_t number = cluster & ((1ull << g->refblock_bits) - 1);
	uint8_t *bytes;
	*stored = 0;
	if (!block)
		return 0;
	uint64_t byte = number << g->refcount_order >> 3, slice = q2_round_down(byte, cache->slice);
	int rc = q2_cache_get(cache, q2_host_at(block + slice), &bytes, err);
	if (!rc)
		*stored =
			q2_refcount_get(bytes, number - (slice << 3 >> g->refcount_order), g->refcount_order);
	return rc;
}

/* The count of a cluster with that word of `will` and that old count. */
static uint64_t decide(const struct q2_repair *repair, uint64_t cluster, uint32_t word, uint64_t stored)
{
	uint64_t refs = q2_min(q2_repair_refs(word), q2_refcount_max(repair->order));
	if (word & Q2_WORD_FRESH)
		return refs;
	if (refs > stored)
		return repair->raise ? refs : stored;
	if (repair->incomplete)
		return stored;
	/* What the repair itself has let go of is free, wanted or not. */
	bool left = !refs && cluster < repair->file_clusters &&
		    q2_census_get(&repair->check->census, cluster) != 0;
	return repair->lower || left ? refs : stored;
}

int q2_repair_final(struct q2_repair *repair, uint64_t cluster, uint64_t *final, struct qcow2_error *err)
{
	uint64_t stored = 0;
	int rc = repair->exact ? 0 : q2_repair_stored(repair, cluster, &stored, err);
	if (!rc)
		*final = decide(repair, cluster, q2_census_get(&repair->will, cluster), stored);
	return rc;
}

int q2_repair_flag(struct q2_repair *repair, uint64_t cluster, uint64_t *word, struct qcow2_error *err)
{
	uint64_t final, stored;
	int rc = q2_repair_final(repair, cluster, &final, err);
	/* A count that stays too low says nothing about who may write. */
	if (rc || final < q2_repair_refs(q2_census_get(&repair->will, cluster)))
		return rc;
	if (final != 1) {
		*word &= ~Q2_COPIED;
	} else if (!(*word & Q2_COPIED)) {
		*word |= Q2_COPIED;
		rc = q2_repair_stored(repair, cluster, &stored, err);
		repair->pair |= !rc && stored > 1;
	}
	return rc;
}

/* The words of `will` from `from` on as runs: the next one with references, or 0 in *count. */
static void next_run(const struct q2_repair *repair, uint64_t from, uint64_t *start, uint64_t *count,
		     uint32_t *word)
{
	const struct q2_census *will = &repair->will;
	uint64_t near = q2_min(will->dense_count, repair->end);
	*count = 0;
	for (uint64_t stop; from < near; from = stop) {
		*word = q2_census_near(will, from);
		stop = q2_census_same(will, from, near);
		if (!q2_repair_refs(*word))
			continue;
		*start = from;
		*count = stop - from;
		return;
	}
	const struct q2_run_of_words *runs = will->runs.items;
	for (size_t i = q2_census_find(will, from); i < will->runs.count; i++) {
		if (!q2_repair_refs(runs[i].word))
			continue;
		*start = q2_max(runs[i].start, from);
		*word = runs[i].word;
		*count = runs[i].start + runs[i].count - *start;
		return;
	}
}

int q2_repair_choose_order(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	uint64_t highest = 0, start, count;
	uint32_t word;
	int rc = q2_census_settle(&repair->will, err);
	if (rc)
		return rc;
	q2_repair_sort_moves(repair);
	for (next_run(repair, 0, &start, &count, &word); count;
	     next_run(repair, start + count, &start, &count, &word))
		highest = q2_max(highest, q2_repair_refs(word));
	for (size_t i = 0; i < repair->moves.count; i++)
		highest = q2_max(highest, ((struct q2_move *)repair->moves.items)[i].refs);
	if (highest >= Q2_WORD_COUNT)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "A cluster has more references than a repair can count");
	repair->order = repair->geo->refcount_order;
	if (repair->check->header->version >= 3 && q2_repair_wants(repair, QCOW2_PROBLEM_REFCOUNT_OVERFLOW))
		while (highest > q2_refcount_max(repair->order))
			repair->order++;
	repair->header.refcount_order = repair->order;
	repair->exact = repair->raise && repair->lower && !repair->incomplete;
	return 0;
}

/* ---- which way --------------------------------------------------------------------------------- */

/* Is there a block for every cluster with references? */
static bool has_blocks(const struct q2_repair *repair)
{
	const struct q2_check *check = repair->check;
	uint64_t start, count;
	uint32_t word;
	for (next_run(repair, 0, &start, &count, &word); count;
	     next_run(repair, start + count, &start, &count, &word)) {
		uint64_t first = start >> repair->geo->refblock_bits;
		uint64_t last = (start + count - 1) >> repair->geo->refblock_bits;
		for (uint64_t i = first; i <= last; i++)
			if (i >= check->reftable_entries || !check->reftable[i] ||
			    (check->reftable[i] & Q2_REFTABLE_ALIAS))
				return false;
	}
	return true;
}

/* Does anything else claim a cluster of the refcount table or of a block? */
static bool counts_overlap(const struct q2_repair *repair)
{
	const struct q2_check *check = repair->check;
	uint32_t cluster_size = repair->geo->cluster_size, clusters = check->header->refcount_table_clusters;
	bool overlap = check->reftable_entries &&
		       q2_repair_overlaps(repair, check->header->refcount_table_offset,
					  (uint64_t)clusters * cluster_size);
	for (uint32_t i = 0; !overlap && i < check->reftable_entries; i++)
		overlap = check->reftable[i] &&
			  q2_repair_overlaps(repair, check->reftable[i] & ~Q2_REFTABLE_ALIAS, cluster_size);
	return overlap;
}

int q2_repair_survey_counts(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	static const enum qcow2_problem structures[] = {
		QCOW2_PROBLEM_REFTABLE_MISSING,   QCOW2_PROBLEM_REFTABLE_RESERVED,
		QCOW2_PROBLEM_REFBLOCK_UNALIGNED, QCOW2_PROBLEM_REFBLOCK_OUTSIDE,
		QCOW2_PROBLEM_REFBLOCK_SHARED,
	};
	const struct q2_check *check = repair->check;
	const struct qcow2_header *h = check->header;
	(void)more;
	for (size_t i = 0; i < sizeof structures / sizeof *structures; i++)
		repair->beside |= check->report.found[structures[i]] &&
				  q2_repair_wants(repair, structures[i]);
	repair->beside |= repair->moves.count || repair->l1_moves ||
			  repair->order != repair->geo->refcount_order ||
			  (repair->pair && !(h->incompatible_features & Q2_INCOMPATIBLE_DIRTY)) ||
			  (repair->raise && !has_blocks(repair));
	/* What stays in a place that others claim must not be written there. */
	if (check->report.found[QCOW2_PROBLEM_OVERLAP] && (!repair->apart || counts_overlap(repair)))
		repair->beside = true;
	if (repair->beside)
		return 0;
	uint64_t table_bytes = (uint64_t)h->refcount_table_clusters << repair->geo->cluster_bits;
	int rc = 0;
	if (q2_scan_fits(check, h->refcount_table_offset, table_bytes))
		rc = q2_repair_refer(repair, h->refcount_table_offset, table_bytes, 1, err);
	for (uint32_t i = 0; !rc && i < check->reftable_entries; i++)
		if (check->reftable[i] && !(check->reftable[i] & Q2_REFTABLE_ALIAS))
			rc = q2_repair_refer(repair, check->reftable[i], repair->geo->cluster_size, 1, err);
	if (!rc)
		rc = q2_census_settle(&repair->will, err);
	repair->beside = !rc && repair->raise && !has_blocks(repair);
	return rc;
}

/* ---- in place ---------------------------------------------------------------------------------- */

/* Puts the counts of one block right: those that are too low when `raise`, else all. */
static int sweep_block(struct q2_repair *repair, uint64_t index, bool raise, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	uint64_t block = repair->check->reftable[index], first = index << g->refblock_bits;
	uint8_t *fresh = repair->table, *old = repair->buffer;
	if (!block || (block & Q2_REFTABLE_ALIAS) ||
	    !q2_fits(block, g->cluster_size, repair->check->file_length))
		return 0;
	repair->buffer_at = repair->buffer_end = 0;
	int rc = qcow2_store_read(repair->store, block, old, g->cluster_size, err);
	if (rc)
		return rc;
	memcpy(fresh, old, g->cluster_size);
	for (uint64_t i = 0; i < 1ull << g->refblock_bits; i++) {
		uint64_t stored = q2_refcount_get(old, i, g->refcount_order);
		/* What is counted behind the end of the file is leaked. */
		uint64_t count =
			first + i < repair->end
				? decide(repair, first + i, q2_census_get(&repair->will, first + i), stored)
			: repair->lower && !repair->incomplete &&
					!q2_check_points_outside(repair->check, repair->wanted)
				? 0
				: stored;
		if (count > stored || (count < stored && !raise))
			q2_refcount_set(fresh, i, g->refcount_order, count);
	}
	rc = q2_repair_write_changes(repair, block, old, fresh, g->cluster_size, err);
	q2_cache_forget(&repair->image->meta.cache, q2_host_at(block), g->cluster_size);
	return rc;
}

static int sweep(struct q2_repair *repair, bool raise, bool *more, struct qcow2_error *err)
{
	uint64_t entries = repair->check->reftable_entries;
	uint64_t stop = q2_min(repair->position + 64, entries);
	int rc = 0;
	for (; !rc && repair->position < stop; repair->position++)
		rc = sweep_block(repair, repair->position, raise, err);
	*more = repair->position < entries;
	return rc || *more ? rc : q2_writeback_barrier(&repair->image->meta, err);
}

int q2_repair_raise(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	struct q2_meta *meta = &repair->image->meta;
	if (repair->beside)
		return 0;
	/* Whoever writes clears what it does not know (specification, "autoclear_features"). */
	if (!repair->position && (meta->header.autoclear_features & ~Q2_AUTOCLEAR_KNOWN)) {
		meta->header.autoclear_features &= Q2_AUTOCLEAR_KNOWN;
		int rc = q2_writeback_header(meta, err);
		if (rc)
			return rc;
	}
	if (!repair->position && repair->reach > repair->check->file_length) {
		int rc = qcow2_store_resize(repair->store, repair->reach, err);
		if (rc)
			return rc;
	}
	return sweep(repair, true, more, err);
}

int q2_repair_lower(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	return repair->beside ? 0 : sweep(repair, false, more, err);
}

/* ---- built anew -------------------------------------------------------------------------------- */

/* The new table: by entry 0 none, 1 a block is needed, else its offset. */
struct blueprint {
	uint64_t *blocks;
	uint64_t room, count; /* entries of the array, of the table so far */
	uint64_t most;        /* entries that a table can have */
};

static int need_block(struct blueprint *print, uint64_t index, struct qcow2_error *err)
{
	if (index >= print->most)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "The reference count table would exceed %u bytes", Q2_MAX_REFTABLE_BYTES);
	if (index >= print->room) {
		uint64_t room = q2_min(print->most, q2_max(index + 1, print->room * 2));
		uint64_t *blocks = q2_new(room, sizeof *blocks);
		if (!blocks)
			return q2_error_nomem(err);
		if (print->blocks)
			memcpy(blocks, print->blocks, print->room * sizeof *blocks);
		free(print->blocks);
		print->blocks = blocks;
		print->room = room;
	}
	print->count = q2_max(print->count, index + 1);
	if (!print->blocks[index])
		print->blocks[index] = 1;
	return 0;
}

/* Blocks for the clusters of [start, start + count). */
static int need_blocks(const struct q2_repair *repair, struct blueprint *print, uint64_t start,
		       uint64_t count, struct qcow2_error *err)
{
	unsigned bits = repair->geo->cluster_bits + 3 - repair->order;
	int rc = 0;
	for (uint64_t i = start >> bits; !rc && i <= (start + count - 1) >> bits; i++)
		rc = need_block(print, i, err);
	return rc;
}

/* Blocks for all references, and for old counts that are kept. */
static int need_all(struct q2_repair *repair, struct blueprint *print, struct qcow2_error *err)
{
	const struct q2_check *check = repair->check;
	unsigned old_bits = repair->geo->refblock_bits;
	uint64_t start, count;
	uint32_t word;
	int rc = 0;
	for (next_run(repair, 0, &start, &count, &word); !rc && count;
	     next_run(repair, start + count, &start, &count, &word))
		rc = need_blocks(repair, print, start, count, err);
	for (uint64_t i = 0; !rc && !repair->exact && i < check->reftable_entries; i++) {
		uint64_t first = i << old_bits,
			 end = q2_min(first + (1ull << old_bits), repair->file_clusters);
		for (uint64_t c = first; !rc && check->reftable[i] && c < end; c++) {
			uint64_t final;
			rc = q2_repair_final(repair, c, &final, err);
			if (!rc && final)
				rc = need_blocks(repair, print, c, 1, err);
		}
	}
	return rc;
}

/* Takes clusters for the blocks and the table, until the blocks count all that was taken. */
static int place_blocks(struct q2_repair *repair, struct blueprint *print, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	uint64_t table_at = 0, table_bytes = 0;
	for (bool again = true; again;) {
		again = false;
		for (uint64_t i = 0; i < print->count; i++) {
			if (print->blocks[i] != 1)
				continue;
			uint64_t at;
			int rc = q2_repair_take(repair, g->cluster_size, 1, &at, err);
			if (!rc)
				rc = need_blocks(repair, print, at >> g->cluster_bits, 1, err);
			if (rc)
				return rc;
			print->blocks[i] = at;
			again = true;
		}
		uint64_t bytes = q2_round_up(print->count * 8, g->cluster_size);
		if (bytes > table_bytes) {
			int rc = table_bytes ? q2_repair_leave(repair, table_at, table_bytes, err) : 0;
			if (!rc)
				rc = q2_repair_take(repair, bytes, 1, &table_at, err);
			if (!rc)
				rc = need_blocks(repair, print, table_at >> g->cluster_bits,
						 bytes >> g->cluster_bits, err);
			if (rc)
				return rc;
			table_bytes = bytes;
			again = true;
		}
	}
	repair->header.refcount_table_offset = table_at;
	repair->header.refcount_table_clusters = (uint32_t)(table_bytes >> g->cluster_bits);
	return q2_census_settle(&repair->will, err);
}

static int write_block(struct q2_repair *repair, uint64_t index, uint64_t at, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	unsigned bits = g->cluster_bits + 3 - repair->order;
	uint64_t first = index << bits;
	memset(repair->table, 0, g->cluster_size);
	for (uint64_t i = 0; i < 1ull << bits && first + i < repair->end; i++) {
		uint64_t count;
		int rc = q2_repair_final(repair, first + i, &count, err);
		if (rc)
			return rc;
		if (count)
			q2_refcount_set(repair->table, i, repair->order,
					q2_min(count, q2_refcount_max(repair->order)));
	}
	return q2_repair_write(repair, at, repair->table, g->cluster_size, err);
}

int q2_repair_build_counts(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	if (!repair->beside)
		return 0;
	struct blueprint print = {.most = Q2_MAX_REFTABLE_BYTES / 8};
	int rc = q2_census_settle(&repair->will, err);
	if (!rc)
		rc = need_all(repair, &print, err);
	if (!rc)
		rc = place_blocks(repair, &print, err);
	for (uint64_t i = 0; !rc && i < print.count; i++)
		if (print.blocks[i])
			rc = write_block(repair, i, print.blocks[i], err);
	uint64_t bytes = rc ? 0
			    : (uint64_t)repair->header.refcount_table_clusters << repair->geo->cluster_bits;
	q2_auto uint8_t *table = q2_new(bytes, 1);
	if (!rc && !table)
		rc = q2_error_nomem(err);
	for (uint64_t i = 0; !rc && i < print.count; i++)
		q2_store64(table + i * 8, print.blocks[i]);
	if (!rc)
		rc = q2_repair_write(repair, repair->header.refcount_table_offset, table, bytes, err);
	free(print.blocks);
	return rc;
}
