/* SPDX-License-Identifier: MIT
 * The order of writes: every change of the tables reaches the disk through here (invariants 1-3, 5, 7). */
#include "meta/meta.h"

#include "base/be.h"
#include "store/store.h"

#include <string.h>

int q2_writeback_check(const struct q2_meta *meta, struct qcow2_error *err)
{
	if (meta->failure.code && err)
		*err = meta->failure;
	return meta->failure.code;
}

int q2_writeback_fail(struct q2_meta *meta, int code, struct qcow2_error *err)
{
	if (!meta->failure.code) {
		if (err)
			meta->failure = *err;
		else
			q2_error_set(&meta->failure, code, Q2_NO_OFFSET,
				     "An earlier write of metadata failed");
	}
	return code;
}

void q2_writeback_attach(struct q2_meta *meta, struct qcow2_store *data)
{
	if (meta->data == data)
		return;
	meta->data = data;
	meta->data_synced = data ? q2_store_changes(data) : 0;
}

void q2_writeback_settled(struct q2_meta *meta)
{
	meta->synced = q2_store_changes(meta->store);
	meta->data_synced = meta->data ? q2_store_changes(meta->data) : 0;
}

void q2_writeback_unsettled(struct q2_meta *meta)
{
	/* No number of changes is as large. */
	meta->synced = meta->data_synced = UINT64_MAX;
}

int q2_writeback_l1(struct q2_meta *meta, uint64_t index, uint64_t value, struct qcow2_error *err)
{
	struct q2_l1_word *word = q2_vec_push(&meta->l1_words, sizeof *word);
	if (!word)
		return q2_error_nomem(err);
	*word = (struct q2_l1_word){index, value};
	return 0;
}

int q2_writeback_reftable(struct q2_meta *meta, uint32_t index, struct qcow2_error *err)
{
	uint32_t *word = q2_vec_push(&meta->reftable_words, sizeof *word);
	if (!word)
		return q2_error_nomem(err);
	*word = index;
	return 0;
}

/* Flushes a store that was written since the flush that *synced names. */
static int sync_store(struct qcow2_store *store, uint64_t *synced, struct qcow2_error *err)
{
	/* Before the flush: what is written while it runs may not be covered by it. */
	uint64_t changes = q2_store_changes(store);
	if (changes == *synced)
		return 0;
	int rc = qcow2_store_flush(store, err);
	if (!rc)
		*synced = changes;
	return rc;
}

int q2_writeback_barrier(struct q2_meta *meta, struct qcow2_error *err)
{
	struct qcow2_error own;
	if (!err)
		err = &own;
	int rc = q2_writeback_check(meta, err);
	if (rc || meta->hidden)
		return rc;
	/* Invariant 3: the data file first, what the entries point at lies there. */
	if (meta->data)
		rc = sync_store(meta->data, &meta->data_synced, err);
	if (!rc)
		rc = sync_store(meta->store, &meta->synced, err);
	/* What the host has dropped by now it will not tell again: the next flush may well succeed. */
	return rc ? q2_writeback_fail(meta, rc, err) : 0;
}

static int write_entry(struct q2_meta *meta, uint64_t table, uint64_t index, uint64_t value,
		       struct qcow2_error *err)
{
	uint8_t bytes[8];
	q2_store64(bytes, value);
	return qcow2_store_write(meta->store, table + index * 8, bytes, sizeof bytes, err);
}

static int write_l1(struct q2_meta *meta, struct qcow2_error *err)
{
	const struct q2_l1_word *words = meta->l1_words.items;
	int rc = 0;
	for (size_t i = 0; i < meta->l1_words.count && !rc; i++)
		rc = write_entry(meta, meta->header.l1_table_offset, words[i].index, words[i].value, err);
	if (!rc)
		meta->l1_words.count = 0;
	return rc;
}

static int write_reftable(struct q2_meta *meta, struct qcow2_error *err)
{
	const uint32_t *words = meta->reftable_words.items;
	int rc = 0;
	for (size_t i = 0; i < meta->reftable_words.count && !rc; i++)
		rc = write_entry(meta, meta->header.refcount_table_offset, words[i], meta->reftable[words[i]],
				 err);
	if (!rc)
		meta->reftable_words.count = 0;
	return rc;
}

/* These clusters belong to nobody any more: they can be used again, and their space goes back to the host. */
static int set_free(struct q2_meta *meta, uint64_t start, uint64_t count, struct qcow2_error *err)
{
	unsigned bits = meta->geo.cluster_bits;
	if (!count)
		return 0;
	meta->free_hint = q2_min(meta->free_hint, start);
	uint64_t stream = meta->stream_at >> bits;
	if (meta->stream_at < meta->stream_end && stream >= start && stream < start + count)
		meta->stream_at = meta->stream_end = 0;
	/* What the cache has of a table there is no longer true once the place is reused. */
	q2_cache_forget(&meta->cache, q2_host_at(start << bits), count << bits);
	return meta->punch_freed ? qcow2_store_punch(meta->store, start << bits, count << bits, err) : 0;
}

/* Clusters whose counts are lowered at once. */
#define FREE_PIECE UINT64_C(65536)

/* Lowers the counts of [start, end), and frees what nobody refers to any more. */
static int free_piece(struct q2_meta *meta, uint64_t start, uint64_t end, struct qcow2_error *err)
{
	uint64_t run = 0;
	int rc = q2_refcount_add(meta, start, end - start, -1, err);
	for (uint64_t c = start; !rc && c < end; c++) {
		uint64_t count;
		rc = q2_refcount_read(meta, c, &count, err);
		run += !rc && !count;
		if (!rc && count) {
			rc = set_free(meta, c - run, run, err);
			run = 0;
		}
	}
	if (!rc)
		rc = set_free(meta, end - run, run, err);
	/* Lower counts need no order any more: they go down here, so that their number in memory stays bounded. */
	if (!rc && q2_cache_is_full(&meta->cache))
		rc = q2_cache_write(&meta->cache, Q2_TABLE_REFBLOCK, false, err);
	return rc;
}

/* Step F: what is unlinked on disk by now is freed. */
static int free_pending(struct q2_meta *meta, struct qcow2_error *err)
{
	/* Lowering fails only on a corrupt image or a failed read; what was not lowered is leaked. */
	struct q2_vec spans = meta->pending_free;
	meta->pending_free = (struct q2_vec){0};
	meta->pending_clusters = 0;
	int rc = 0;
	for (size_t i = 0; i < spans.count && !rc; i++) {
		const struct q2_span *span = (struct q2_span *)spans.items + i;
		uint64_t end = span->start + span->count;
		for (uint64_t at = span->start; at < end && !rc; at += FREE_PIECE)
			rc = free_piece(meta, at, q2_min(at + FREE_PIECE, end), err);
	}
	q2_vec_free(&spans);
	for (size_t i = 0; i < meta->pending_punch.count && !rc; i++) {
		const struct q2_span *span = (struct q2_span *)meta->pending_punch.items + i;
		rc = qcow2_store_punch(meta->data, span->start, span->count, err);
	}
	meta->pending_punch.count = 0;
	meta->punch_freed = false;
	return rc;
}

static int commit(struct q2_meta *meta, struct qcow2_error *err)
{
	struct q2_cache *cache = &meta->cache;
	/* A: nothing on disk reaches these yet, or it is a count that may be too high but not too low. */
	int rc = q2_cache_write(cache, Q2_TABLE_L2 | Q2_TABLE_REFBLOCK, true, err);
	if (!rc && !meta->lazy)
		rc = q2_cache_write(cache, Q2_TABLE_REFBLOCK, false, err);
	if (rc)
		return rc;
	/* C */
	if (meta->reftable_words.count && !meta->lazy) {
		rc = q2_writeback_barrier(meta, err);
		if (!rc)
			rc = write_reftable(meta, err);
		if (rc)
			return rc;
	}
	/* D: only behind what the entries point at. Dirty slices that are left are L2's (or lazy counts). */
	bool links = cache->dirty || meta->l1_words.count || meta->pending_free.count ||
		     meta->pending_punch.count;
	if (!links)
		return 0;
	rc = q2_writeback_barrier(meta, err);
	if (!rc)
		rc = q2_cache_write(cache, Q2_TABLE_L2, false, err);
	if (!rc)
		rc = write_l1(meta, err);
	if (rc || !(meta->pending_free.count || meta->pending_punch.count))
		return rc;
	/* F */
	rc = q2_writeback_barrier(meta, err);
	return rc ? rc : free_pending(meta, err);
}

int q2_writeback(struct q2_meta *meta, struct qcow2_error *err)
{
	struct qcow2_error own;
	if (!err)
		err = &own;
	int rc = q2_writeback_check(meta, err);
	if (rc)
		return rc;
	rc = commit(meta, err);
	return rc ? q2_writeback_fail(meta, rc, err) : 0;
}

int q2_writeback_flush(struct q2_meta *meta, struct qcow2_error *err)
{
	struct qcow2_error own;
	if (!err)
		err = &own;
	int rc = q2_writeback(meta, err);
	if (rc)
		return rc;
	/* Counts that step F lowered need no order, but who asks for a flush gets the space back on disk. */
	if (!meta->lazy)
		rc = q2_cache_write(&meta->cache, Q2_TABLE_REFBLOCK, false, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	return rc ? q2_writeback_fail(meta, rc, err) : 0;
}

void q2_writeback_lazily(struct q2_meta *meta)
{
	meta->lazy = true;
}

int q2_writeback_in_time(struct q2_meta *meta, struct qcow2_error *err)
{
	meta->lazy = false;
	return q2_writeback_flush(meta, err);
}

int q2_writeback_counts(struct q2_meta *meta, struct qcow2_error *err)
{
	bool lazy = meta->lazy;
	int rc = q2_writeback_in_time(meta, err);
	meta->lazy = lazy;
	return rc;
}

int q2_writeback_start(struct q2_meta *meta, uint8_t *bytes, size_t length, struct qcow2_error *err)
{
	struct qcow2_error own;
	if (!err)
		err = &own;
	int rc = q2_writeback_check(meta, err);
	if (rc)
		return rc;
	if (meta->hidden)
		q2_store32(bytes, Q2_MAGIC_UNFINISHED);
	rc = qcow2_store_write(meta->store, 0, bytes, length, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	return rc ? q2_writeback_fail(meta, rc, err) : 0;
}

int q2_writeback_header(struct q2_meta *meta, struct qcow2_error *err)
{
	uint8_t bytes[Q2_HEADER_FULL];
	size_t length = q2_header_put(&meta->header, bytes);
	return q2_writeback_start(meta, bytes, length, err);
}
