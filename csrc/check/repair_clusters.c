/* SPDX-License-Identifier: MIT
 * The clusters of a repair: which will be referred to, which it takes, what it writes, what it may read. */
#include "check/repair.h"

#include <string.h>

#define SECTOR ((uint64_t)512)

bool q2_repair_overlaps(const struct q2_repair *repair, uint64_t at, uint64_t length)
{
	unsigned bits = repair->geo->cluster_bits;
	uint64_t end = q2_min(((at + length - 1) >> bits) + 1, repair->file_clusters);
	for (uint64_t c = at >> bits; c < end; c++)
		if (q2_census_get(&repair->check->census, c) & Q2_WORD_OVERLAP)
			return true;
	return false;
}

/* Adds the word to the clusters of [at, at + length). */
static int add(struct q2_repair *repair, uint64_t at, uint64_t length, uint32_t word, struct qcow2_error *err)
{
	unsigned bits = repair->geo->cluster_bits;
	uint64_t first = at >> bits, clusters = repair->will.clusters;
	if (!length || first >= clusters)
		return 0;
	uint64_t last = q2_min((at + length - 1) >> bits, clusters - 1);
	return q2_census_add(&repair->will, first, last - first + 1, word, err);
}

int q2_repair_refer(struct q2_repair *repair, uint64_t at, uint64_t length, uint64_t times,
		    struct qcow2_error *err)
{
	return add(repair, at, length, q2_census_word(Q2_OWNER_DATA, 0, times), err);
}

void q2_repair_keep_out(struct q2_repair *repair, uint64_t at)
{
	repair->limit = q2_min(repair->limit, q2_max(at >> repair->geo->cluster_bits, repair->file_clusters));
}

int q2_repair_leave(struct q2_repair *repair, uint64_t at, uint64_t length, struct qcow2_error *err)
{
	uint32_t cluster_size = repair->geo->cluster_size;
	int rc = 0;
	for (uint64_t pos = q2_round_down(at, cluster_size); !rc && pos < at + length; pos += cluster_size)
		if (!q2_repair_overlaps(repair, pos, cluster_size))
			rc = add(repair, pos, cluster_size, q2_census_word(Q2_OWNER_DATA, Q2_WORD_GONE, 0),
				 err);
	return rc;
}

static bool is_free(const struct q2_repair *repair, uint64_t cluster)
{
	/* What reaches a cluster through a table that cannot be followed is not known. */
	if (cluster < repair->file_clusters &&
	    (repair->check->report.sum.incomplete || q2_census_get(&repair->check->census, cluster)))
		return false;
	return !q2_census_get(&repair->will, cluster);
}

int q2_repair_take(struct q2_repair *repair, uint64_t bytes, uint64_t refs, uint64_t *at,
		   struct qcow2_error *err)
{
	unsigned bits = repair->geo->cluster_bits;
	uint64_t want = q2_div_up(bytes, repair->geo->cluster_size), run = 0, c = repair->cursor;
	/* The census answers only for what it has sorted in; a look ahead never comes back to what was taken. */
	for (; run < want && c < repair->limit; c++)
		run = is_free(repair, c) ? run + 1 : 0;
	if (run < want)
		return q2_error_set(
			err, QCOW2_E_CONFLICT, c << bits,
			"There is no room for new tables: the file must not grow over the place of a "
			"table that lies outside it (repairs that lose something have to be asked for)");
	if (want << bits > repair->room_budget)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "Too many entries share one place for each to get one of its own");
	repair->room_budget -= want << bits;
	repair->cursor = c;
	repair->end = q2_max(repair->end, c);
	*at = (c - want) << bits;
	return add(repair, *at, want << bits, q2_census_word(Q2_OWNER_DATA, Q2_WORD_FRESH, refs), err);
}

int q2_repair_write(struct q2_repair *repair, uint64_t at, const void *bytes, uint64_t length,
		    struct qcow2_error *err)
{
	return qcow2_store_write(repair->store, at, bytes, length, err);
}

int q2_repair_write_changes(struct q2_repair *repair, uint64_t at, const uint8_t *old, const uint8_t *bytes,
			    uint64_t length, struct qcow2_error *err)
{
	uint64_t from = 0, to = 0; /* changed, not yet written */
	int rc = 0;
	for (uint64_t pos = 0, next; !rc && pos < length; pos = next) {
		next = q2_min(q2_round_down(at + pos, SECTOR) + SECTOR - at, length);
		if (!memcmp(old + pos, bytes + pos, next - pos))
			continue;
		if (pos != to) {
			rc = to > from ? q2_repair_write(repair, at + from, bytes + from, to - from, err) : 0;
			from = pos;
		}
		to = next;
	}
	return rc || to == from ? rc : q2_repair_write(repair, at + from, bytes + from, to - from, err);
}

int q2_repair_spend(struct q2_repair *repair, uint64_t bytes, struct qcow2_error *err)
{
	if (bytes > repair->read_budget)
		return q2_error_set(
			err, QCOW2_E_RANGE, Q2_NO_OFFSET,
			"Too many tables share their place with others to be repaired one by one");
	repair->read_budget -= bytes;
	return 0;
}
