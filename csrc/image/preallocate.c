/* SPDX-License-Identifier: MIT
 * Space for what a disk grew by, taken before anything is written there. */
#include "image/preallocate.h"

#include "meta/link.h"
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
	image->meta.unsynced = true;
	if (at < virgin && mode != QCOW2_PREALLOCATION_FULL)
		rc = qcow2_store_punch(image->store, at, q2_min(length, virgin - at), err);
	if (!rc)
		rc = qcow2_store_length(image->store, &end, err);
	/* The file reaches to the end of its last cluster, though nothing was written there. */
	if (!rc && end < at + length)
		rc = qcow2_store_resize(image->store, at + length, err);
	return rc ? rc : q2_preallocate_plain(image->store, at, at + length, mode, err);
}

/* Links `count` clusters from guest `at` on to host clusters from `host` on, as data. */
static int link_clusters(struct qcow2_image *image, uint64_t at, uint64_t host, uint64_t count,
			 struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	while (count) {
		uint8_t *entry;
		uint32_t left;
		int rc = q2_link_edit(&image->map, q2_guest_at(at), &entry, &left, err);
		if (rc)
			return rc;
		for (; left && count; left--, count--, entry += g->l2_entry_size) {
			q2_link_put(g, entry, host | Q2_COPIED, UINT32_MAX);
			at += g->cluster_size;
			host += g->cluster_size;
		}
	}
	return 0;
}

int q2_preallocate(struct qcow2_image *image, uint64_t from, enum qcow2_preallocation mode,
		   struct qcow2_error *err)
{
	static const uint8_t zeros[512];
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t at = q2_round_up(from, g->cluster_size), end = q2_round_up(image->size, g->cluster_size);
	int rc = 0;
	/* A cluster that was there in part gets its place by being written to. */
	if (from < at && from < image->size)
		rc = qcow2_image_write(image, from, zeros, q2_min(sizeof zeros, image->size - from), err);
	while (!rc && at < end) {
		rc = q2_edit_begin(image, err);
		/* The table before the data, so that they lie in this order in the file. */
		if (!rc)
			rc = q2_link_table(&image->map, q2_guest_at(at), err);
		uint64_t table = 1ull << g->l2_bits, number = at >> g->cluster_bits;
		uint64_t start = number;
		uint64_t count = q2_min((end - at) >> g->cluster_bits, table - (number & (table - 1)));
		uint64_t virgin = meta->virgin << g->cluster_bits;
		if (!rc && !g->external_data) {
			rc = q2_alloc(meta, count, false, &start, &count, err);
			if (!rc)
				rc = prepare_space(image, start << g->cluster_bits, count << g->cluster_bits,
						   virgin, mode, err);
			if (rc)
				break;
		}
		if (!rc)
			rc = link_clusters(image, at, start << g->cluster_bits, count, err);
		at += count << g->cluster_bits;
	}
	return rc;
}
