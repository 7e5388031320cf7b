/* SPDX-License-Identifier: MIT
 * Whole-image changes (invariant 5): new reference counts beside the old ones, switched by the header.
 *
 * Counts and COPIED flags change together or the pair would be wrong in between (invariant 4). So while a
 * counts is open every refcount block in memory is a copy in a fresh cluster: counts are changed there, new
 * tables are written to fresh clusters too, and one header write makes all of it true at once.
 *
 *   q2_rebuild_open     takes fresh clusters for table and blocks, copies the blocks
 *   ... q2_refcount_add, writing of other new tables, setting of header fields ...
 *   q2_rebuild_switch   flush, one header write, flush, lets go of the old table and blocks
 *   q2_rebuild_undo     before the switch: everything is as it was, the fresh clusters are free again
 *
 * Clusters for new tables are taken with q2_alloc BEFORE q2_rebuild_open: their counts are in the old blocks, so
 * a crash leaks them at worst. */
#ifndef Q2_META_REFCOUNT_REBUILD_H
#define Q2_META_REFCOUNT_REBUILD_H

#include "meta/meta.h"

struct q2_rebuild {
	struct qcow2_header old_header;
	uint64_t *old_table; /* the refcount table in memory before */
	uint32_t old_entries;
	struct q2_vec taken; /* struct q2_span: fresh clusters, to be given back by undo */
	bool open;
};

/* Takes `count` clusters in one piece for a new table and remembers them for undo. needs: not open yet. */
int q2_rebuild_take(struct q2_meta *meta, struct q2_rebuild *counts, uint64_t count, uint64_t *start,
		    struct qcow2_error *err);

/* needs: nothing pending (q2_writeback_flush). From here on meta's refcount table names the copies. */
int q2_rebuild_open(struct q2_meta *meta, struct q2_rebuild *counts, struct qcow2_error *err);

/* needs: meta->header has the new fields (the refcount table's are set here). After a failed header write the
 * image is failed: whether the old or the new one is on disk is unknown. */
int q2_rebuild_switch(struct q2_meta *meta, struct q2_rebuild *counts, struct qcow2_error *err);

void q2_rebuild_undo(struct q2_meta *meta, struct q2_rebuild *counts);

#endif
