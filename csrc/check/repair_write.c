/* SPDX-License-Identifier: MIT
 * L1 and L2 tables of a repair: written in place or beside. */
#include "check/repair.h"

#include "base/be.h"

#include <string.h>

/* ---- in place ---------------------------------------------------------------------------------- */

static int log_copied_l2(struct q2_repair *repair, uint64_t at, uint32_t index, uint64_t old, uint64_t word,
			 struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_COPIED_L2);
	uint64_t count = 1;
	int rc = 0;
	if (!(word & Q2_COPIED))
		rc = q2_repair_final(repair, (old & Q2_OFFSET_MASK) >> g->cluster_bits, &count, err);
	if (rc)
		return rc;
	finding.entry = old;
	finding.entry_offset = at;
	finding.index = index;
	finding.refcount = q2_min(count, Q2_WORD_COUNT);
	finding.host_offset = old & Q2_OFFSET_MASK;
	finding.host_length = g->cluster_size;
	finding.guest_offset = (uint64_t)index << (g->cluster_bits + g->l2_bits);
	finding.guest_length = 1ull << (g->cluster_bits + g->l2_bits);
	q2_report_add(&repair->copied, &finding);
	return 0;
}

/* Sets COPIED of all active L1 entries. needs: `will` is settled. */
static int flag_l1(struct q2_repair *repair, struct qcow2_error *err)
{
	int rc = 0;
	for (uint32_t i = 0; !rc && repair->l1 && i < repair->check->header->l1_size; i++) {
		uint64_t host = repair->l1[i] & Q2_OFFSET_MASK;
		if (host && host < repair->end << repair->geo->cluster_bits)
			rc = q2_repair_flag(repair, host >> repair->geo->cluster_bits, &repair->l1[i], err);
	}
	return rc;
}

/* Pieces of the active table, each compared with what it becomes. `write`: changed sectors are written. */
static int compare_l1(struct q2_repair *repair, bool write, bool *changed, struct qcow2_error *err)
{
	const struct qcow2_header *h = repair->check->header;
	uint64_t bytes = (uint64_t)h->l1_size * 8;
	q2_auto uint8_t *fresh = q2_new_pages(Q2_PIECE);
	if (!fresh)
		return q2_error_nomem(err);
	repair->buffer_at = repair->buffer_end = 0;
	for (uint64_t done = 0, part; repair->l1 && done < bytes; done += part) {
		part = q2_min(Q2_PIECE, bytes - done);
		uint64_t at = h->l1_table_offset + done;
		int rc = qcow2_store_read(repair->store, at, repair->buffer, part, err);
		for (uint64_t i = 0; !rc && i < part; i += 8) {
			uint32_t index = (uint32_t)((done + i) / 8);
			uint64_t old = q2_load64(repair->buffer + i), word = repair->l1[index];
			q2_store64(fresh + i, word);
			if (old == word)
				continue;
			*changed = true;
			if (((old ^ word) & Q2_COPIED) && (old & Q2_OFFSET_MASK) && (word & Q2_OFFSET_MASK))
				rc = log_copied_l2(repair, at + i, index, old, word, err);
		}
		if (!rc && write)
			rc = q2_repair_write_changes(repair, at, repair->buffer, fresh, part, err);
		if (rc)
			return rc;
	}
	return 0;
}

static int write_snapshot(struct q2_repair *repair, const struct q2_kept_snapshot *snapshot,
			  struct qcow2_error *err)
{
	struct q2_scan scan = {0};
	uint64_t at, length;
	int rc;
	q2_auto uint8_t *fresh = q2_new_pages(Q2_PIECE);
	if (!fresh)
		return q2_error_nomem(err);
	q2_scan_over(&scan, repair->check, snapshot->l1_at, (uint64_t)snapshot->l1_size * 8);
	repair->buffer_at = repair->buffer_end = 0;
	while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
		rc = q2_repair_spend(repair, length, err);
		if (!rc)
			rc = qcow2_store_read(repair->store, at, repair->buffer, length, err);
		if (rc)
			return rc;
		memcpy(fresh, repair->buffer, length);
		for (uint64_t i = 0; i + 8 <= length; i += 8)
			q2_store64(fresh + i, q2_repair_l1_entry(repair, q2_load64(fresh + i)));
		rc = q2_repair_write_changes(repair, at, repair->buffer, fresh, length, err);
		if (rc)
			return rc;
	}
	return rc;
}

static int write_one(struct q2_repair *repair, size_t number, struct qcow2_error *err)
{
	const uint8_t *old;
	bool changed;
	if (!repair->l2_fresh[number])
		return 0;
	int rc = q2_repair_mended_table(repair, number, true, &old, &changed, err);
	uint64_t at = q2_repair_table_at(repair, number)->at;
	/* What the file's end cuts is not made longer here. */
	uint64_t length = rc ? 0 : q2_min(repair->geo->cluster_size, repair->check->file_length - at);
	return rc ? rc : q2_repair_write_changes(repair, at, old, repair->table, length, err);
}

int q2_repair_write_entries(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	if (repair->beside)
		return 0;
	bool changed = false;
	int rc = q2_repair_each_table(repair, more, write_one, err);
	if (rc || *more)
		return rc;
	rc = flag_l1(repair, err);
	if (!rc)
		rc = compare_l1(repair, true, &changed, err);
	for (size_t i = 0; !rc && i < repair->snapshots.count; i++) {
		const struct q2_kept_snapshot *snapshot = (struct q2_kept_snapshot *)repair->snapshots.items +
							  i;
		if (snapshot->l1_size)
			rc = write_snapshot(repair, snapshot, err);
	}
	return rc ? rc : q2_writeback_barrier(&repair->image->meta, err);
}

/* ---- beside ------------------------------------------------------------------------------------ */

static int place_one(struct q2_repair *repair, size_t number, struct qcow2_error *err)
{
	const struct q2_l2_table *table = q2_repair_table_at(repair, number);
	uint32_t cluster_size = repair->geo->cluster_size;
	const uint8_t *old;
	bool changed;
	uint64_t at;
	if (!repair->l2_fresh[number])
		return 0;
	int rc = q2_repair_mended_table(repair, number, true, &old, &changed, err);
	/* Its references are the L1 entries', which are counted as they are changed. */
	if (!rc)
		rc = q2_repair_take(repair, cluster_size, 0, &at, err);
	if (!rc)
		rc = q2_repair_write(repair, at, repair->table, cluster_size, err);
	if (!rc)
		rc = q2_repair_leave(repair, table->at, cluster_size, err);
	if (!rc)
		repair->l2_fresh[number] = at;
	return rc;
}

int q2_repair_place_l2(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	return repair->beside ? q2_repair_each_table(repair, more, place_one, err) : 0;
}

/* The place that the L2 table of an entry has in the repaired image. */
static int follow(struct q2_repair *repair, uint64_t *entry, struct qcow2_error *err)
{
	uint64_t host = *entry & Q2_OFFSET_MASK;
	uint32_t cluster_size = repair->geo->cluster_size;
	if (!host || !q2_is_aligned(host, cluster_size))
		return 0;
	size_t number = q2_repair_find_table(repair, host);
	if (number == SIZE_MAX) {
		/* A hole of the host says nothing: no table says the same, and needs no other place. */
		bool cut = !q2_fits(host, cluster_size, repair->check->file_length) &&
			   q2_repair_asked(repair, QCOW2_PROBLEM_L2_OUTSIDE);
		if (cut || (repair->apart && q2_repair_overlaps(repair, host, cluster_size)))
			*entry = 0;
		return 0;
	}
	uint64_t fresh = repair->l2_fresh[number];
	if (!fresh)
		return 0;
	*entry = (*entry & ~Q2_OFFSET_MASK) | fresh;
	return q2_repair_refer(repair, fresh, cluster_size, 1, err);
}

/* A table of its own for an active entry that shares one with an earlier entry. */
static int copy_apart(struct q2_repair *repair, uint32_t index, uint64_t *entry, struct qcow2_error *err)
{
	size_t number = q2_repair_find_table(repair, *entry & Q2_OFFSET_MASK);
	uint32_t cluster_size = repair->geo->cluster_size;
	uint64_t at;
	if (number == SIZE_MAX) {
		*entry = 0;
		return 0;
	}
	int rc = q2_repair_mended_copy(repair, number, index, err);
	if (!rc)
		rc = q2_repair_take(repair, cluster_size, 1, &at, err);
	if (!rc)
		rc = q2_repair_write(repair, at, repair->table, cluster_size, err);
	if (!rc)
		*entry = (*entry & ~Q2_OFFSET_MASK) | at;
	return rc;
}

/* A table that says nothing but that guest cluster 0 is in the data file. */
static int make_first(struct q2_repair *repair, uint64_t *entry, struct qcow2_error *err)
{
	uint32_t cluster_size = repair->geo->cluster_size;
	uint64_t at, old = *entry & Q2_OFFSET_MASK;
	memset(repair->table, 0, cluster_size);
	q2_store64(repair->table, Q2_COPIED);
	if (repair->geo->extended_l2)
		q2_store64(repair->table + 8, UINT32_MAX);
	int rc = q2_repair_take(repair, cluster_size, 1, &at, err);
	if (!rc)
		rc = q2_repair_write(repair, at, repair->table, cluster_size, err);
	if (!rc && old)
		rc = q2_repair_leave(repair, old, cluster_size, err);
	if (!rc)
		*entry = at | Q2_COPIED;
	return rc;
}

static int place_active(struct q2_repair *repair, struct qcow2_error *err)
{
	const struct qcow2_header *h = repair->check->header;
	uint64_t bytes = (uint64_t)h->l1_size * 8, at;
	bool changed = repair->l1_moves;
	int rc = 0;
	for (uint32_t i = 0; !rc && i < h->l1_size; i++) {
		uint64_t *entry = &repair->l1[i];
		if (!i && q2_repair_is_lost(repair) &&
		    q2_repair_find_table(repair, *entry & Q2_OFFSET_MASK) == SIZE_MAX)
			rc = make_first(repair, entry, err);
		else if (q2_repair_is_extra(repair, i))
			rc = copy_apart(repair, i, entry, err);
		else
			rc = follow(repair, entry, err);
	}
	if (!rc)
		rc = q2_census_settle(&repair->will, err);
	if (!rc)
		rc = flag_l1(repair, err);
	if (!rc)
		rc = compare_l1(repair, false, &changed, err);
	if (rc || !changed)
		return rc;
	for (uint32_t i = 0; i < h->l1_size; i++)
		repair->l1[i] = htobe64(repair->l1[i]);
	rc = q2_repair_take(repair, bytes, 1, &at, err);
	if (!rc)
		rc = q2_repair_write(repair, at, repair->l1, bytes, err);
	if (!rc && !repair->l1_moves)
		rc = q2_repair_leave(repair, h->l1_table_offset, bytes, err);
	repair->header.l1_table_offset = at;
	return rc;
}

static int place_snapshot(struct q2_repair *repair, struct q2_kept_snapshot *snapshot,
			  struct qcow2_error *err)
{
	uint64_t bytes = (uint64_t)snapshot->l1_size * 8, fresh_bytes = (uint64_t)snapshot->l1_new * 8, at;
	bool moves = repair->apart && q2_repair_overlaps(repair, snapshot->l1_at, bytes);
	bool changed = moves || snapshot->l1_new != snapshot->l1_size;
	q2_auto uint64_t *l1 = q2_new(snapshot->l1_new, 8);
	if (!l1)
		return q2_error_nomem(err);
	int rc = q2_repair_spend(repair, bytes, err);
	if (!rc)
		rc = qcow2_store_read(repair->store, snapshot->l1_at, l1, bytes, err);
	for (uint32_t i = 0; !rc && i < snapshot->l1_size; i++) {
		uint64_t old = be64toh(l1[i]), entry = old ? q2_repair_l1_entry(repair, old) : 0;
		rc = entry ? follow(repair, &entry, err) : 0;
		changed |= entry != old;
		l1[i] = htobe64(entry);
	}
	if (rc || !changed)
		return rc;
	if (repair->snapshots_frozen)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The snapshot table is broken; it has to be repaired with the rest");
	rc = q2_repair_take(repair, fresh_bytes, 1, &at, err);
	if (!rc)
		rc = q2_repair_write(repair, at, l1, fresh_bytes, err);
	if (!rc && !moves)
		rc = q2_repair_leave(repair, snapshot->l1_at, bytes, err);
	if (rc)
		return rc;
	uint8_t *record = (uint8_t *)repair->snapshot_table.items + snapshot->record;
	q2_store64(record, at);
	q2_store32(record + 8, snapshot->l1_new);
	repair->snapshots_change = true;
	return 0;
}

int q2_repair_place_l1(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	if (!repair->beside)
		return 0;
	int rc = 0;
	for (size_t i = 0; !rc && i < repair->snapshots.count; i++) {
		struct q2_kept_snapshot *snapshot = (struct q2_kept_snapshot *)repair->snapshots.items + i;
		if (snapshot->l1_size)
			rc = place_snapshot(repair, snapshot, err);
	}
	return rc || !repair->l1 ? rc : place_active(repair, err);
}
