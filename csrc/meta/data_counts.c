/* SPDX-License-Identifier: MIT
 * Proves that no guest data has a count of 0: it would be handed out as free, and lost. */
#include "meta/meta.h"

#include "base/be.h"

#include <inttypes.h>
#include <string.h>

int q2_data_counts_table(struct q2_meta *meta, uint64_t at, struct qcow2_error *err)
{
	uint64_t *table = q2_vec_push(&meta->l2_tables, sizeof *table);
	if (!table)
		return q2_error_nomem(err);
	*table = at;
	return 0;
}

uint64_t q2_data_counts_cost(const struct q2_meta *meta)
{
	return (uint64_t)meta->l2_tables.count << meta->geo.cluster_bits;
}

static int prove_run(struct q2_meta *meta, uint64_t first, uint64_t count, struct qcow2_error *err)
{
	int rc = count ? q2_refcount_check(meta, first, count, -1, err) : 0;
	if (rc != QCOW2_E_CORRUPT)
		return rc;
	return q2_error_set(
		err, QCOW2_E_CORRUPT, first << meta->geo.cluster_bits,
		"Guest data in host range %#" PRIx64 "+%#" PRIx64
		" has a reference count of 0; the image has to be repaired before it is written to",
		first << meta->geo.cluster_bits, count << meta->geo.cluster_bits);
}

/* The clusters that the entries of one table refer to, by runs. */
static int prove_entries(struct q2_meta *meta, const uint8_t *table, struct qcow2_error *err)
{
	const struct q2_geometry *g = &meta->geo;
	uint64_t start = 0, run = 0;
	for (uint32_t j = 0; j < 1u << g->l2_bits; j++) {
		uint64_t word = q2_load64(table + (size_t)j * g->l2_entry_size);
		if (!word)
			continue;
		struct q2_entry e = q2_entry_decode(g, word, 0);
		uint64_t first, n = q2_entry_clusters(g, &e, &first);
		if (!n)
			continue;
		if (first == start + run || (e.compressed && first + 1 == start + run)) {
			run = first + n - start;
			continue;
		}
		int rc = prove_run(meta, start, run, err);
		if (rc)
			return rc;
		start = first;
		run = n;
	}
	return prove_run(meta, start, run, err);
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

int q2_data_counts_prove(struct q2_meta *meta, struct qcow2_error *err)
{
	uint64_t *tables = meta->l2_tables.items, last = 0;
	q2_auto uint8_t *table = q2_new_pages(meta->geo.cluster_size);
	int rc = table ? 0 : q2_error_nomem(err);
	/* Those that snapshots share are read once. */
	if (meta->l2_tables.count)
		qsort(tables, meta->l2_tables.count, sizeof *tables, compare_u64);
	for (size_t i = 0; i < meta->l2_tables.count && !rc; i++) {
		uint64_t count;
		if (tables[i] == last)
			continue;
		last = tables[i];
		rc = q2_refcount_read(meta, last >> meta->geo.cluster_bits, &count, err);
		/* Every one had a count in the beginning: this one was let go of since, and what it says with it. */
		if (!rc && !count)
			continue;
		uint64_t zeros = 0;
		if (!rc)
			rc = q2_meta_zeros(meta, last, meta->geo.cluster_size, &zeros, err);
		if (!rc && zeros == meta->geo.cluster_size)
			continue;
		if (!rc)
			rc = qcow2_store_read(meta->store, last, table, meta->geo.cluster_size, err);
		if (!rc)
			rc = prove_entries(meta, table, err);
	}
	if (rc)
		return rc;
	meta->unproven = 0;
	q2_vec_free(&meta->l2_tables);
	return 0;
}
