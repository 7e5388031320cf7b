/* SPDX-License-Identifier: MIT
 * Space for what a disk grew by, taken before anything is written there. */
#include "image/preallocate.h"

#include "store/kind.h"

int q2_preallocate_plain(struct qcow2_store *store, uint64_t from, uint64_t to, enum qcow2_preallocation mode,
			 struct qcow2_error *err)
{
	if (from >= to)
		return 0;
	if (mode == QCOW2_PREALLOCATION_FALLOC)
		return q2_store_allocate(store, from, to - from, err);
	return mode == QCOW2_PREALLOCATION_FULL ? q2_store_write_zeros(store, from, to - from, err) : 0;
}

/* Makes bytes [at, at + length) of the image file zeros: those from `virgin` on are. */
static int prepare_space(struct qcow2_image *image, uint64_t at, uint64_t length, uint64_t virgin,
			 enum qcow2_preallocation mode, struct qcow2_error *err)
{
	uint64_t end;
	int rc = 0;
	if (at < virgin && mode != QCOW2_PREALLOCATION_FULL)
		rc = qcow2_store_punch(image->store, at, q2_min(length, virgin - at), err);
	if (!rc)
		rc = qcow2_store_length(image->store, &end, err);
	/* The file reaches to the end of its last cluster, though nothing was written there. */
	if (!rc && end < at + length)
		rc = qcow2_store_resize(image->store, at + length, err);
	return rc ? rc : q2_preallocate_plain(image->store, at, at + length, mode, err);
}

/* The cluster that the disk ended in gets its place by being written to; what is new in it are zeros. */
static int prepare_first(struct qcow2_image *image, uint64_t from, uint64_t to, enum qcow2_preallocation mode,
			 struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t length = mode == QCOW2_PREALLOCATION_FULL ? to - from : q2_min(512, to - from);
	uint64_t word, bitmap;
	q2_host at;
	q2_auto uint8_t *zeros = q2_new(length, 1);
	int rc = zeros ? qcow2_image_write(image, from, zeros, length, err) : q2_error_nomem(err);
	if (rc || g->external_data || mode == QCOW2_PREALLOCATION_METADATA)
		return rc;
	/* No part of it is to be a hole. */
	rc = q2_map_entry(&image->map, q2_guest_at(from), &word, &bitmap, &at, err);
	return rc ? rc : q2_store_allocate(image->store, word & Q2_OFFSET_MASK, g->cluster_size, err);
}

int q2_preallocate(struct qcow2_image *image, uint64_t from, enum qcow2_preallocation mode,
		   struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t at = q2_round_up(from, g->cluster_size), end = q2_round_up(image->size, g->cluster_size);
	int rc = 0;
	if (from < at && from < image->size)
		rc = prepare_first(image, from, q2_min(at, image->size), mode, err);
	while (!rc && at < end) {
		rc = q2_edit_begin(image, err);
		uint64_t table = 1ull << (g->l2_bits + g->cluster_bits);
		uint64_t length = q2_min(end, q2_round_down(at, table) + table) - at;
		uint64_t virgin = meta->virgin << g->cluster_bits;
		struct q2_held held = {0};
		struct q2_map_place place = {0};
		if (!rc)
			rc = q2_map_held(&image->map, q2_guest_at(at), length, &held, err);
		length = held.count << g->cluster_bits;
		if (!rc && held.holding == Q2_HOLDING_NONE) {
			rc = q2_map_prepare(&image->map, q2_guest_at(at), length, true, &place, err);
			length = place.count << g->cluster_bits;
		}
		if (!rc && place.taken)
			rc = prepare_space(image, place.host.v, length, virgin, mode, err);
		if (rc)
			q2_map_abandon(&image->map, &place);
		else if (place.count)
			rc = q2_map_commit(&image->map, &place, NULL, err);
		at += length;
	}
	return rc;
}
