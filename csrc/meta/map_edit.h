/* SPDX-License-Identifier: MIT
 * Changing the map: L2 tables that belong to this disk alone, and the clusters that entries let go of.
 *
 * Every change is made in the cache; writeback.c takes it down behind what it points at. */
#ifndef Q2_META_MAP_EDIT_H
#define Q2_META_MAP_EDIT_H

#include "meta/map.h"

#include <endian.h>
#include <string.h>

/*
 * The L2 table of `address` exists and belongs to the active disk alone (COPIED): a missing one is made, one
 * shared with a snapshot is copied. needs: the address lies below what L1 covers.
 */
int q2_map_edit_table(struct q2_map *map, q2_guest address, struct qcow2_error *err);

/*
 * The entry of `cluster` for editing, and how many entries follow it in the same slice (itself counted).
 * gives: *entry, good until the next call that may touch the cache; the slice is dirty already.
 * upholds: q2_map_edit_table.
 */
int q2_map_edit_edit(struct q2_map *map, q2_guest cluster, uint8_t **entry, uint32_t *left,
		     struct qcow2_error *err);

/* L1 entry `index` has no table any more. needs: what the table's entries held was let go of. */
int q2_map_edit_drop_table(struct q2_map *map, uint64_t index, struct qcow2_error *err);

/* Refuses host clusters that an entry calls data though they are live metadata (`corrupt`). */
int q2_map_edit_check(const struct q2_meta *meta, uint64_t first, uint64_t count, struct qcow2_error *err);

/* Lets go of what an old entry held: its cluster's count, or those of the clusters that a compressed stream
 * touches, go down after the next flush. Touches no cache. */
int q2_map_edit_release(struct q2_map *map, const struct q2_entry *old, struct qcow2_error *err);

/* Writes an entry's words where q2_map_edit_edit pointed. */
static inline void q2_map_edit_put(const struct q2_geometry *g, uint8_t *entry, uint64_t word,
				   uint64_t bitmap)
{
	word = htobe64(word);
	memcpy(entry, &word, 8);
	if (g->extended_l2) {
		bitmap = htobe64(bitmap);
		memcpy(entry + 8, &bitmap, 8);
	}
}

/* Reads and decodes the entry that q2_map_edit_edit pointed at. */
static inline struct q2_entry q2_map_edit_get(const struct q2_geometry *g, const uint8_t *entry)
{
	uint64_t word, bitmap = 0;
	memcpy(&word, entry, 8);
	if (g->extended_l2)
		memcpy(&bitmap, entry + 8, 8);
	return q2_entry_decode(g, be64toh(word), be64toh(bitmap));
}

#endif
