/* SPDX-License-Identifier: MIT
 * The clusters known to be live metadata (invariant 6): no guest write may land on one, whatever an L2 entry
 * of a broken or hostile image says.
 *
 * A set of cluster numbers. It is filled when an image is made writable, follows the tables that are made
 * later, and lets go of a cluster when its count falls to zero. */
#ifndef Q2_META_LIVE_METADATA_H
#define Q2_META_LIVE_METADATA_H

#include <stdbool.h>
#include <stdint.h>

struct q2_live_metadata {
	uint64_t *slots; /* cluster number + 1; 0 empty */
	uint64_t room;   /* power of two */
	uint64_t used;   /* slots ever taken since the last growth, gone ones too */
};

/* fails: QCOW2_E_NOMEM; the set is as it was. */
int q2_live_metadata_add(struct q2_live_metadata *live, uint64_t cluster, uint64_t count);
void q2_live_metadata_remove(struct q2_live_metadata *live, uint64_t cluster);
bool q2_live_metadata_has(const struct q2_live_metadata *live, uint64_t cluster, uint64_t count);
void q2_live_metadata_free(struct q2_live_metadata *live);

#endif
