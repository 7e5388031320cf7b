/* SPDX-License-Identifier: MIT
 * The map: L1 -> L2 -> subcluster, found by runs. */
#include "meta/map.h"

#include "base/be.h"
#include "base/mem.h"

#include <inttypes.h>

void q2_map_free(struct q2_map *map)
{
	free(map->l1);
	map->l1 = NULL;
	map->judged = false;
	map->last.length = 0;
}

/* Does the L2 table at `at` lie on a table that the header names? */
static const char *collision(const struct q2_map *map, uint64_t at)
{
	const struct qcow2_header *h = &map->meta->header;
	uint64_t size = map->meta->geo.cluster_size;
	if (q2_overlaps(at, size, map->l1_offset, (uint64_t)map->l1_entries * 8))
		return "its own L1 table";
	if (q2_overlaps(at, size, h->l1_table_offset, (uint64_t)h->l1_size * 8))
		return "the active L1 table";
	if (q2_overlaps(at, size, h->refcount_table_offset, h->refcount_table_clusters * size))
		return "the reference count table";
	if (q2_overlaps(at, size, h->snapshots_offset, h->nb_snapshots * (uint64_t)40))
		return "the snapshot table";
	return NULL;
}

/* The L2 tables of this L1: inside the file, on nothing else, each named once. */
static int check_l1(const struct q2_map *map, const uint64_t *l1, struct qcow2_error *err)
{
	uint64_t last = 0, count = 0;
	bool sorted = true;
	for (uint32_t i = 0; i < map->l1_entries; i++) {
		uint64_t at = l1[i] & Q2_OFFSET_MASK;
		if (!at)
			continue;
		int rc = q2_meta_bound(map->meta, "L2 table", at, map->meta->geo.cluster_size, err);
		if (rc)
			return q2_error_prefix(err, rc, "L1 entry %" PRIu32, i);
		const char *what = collision(map, at);
		if (what)
			return q2_error_set(err, QCOW2_E_CORRUPT, at,
					    "L1 entry %" PRIu32 ": L2 table at offset %#" PRIx64
					    " overlaps %s",
					    i, at, what);
		sorted = sorted && at > last;
		last = at;
		count++;
	}
	/* More tables than the file has clusters must repeat: no memory for that verdict. */
	if (count > map->meta->file_length >> map->meta->geo.cluster_bits)
		return q2_error_set(err, QCOW2_E_CORRUPT, map->l1_offset,
				    "L1 table at offset %#" PRIx64 " names %" PRIu64
				    " L2 tables, more than the file has clusters",
				    map->l1_offset, count);
	return sorted ? 0 : q2_meta_distinct(l1, map->l1_entries, Q2_OFFSET_MASK, "L2 table", err);
}

int q2_map_read(struct q2_map *map, struct qcow2_error *err)
{
	if (map->l1)
		return 0;
	if (map->gone)
		return q2_error_set(err, QCOW2_E_MISSING, Q2_NO_OFFSET, "The snapshot is not there any more");
	return q2_meta_read_table(map->meta, "L1 table", map->l1_offset, map->l1_entries, &map->l1, err);
}

int q2_map_load(struct q2_map *map, struct qcow2_error *err)
{
	if (map->judged)
		return 0;
	int rc = q2_map_read(map, err);
	if (!rc)
		rc = check_l1(map, map->l1, err);
	map->judged = !rc;
	return rc;
}

/* Where `address` stands in the tables. */
struct place {
	uint64_t l1_index;
	uint32_t l2_index;
	uint64_t l2_at; /* host offset of the L2 table, 0 none */
};

static struct place place_of(const struct q2_map *map, q2_guest address)
{
	const struct q2_geometry *g = &map->meta->geo;
	uint64_t cluster = address.v >> g->cluster_bits;
	struct place p = {.l1_index = cluster >> g->l2_bits,
			  .l2_index = (uint32_t)(cluster & ((1ull << g->l2_bits) - 1))};
	p.l2_at = p.l1_index < map->l1_entries ? map->l1[p.l1_index] & Q2_OFFSET_MASK : 0;
	return p;
}

/* The cached slice that holds the place's entry. gives: a pointer to the entry, and how many entries of
 * the slice there are from it on. */
static int slice_of(struct q2_map *map, const struct place *p, const uint8_t **entry, uint32_t *left,
		    struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	uint32_t byte = p->l2_index * meta->geo.l2_entry_size;
	uint32_t slice = (uint32_t)q2_round_down(byte, meta->cache.slice);
	uint8_t *bytes;
	int rc = q2_cache_get(&meta->cache, q2_host_at(p->l2_at + slice), &bytes, err);
	if (rc)
		return q2_error_prefix(err, rc, "L2 table at offset %#" PRIx64, p->l2_at);
	*entry = bytes + (byte - slice);
	*left = (meta->cache.slice - (byte - slice)) / meta->geo.l2_entry_size;
	return 0;
}

/*
 * How many entries from the place on are zeros that nobody wrote and that need not be read; 0 where the slice is in memory
 * or may hold something.
 */
static int unwritten(struct q2_map *map, const struct place *p, uint32_t *count, struct qcow2_error *err)
{
	struct q2_meta *meta = map->meta;
	const struct q2_geometry *g = &meta->geo;
	uint32_t byte = p->l2_index * g->l2_entry_size;
	uint64_t zeros;
	*count = 0;
	if (q2_cache_has(&meta->cache, q2_host_at(p->l2_at + q2_round_down(byte, meta->cache.slice))))
		return 0;
	int rc = q2_meta_zeros(meta, p->l2_at + byte, g->cluster_size - byte, &zeros, err);
	if (!rc)
		*count = (uint32_t)(zeros / g->l2_entry_size);
	return rc;
}

/* Refuses an entry that the specification does not allow at this guest cluster. */
static int check_entry(const struct q2_map *map, const struct q2_entry *e, q2_guest cluster,
		       struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	const char *why = NULL;
	if (e->compressed) {
		if (g->external_data)
			why = "compressed cluster in an image with an external data file";
		else if (e->host.v >= map->meta->file_length)
			why = "compressed data beyond the end of the file";
	} else if (e->invalid) {
		why = g->extended_l2 ? "subcluster bitmap contradicts itself"
				     : "zero cluster in a version 2 image";
	} else if (e->has_host && !q2_is_aligned(e->host.v, g->cluster_size)) {
		why = "host offset is not aligned to a cluster";
	} else if (e->has_host && g->external_data && e->host.v != cluster.v) {
		why = "host offset in the external data file differs from the guest offset";
	}
	if (!why)
		return 0;
	return q2_error_set(err, QCOW2_E_CORRUPT, cluster.v,
			    "L2 entry %#" PRIx64 " of guest offset %#" PRIx64 ": %s", e->raw, cluster.v, why);
}

/* How many subclusters from `from` on are of the kind of the first. */
static unsigned same_subs(const struct q2_entry *e, unsigned from, unsigned count)
{
	enum q2_sub kind = q2_entry_sub(e, from);
	unsigned n = 1;
	while (from + n < count && q2_entry_sub(e, from + n) == kind)
		n++;
	return n;
}

/* The run's beginning: the subclusters of one kind inside one cluster. */
static void first_piece(const struct q2_geometry *g, const struct q2_entry *e, uint32_t within,
			struct q2_run *run)
{
	unsigned sub = within >> g->subcluster_bits;
	*run = (struct q2_run){.kind = q2_entry_sub(e, sub)};
	if (e->compressed) {
		run->length = g->cluster_size - within;
		run->has_host = true;
		run->host = e->host;
		run->host_length = e->host_length;
		run->within = within;
		return;
	}
	unsigned n = same_subs(e, sub, g->subclusters);
	run->length = ((uint64_t)(sub + n) << g->subcluster_bits) - within;
	if (run->kind == Q2_SUB_UNALLOCATED)
		return; /* the space that the cluster may have has nothing of these subclusters */
	run->has_host = e->has_host;
	run->copied = e->raw & Q2_COPIED;
	run->host = q2_host_add(e->host, within);
}

/*
 * Goes on with the run over whole entries of one slice. gives: how many entries joined it wholly; *more is
 * false when the run ended here (it may have grown by the first subclusters of the entry that ended it).
 */
static uint32_t extend(const struct q2_map *map, const uint8_t *bytes, uint32_t left, struct q2_run *run,
		       q2_guest cluster, bool *more)
{
	const struct q2_geometry *g = &map->meta->geo;
	uint32_t n = 0;
	*more = true;
	if (!g->extended_l2 && run->kind == Q2_SUB_DATA) {
		/* The common long case: plain data, each entry a cluster further than the last. */
		uint64_t expect = (run->host.v + run->length) | (run->copied ? Q2_COPIED : 0);
		while (n < left && q2_load64(bytes + 8ull * n) == expect) {
			expect += g->cluster_size;
			n++;
		}
		run->length += (uint64_t)n << g->cluster_bits;
		*more = n == left;
		return n;
	}
	if (!g->extended_l2 && run->kind == Q2_SUB_UNALLOCATED) {
		while (n < left && q2_load64(bytes + 8ull * n) == 0)
			n++;
		run->length += (uint64_t)n << g->cluster_bits;
		if (n == left)
			return n;
	}
	for (; n < left; n++) {
		struct q2_entry e = q2_entry_load(g, bytes + (size_t)n * g->l2_entry_size);
		q2_guest here = q2_guest_add(cluster, (uint64_t)n << g->cluster_bits);
		/* A wrong entry ends the run; who asks for it gets the error. */
		bool joins = !e.compressed && q2_entry_sub(&e, 0) == run->kind &&
			     !check_entry(map, &e, here, NULL);
		if (joins && run->kind != Q2_SUB_UNALLOCATED)
			joins = e.has_host == run->has_host && !!(e.raw & Q2_COPIED) == run->copied &&
				(!e.has_host || e.host.v == run->host.v + run->length);
		unsigned subs = joins ? same_subs(&e, 0, g->subclusters) : 0;
		run->length += (uint64_t)subs << g->subcluster_bits;
		if (subs < g->subclusters) {
			*more = false;
			return n;
		}
	}
	return n;
}

/* Goes on with an unallocated run over L1 entries without a table. gives: the L1 index it stopped at. */
static uint64_t skip_empty_l1(const struct q2_map *map, uint64_t index, uint64_t limit, struct q2_run *run)
{
	const struct q2_geometry *g = &map->meta->geo;
	while (run->length < limit && (index >= map->l1_entries || !(map->l1[index] & Q2_OFFSET_MASK))) {
		run->length += 1ull << (g->cluster_bits + g->l2_bits);
		index++;
	}
	return index;
}

/* The rest of the run that was found last, when `start` lies in it and the rest is all that is asked for or
 * all there is. */
static bool recall(const struct q2_map *map, q2_guest start, uint64_t limit, struct q2_run *run)
{
	uint64_t into = start.v - map->last_start.v; /* huge for a start before it */
	if (into >= map->last.length || map->last_changes != map->meta->cache.changes ||
	    map->last_l1 != map->l1)
		return false;
	uint64_t rest = map->last.length - into;
	if (rest < limit && map->last_cut)
		return false;
	*run = map->last;
	run->length = q2_min(rest, limit);
	if (run->kind == Q2_SUB_COMPRESSED)
		run->within += (uint32_t)into;
	else if (run->has_host)
		run->host = q2_host_add(run->host, into);
	return true;
}

int q2_map_find(struct q2_map *map, q2_guest start, uint64_t limit, struct q2_run *run,
		struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	int rc = q2_map_load(map, err);
	if (rc)
		return rc;
	if (recall(map, start, limit, run))
		return 0;
	q2_guest cluster = q2_guest_at(q2_round_down(start.v, g->cluster_size));
	uint32_t within = (uint32_t)(start.v - cluster.v);
	struct place p = place_of(map, start);
	const uint8_t *bytes;
	uint32_t left, zeros = 0;

	if (p.l2_at)
		rc = unwritten(map, &p, &zeros, err);
	if (rc)
		return rc;
	if (zeros) {
		*run = (struct q2_run){.kind = Q2_SUB_UNALLOCATED,
				       .length = ((uint64_t)zeros << g->cluster_bits) - within};
		left = 0;
	} else if (p.l2_at) {
		rc = slice_of(map, &p, &bytes, &left, err);
		if (rc)
			return rc;
		struct q2_entry e = q2_entry_load(g, bytes);
		rc = check_entry(map, &e, cluster, err);
		if (rc)
			return rc;
		first_piece(g, &e, within, run);
		bytes += g->l2_entry_size;
		left--;
	} else {
		uint64_t table = (uint64_t)(p.l2_index) << g->cluster_bits;
		*run = (struct q2_run){.kind = Q2_SUB_UNALLOCATED,
				       .length = (1ull << (g->cluster_bits + g->l2_bits)) - table - within};
		left = 0;
	}

	bool more = run->kind != Q2_SUB_COMPRESSED && (start.v + run->length) % g->cluster_size == 0;
	while (more && run->length < limit) {
		q2_guest next = q2_guest_add(start, run->length);
		if (!left) {
			p = place_of(map, next);
			if (!p.l2_at && run->kind != Q2_SUB_UNALLOCATED)
				break;
			if (!p.l2_at) {
				skip_empty_l1(map, p.l1_index, limit, run);
				continue;
			}
			/* The run so far is an answer; a table that cannot be read is the next call's error. */
			if (unwritten(map, &p, &zeros, NULL) || (zeros && run->kind != Q2_SUB_UNALLOCATED))
				break;
			if (zeros) {
				run->length += (uint64_t)zeros << g->cluster_bits;
				continue;
			}
			if (slice_of(map, &p, &bytes, &left, NULL))
				break;
		}
		uint64_t wanted = q2_div_up(limit - run->length, g->cluster_size);
		extend(map, bytes, (uint32_t)q2_min(left, wanted), run, next, &more);
		left = 0;
	}
	map->last_cut = run->length >= limit;
	run->length = q2_min(run->length, limit);
	map->last = *run;
	map->last_start = start;
	map->last_changes = map->meta->cache.changes;
	map->last_l1 = map->l1;
	return 0;
}

int q2_map_entry(struct q2_map *map, q2_guest address, uint64_t *word, uint64_t *bitmap, q2_host *at,
		 struct qcow2_error *err)
{
	int rc = q2_map_read(map, err);
	if (rc)
		return rc;
	struct place p = place_of(map, address);
	*word = *bitmap = 0;
	*at = q2_host_at(0);
	if (!p.l2_at)
		return 0;
	rc = q2_meta_bound(map->meta, "L2 table", p.l2_at, map->meta->geo.cluster_size, err);
	if (rc)
		return rc;
	const uint8_t *bytes;
	uint32_t left;
	rc = slice_of(map, &p, &bytes, &left, err);
	if (rc)
		return rc;
	*word = q2_load64(bytes);
	*bitmap = map->meta->geo.extended_l2 ? q2_load64(bytes + 8) : 0;
	*at = q2_host_at(p.l2_at + (uint64_t)p.l2_index * map->meta->geo.l2_entry_size);
	return 0;
}

/* The subclusters of the cluster at `cluster` that [start, end) touches. */
static uint32_t touched(const struct q2_geometry *g, uint64_t cluster, uint64_t start, uint64_t end)
{
	uint64_t from = q2_max(start, cluster) - cluster, to = q2_min(end - cluster, g->cluster_size);
	unsigned low = (unsigned)(from >> g->subcluster_bits);
	unsigned high = (unsigned)q2_div_up(to, 1ull << g->subcluster_bits);
	return (uint32_t)(((1ull << high) - 1) & ~((1ull << low) - 1));
}

/* How the entry of the cluster at `cluster` holds its place, as far as [start, end) is concerned. */
static struct q2_held held_by(const struct q2_geometry *g, const struct q2_entry *e, uint64_t cluster,
			      uint64_t start, uint64_t end)
{
	struct q2_held held = {.count = 1, .holding = Q2_HOLDING_NONE};
	if (!e->has_host)
		return held;
	held.holding = Q2_HOLDING_SHARED;
	if (e->compressed || !(g->external_data || (e->raw & Q2_COPIED)))
		return held;
	uint32_t mask = touched(g, cluster, start, end);
	held.holding = Q2_HOLDING_OWN;
	held.host = e->host;
	held.plain = (e->raw & Q2_COPIED) && (e->alloc & mask) == mask;
	return held;
}

static bool joins(const struct q2_geometry *g, const struct q2_held *held, const struct q2_held *next)
{
	return !held->count || (next->holding == held->holding && next->plain == held->plain &&
				(next->holding != Q2_HOLDING_OWN ||
				 next->host.v == held->host.v + (held->count << g->cluster_bits)));
}

int q2_map_held(struct q2_map *map, q2_guest start, uint64_t length, struct q2_held *held,
		struct qcow2_error *err)
{
	const struct q2_geometry *g = &map->meta->geo;
	uint64_t at = q2_round_down(start.v, g->cluster_size), end = start.v + length;
	*held = (struct q2_held){0};
	int rc = q2_map_load(map, err);
	while (!rc && at < end) {
		struct place p = place_of(map, q2_guest_at(at));
		const uint8_t *bytes = NULL;
		uint32_t left = (1u << g->l2_bits) - p.l2_index, zeros = 0;
		/* What is known already is an answer; a table that cannot be read is the next call's error. */
		struct qcow2_error *e = held->count ? NULL : err;
		if (p.l2_at)
			rc = unwritten(map, &p, &zeros, e);
		if (zeros)
			left = zeros;
		else if (!rc && p.l2_at)
			rc = slice_of(map, &p, &bytes, &left, e);
		for (; !rc && left && at < end; at += g->cluster_size) {
			struct q2_held next = {.count = 1};
			uint64_t n = 1;
			if (bytes) {
				struct q2_entry entry = q2_entry_load(g, bytes);
				bytes += g->l2_entry_size;
				rc = check_entry(map, &entry, q2_guest_at(at), e);
				next = held_by(g, &entry, at, start.v, end);
			} else {
				n = q2_min(left, q2_div_up(end - at, g->cluster_size));
				at += (n - 1) << g->cluster_bits;
			}
			if (rc || !joins(g, held, &next))
				return held->count ? 0 : rc;
			left -= (uint32_t)n;
			n += held->count;
			if (!held->count)
				*held = next;
			held->count = n;
			e = NULL;
		}
	}
	return held->count ? 0 : rc;
}
