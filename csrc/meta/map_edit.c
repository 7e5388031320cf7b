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

int q2_map_table(struct q2_map *map, q2_guest address, struct qcow2_error *err)
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

/*
 * The entry of `cluster` for editing, and how many entries follow it in the same slice (itself counted). gives: *entry,
 * good until the next call that may touch the cache; the slice is dirty already. upholds: q2_map_table.
 */
static int edit(struct q2_map *map, uint64_t cluster, uint8_t **entry, uint32_t *left,
		struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	const struct q2_geometry *g = &meta->geo;
	int rc = q2_map_table(map, q2_guest_at(cluster), err);
	if (rc)
		return rc;
	uint64_t number = cluster >> g->cluster_bits;
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

/* ---- letting go -------------------------------------------------------------------------------- */

int q2_map_check_data(const struct q2_meta *meta, uint64_t first, uint64_t count, struct qcow2_error *err)
{
	uint64_t at = first << meta->geo.cluster_bits;
	if (!q2_live_metadata_has(&meta->live, first, count))
		return 0;
	return q2_error_set(err, QCOW2_E_CORRUPT, at,
			    "L2 entries say that data lies at host offset %#" PRIx64
			    ", where metadata lies; the image has to be repaired",
			    at);
}

/* Counts of what an old entry held go down after the next flush. Touches no cache; fails before it changed anything. */
static int release(struct q2_map *map, const struct q2_entry *old, struct qcow2_error *err)
{
	uint64_t first, count = q2_entry_clusters(&map->meta->geo, old, &first);
	int rc = count ? q2_map_check_data(map->meta, first, count, err) : 0;
	return rc || !count ? rc : q2_alloc_release(map->meta, first, count, err);
}

/* The cluster at `guest` needs what its old entry held no longer: of an external data file the host gets it back. Clusters of a data file are not counted, so only one of
 * the two can fail. */
static int let_go(struct q2_map *map, uint64_t guest, const struct q2_entry *old, struct qcow2_error *err)
{
	if (!old->has_host)
		return 0;
	struct q2_meta *meta = map->meta;
	meta->punch_freed = true;
	return meta->geo.external_data
		       ? q2_span_push(&meta->pending_punch, guest, meta->geo.cluster_size, err)
		       : release(map, old, err);
}

int q2_map_check_release(struct q2_map *map, uint64_t start, uint64_t end, struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	while (start < end) {
		struct q2_run run;
		int rc = q2_map_find(map, q2_guest_at(start), end - start, &run, err);
		if (!rc && run.has_host && !g->external_data) {
			uint64_t length = run.kind == Q2_SUB_COMPRESSED ? run.host_length : run.length;
			uint64_t first = run.host.v >> g->cluster_bits;
			uint64_t last = (run.host.v + length - 1) >> g->cluster_bits;
			rc = q2_map_check_data(map->meta, first, last - first + 1, err);
		}
		if (rc)
			return rc;
		start += run.length;
	}
	return 0;
}

/* ---- data: prepare, commit, abandon ------------------------------------------------------------ */

/* A range of the data file that is still to be given back must not be written before that is done. */
static int settle_punches(struct q2_meta *meta, uint64_t start, uint64_t length, struct qcow2_error *err)
{
	const struct q2_vec *list = &meta->pending_punch;
	for (size_t i = 0; i < list->count; i++) {
		const struct q2_span *span = (struct q2_span *)list->items + i;
		if (q2_overlaps(span->start, span->count, start, length))
			return q2_writeback(meta, err);
	}
	return 0;
}

/* Invariant 6: an entry of a broken image may say that its data lies where metadata lives. */
static int check_live(const struct q2_meta *meta, const struct q2_map_place *place, struct qcow2_error *err)
{
	uint64_t cluster = place->host.v >> meta->geo.cluster_bits;
	if (meta->geo.external_data || !q2_live_metadata_has(&meta->live, cluster, place->count))
		return 0;
	return q2_error_set(err, QCOW2_E_CORRUPT, place->guest.v,
			    "Guest offset %#" PRIx64 " is mapped to host offset %#" PRIx64
			    ", where metadata lies; the image has to be repaired",
			    place->guest.v, place->host.v);
}

/* Clusters without a place, and those with one that is shared, get a new place together. */
static void lengthen(struct q2_map *map, uint64_t end, struct q2_map_place *place)
{
	unsigned bits = map->meta->geo.cluster_bits;
	struct q2_held next;
	for (;; place->count += next.count) {
		uint64_t at = place->guest.v + (place->count << bits);
		/* A wrong entry is the next call's error. */
		if (at >= end || q2_map_held(map, q2_guest_at(at), end - at, &next, NULL) ||
		    next.holding == Q2_HOLDING_OWN)
			return;
	}
}

static int take(struct q2_map *map, struct q2_map_place *place, struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	uint64_t start, virgin;
	int rc = q2_map_table(map, place->guest, err);
	if (rc || meta->geo.external_data) {
		place->host = q2_host_at(place->guest.v);
		return rc;
	}
	virgin = meta->virgin;
	rc = q2_alloc(meta, place->count, false, &start, &place->count, err);
	if (rc)
		return rc;
	place->host = q2_host_at(start << meta->geo.cluster_bits);
	place->taken = true;
	place->virgin = start >= virgin;
	return 0;
}

int q2_map_prepare(struct q2_map *map, q2_guest start, uint64_t length, bool whole,
		   struct q2_map_place *place, struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	struct q2_held held;
	int rc = settle_punches(map->meta, start.v, length, err);
	if (!rc)
		rc = q2_map_held(map, start, length, &held, err);
	if (rc)
		return rc;
	*place = (struct q2_map_place){.guest = q2_guest_at(q2_round_down(start.v, g->cluster_size)),
				       .count = held.count,
				       .host = held.host,
				       .plain = held.plain,
				       .moves = held.holding != Q2_HOLDING_OWN,
				       .first = UINT32_MAX,
				       .last = UINT32_MAX};
	if (!place->moves) {
		place->composed = whole && !held.plain;
		return check_live(map->meta, place, err);
	}
	lengthen(map, start.v + length, place);
	if (whole && (!q2_is_aligned(start.v, g->cluster_size) || length < g->cluster_size)) {
		place->count = 1;
		place->composed = true;
		return 0;
	}
	if (whole)
		place->count = q2_min(place->count, length >> g->cluster_bits);
	return take(map, place, err);
}

int q2_map_commit(struct q2_map *map, const struct q2_map_place *place, const uint64_t *bitmaps,
		  struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	uint64_t i = 0, host = place->host.v;
	int rc = 0;
	while (i < place->count && !rc) {
		uint8_t *entry;
		uint32_t left = 0;
		rc = edit(map, place->guest.v + (i << g->cluster_bits), &entry, &left, err);
		for (; !rc && left && i < place->count; left--) {
			struct q2_entry old = q2_entry_load(g, entry);
			uint64_t bitmap = bitmaps                 ? bitmaps[i]
					  : !i                    ? place->first
					  : i == place->count - 1 ? place->last
								  : UINT32_MAX;
			if (place->moves)
				rc = release(map, &old, err);
			if (rc)
				break;
			q2_entry_store(g, entry, host | Q2_COPIED, bitmap);
			i++;
			host += g->cluster_size;
			entry += g->l2_entry_size;
		}
	}
	if (rc && place->taken)
		q2_alloc_abandon(map->meta, host >> g->cluster_bits, place->count - i, NULL);
	return rc;
}

void q2_map_abandon(struct q2_map *map, const struct q2_map_place *place)
{
	if (place->taken)
		q2_alloc_abandon(map->meta, place->host.v >> map->meta->geo.cluster_bits, place->count, NULL);
}

/* ---- everything else --------------------------------------------------------------------------- */

static bool frees(const struct q2_map_state *to)
{
	return to->kind == Q2_MAP_UNALLOCATED || (to->kind == Q2_MAP_ZERO && to->free);
}

/* The entry at `guest` after a change of [start, ...). *gone: it lets go of what it held. */
static void new_entry(const struct q2_geometry *g, const struct q2_map_state *to, uint64_t into,
		      const struct q2_entry *old, uint64_t *word, uint64_t *bitmap, bool *gone)
{
	*gone = old->has_host;
	*word = *bitmap = 0;
	switch (to->kind) {
	case Q2_MAP_UNALLOCATED:
		break;
	case Q2_MAP_ZERO:
		/* A compressed stream cannot stay under a zero cluster. */
		*gone = old->has_host && (to->free || old->compressed);
		*word = *gone ? 0 : old->raw & (Q2_OFFSET_MASK | Q2_COPIED);
		if (g->extended_l2)
			*bitmap = (uint64_t)UINT32_MAX << 32;
		else
			*word |= Q2_ZERO;
		break;
	case Q2_MAP_DATA:
		*word = (to->host.v + into) | Q2_COPIED;
		*bitmap = UINT32_MAX;
		*gone = old->has_host && old->host.v != to->host.v + into;
		break;
	case Q2_MAP_COMPRESSED:
		*word = q2_entry_compressed(g, to->host, to->length);
		break;
	case Q2_MAP_COPIED:
		*word = old->raw | Q2_COPIED;
		*bitmap = q2_entry_bitmap(old);
		*gone = false;
		break;
	}
}

/* How many of the bytes from `start` on need no change. */
static int unchanged(struct q2_map *map, uint64_t start, uint64_t limit, const struct q2_map_state *to,
		     uint64_t *length, struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	struct q2_run run;
	*length = 0;
	if (to->kind != Q2_MAP_UNALLOCATED && to->kind != Q2_MAP_ZERO)
		return 0;
	int rc = q2_map_find(map, q2_guest_at(start), limit, &run, err);
	if (rc)
		return rc;
	bool done = run.kind == Q2_SUB_UNALLOCATED ? to->kind == Q2_MAP_UNALLOCATED || !to->say
						   : run.kind == Q2_SUB_ZERO && to->kind == Q2_MAP_ZERO;
	if (!done || (run.has_host && frees(to)))
		return 0;
	*length = q2_round_down(run.length, g->cluster_size);
	/* Clusters that hold nothing may have a place all the same. */
	if (*length && g->extended_l2 && run.kind == Q2_SUB_UNALLOCATED && frees(to)) {
		struct q2_held held;
		rc = q2_map_held(map, q2_guest_at(start), *length, &held, err);
		if (!rc)
			*length = held.holding == Q2_HOLDING_NONE ? held.count << g->cluster_bits : 0;
	}
	return rc;
}

int q2_map_set_range(struct q2_map *map, uint64_t start, uint64_t end, const struct q2_map_state *to,
		     struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t at = start, skip;
	while (at < end) {
		uint8_t *entry;
		uint32_t left;
		/* The caller saw to the cache before the first slice. */
		int rc = at > start && q2_cache_is_full(&meta->cache) ? q2_writeback(meta, err) : 0;
		if (!rc)
			rc = unchanged(map, at, end - at, to, &skip, err);
		if (!rc && skip) {
			at += skip;
			continue;
		}
		if (!rc)
			rc = edit(map, at, &entry, &left, err);
		if (rc)
			return rc;
		for (; left && at < end; left--, at += g->cluster_size, entry += g->l2_entry_size) {
			struct q2_entry old = q2_entry_load(g, entry);
			uint64_t word, bitmap;
			bool gone;
			new_entry(g, to, at - start, &old, &word, &bitmap, &gone);
			if (gone)
				rc = frees(to) || to->kind == Q2_MAP_ZERO ? let_go(map, at, &old, err)
									  : release(map, &old, err);
			if (rc)
				return rc;
			q2_entry_store(g, entry, word, bitmap);
		}
	}
	return 0;
}

int q2_map_zero_subclusters(struct q2_map *map, uint64_t from, uint64_t to, struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	uint64_t cluster = q2_round_down(from, g->cluster_size);
	uint8_t *entry;
	uint32_t left, mask = 0;
	int rc = edit(map, cluster, &entry, &left, err);
	if (rc)
		return rc;
	struct q2_entry old = q2_entry_load(g, entry);
	for (uint64_t at = from - cluster; at < to - cluster; at += 1ull << g->subcluster_bits)
		mask |= 1u << (at >> g->subcluster_bits);
	q2_entry_store(g, entry, old.raw, (uint64_t)(old.zero | mask) << 32 | (old.alloc & ~mask));
	return 0;
}

/* What the entries of L1 entry `index` hold is let go of, and the table with them. */
static int drop_table(struct q2_map *map, uint64_t index, struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t guest = index << (g->cluster_bits + g->l2_bits), at = map->l1[index] & Q2_OFFSET_MASK;
	int rc = 0;
	for (uint32_t i = 0; !rc && i < 1u << g->l2_bits; i++, guest += g->cluster_size) {
		uint64_t word, bitmap;
		q2_host where;
		rc = q2_map_entry(map, q2_guest_at(guest), &word, &bitmap, &where, err);
		if (rc)
			break;
		struct q2_entry old = q2_entry_decode(g, word, bitmap);
		rc = let_go(map, guest, &old, err);
	}
	if (!rc)
		rc = q2_writeback_l1(meta, index, 0, err);
	if (!rc)
		rc = q2_alloc_release(meta, at >> g->cluster_bits, 1, err);
	if (rc)
		return q2_writeback_fail(meta, rc, err); /* entries hold what was let go of */
	map->l1[index] = 0;
	meta->cache.changes++; /* what was found in the table holds no longer */
	return 0;
}

int q2_map_drop_tables(struct q2_map *map, uint64_t first, uint64_t end, struct qcow2_error *err)
{
	int rc = q2_map_load(map, err);
	for (uint64_t i = first; i < end && !rc; i++) {
		if (!(map->l1[i] & Q2_OFFSET_MASK))
			continue;
		if (q2_cache_is_full(&map->meta->cache))
			rc = q2_writeback(map->meta, err);
		if (!rc)
			rc = drop_table(map, i, err);
	}
	return rc;
}
