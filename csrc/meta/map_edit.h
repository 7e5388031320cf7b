/* SPDX-License-Identifier: MIT
 * Changing the map: nothing else changes L2 tables and the active L1 table while an image is written to.
 *
 * Data moves in three steps: q2_map_prepare says where the bytes of a range are to be written, and takes clusters where the
 * disk has none of its own; the caller writes them; q2_map_commit lets the entries name the place, or q2_map_abandon gives
 * it back. What has no bytes to write is said by q2_map_set_range.
 *
 * Every change is made in the cache; writeback.c takes it down behind what it points at. A function that fails has changed
 * a part of its range or nothing, and everything that it did change is sound; where that cannot be, the image is failed
 * (invariant 7). */
#ifndef Q2_META_MAP_EDIT_H
#define Q2_META_MAP_EDIT_H

#include "meta/map.h"

/* Whole clusters, and where their bytes go. */
struct q2_map_place {
	q2_guest guest; /* of the first cluster */
	uint64_t count; /* clusters */
	q2_host host;   /* of the first, in the store of guest data; the others follow */
	bool plain;     /* the range is data at its place already: no entry changes */
	bool moves;     /* the entries name another place, or none, until q2_map_commit */
	bool taken;     /* the place was allocated: q2_map_commit or q2_map_abandon has to follow */
	bool virgin;    /* taken, and no byte of it was ever written: it reads as zeros */
	bool composed; /* `whole` was asked for, but more than the range has to be written: nothing was taken */
	uint64_t first,
		last; /* subcluster bitmaps that the first and the last cluster get; all is data unless
				 the caller changes them. Of one cluster `first` counts. */
};

/*
 * A place for the bytes of [start, start + length): for the clusters that the range touches, from the first one on, as many
 * as go to one piece of the file. `whole`: only where no more than these bytes has to be written, so that others can write
 * them later: plain data, or whole clusters.
 *
 * A range of the external data file that is still to be given back is given back first. The L2 table is made before the
 * clusters are taken, so that a new image has them in this order.
 * needs: as q2_map_held. fails: `corrupt` when entries say that data lies where metadata lives (invariant 6); as q2_alloc.
 */
int q2_map_prepare(struct q2_map *map, q2_guest start, uint64_t length, bool whole,
		   struct q2_map_place *place, struct qcow2_error *err);

/* The entries say "data, there". needs: the bytes are written. `bitmaps`: of each cluster, instead of first and last; or
 * NULL. fails: as q2_cache_edit; what is not linked by then was given back. */
int q2_map_commit(struct q2_map *map, const struct q2_map_place *place, const uint64_t *bitmaps,
		  struct qcow2_error *err);

/* Gives back what q2_map_prepare took. */
void q2_map_abandon(struct q2_map *map, const struct q2_map_place *place);

/* What entries are to say. */
struct q2_map_state {
	enum {
		Q2_MAP_UNALLOCATED, /* nothing; their space is freed */
		Q2_MAP_ZERO,        /* zeros */
		Q2_MAP_DATA,        /* data, of the first cluster at `host`, the others follow */
		Q2_MAP_COMPRESSED,  /* one cluster: a stream of `length` bytes at `host` */
		Q2_MAP_COPIED,      /* what they say, and that the place is theirs alone */
	} kind;
	bool free; /* zero: the space is freed as well; a compressed stream always is */
	bool say; /* zero: also where nothing is allocated, since the backing file would show, or is to be hidden */
	q2_host host;
	uint32_t length;
};

/*
 * Makes the entries of the whole clusters [start, end) say `to`; what they held is let go of, a range of the external data
 * file is given back behind the next flush. Tables in which nothing changes are neither made nor written.
 * needs: below what L1 covers. fails: as q2_map_find; `corrupt` for what is live metadata.
 */
int q2_map_set_range(struct q2_map *map, uint64_t start, uint64_t end, const struct q2_map_state *to,
		     struct qcow2_error *err);

/* Subclusters [from, to) inside one cluster are zeros. needs: extended L2, a cluster that is not compressed and has no place
 * or one of its own. */
int q2_map_zero_subclusters(struct q2_map *map, uint64_t from, uint64_t to, struct qcow2_error *err);

/* What the entries of the L2 tables [first, end) hold is let go of, and the tables with them. */
int q2_map_drop_tables(struct q2_map *map, uint64_t first, uint64_t end, struct qcow2_error *err);

/* Would q2_map_set_range have to refuse to let go of something in [start, end)? So asked before what cannot be taken back. */
int q2_map_check_release(struct q2_map *map, uint64_t start, uint64_t end, struct qcow2_error *err);

/* Refuses host clusters that an entry calls data though they are live metadata (`corrupt`). */
int q2_map_check_data(const struct q2_meta *meta, uint64_t first, uint64_t count, struct qcow2_error *err);

/*
 * The L2 table of `address` exists and belongs to the active disk alone (COPIED): a missing one is made, one
 * shared with a snapshot is copied. needs: the address lies below what L1 covers.
 */
int q2_map_table(struct q2_map *map, q2_guest address, struct qcow2_error *err);

#endif
