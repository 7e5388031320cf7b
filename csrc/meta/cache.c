/* SPDX-License-Identifier: MIT
 * The table cache: a hash of slices, replaced by the clock algorithm. */
#include "meta/cache.h"

#include "base/mem.h"

#include <string.h>

struct q2_slot {
	uint64_t at;
	uint8_t *bytes; /* owned */
	uint32_t next;  /* in the bucket: slot number + 1 */
	bool valid, recent;
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
		cache->slots[i].valid = false;
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

/* Room for one more slot: the arrays double up to the bound, the hash is rebuilt. */
static int grow(struct q2_cache *cache)
{
	uint32_t room = cache->room ? (uint32_t)q2_min(cache->room * 2ull, cache->most) : 16;
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
	if (cache->used == cache->room && cache->room < cache->most) {
		/* Without memory for a larger cache the one there is goes on working. */
		if (grow(cache) && cache->used == 0)
			return QCOW2_E_NOMEM;
	}
	if (cache->used < cache->room) {
		uint8_t *bytes = q2_new_pages(cache->slice);
		if (bytes) {
			cache->slots[cache->used] = (struct q2_slot){.bytes = bytes};
			*number = cache->used++;
			return 0;
		}
		if (cache->used == 0)
			return QCOW2_E_NOMEM;
	}
	for (;;) {
		uint32_t hand = cache->hand;
		cache->hand = (hand + 1) % cache->used;
		struct q2_slot *slot = &cache->slots[hand];
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

int q2_cache_get(struct q2_cache *cache, q2_host at, uint8_t **bytes, struct qcow2_error *err)
{
	if (cache->bucket_count) {
		for (uint32_t i = cache->buckets[bucket_of(cache, at.v)]; i; i = cache->slots[i - 1].next) {
			struct q2_slot *slot = &cache->slots[i - 1];
			if (slot->at == at.v) {
				slot->recent = true;
				cache->hits++;
				*bytes = slot->bytes;
				return 0;
			}
		}
	}
	cache->misses++;
	uint32_t number;
	if (empty_slot(cache, &number))
		return q2_error_nomem(err);
	struct q2_slot *slot = &cache->slots[number];
	int rc = qcow2_store_read(cache->store, at.v, slot->bytes, cache->slice, err);
	if (rc)
		return rc;
	slot->at = at.v;
	/* Not recent yet: a slice that a scan touches once leaves before those used again. */
	slot->recent = false;
	slot->valid = true;
	uint32_t bucket = bucket_of(cache, at.v);
	slot->next = cache->buckets[bucket];
	cache->buckets[bucket] = number + 1;
	*bytes = slot->bytes;
	return 0;
}
