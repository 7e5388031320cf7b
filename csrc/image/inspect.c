/* SPDX-License-Identifier: MIT
 * What an image says of itself: header, names, extensions, features, table entries. */
#include "base/be.h"
#include "base/mem.h"
#include "data/codec.h"
#include "image/image.h"

#include <inttypes.h>
#include <string.h>

const char *qcow2_codec_backend(int compression)
{
	return q2_codec_backend(compression);
}

struct qcow2_geometry qcow2_image_geometry(const struct qcow2_image *image)
{
	const struct q2_geometry *g = &image->meta.geo;
	if (image->raw)
		return (struct qcow2_geometry){0};
	return (struct qcow2_geometry){
		.l1_entries = image->map.l1_entries,
		.l2_entries = 1ull << g->l2_bits,
		.reftable_entries = (uint64_t)image->meta.header.refcount_table_clusters
				    << (g->cluster_bits - 3),
		.subclusters = g->subclusters,
		.cluster_size = g->cluster_size,
		.refcount_bits = 1ull << g->refcount_order,
	};
}

/* Tables are a qcow2 file's; a raw image has none. */
static int refuse_raw(const struct qcow2_image *image, struct qcow2_error *err)
{
	return image->raw ? q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "A raw image has no tables")
			  : 0;
}

int qcow2_image_l1_entry(struct qcow2_image *image, uint64_t index, uint64_t *raw, struct qcow2_error *err)
{
	int rc = refuse_raw(image, err);
	if (!rc && index >= image->map.l1_entries)
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				  "L1 index %" PRIu64 " is past the last, %" PRIu32, index,
				  image->map.l1_entries);
	if (!rc)
		rc = q2_map_read(&image->map, err);
	if (!rc)
		*raw = image->map.l1[index];
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_l2_entry(struct qcow2_image *image, uint64_t l1_index, uint64_t l2_index, uint64_t *raw,
			 uint64_t *bitmap, uint64_t *host_offset, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	int rc = refuse_raw(image, err);
	if (!rc && (l1_index >= image->map.l1_entries || l2_index >> g->l2_bits))
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				  "There is no L2 entry %" PRIu64 " under L1 entry %" PRIu64, l2_index,
				  l1_index);
	q2_host at;
	q2_guest address = q2_guest_at((l1_index << g->l2_bits | l2_index) << g->cluster_bits);
	if (!rc)
		rc = q2_map_entry(&image->map, address, raw, bitmap, &at, err);
	if (rc)
		return q2_image_blame(image, rc, err);
	*host_offset = at.v;
	return 0;
}

void qcow2_image_l2_decode(const struct qcow2_image *image, uint64_t raw, uint64_t bitmap,
			   struct qcow2_l2_entry *out)
{
	static const char *const kinds[] = {
		[Q2_SUB_UNALLOCATED] = "unallocated", [Q2_SUB_ZERO] = "zero",       [Q2_SUB_DATA] = "data",
		[Q2_SUB_COMPRESSED] = "compressed",   [Q2_SUB_INVALID] = "invalid",
	};
	const struct q2_geometry *g = &image->meta.geo;
	*out = (struct qcow2_l2_entry){.kind = kinds[Q2_SUB_UNALLOCATED]};
	if (image->raw)
		return;
	struct q2_entry e = q2_entry_decode(g, raw, bitmap);
	*out = (struct qcow2_l2_entry){
		.kind = kinds[q2_entry_sub(&e, 0)],
		.has_host = e.has_host,
		.copied = raw & Q2_COPIED,
		.host_offset = e.host.v,
		.host_length = e.host_length,
		.allocated = e.alloc,
		.zero = e.zero,
		/* Bit 0 is the zero flag of standard entries only. */
		.reserved = e.compressed ? 0 : raw & (Q2_L2_RESERVED | (g->extended_l2 ? Q2_ZERO : 0)),
	};
	for (unsigned i = 1; i < g->subclusters; i++)
		if (q2_entry_sub(&e, i) != q2_entry_sub(&e, 0))
			out->kind = "mixed";
}

int qcow2_image_reftable_entry(struct qcow2_image *image, uint64_t index, uint64_t *raw,
			       struct qcow2_error *err)
{
	int rc = refuse_raw(image, err);
	if (!rc)
		rc = q2_refcount_load(&image->meta, err);
	if (!rc && index >= image->meta.reftable_entries)
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				  "Refcount table index %" PRIu64 " is past the last, %" PRIu32, index,
				  image->meta.reftable_entries);
	if (!rc)
		*raw = image->meta.reftable[index];
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_refcount(struct qcow2_image *image, uint64_t cluster, uint64_t *count,
			 struct qcow2_error *err)
{
	int rc = refuse_raw(image, err);
	if (!rc)
		rc = q2_refcount_read(&image->meta, cluster, count, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_is_preallocated(struct qcow2_image *image, bool *preallocated, struct qcow2_error *err)
{
	*preallocated = false;
	if (image->raw)
		return 0;
	uint64_t spent;
	int rc = qcow2_store_allocated(image->store, &spent, err);
	/* Counted clusters against clusters that the host really holds: the file is "preallocated" when
	 * more than a tenth (and at least two) of the counted ones take no space. A sparse file so long that
	 * counting would take noticeable time is taken for preallocated: asking for holes is never wrong. */
	enum { MOST = 1 << 24 };
	uint64_t real = rc ? 0 : spent >> image->meta.geo.cluster_bits;
	uint64_t threshold = q2_max(real * 10 / 9, real + 2), counted = 0;
	uint64_t clusters = q2_div_up(image->meta.file_length, image->meta.geo.cluster_size);
	if (clusters < threshold)
		return rc ? q2_image_blame(image, rc, err) : 0;
	for (uint64_t i = 0; !rc && i < q2_min(clusters, MOST) && counted < threshold; i++) {
		uint64_t count;
		rc = q2_refcount_read(&image->meta, i, &count, err);
		counted += !rc && count;
	}
	if (clusters > MOST)
		counted = threshold;
	*preallocated = !rc && counted >= threshold;
	return rc ? q2_image_blame(image, rc, err) : 0;
}
