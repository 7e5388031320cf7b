/* SPDX-License-Identifier: MIT
 * L1 and L2 tables of a repair: counted as they will be, and looked at for what changes. */
#include "check/repair.h"

#include "base/be.h"

#include <string.h>

/* So many bytes of tables are worked on between two looks at the clock. */
#define SHARE ((uint64_t)4 << 20)

/* ---- L1: counting ------------------------------------------------------------------------------ */

/* One entry that is not 0 and is no second one for its table. */
static int plan_entry(struct q2_repair *repair, uint64_t entry, struct qcow2_error *err)
{
	uint64_t host = q2_repair_l1_entry(repair, entry) & Q2_OFFSET_MASK, old = entry & Q2_OFFSET_MASK;
	uint32_t cluster_size = repair->geo->cluster_size;
	/* Until the switch nothing may get where a table is said to be. */
	if (!host)
		return old < repair->check->file_length ? 0
							: q2_repair_refer(repair, old, cluster_size, 0, err);
	if (!q2_is_aligned(host, cluster_size)) {
		repair->incomplete = true;
	} else if (!q2_fits(host, cluster_size, repair->check->file_length)) {
		if (q2_repair_asked(repair, QCOW2_PROBLEM_L2_OUTSIDE)) {
			repair->beside = true; /* cut by the file's end: what is left of it moves */
			return 0;
		}
		repair->incomplete = true;
		q2_repair_keep_out(repair, host);
	} else if (repair->apart && q2_repair_overlaps(repair, host, cluster_size)) {
		repair->beside = true; /* it moves, and is counted where it goes */
		return 0;
	}
	return q2_repair_refer(repair, host, cluster_size, 1, err);
}

struct table_row {
	uint64_t at;
	uint32_t index;
};

static int by_place(const void *a, const void *b)
{
	const struct table_row *x = a, *y = b;
	if (x->at != y->at)
		return x->at < y->at ? -1 : 1;
	return x->index < y->index ? -1 : x->index > y->index;
}

/* Marks the active entries whose L2 table an earlier entry has. */
static int find_extra(struct q2_repair *repair, struct qcow2_error *err)
{
	uint32_t entries = repair->check->header->l1_size, count = 0;
	q2_auto struct table_row *places = q2_new(entries, sizeof *places);
	repair->l1_extra = q2_new(entries, 1);
	if (!places || !repair->l1_extra)
		return q2_error_nomem(err);
	for (uint32_t i = 0; i < entries; i++) {
		uint64_t host = repair->l1[i] & Q2_OFFSET_MASK;
		/* What cannot be followed has its own fate. */
		if (q2_scan_fits(repair->check, host, repair->geo->cluster_size))
			places[count++] = (struct table_row){host, i};
	}
	if (count)
		qsort(places, count, sizeof *places, by_place);
	for (uint32_t i = 1; i < count; i++)
		repair->l1_extra[places[i].index] = places[i].at == places[i - 1].at;
	repair->beside = true;
	return 0;
}

bool q2_repair_is_extra(const struct q2_repair *repair, uint32_t index)
{
	return repair->l1_extra && repair->l1_extra[index];
}

bool q2_repair_is_lost(const struct q2_repair *repair)
{
	return repair->check->report.found[QCOW2_PROBLEM_DATA_FILE_LOST] &&
	       q2_repair_wants(repair, QCOW2_PROBLEM_DATA_FILE_LOST);
}

static int plan_active(struct q2_repair *repair, struct qcow2_error *err)
{
	const struct qcow2_header *h = repair->check->header;
	uint64_t at = h->l1_table_offset, bytes = (uint64_t)h->l1_size * 8;
	if (!bytes)
		return 0;
	if (!q2_scan_fits(repair->check, at, bytes)) {
		repair->incomplete = true;
		if (q2_is_aligned(at, repair->geo->cluster_size) &&
		    !q2_fits(at, bytes, repair->check->file_length))
			q2_repair_keep_out(repair, at);
		return q2_repair_refer(repair, at, bytes, 1, err);
	}
	repair->l1 = q2_new(h->l1_size, 8);
	if (!repair->l1)
		return q2_error_nomem(err);
	int rc = qcow2_store_read(repair->store, at, repair->l1, bytes, err);
	for (uint32_t i = 0; !rc && i < h->l1_size; i++)
		repair->l1[i] = be64toh(repair->l1[i]);
	if (!rc && repair->check->report.found[QCOW2_PROBLEM_L2_SHARED] &&
	    q2_repair_wants(repair, QCOW2_PROBLEM_L2_SHARED))
		rc = find_extra(repair, err);
	for (uint32_t i = 0; !rc && i < h->l1_size; i++)
		if (repair->l1[i] && !q2_repair_is_extra(repair, i))
			rc = plan_entry(repair, repair->l1[i], err);
	for (uint32_t i = 0; !rc && i < h->l1_size; i++)
		if (repair->l1[i])
			repair->l1[i] = q2_repair_l1_entry(repair, repair->l1[i]);
	repair->l1_moves = repair->apart && q2_repair_overlaps(repair, at, bytes);
	if (!rc && !repair->l1_moves)
		rc = q2_repair_refer(repair, at, bytes, 1, err);
	return rc;
}

static int plan_snapshot(struct q2_repair *repair, const struct q2_kept_snapshot *snapshot,
			 struct qcow2_error *err)
{
	uint64_t bytes = (uint64_t)snapshot->l1_size * 8, at, length;
	struct q2_scan scan = {0};
	int rc;
	q2_scan_over(&scan, repair->check, snapshot->l1_at, bytes);
	while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
		rc = q2_repair_spend(repair, length, err);
		if (!rc)
			rc = qcow2_store_read(repair->store, at, repair->buffer, length, err);
		for (uint64_t i = 0; !rc && i + 8 <= length; i += 8) {
			uint64_t entry = q2_load64(repair->buffer + i);
			rc = entry ? plan_entry(repair, entry, err) : 0;
		}
		if (rc)
			return rc;
	}
	if (rc)
		return rc;
	if (repair->apart && q2_repair_overlaps(repair, snapshot->l1_at, bytes)) {
		repair->beside = true;
		return 0;
	}
	return q2_repair_refer(repair, snapshot->l1_at, bytes, 1, err);
}

int q2_repair_plan_l1(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	int rc = plan_active(repair, err);
	for (size_t i = 0; !rc && i < repair->snapshots.count; i++) {
		const struct q2_kept_snapshot *snapshot = (struct q2_kept_snapshot *)repair->snapshots.items +
							  i;
		if (snapshot->l1_size)
			rc = plan_snapshot(repair, snapshot, err);
	}
	repair->l2_fresh = rc ? NULL : q2_new(repair->check->l2.count, sizeof *repair->l2_fresh);
	return rc || repair->l2_fresh ? rc : q2_error_nomem(err);
}

/* ---- L2 ---------------------------------------------------------------------------------------- */

size_t q2_repair_find_table(const struct q2_repair *repair, uint64_t host)
{
	size_t low = 0, high = repair->check->l2.count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (q2_repair_table_at(repair, middle)->at < host)
			low = middle + 1;
		else
			high = middle;
	}
	return low < repair->check->l2.count && q2_repair_table_at(repair, low)->at == host ? low : SIZE_MAX;
}

/* gives: the table's bytes, as the file has them; tables behind it are read along. */
static int load_table(struct q2_repair *repair, size_t number, const uint8_t **bytes, struct qcow2_error *err)
{
	unsigned bits = repair->geo->cluster_bits;
	uint64_t at = q2_repair_table_at(repair, number)->at;
	size_t most = q2_max(Q2_PIECE >> bits, 1), count = 1;
	if (at < repair->buffer_at || at + repair->geo->cluster_size > repair->buffer_end) {
		while (count < most && number + count < repair->check->l2.count &&
		       q2_repair_table_at(repair, number + count)->at == at + ((uint64_t)count << bits))
			count++;
		repair->buffer_at = repair->buffer_end = 0;
		int rc = qcow2_store_read(repair->store, at, repair->buffer, count << bits, err);
		if (rc)
			return rc;
		repair->buffer_at = at;
		repair->buffer_end = at + ((uint64_t)count << bits);
	}
	*bytes = repair->buffer + (at - repair->buffer_at);
	return 0;
}

/* Entry `index` of a table, mended; false: there is none and there will be none. */
static bool mend(const struct q2_repair *repair, const struct q2_l2_table *table, const uint8_t *bytes,
		 uint32_t index, uint64_t *word, uint64_t *bitmap, struct q2_mended *out)
{
	const struct q2_geometry *g = repair->geo;
	const uint8_t *entry = bytes + (size_t)index * g->l2_entry_size;
	*word = q2_load64(entry);
	*bitmap = g->extended_l2 ? q2_load64(entry + 8) : 0;
	bool first = !index && !table->l1_index && table->active && q2_repair_is_lost(repair);
	if (!(*word | *bitmap) && !first)
		return false;
	uint64_t guest = (((uint64_t)table->l1_index << g->l2_bits) + index) << g->cluster_bits;
	q2_repair_entry(repair, guest, first, *word, *bitmap, out);
	return true;
}

/* What the old entry shows behind the file's end are zeros; until the switch nothing else may get there. */
static int reserve(struct q2_repair *repair, uint64_t word, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	uint64_t host = word & Q2_OFFSET_MASK, length = g->cluster_size;
	if (word & Q2_COMPRESSED) {
		struct q2_entry e = q2_entry_decode(g, word, 0);
		host = e.host.v;
		length = e.host_length;
	}
	return g->external_data || host < repair->check->file_length
		       ? 0
		       : q2_repair_refer(repair, host, length, 0, err);
}

static int plan_table(struct q2_repair *repair, const struct q2_l2_table *table, const uint8_t *bytes,
		      struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	uint64_t start = 0, end = 0, word, bitmap;
	int rc = 0;
	for (uint32_t i = 0; !rc && i < 1u << g->l2_bits; i++) {
		struct q2_mended m;
		if (!mend(repair, table, bytes, i, &word, &bitmap, &m))
			continue;
		rc = reserve(repair, word, err);
		if (rc || !m.length)
			continue;
		if (m.key) {
			rc = q2_repair_move(repair, m.key, table->times, err);
		} else if (m.at == end && !m.compressed && q2_is_aligned(m.at, g->cluster_size)) {
			end += m.length;
		} else {
			rc = q2_repair_refer(repair, start, end - start, table->times, err);
			start = m.at;
			end = m.at + m.length;
			/* Parts of clusters do not add up to a run. */
			if (!rc && (m.compressed || !q2_is_aligned(m.at, g->cluster_size))) {
				rc = q2_repair_refer(repair, start, end - start, table->times, err);
				start = end = 0;
			}
			/* A stream that the file's end cuts is made whole by a longer file. */
			if (m.compressed && m.at < repair->check->file_length &&
			    q2_repair_wants(repair, QCOW2_PROBLEM_COMPRESSED_OUTSIDE))
				repair->reach = q2_max(repair->reach, m.at + m.length);
		}
	}
	return rc ? rc : q2_repair_refer(repair, start, end - start, table->times, err);
}

int q2_repair_each_table(struct q2_repair *repair, bool *more,
			 int (*work)(struct q2_repair *, size_t, struct qcow2_error *),
			 struct qcow2_error *err)
{
	size_t count = q2_max(SHARE >> repair->geo->cluster_bits, 1);
	size_t end = q2_min(repair->position + count, repair->check->l2.count);
	int rc = 0;
	for (; !rc && repair->position < end; repair->position++) {
		rc = work(repair, repair->position, err);
		repair->done += repair->geo->cluster_size;
	}
	*more = repair->position < repair->check->l2.count;
	return rc;
}

static int plan_one(struct q2_repair *repair, size_t number, struct qcow2_error *err)
{
	const uint8_t *bytes;
	int rc = load_table(repair, number, &bytes, err);
	return rc ? rc : plan_table(repair, q2_repair_table_at(repair, number), bytes, err);
}

int q2_repair_plan_l2(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	return q2_repair_each_table(repair, more, plan_one, err);
}

static int log_copied(struct q2_repair *repair, const struct q2_l2_table *table, uint32_t index, uint64_t old,
		      uint64_t word, uint64_t bitmap, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	uint64_t host = old & Q2_OFFSET_MASK;
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_COPIED_DATA);
	finding.entry = old;
	finding.bitmap = g->extended_l2 ? bitmap : QCOW2_NONE;
	finding.entry_offset = table->at + (uint64_t)index * g->l2_entry_size;
	finding.index = index;
	finding.host_offset = host;
	finding.host_length = g->cluster_size;
	finding.guest_offset = (((uint64_t)table->l1_index << g->l2_bits) + index) << g->cluster_bits;
	finding.guest_length = g->cluster_size;
	/* Set says: there is one reference. What the clearing of the flag stands for is known there alone. */
	uint64_t count = 1;
	int rc = 0;
	if (!(word & Q2_COPIED))
		rc = q2_repair_final(repair, host >> g->cluster_bits, &count, err);
	finding.refcount = q2_min(count, Q2_WORD_COUNT);
	if (!rc)
		q2_report_add(&repair->copied, &finding);
	return rc;
}

/* The word's place and COPIED flag. */
static int settle_word(struct q2_repair *repair, const struct q2_l2_table *table, const struct q2_mended *m,
		       uint64_t *word, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	const struct q2_move *move = m->key ? q2_repair_find_move(repair, m->key) : NULL;
	if (move && m->compressed) {
		uint64_t mask = (1ull << (62 - (g->cluster_bits - 8))) - 1;
		*word = (*word & ~mask) | (move->fresh + (m->at & (g->cluster_size - 1)));
	} else if (move) {
		*word = (*word & ~(Q2_OFFSET_MASK | Q2_COPIED)) | move->fresh;
		if (table->active && move->refs == 1)
			*word |= Q2_COPIED;
	} else if (m->length && !m->compressed && table->active && m->at < repair->check->file_length) {
		return q2_repair_flag(repair, m->at >> g->cluster_bits, word, err);
	}
	return 0;
}

/* Repairs a table in `bytes`. `log`: it will be written, so what it gets is told. */
static int mend_table(struct q2_repair *repair, const struct q2_l2_table *table, uint8_t *bytes, bool log,
		      bool *changed, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	uint64_t old, old_bitmap;
	*changed = false;
	for (uint32_t i = 0; i < 1u << g->l2_bits; i++) {
		struct q2_mended m;
		if (!mend(repair, table, bytes, i, &old, &old_bitmap, &m))
			continue;
		uint64_t word = m.word;
		int rc = settle_word(repair, table, &m, &word, err);
		if (rc)
			return rc;
		if (word == old && m.bitmap == old_bitmap && !m.key)
			continue;
		bool stayed = !((word ^ old) & Q2_OFFSET_MASK) && !(old & Q2_COMPRESSED);
		if (log && stayed && ((word ^ old) & Q2_COPIED) && (old | old_bitmap) && !m.key)
			rc = log_copied(repair, table, i, old, word, old_bitmap, err);
		if (rc)
			return rc;
		*changed = true;
		q2_store64(bytes + (size_t)i * g->l2_entry_size, word);
		if (g->extended_l2)
			q2_store64(bytes + (size_t)i * g->l2_entry_size + 8, m.bitmap);
	}
	return 0;
}

int q2_repair_mended_table(struct q2_repair *repair, size_t number, bool log, const uint8_t **old,
			   bool *changed, struct qcow2_error *err)
{
	int rc = load_table(repair, number, old, err);
	if (rc)
		return rc;
	memcpy(repair->table, *old, repair->geo->cluster_size);
	return mend_table(repair, q2_repair_table_at(repair, number), repair->table, log, changed, err);
}

int q2_repair_mended_copy(struct q2_repair *repair, size_t number, uint32_t l1_index, struct qcow2_error *err)
{
	struct q2_l2_table copy = *q2_repair_table_at(repair, number);
	const uint8_t *old;
	bool changed;
	int rc = load_table(repair, number, &old, err);
	if (rc)
		return rc;
	memcpy(repair->table, old, repair->geo->cluster_size);
	copy.l1_index = l1_index;
	return mend_table(repair, &copy, repair->table, false, &changed, err);
}

static int survey_one(struct q2_repair *repair, size_t number, struct qcow2_error *err)
{
	const struct q2_l2_table *table = q2_repair_table_at(repair, number);
	uint32_t cluster_size = repair->geo->cluster_size;
	const uint8_t *old;
	bool changed;
	int rc = q2_repair_mended_table(repair, number, false, &old, &changed, err);
	bool cut = !q2_fits(table->at, cluster_size, repair->check->file_length) &&
		   q2_repair_asked(repair, QCOW2_PROBLEM_L2_OUTSIDE);
	bool moves = repair->apart && q2_repair_overlaps(repair, table->at, cluster_size);
	repair->l2_fresh[number] = changed || cut || moves;
	return rc;
}

int q2_repair_survey(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	return q2_repair_each_table(repair, more, survey_one, err);
}

/* Where COPIED of an active L1 entry follows a count that goes down to one. */
int q2_repair_survey_l1(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	int rc = 0;
	for (uint32_t i = 0; !rc && repair->l1 && i < repair->check->header->l1_size; i++) {
		uint64_t host = repair->l1[i] & Q2_OFFSET_MASK, word = repair->l1[i];
		if (host && host < repair->check->file_length)
			rc = q2_repair_flag(repair, host >> repair->geo->cluster_bits, &word, err);
	}
	/* A table is made for the entry. */
	if (q2_repair_is_lost(repair) && repair->l1 &&
	    q2_repair_find_table(repair, repair->l1[0] & Q2_OFFSET_MASK) == SIZE_MAX)
		repair->beside = true;
	return rc;
}
