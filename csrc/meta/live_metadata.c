/* SPDX-License-Identifier: MIT
 * The clusters known to be live metadata: a hash set with open addressing. */
#include "meta/live_metadata.h"

#include "base/error.h"
#include "base/mem.h"

#define GONE UINT64_MAX /* a slot whose cluster was removed */

static uint64_t home_of(const struct q2_live_metadata *live, uint64_t cluster)
{
	return (cluster * 0x9e3779b97f4a7c15ull >> 20) & (live->room - 1);
}

/* The slot of the cluster, or the empty one where the search for it ended. needs: a set with room. */
static uint64_t *find(const struct q2_live_metadata *live, uint64_t cluster)
{
	uint64_t i = home_of(live, cluster);
	while (live->slots[i] && live->slots[i] != cluster + 1)
		i = (i + 1) & (live->room - 1);
	return &live->slots[i];
}

static int grow(struct q2_live_metadata *live)
{
	struct q2_live_metadata larger = {.room = live->room ? live->room * 2 : 64};
	larger.slots = q2_new(larger.room, sizeof *larger.slots);
	if (!larger.slots)
		return QCOW2_E_NOMEM;
	for (uint64_t i = 0; i < live->room; i++) {
		if (!live->slots[i] || live->slots[i] == GONE)
			continue;
		*find(&larger, live->slots[i] - 1) = live->slots[i];
		larger.used++;
	}
	free(live->slots);
	*live = larger;
	return 0;
}

int q2_live_metadata_add(struct q2_live_metadata *live, uint64_t cluster, uint64_t count)
{
	for (uint64_t end = cluster + count; cluster < end; cluster++) {
		if (live->used * 2 >= live->room && grow(live))
			return QCOW2_E_NOMEM;
		uint64_t *slot = find(live, cluster);
		live->used += !*slot;
		*slot = cluster + 1;
	}
	return 0;
}

void q2_live_metadata_remove(struct q2_live_metadata *live, uint64_t cluster)
{
	if (!live->room)
		return;
	uint64_t *slot = find(live, cluster);
	if (*slot)
		*slot = GONE; /* not empty: others were placed behind it */
}

bool q2_live_metadata_has(const struct q2_live_metadata *live, uint64_t cluster, uint64_t count)
{
	for (uint64_t i = 0; live->room && i < count; i++)
		if (*find(live, cluster + i))
			return true;
	return false;
}

void q2_live_metadata_free(struct q2_live_metadata *live)
{
	free(live->slots);
	*live = (struct q2_live_metadata){0};
}
