/* SPDX-License-Identifier: MIT
 * Changing the map: L2 tables that belong to this disk alone, and the clusters that entries let go of. */
#include "meta/map_edit.h"

#include "base/mem.h"

#include <inttypes.h>

/* Copies the L2 table at `from` into fresh slices at `to`; 0 is an empty table. */
static int fill_table(struct q2_meta *meta, uint64_t from, uint64_t to, struct qcow2_error *err)
{
	uint32_t cluster_size = meta->geo.cluster_size, slice = meta->cache.slice;
	if (!from)
		return q2_cache_new(&meta->cache, q2_host_at(to), cluster_size, Q2_TABLE_L2, NULL, err);
	q2_auto uint8_t *copy = q2_new_pages(cluster_size);
	if (!copy)
		return q2_error_nomem(err);
	/* Through the cache: the old table may be dirty there. */
	for (uint32_t done = 0; done < cluster_size; done += slice) {
		uint8_t *bytes;
		int rc = q2_cache_get(&meta->cache, q2_host_at(from + done), &bytes, err);
		if (rc)
			return rc;
		memcpy(copy + done, bytes, slice);
	}
	return q2_cache_new(&meta->cache, q2_host_at(to), cluster_size, Q2_TABLE_L2, copy, err);
}

int q2_map_edit_table(struct q2_map *map, q2_guest address, struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	const struct q2_geometry *g = &meta->geo;
	int rc = q2_map_load(map, err);
	if (rc)
		return rc;
	uint64_t index = address.v >> (g->cluster_bits + g->l2_bits);
	uint64_t old = map->l1[index];
	if ((old & Q2_OFFSET_MASK) && (old & Q2_COPIED))
		return 0;
	uint64_t start, got;
	rc = q2_alloc(meta, 1, false, &start, &got, err);
	if (rc)
		return rc;
	uint64_t at = start << g->cluster_bits;
	rc = fill_table(meta, old & Q2_OFFSET_MASK, at, err);
	if (!rc)
		rc = q2_writeback_l1(meta, index, at | Q2_COPIED, err);
	if (!rc && (old & Q2_OFFSET_MASK)) {
		rc = q2_alloc_release(meta, (old & Q2_OFFSET_MASK) >> g->cluster_bits, 1, err);
		if (rc)
			meta->l1_words.count--;
	}
	if (rc) {
		q2_cache_forget(&meta->cache, q2_host_at(at), g->cluster_size);
		q2_alloc_abandon(meta, start, 1, NULL);
		return rc;
	}
	map->l1[index] = at | Q2_COPIED;
	q2_live_metadata_add(&meta->live, start, 1);
	return 0;
}

int q2_map_edit_drop_table(struct q2_map *map, uint64_t index, struct qcow2_error *err)
{
	uint64_t at = map->l1[index] & Q2_OFFSET_MASK;
	int rc = q2_writeback_l1(map->meta, index, 0, err);
	if (!rc)
		rc = q2_alloc_release(map->meta, at >> map->meta->geo.cluster_bits, 1, err);
	if (rc)
		return rc;
	map->l1[index] = 0;
	map->meta->cache.changes++; /* what was found in the table holds no longer */
	return 0;
}

int q2_map_edit_edit(struct q2_map *map, q2_guest cluster, uint8_t **entry, uint32_t *left,
		     struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	const struct q2_geometry *g = &meta->geo;
	int rc = q2_map_edit_table(map, cluster, err);
	if (rc)
		return rc;
	uint64_t number = cluster.v >> g->cluster_bits;
	uint64_t table = map->l1[number >> g->l2_bits] & Q2_OFFSET_MASK;
	uint32_t byte = (uint32_t)(number & ((1ull << g->l2_bits) - 1)) * g->l2_entry_size;
	uint32_t slice = (uint32_t)q2_round_down(byte, meta->cache.slice);
	uint8_t *bytes;
	rc = q2_cache_edit(&meta->cache, q2_host_at(table + slice), Q2_TABLE_L2, &bytes, err);
	if (rc)
		return rc;
	*entry = bytes + (byte - slice);
	*left = (meta->cache.slice - (byte - slice)) / g->l2_entry_size;
	return 0;
}

int q2_map_edit_check(const struct q2_meta *meta, uint64_t first, uint64_t count, struct qcow2_error *err)
{
	uint64_t at = first << meta->geo.cluster_bits;
	if (!q2_live_metadata_has(&meta->live, first, count))
		return 0;
	return q2_error_set(err, QCOW2_E_CORRUPT, at,
			    "L2 entries say that data lies at host offset %#" PRIx64
			    ", where metadata lies; the image has to be repaired",
			    at);
}

int q2_map_edit_release(struct q2_map *map, const struct q2_entry *old, struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	if (!old->has_host || g->external_data)
		return 0; /* clusters of a data file are not counted */
	uint64_t first = old->host.v >> g->cluster_bits, count = 1;
	if (old->compressed)
		count = ((old->host.v + old->host_length - 1) >> g->cluster_bits) - first + 1;
	int rc = q2_map_edit_check(map->meta, first, count, err);
	return rc ? rc : q2_alloc_release(map->meta, first, count, err);
}
