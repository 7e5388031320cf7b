/* SPDX-License-Identifier: MIT
 * The clusters known to be live metadata: a hash set with open addressing. */
#include "meta/live_metadata.h"

#include "base/error.h"
#include "base/mem.h"

#define GONE UINT64_MAX /* a slot whose cluster was removed */

static uint64_t home_of(const struct q2_live_metadata *guard, uint64_t cluster)
{
	return (cluster * 0x9e3779b97f4a7c15ull >> 20) & (guard->room - 1);
}

/* The slot of the cluster, or the empty one where the search for it ended. needs: a set with room. */
static uint64_t *find(const struct q2_live_metadata *guard, uint64_t cluster)
{
	uint64_t i = home_of(guard, cluster);
	while (guard->slots[i] && guard->slots[i] != cluster + 1)
		i = (i + 1) & (guard->room - 1);
	return &guard->slots[i];
}

static int grow(struct q2_live_metadata *guard)
{
	struct q2_live_metadata larger = {.room = guard->room ? guard->room * 2 : 64};
	larger.slots = q2_new(larger.room, sizeof *larger.slots);
	if (!larger.slots)
		return QCOW2_E_NOMEM;
	for (uint64_t i = 0; i < guard->room; i++) {
		if (!guard->slots[i] || guard->slots[i] == GONE)
			continue;
		*find(&larger, guard->slots[i] - 1) = guard->slots[i];
		larger.used++;
	}
	free(guard->slots);
	*guard = larger;
	return 0;
}

int q2_live_metadata_add(struct q2_live_metadata *guard, uint64_t cluster, uint64_t count)
{
	for (uint64_t end = cluster + count; cluster < end; cluster++) {
		if (guard->used * 2 >= guard->room && grow(guard))
			return QCOW2_E_NOMEM;
		uint64_t *slot = find(guard, cluster);
		guard->used += !*slot;
		*slot = cluster + 1;
	}
	return 0;
}

void q2_live_metadata_remove(struct q2_live_metadata *guard, uint64_t cluster)
{
	if (!guard->room)
		return;
	uint64_t *slot = find(guard, cluster);
	if (*slot)
		*slot = GONE; /* not empty: others were placed behind it */
}

bool q2_live_metadata_has(const struct q2_live_metadata *guard, uint64_t cluster, uint64_t count)
{
	for (uint64_t i = 0; guard->room && i < count; i++)
		if (*find(guard, cluster + i))
			return true;
	return false;
}

void q2_live_metadata_free(struct q2_live_metadata *guard)
{
	free(guard->slots);
	*guard = (struct q2_live_metadata){0};
}
