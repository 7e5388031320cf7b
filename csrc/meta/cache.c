/* SPDX-License-Identifier: MIT
 * The table cache: a hash of slices, replaced by the clock algorithm. */
#include "meta/cache.h"

#include "base/mem.h"

#include <string.h>

struct q2_slot {
	uint64_t at;
	uint8_t *bytes; /* owned */
	uint32_t next;  /* in the bucket: slot number + 1 */
	uint8_t kind;   /* enum q2_table, once edited */
	bool valid, recent, dirty, fresh;
};

void q2_cache_init(struct q2_cache *cache, struct qcow2_store *store, uint32_t cluster_size, uint64_t bound)
{
	*cache = (struct q2_cache){.store = store};
	cache->slice = (uint32_t)q2_min(cluster_size, Q2_SLICE_MAX);
	cache->most = (uint32_t)q2_max(bound / cache->slice, 16);
}

void q2_cache_free(struct q2_cache *cache)
{
	for (uint32_t i = 0; i < cache->used; i++)
		free(cache->slots[i].bytes);
	free(cache->slots);
	free(cache->buckets);
	*cache = (struct q2_cache){0};
}

void q2_cache_drop(struct q2_cache *cache)
{
	for (uint32_t i = 0; i < cache->used; i++)
		cache->slots[i].valid = cache->slots[i].dirty = false;
	cache->dirty = 0;
	cache->changes++;
	if (cache->buckets)
		memset(cache->buckets, 0, cache->bucket_count * sizeof *cache->buckets);
}

static uint32_t bucket_of(const struct q2_cache *cache, uint64_t at)
{
	return (uint32_t)((at / cache->slice) * 0x9e3779b97f4a7c15ull >> 32) & (cache->bucket_count - 1);
}

static void unlink_slot(struct q2_cache *cache, uint32_t number)
{
	struct q2_slot *slot = &cache->slots[number];
	uint32_t *link = &cache->buckets[bucket_of(cache, slot->at)];
	while (*link != number + 1)
		link = &cache->slots[*link - 1].next;
	*link = slot->next;
	slot->valid = false;
}

/* Room for more slots: the arrays double up to `most`, the hash is rebuilt. */
static int grow(struct q2_cache *cache, uint32_t most)
{
	uint32_t room = cache->room ? (uint32_t)q2_min(cache->room * 2ull, most) : 16;
	uint32_t buckets = 16;
	while (buckets < room)
		buckets *= 2;
	struct q2_slot *slots = realloc(cache->slots, room * sizeof *slots);
	if (!slots)
		return QCOW2_E_NOMEM;
	cache->slots = slots;
	uint32_t *heads = q2_new(buckets, sizeof *heads);
	if (!heads)
		return QCOW2_E_NOMEM;
	free(cache->buckets);
	cache->buckets = heads;
	cache->bucket_count = buckets;
	cache->room = room;
	for (uint32_t i = 0; i < cache->used; i++) {
		struct q2_slot *slot = &cache->slots[i];
		if (!slot->valid)
			continue;
		uint32_t bucket = bucket_of(cache, slot->at);
		slot->next = heads[bucket];
		heads[bucket] = i + 1;
	}
	return 0;
}

/* gives: the number of a slot that holds nothing. */
static int empty_slot(struct q2_cache *cache, uint32_t *number)
{
	/* Past the bound only where nothing can leave, until the next commit. Without memory for a larger cache the one
	 * there is goes on working. */
	if (cache->used == cache->room && cache->room < cache->most)
		(void)grow(cache, cache->most);
	else if (cache->used == cache->room && cache->dirty == cache->used)
		(void)grow(cache, UINT32_MAX);
	if (cache->used < cache->room) {
		/* Whole pages only where a slice is one: aligned small pieces would each cost a page. */
		uint8_t *bytes = cache->slice < 4096 ? malloc(cache->slice) : q2_new_pages(cache->slice);
		if (bytes) {
			cache->slots[cache->used] = (struct q2_slot){.bytes = bytes};
			*number = cache->used++;
			return 0;
		}
	}
	if (cache->dirty == cache->used)
		return QCOW2_E_NOMEM;
	for (;;) { /* ends: a clean slot exists, and the second time round none is recent */
		uint32_t hand = cache->hand;
		cache->hand = (hand + 1) % cache->used;
		struct q2_slot *slot = &cache->slots[hand];
		if (slot->dirty)
			continue;
		if (slot->valid && slot->recent) {
			slot->recent = false;
			continue;
		}
		if (slot->valid)
			unlink_slot(cache, hand);
		*number = hand;
		return 0;
	}
}

static struct q2_slot *find(const struct q2_cache *cache, uint64_t at)
{
	if (!cache->bucket_count)
		return NULL;
	for (uint32_t i = cache->buckets[bucket_of(cache, at)]; i; i = cache->slots[i - 1].next)
		if (cache->slots[i - 1].at == at)
			return &cache->slots[i - 1];
	return NULL;
}

/* Enters slot `number`, whose bytes are ready, as the slice at `at`. */
static struct q2_slot *enter(struct q2_cache *cache, uint32_t number, uint64_t at)
{
	struct q2_slot *slot = &cache->slots[number];
	uint32_t bucket = bucket_of(cache, at);
	slot->at = at;
	/* Not recent yet: a slice that a scan touches once leaves before those used again. */
	slot->recent = slot->dirty = slot->fresh = false;
	slot->valid = true;
	slot->next = cache->buckets[bucket];
	cache->buckets[bucket] = number + 1;
	return slot;
}

static int get(struct q2_cache *cache, uint64_t at, struct q2_slot **out, struct qcow2_error *err)
{
	struct q2_slot *slot = find(cache, at);
	if (slot) {
		slot->recent = true;
		cache->hits++;
		*out = slot;
		return 0;
	}
	cache->misses++;
	uint32_t number;
	if (empty_slot(cache, &number))
		return q2_error_nomem(err);
	int rc = qcow2_store_read(cache->store, at, cache->slots[number].bytes, cache->slice, err);
	if (!rc)
		*out = enter(cache, number, at);
	return rc;
}

int q2_cache_get(struct q2_cache *cache, q2_host at, uint8_t **bytes, struct qcow2_error *err)
{
	struct q2_slot *slot;
	int rc = get(cache, at.v, &slot, err);
	if (!rc)
		*bytes = slot->bytes;
	return rc;
}

bool q2_cache_has(const struct q2_cache *cache, q2_host at)
{
	return find(cache, at.v) != NULL;
}

uint64_t q2_cache_unchanged(const struct q2_cache *cache, q2_host at, uint64_t length)
{
	uint64_t end = at.v + length;
	for (uint64_t slice = q2_round_down(at.v, cache->slice); cache->dirty && slice < end;
	     slice += cache->slice) {
		const struct q2_slot *slot = find(cache, slice);
		if (slot && slot->dirty)
			return slice > at.v ? slice - at.v : 0;
	}
	return length;
}

static void mark(struct q2_cache *cache, struct q2_slot *slot, enum q2_table kind)
{
	cache->dirty += !slot->dirty;
	slot->dirty = true;
	slot->kind = (uint8_t)kind;
	cache->changes++;
}

int q2_cache_edit(struct q2_cache *cache, q2_host at, enum q2_table kind, uint8_t **bytes,
		  struct qcow2_error *err)
{
	struct q2_slot *slot;
	int rc = get(cache, at.v, &slot, err);
	if (rc)
		return rc;
	mark(cache, slot, kind);
	*bytes = slot->bytes;
	return 0;
}

int q2_cache_new(struct q2_cache *cache, q2_host at, uint64_t length, enum q2_table kind,
		 const uint8_t *bytes, struct qcow2_error *err)
{
	for (uint64_t done = 0; done < length; done += cache->slice) {
		struct q2_slot *slot = find(cache, at.v + done);
		if (!slot) {
			uint32_t number;
			if (empty_slot(cache, &number)) {
				q2_cache_forget(cache, at, done);
				return q2_error_nomem(err);
			}
			slot = enter(cache, number, at.v + done);
		}
		if (bytes)
			memcpy(slot->bytes, bytes + done, cache->slice);
		else
			memset(slot->bytes, 0, cache->slice);
		mark(cache, slot, kind);
		slot->fresh = true;
	}
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct q2_slot *x = *(struct q2_slot *const *)a, *y = *(struct q2_slot *const *)b;
	return (x->at > y->at) - (x->at < y->at);
}

int q2_cache_write(struct q2_cache *cache, unsigned kinds, bool fresh_only, struct qcow2_error *err)
{
	if (!cache->dirty)
		return 0;
	q2_auto struct q2_slot **list = q2_new(cache->dirty, sizeof *list);
	if (!list)
		return q2_error_nomem(err);
	uint32_t count = 0;
	for (uint32_t i = 0; i < cache->used; i++) {
		struct q2_slot *slot = &cache->slots[i];
		if (slot->dirty && (slot->kind & kinds) && (slot->fresh || !fresh_only))
			list[count++] = slot;
	}
	qsort(list, count, sizeof(struct q2_slot *), by_offset);
	for (uint32_t i = 0; i < count; i++) {
		struct q2_slot *slot = list[i];
		int rc = qcow2_store_write(cache->store, slot->at, slot->bytes, cache->slice, err);
		if (rc)
			return q2_error_prefix(err, rc, "Could not write a metadata table");
		slot->dirty = slot->fresh = false;
		cache->dirty--;
	}
	return 0;
}

static void forget_slot(struct q2_cache *cache, struct q2_slot *slot)
{
	cache->dirty -= slot->dirty;
	slot->dirty = slot->fresh = false;
	unlink_slot(cache, (uint32_t)(slot - cache->slots));
}

void q2_cache_forget(struct q2_cache *cache, q2_host at, uint64_t length)
{
	cache->changes++;
	/* A long stretch has more slices than there are slots to look at. */
	if (length / cache->slice > cache->used) {
		for (uint32_t i = 0; i < cache->used; i++)
			if (cache->slots[i].valid && cache->slots[i].at - at.v < length)
				forget_slot(cache, &cache->slots[i]);
		return;
	}
	for (uint64_t done = 0; done < length; done += cache->slice) {
		struct q2_slot *slot = find(cache, at.v + done);
		if (slot)
			forget_slot(cache, slot);
	}
}
