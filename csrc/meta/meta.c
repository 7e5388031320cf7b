/* SPDX-License-Identifier: MIT
 * Bounds and whole-table reads that every table needs. */
#include "meta/meta.h"

#include "store/store.h"

#include "base/be.h"
#include "base/mem.h"

#include <inttypes.h>

int q2_span_push(struct q2_vec *list, uint64_t start, uint64_t count, struct qcow2_error *err)
{
	struct q2_span *last = list->count ? (struct q2_span *)list->items + list->count - 1 : NULL;
	if (last && last->start + last->count == start) {
		last->count += count;
		return 0;
	}
	struct q2_span *span = q2_vec_push(list, sizeof *span);
	if (!span)
		return q2_error_nomem(err);
	*span = (struct q2_span){start, count};
	return 0;
}

void q2_meta_free(struct q2_meta *meta)
{
	q2_cache_free(&meta->cache);
	free(meta->reftable);
	meta->reftable = NULL;
	q2_live_metadata_free(&meta->live);
	q2_vec_free(&meta->l2_tables);
	q2_vec_free(&meta->l1_words);
	q2_vec_free(&meta->reftable_words);
	q2_vec_free(&meta->pending_free);
	q2_vec_free(&meta->pending_punch);
}

int q2_meta_bound(const struct q2_meta *meta, const char *what, uint64_t at, uint64_t bytes,
		  struct qcow2_error *err)
{
	uint32_t cluster_size = meta->geo.cluster_size;
	if (!q2_is_aligned(at, cluster_size))
		return q2_error_set(err, QCOW2_E_CORRUPT, at,
				    "%s at offset %#" PRIx64 " is not aligned to a cluster", what, at);
	if (at < cluster_size)
		return q2_error_set(err, QCOW2_E_CORRUPT, at, "%s at offset %#" PRIx64 " overlaps the header",
				    what, at);
	if (!q2_fits(at, bytes, meta->file_length))
		return q2_error_set(err, QCOW2_E_CORRUPT, at,
				    "%s at offset %#" PRIx64 " (%" PRIu64
				    " bytes) lies outside the file of %" PRIu64 " bytes",
				    what, at, bytes, meta->file_length);
	return 0;
}

int q2_meta_zeros(struct q2_meta *meta, uint64_t at, uint64_t limit, uint64_t *length,
		  struct qcow2_error *err)
{
	uint64_t changes = q2_store_changes(meta->store);
	*length = 0;
	if (at >= meta->file_length)
		return 0;
	if (at < meta->seen.from || at >= meta->seen.to || changes != meta->seen.changes) {
		uint64_t run;
		bool is_data;
		int rc = qcow2_store_extent(meta->store, at, meta->file_length - at, &is_data, &run, err);
		if (rc)
			return rc;
		meta->seen.from = at;
		meta->seen.to = at + run;
		meta->seen.changes = changes;
		meta->seen.is_data = is_data;
	}
	if (!meta->seen.is_data)
		*length = q2_cache_unchanged(&meta->cache, q2_host_at(at), q2_min(limit, meta->seen.to - at));
	return 0;
}

int q2_meta_next_data(struct q2_meta *meta, uint64_t at, uint64_t end, uint64_t *start, uint64_t *length,
		      struct qcow2_error *err)
{
	uint64_t zeros = 0;
	int rc = 0;
	while (!rc && at < end) {
		rc = q2_meta_zeros(meta, at, end - at, &zeros, err);
		if (rc || !zeros)
			break;
		at += zeros;
	}
	*start = at;
	/* To the end of what is known to be data. */
	*length = rc || at >= end ? 0 : q2_min(end, q2_max(meta->seen.to, at + 8)) - at;
	return rc;
}

int q2_meta_read_table(struct q2_meta *meta, const char *what, uint64_t at, uint32_t entries, uint64_t **out,
		       struct qcow2_error *err)
{
	int rc = entries ? q2_meta_bound(meta, what, at, (uint64_t)entries * 8, err) : 0;
	if (rc)
		return rc;
	q2_auto uint64_t *table = q2_new(entries, sizeof *table);
	if (!table)
		return q2_error_nomem(err);
	/* Fresh memory is zeros, and costs nothing where it stays so. */
	uint64_t end = at + (uint64_t)entries * 8, start = at, length = 0;
	do {
		rc = q2_meta_next_data(meta, start + length, end, &start, &length, err);
		start = q2_round_down(start, 8);
		length = q2_min(q2_round_up(length, 8), end - start);
		if (!rc && length)
			rc = qcow2_store_read(meta->store, start, (uint8_t *)table + (start - at),
					      (size_t)length, err);
		if (rc)
			return q2_error_prefix(err, rc, "Could not read the %s", what);
		for (uint64_t i = (start - at) / 8; i < (start - at + length) / 8; i++)
			table[i] = be64toh(table[i]);
	} while (length);
	*out = q2_take(&table);
	return 0;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

int q2_meta_distinct(const uint64_t *table, uint32_t entries, uint64_t mask, const char *what,
		     struct qcow2_error *err)
{
	q2_auto uint64_t *copy = q2_new(entries, sizeof *copy);
	if (!copy)
		return q2_error_nomem(err);
	uint32_t count = 0;
	for (uint32_t i = 0; i < entries; i++)
		if (table[i] & mask)
			copy[count++] = table[i] & mask;
	qsort(copy, count, sizeof *copy, compare_u64);
	for (uint32_t i = 1; i < count; i++)
		if (copy[i] == copy[i - 1])
			return q2_error_set(err, QCOW2_E_CORRUPT, copy[i],
					    "%s at offset %#" PRIx64 " is used by two entries", what,
					    copy[i]);
	return 0;
}
