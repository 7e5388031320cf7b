/* SPDX-License-Identifier: MIT
 * The map: what backs a guest address. Everything that reads, writes, lists, copies or compares asks here.
 *
 * A *run* is the longest stretch from an address on that is backed in one way with one unbroken stretch
 * of file behind it, across L2 tables. Work is done by runs, never by clusters. */
#ifndef Q2_META_MAP_H
#define Q2_META_MAP_H

#include "meta/meta.h"

struct q2_run {
	enum q2_sub kind; /* never Q2_SUB_INVALID: that is an error */
	uint64_t length;  /* bytes of guest address space, > 0 */
	bool has_host;
	bool copied;          /* COPIED is set in all entries of the run (data and zero with host) */
	q2_host host;         /* of the run's first byte; compressed: of the stream */
	uint32_t host_length; /* compressed: bytes of the stream's sectors */
	uint32_t within;      /* compressed: the run's first byte inside the expanded cluster */
};

struct q2_map {
	struct q2_meta *meta; /* borrowed */
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint64_t size; /* bytes of the disk that this L1 describes */
	uint64_t *l1;  /* host order; NULL until the first use */
	bool judged;   /* check of all L2 tables passed */
	bool gone;     /* its tables were given up: `missing` */

	/*
	 * The run that was found last and where it began: a walk whose runs are cut short by something else (a
	 * layer below, a hole of the host) asks for its rest again and again. Good while meta->cache.changes and
	 * `l1` are what they were: every change of an entry goes through the cache or brings a new array.
	 */
	struct q2_run last;
	q2_guest last_start;
	uint64_t last_changes;
	const uint64_t *last_l1;
	bool last_cut; /* it ended at the limit of its caller, and may go on behind it */
};

void q2_map_free(struct q2_map *map);

/* Reads the L1 table on first use: inside the file, but what it says is not judged. fails: `missing` when the tables
 * were given up. */
int q2_map_read(struct q2_map *map, struct qcow2_error *err);

/*
 * Reads the L1 table on first use and refuses it when two entries share an L2 table or when one lies on
 * the header, the L1 table, the refcount table or the snapshot table: so the work of a walk is bounded by
 * the file's own bytes (SAFETY rules 2 and 10).
 */
int q2_map_load(struct q2_map *map, struct qcow2_error *err);

/*
 * needs: start + limit <= size rounded up to a cluster, limit > 0. gives: the run that begins at `start`,
 * at most `limit` long. A compressed run is (the rest of) one cluster.
 * fails: `corrupt` with the offset of the entry that is wrong.
 */
int q2_map_find(struct q2_map *map, q2_guest start, uint64_t limit, struct q2_run *run,
		struct qcow2_error *err);

/* How the entry of a cluster holds a place in the file. A run of kind UNALLOCATED does not say that: with extended L2 an
 * entry may have a place though nothing is in it. */
enum q2_holding {
	Q2_HOLDING_NONE,   /* no place */
	Q2_HOLDING_SHARED, /* a place that others use as well, or a compressed stream */
	Q2_HOLDING_OWN,    /* a place that is this disk's alone: it can be written to */
};

/* Clusters that hold their places alike. */
struct q2_held {
	uint64_t count; /* clusters, > 0 */
	enum q2_holding holding;
	q2_host host; /* own: of the first cluster; the others follow */
	bool plain;   /* own, and all of the range asked for is data: to write there changes no entry */
};

/*
 * What a writer of [start, start + length) has to know of the clusters that the range touches, from the first one on.
 * needs: length > 0, the range inside what L1 covers. fails: as q2_map_find, for the first cluster.
 */
int q2_map_held(struct q2_map *map, q2_guest start, uint64_t length, struct q2_held *held,
		struct qcow2_error *err);

/*
 * One L2 entry, raw, of tables that q2_map_load may refuse as a whole. gives: the words in host order (bitmap 0 without extended L2) and where the entry
 * lies; *at.v == 0 and zero words where there is no L2 table.
 */
int q2_map_entry(struct q2_map *map, q2_guest address, uint64_t *word, uint64_t *bitmap, q2_host *at,
		 struct qcow2_error *err);

#endif
