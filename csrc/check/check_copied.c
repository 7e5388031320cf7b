/* SPDX-License-Identifier: MIT
 * Which entries of the active tables have a COPIED flag that does not fit the stored refcount. Runs only when
 * the comparison met a cluster where that is so. */
#include "check/check.h"

#include "base/be.h"

#define UNITS 32u

static int by_start(const void *a, const void *b)
{
	const struct q2_run_of_words *x = a, *y = b;
	return x->start < y->start ? -1 : x->start > y->start;
}

/* Is the flag of an entry that points at `host` wrong? *stored: the refcount it was judged by. */
static bool is_wrong(const struct q2_check *check, uint64_t host, uint64_t entry, uint64_t *stored)
{
	const struct q2_census *census = &check->census;
	uint64_t cluster = host >> check->geo->cluster_bits;
	if (!host || host >= check->file_length)
		return false;
	if (cluster < census->dense_count) {
		uint32_t word = q2_census_near(census, cluster);
		if (!(word & Q2_WORD_WRONG))
			return false;
		*stored = word & Q2_WORD_COUNT;
	} else {
		const struct q2_run_of_words *runs = check->far_wrong.items;
		size_t low = 0, high = check->far_wrong.count;
		while (low < high) {
			size_t middle = low + (high - low) / 2;
			if (runs[middle].start + runs[middle].count > cluster)
				high = middle;
			else
				low = middle + 1;
		}
		if (low == check->far_wrong.count || runs[low].start > cluster)
			return false;
		*stored = runs[low].word;
	}
	return (*stored == 1) != ((entry & Q2_COPIED) != 0);
}

static void judge_l1(struct q2_check *check, const uint8_t *bytes, uint64_t at, uint64_t length)
{
	const struct q2_geometry *g = check->geo;
	unsigned span = g->cluster_bits + g->l2_bits;
	for (uint64_t i = 0; i + 8 <= length; i += 8) {
		uint64_t entry = q2_load64(bytes + i), host = entry & Q2_OFFSET_MASK, stored;
		if (!is_wrong(check, host, entry, &stored))
			continue;
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_COPIED_L2);
		finding.entry = entry;
		finding.entry_offset = at + i;
		finding.index = (at + i - check->header->l1_table_offset) / 8;
		finding.refcount = stored;
		finding.host_offset = host;
		finding.host_length = g->cluster_size;
		finding.guest_offset = finding.index << span;
		finding.guest_length = 1ull << span;
		q2_report_add(&check->report, &finding);
	}
}

static int walk_l1(struct q2_check *check, struct qcow2_error *err)
{
	const struct qcow2_header *h = check->header;
	uint64_t bytes = (uint64_t)h->l1_size * 8, at, length;
	struct q2_scan scan = {0};
	bool unread;
	int rc;
	if (!q2_scan_fits(check, h->l1_table_offset, bytes))
		return 0;
	q2_scan_over(&scan, check, h->l1_table_offset, bytes);
	while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
		q2_scan_read(check, &check->report, at, check->hands[0].buffer, length, &unread);
		judge_l1(check, check->hands[0].buffer, at, length);
	}
	return rc;
}

static void judge_entries(struct q2_check *check, struct q2_report *report, const struct q2_l2_table *table,
			  const uint8_t *bytes, uint64_t length, uint64_t index)
{
	const struct q2_geometry *g = check->geo;
	for (uint64_t i = 0; i + g->l2_entry_size <= length; i += g->l2_entry_size, index++) {
		uint64_t word = q2_load64(bytes + i), stored;
		if ((word & Q2_COMPRESSED) || !is_wrong(check, word & Q2_OFFSET_MASK, word, &stored))
			continue;
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_COPIED_DATA);
		finding.count = table->active;
		finding.entry = word;
		if (g->extended_l2)
			finding.bitmap = q2_load64(bytes + i + 8);
		finding.entry_offset = table->at + index * g->l2_entry_size;
		finding.index = index;
		finding.refcount = stored;
		finding.host_offset = word & Q2_OFFSET_MASK;
		finding.host_length = g->cluster_size;
		finding.guest_offset = (((uint64_t)table->l1_index << g->l2_bits) + index) << g->cluster_bits;
		finding.guest_length = g->cluster_size;
		q2_report_add(report, &finding);
	}
}

static size_t tables_a_unit(const struct q2_check *check)
{
	return q2_max(Q2_PIECE >> check->geo->cluster_bits, 1);
}

static int walk_unit(struct q2_check *check, struct q2_hand *hand, size_t unit, struct q2_report *report,
		     struct qcow2_error *err)
{
	const struct q2_l2_table *list = check->l2.items;
	size_t each = tables_a_unit(check), end = q2_min((unit + 1) * each, check->l2.count);
	struct q2_scan scan = {0};
	for (size_t i = unit * each; i < end; i++) {
		uint64_t at, length;
		bool unread;
		int rc;
		if (!list[i].active)
			continue;
		q2_scan_over(&scan, check, list[i].at,
			     q2_min(check->geo->cluster_size, check->file_length - list[i].at));
		while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
			q2_scan_read(check, report, at, hand->buffer, length, &unread);
			judge_entries(check, report, &list[i], hand->buffer, length,
				      (at - list[i].at) / check->geo->l2_entry_size);
		}
		if (rc)
			return rc;
	}
	return 0;
}

int q2_check_copied(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	/* The guest's clusters of an external data file are not counted: check_tables.c has judged them. */
	if (!check->wrong)
		return 0;
	if (!check->position) {
		if (check->far_wrong.count)
			qsort(check->far_wrong.items, check->far_wrong.count, sizeof(struct q2_run_of_words),
			      by_start);
		int rc = walk_l1(check, err);
		if (rc || check->geo->external_data)
			return rc;
	}
	size_t units = q2_div_up(check->l2.count, tables_a_unit(check));
	size_t count = q2_min(UNITS, units - check->position);
	int rc = q2_scan_units(check, walk_unit, check->position, count, err);
	check->position += count;
	*more = check->position < units;
	return rc;
}
