/* SPDX-License-Identifier: MIT
 * The parts of amending an image: each changes one thing, by one switch of the header (invariant 5).
 *
 * All need q2_edit_tables, and that nothing is pending in the cache that speaks of guest data. */
#ifndef Q2_IMAGE_AMEND_H
#define Q2_IMAGE_AMEND_H

#include "image/image.h"

/* Does every reference count fit this width? fails: `range`, naming the first that does not. */
int q2_amend_width_check(struct qcow2_image *image, unsigned order, struct qcow2_error *err);

/* New refcount table and blocks of 1 << order bits a count beside the old ones; the header switches. */
int q2_amend_width(struct qcow2_image *image, unsigned order, struct qcow2_error *err);

/* Version 2 to 3: snapshots get the fields that version 3 wants, then the header grows. */
int q2_amend_upgrade(struct qcow2_image *image, struct qcow2_error *err);

/* May the image become version 2, with this size and refcount order? fails: `unsupported`. */
int q2_amend_downgrade_check(struct qcow2_image *image, uint64_t size, unsigned order,
			     struct qcow2_error *err);

/* Version 3 to 2. needs: no table has a zero cluster (q2_expand_*). */
int q2_amend_downgrade(struct qcow2_image *image, struct qcow2_error *err);

/*
 * Turns zero clusters of the disk from guest offset *at on into what version 2 can say, for a while; *at moves on.
 * gives: 1 when there is more, 0 at the end of what the L1 table covers.
 */
int q2_expand_disk(struct qcow2_image *image, uint64_t *at, uint64_t deadline, struct qcow2_error *err);

/* The same in the tables of snapshot number `index`. needs: q2_expand_disk is through. gives: clusters that its
 * entries let go of are added to `drops` (struct q2_span), one reference each. */
int q2_expand_snapshot(struct qcow2_image *image, uint32_t index, struct q2_vec *drops,
		       struct qcow2_error *err);

/*
 * Makes [*at, ...) of an external data file hold what the guest reads, and the entries plain data, for a while.
 * needs: no backing file; the data file is attached. gives: as q2_expand_disk.
 */
int q2_fill_raw(struct qcow2_image *image, uint64_t *at, uint64_t deadline, struct qcow2_error *err);

/* Proves that the data file is the disk, entry by entry, and then says so in the header. */
int q2_declare_raw(struct qcow2_image *image, struct qcow2_error *err);

/* Gives every snapshot the fields that version 3 wants, by one switch, when some lack them (snapshot.c). */
int q2_snapshot_complete(struct qcow2_image *image, struct qcow2_error *err);

/* Lowers the count of each span's clusters by one, with COPIED in the disk's tables following, in one switch
 * (snapshot.c). needs: nothing refers to them that often any more. */
int q2_snapshot_let_go(struct qcow2_image *image, const struct q2_span *spans, size_t count,
		       struct qcow2_error *err);

#endif
