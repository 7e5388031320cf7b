/* SPDX-License-Identifier: MIT
 * The allocator: free host clusters, and room for their counts.
 *
 * New refcount blocks count themselves: a block that is missing is put in front of the run that needs it. A refcount table
 * that is too small is rebuilt behind everything else and switched by the header (invariant 5). */
#include "meta/meta.h"

#include <inttypes.h>
#include <string.h>

/* Host offsets have 56 bits. */
#define END_OFFSET (1ull << 56)

int q2_alloc_verify(struct q2_meta *meta, const char *what, uint64_t offset, uint64_t bytes,
		    struct qcow2_error *err)
{
	uint64_t first = offset >> meta->geo.cluster_bits;
	uint64_t end = q2_div_up(offset + bytes, meta->geo.cluster_size);
	for (uint64_t cluster = first; cluster < end; cluster++) {
		uint64_t count;
		int rc = q2_refcount_read(meta, cluster, &count, err);
		if (rc)
			return rc;
		if (!count)
			return q2_error_set(
				err, QCOW2_E_CORRUPT, cluster << meta->geo.cluster_bits,
				"%s at offset %#" PRIx64
				" has a reference count of 0; the image has to be repaired before "
				"it is written to",
				what, cluster << meta->geo.cluster_bits);
	}
	return q2_live_metadata_add(&meta->live, first, end - first) ? q2_error_nomem(err) : 0;
}

int q2_alloc_verify_blocks(struct q2_meta *meta, struct qcow2_error *err)
{
	int rc = q2_refcount_load(meta, err);
	uint64_t last = 0;
	bool sorted = true;
	for (uint32_t i = 0; !rc && i < meta->reftable_entries; i++) {
		uint64_t at = meta->reftable[i] & Q2_REFTABLE_MASK;
		if (!at)
			continue;
		rc = q2_meta_bound(meta, "Reference count block", at, meta->geo.cluster_size, err);
		if (!rc)
			rc = q2_alloc_verify(meta, "Reference count block", at, meta->geo.cluster_size, err);
		sorted = sorted && at > last;
		last = at;
	}
	if (rc || sorted)
		return rc;
	return q2_meta_distinct(meta->reftable, meta->reftable_entries, Q2_REFTABLE_MASK,
				"Reference count block", err);
}

/* The file will reach to the end of `count` clusters from `start` on: tables there are inside it. */
static void reach(struct q2_meta *meta, uint64_t start, uint64_t count)
{
	meta->file_length = q2_max(meta->file_length, (start + count) << meta->geo.cluster_bits);
	meta->virgin = q2_max(meta->virgin, start + count);
}

/* Puts block number `index` at the free cluster `at`. needs: the table has an entry for it; the block of
 * `at` exists or is this one. */
static int add_block(struct q2_meta *meta, uint64_t index, uint64_t at, struct qcow2_error *err)
{
	uint64_t offset = at << meta->geo.cluster_bits;
	int rc = q2_cache_new(&meta->cache, q2_host_at(offset), meta->geo.cluster_size, Q2_TABLE_REFBLOCK,
			      NULL, err);
	if (rc)
		return rc;
	rc = q2_writeback_reftable(meta, (uint32_t)index, err);
	if (rc) {
		q2_cache_forget(&meta->cache, q2_host_at(offset), meta->geo.cluster_size);
		return rc;
	}
	meta->reftable[index] = offset;
	reach(meta, at, 1);
	q2_live_metadata_add(&meta->live, at, 1);
	return q2_refcount_add(meta, at, 1, 1, err);
}

/*
 * A refcount table for at least `entries` entries, behind everything else in the file. The new table and the
 * blocks that count it form one piece, table first; nothing reaches it until the header says so.
 */
static int grow_table(struct q2_meta *meta, uint64_t entries, struct qcow2_error *err)
{
	const struct q2_geometry *g = &meta->geo;
	uint64_t per_cluster = g->cluster_size / 8;
	/* What is pending goes down first; with lazy counts the old table goes on lacking blocks that the new one has. */
	int rc = q2_writeback(meta, err);
	if (rc)
		return rc;
	/* Behind the last cluster that any count or the file itself reaches, in an area without blocks. */
	uint64_t covered = (uint64_t)meta->reftable_entries << g->refblock_bits;
	uint64_t base = q2_max(covered, q2_div_up(meta->file_length, g->cluster_size));
	uint64_t want = q2_max(entries, (base >> g->refblock_bits) + 1);
	want += want / 2; /* room to grow, so that this stays rare */
	uint64_t clusters = 0, blocks = 0;
	for (;;) { /* settles: each round only adds what the last one's additions need */
		uint64_t need = ((base + clusters + blocks) >> g->refblock_bits) -
				(base >> g->refblock_bits) + 1;
		uint64_t table = q2_div_up(q2_max(want, ((base + clusters + blocks) >> g->refblock_bits) + 1),
					   per_cluster);
		if (table == clusters && need == blocks)
			break;
		clusters = table;
		blocks = need;
	}
	if (clusters << g->cluster_bits > Q2_MAX_REFTABLE_BYTES) {
		clusters = Q2_MAX_REFTABLE_BYTES >> g->cluster_bits;
		if (clusters * per_cluster <
		    q2_max(entries, ((base + clusters + blocks) >> g->refblock_bits) + 1))
			return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
					    "The reference count table would exceed %u bytes",
					    Q2_MAX_REFTABLE_BYTES);
	}
	uint64_t new_entries = clusters * per_cluster;
	q2_auto uint64_t *table = q2_new(new_entries, sizeof *table);
	q2_auto uint64_t *raw = q2_new(new_entries, sizeof *raw);
	if (!table || !raw)
		return q2_error_nomem(err);
	memcpy(table, meta->reftable, (size_t)meta->reftable_entries * 8);

	uint64_t old_offset = meta->header.refcount_table_offset;
	uint32_t old_clusters = meta->header.refcount_table_clusters;
	uint64_t block_at = base + clusters;
	for (uint64_t i = 0; i < blocks; i++) {
		uint64_t offset = (block_at + i) << g->cluster_bits;
		table[(base >> g->refblock_bits) + i] = offset;
		rc = q2_cache_new(&meta->cache, q2_host_at(offset), g->cluster_size, Q2_TABLE_REFBLOCK, NULL,
				  err);
		if (rc)
			goto undo;
	}
	for (uint64_t i = 0; i < new_entries; i++)
		raw[i] = htobe64(table[i]);
	uint64_t new_offset = base << g->cluster_bits;
	rc = qcow2_store_write(meta->store, new_offset, raw, clusters << g->cluster_bits, err);
	if (rc)
		goto undo;

	/* From here on memory speaks of the new table, which has all that the old one lacks; a failure ends the image. */
	q2_refcount_follow(meta, q2_take(&table), (uint32_t)new_entries);
	reach(meta, base, clusters + blocks);
	q2_live_metadata_add(&meta->live, base, clusters + blocks);
	rc = q2_refcount_add(meta, base, clusters + blocks, 1, err);
	if (!rc)
		rc = q2_cache_write(&meta->cache, Q2_TABLE_REFBLOCK, true, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	if (rc)
		return q2_writeback_fail(meta, rc, err);
	meta->header.refcount_table_offset = new_offset;
	meta->header.refcount_table_clusters = (uint32_t)clusters;
	rc = q2_writeback_header(meta, err);
	if (rc)
		return rc;
	meta->free_hint = q2_min(meta->free_hint, old_offset >> g->cluster_bits);
	return q2_refcount_add(meta, old_offset >> g->cluster_bits, old_clusters, -1, err);
undo:
	q2_cache_forget(&meta->cache, q2_host_at(block_at << g->cluster_bits), blocks << g->cluster_bits);
	return rc;
}

/* How many blocks are missing for [start, start + count). */
static uint64_t missing_blocks(const struct q2_meta *meta, uint64_t start, uint64_t count)
{
	unsigned bits = meta->geo.refblock_bits;
	uint64_t n = 0;
	for (uint64_t index = start >> bits; index <= (start + count - 1) >> bits; index++)
		n += index >= meta->reftable_entries || !(meta->reftable[index] & Q2_REFTABLE_MASK);
	return n;
}

/*
 * Blocks for `want` clusters that are to lie in one piece at or behind the free place `start`: they go in
 * front of that piece, lowest first, so each is counted by itself or by one before it.
 * needs: the place has room for them too, and the table has their entries.
 */
static int add_blocks(struct q2_meta *meta, uint64_t start, uint64_t blocks, struct qcow2_error *err)
{
	unsigned bits = meta->geo.refblock_bits;
	uint64_t at = start;
	for (uint64_t index = start >> bits; at < start + blocks; index++) {
		if (meta->reftable[index] & Q2_REFTABLE_MASK)
			continue;
		int rc = add_block(meta, index, at++, err);
		if (rc)
			return rc;
	}
	return 0;
}

/* A caller that never flushes lets the file grow by so many bytes of clusters that wait to be free, or a quarter of it. */
#define MOST_PENDING (UINT64_C(16) << 20)

/* Is enough waiting to be free that the file should not grow behind `first`, its end? */
static bool wants_pending(const struct q2_meta *meta, uint64_t first)
{
	uint64_t waiting = meta->pending_clusters << meta->geo.cluster_bits;
	return first >= meta->virgin && waiting >= q2_max(MOST_PENDING, meta->file_length / 4);
}

int q2_alloc(struct q2_meta *meta, uint64_t want, bool exact, uint64_t *start, uint64_t *got,
	     struct qcow2_error *err)
{
	unsigned bits = meta->geo.refblock_bits;
	uint64_t from = meta->free_hint;
	for (;;) { /* ends: each round adds blocks, grows the table or goes on in the file */
		uint64_t first, count;
		int rc = q2_refcount_free_run(meta, from, want, &first, &count, err);
		if (rc)
			return rc;
		if (first < meta->unproven) {
			rc = q2_data_counts_prove(meta, err);
			if (rc)
				return rc;
		}
		if (exact && count < want) {
			from = first + count;
			continue;
		}
		if (wants_pending(meta, first)) {
			rc = q2_writeback(meta, err);
			if (rc)
				return rc;
			from = meta->free_hint;
			continue;
		}
		if (first + count > END_OFFSET >> meta->geo.cluster_bits)
			return q2_error_set(err, QCOW2_E_NOSPACE, Q2_NO_OFFSET,
					    "The image file would exceed the largest host offset");
		if (!exact) { /* only as far as blocks reach; the rest is the next call's */
			uint64_t covered = 0;
			while (covered < count && q2_refcount_block(meta, first + covered))
				covered = ((((first + covered) >> bits) + 1) << bits) - first;
			count = covered ? q2_min(covered, count) : 1;
		}
		uint64_t blocks = missing_blocks(meta, first, count);
		if (blocks) {
			/* They push the piece back, so it may need one more. */
			uint64_t more;
			while ((more = missing_blocks(meta, first, count + blocks)) > blocks)
				blocks = more;
			uint64_t last = (first + count + blocks - 1) >> bits;
			if (last >= meta->reftable_entries) {
				rc = grow_table(meta, last + 1, err);
				from = meta->free_hint;
			} else {
				uint64_t room_start, room;
				rc = q2_refcount_free_run(meta, first, count + blocks, &room_start, &room,
							  err);
				if (!rc && (room_start != first || room < count + blocks))
					from = first + count;
				else if (!rc)
					rc = add_blocks(meta, first, blocks, err);
			}
			if (rc)
				return rc;
			continue;
		}
		rc = q2_refcount_add(meta, first, count, 1, err);
		if (rc)
			return rc;
		/* Whatever lay there, it is not what will lie there: others write past the cache. */
		q2_cache_forget(&meta->cache, q2_host_at(first << meta->geo.cluster_bits),
				count << meta->geo.cluster_bits);
		if (!exact)
			meta->free_hint = first + count;
		reach(meta, first, count);
		*start = first;
		*got = count;
		return 0;
	}
}

int q2_alloc_abandon(struct q2_meta *meta, uint64_t start, uint64_t count, struct qcow2_error *err)
{
	int rc = q2_refcount_add(meta, start, count, -1, err);
	if (!rc)
		meta->free_hint = q2_min(meta->free_hint, start);
	return rc;
}

int q2_alloc_release(struct q2_meta *meta, uint64_t start, uint64_t count, struct qcow2_error *err)
{
	int rc = q2_span_push(&meta->pending_free, start, count, err);
	if (!rc)
		meta->pending_clusters += count;
	return rc;
}
