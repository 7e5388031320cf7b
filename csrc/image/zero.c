/* SPDX-License-Identifier: MIT
 * Zeros without data: zero and discard, by entries where the format can say it, by written zeros where not. */
#include "image/image.h"

#include <inttypes.h>

/* Explicit zeros are written in pieces of this. */
enum { ZERO_PIECE = 1 << 20 };

static int write_zeros(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	size_t room = q2_min(length, ZERO_PIECE);
	q2_auto uint8_t *zeros = q2_new(room, 1);
	if (!zeros)
		return q2_error_nomem(err);
	for (int rc; length; offset += room, length -= room) {
		room = q2_min(length, room);
		rc = qcow2_image_write(image, offset, zeros, room, err);
		if (rc)
			return rc;
	}
	return 0;
}

int q2_unmap_clusters(struct qcow2_image *image, uint64_t start, uint64_t end, struct qcow2_error *err)
{
	const struct q2_map_state nothing = {.kind = Q2_MAP_UNALLOCATED};
	int rc = q2_edit_begin(image, err);
	return rc ? rc : q2_map_set_range(&image->map, start, end, &nothing, err);
}

int q2_unmap_tables(struct qcow2_image *image, uint64_t start, uint64_t end, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	unsigned bits = g->cluster_bits + g->l2_bits;
	/* The table that `start` lies in has entries before it; one that the disk ended in has none behind its end. */
	uint64_t first = q2_div_up(start, 1ull << bits), tables = q2_div_up(end, 1ull << bits);
	int rc = q2_unmap_clusters(image, start, q2_min(end, first << bits), err);
	return rc ? rc : q2_map_drop_tables(&image->map, first, tables, err);
}

/* Zeros in a part of one cluster. */
static int zero_part(struct qcow2_image *image, uint64_t from, uint64_t to, unsigned flags,
		     struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	bool zero = false;
	int rc = 0;
	if (!(flags & QCOW2_ZERO_OWN))
		rc = q2_edit_reads_zero(image, from, to - from, &zero, err);
	if (rc || zero)
		return rc;
	uint64_t word, bitmap;
	q2_host at;
	rc = q2_map_entry(&image->map, q2_guest_at(from), &word, &bitmap, &at, err);
	if (rc)
		return rc;
	struct q2_entry e = q2_entry_decode(g, word, bitmap);
	uint64_t sub = 1ull << g->subcluster_bits, low = q2_round_up(from, sub);
	/* The disk's end stands for the end of its last subcluster. */
	uint64_t high = to == image->size ? q2_round_up(to, sub) : q2_round_down(to, sub);
	bool own = !e.compressed && (!e.has_host || g->external_data || (word & Q2_COPIED));
	if (!g->extended_l2 || !own || low >= high)
		return write_zeros(image, from, to - from, err);
	if (low > from)
		rc = write_zeros(image, from, low - from, err);
	if (!rc)
		rc = q2_map_zero_subclusters(&image->map, low, high, err);
	if (!rc && to > high)
		rc = write_zeros(image, high, to - high, err);
	return rc;
}

/* A raw external data file is the disk: zeros have to be there, and need be nowhere else. */
static int zero_raw_data(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	uint64_t file;
	struct qcow2_store *data = q2_edit_data(image);
	int rc = qcow2_store_length(data, &file, err);
	if (!rc && offset < file)
		rc = qcow2_store_punch(data, offset, q2_min(length, file - offset), err);
	return rc;
}

static int check_range(const struct qcow2_image *image, uint64_t offset, uint64_t length,
		       struct qcow2_error *err)
{
	if (q2_fits(offset, length, image->size))
		return 0;
	return q2_error_set(err, QCOW2_E_RANGE, offset,
			    "Range at %" PRIu64 " of %" PRIu64 " bytes lies outside the disk of %" PRIu64
			    " bytes",
			    offset, length, image->size);
}

int qcow2_image_zero(struct qcow2_image *image, uint64_t offset, uint64_t length, unsigned flags,
		     struct qcow2_error *err)
{
	int rc = check_range(image, offset, length, err);
	if (!rc)
		rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	if (rc || !length)
		return rc ? q2_image_blame(image, rc, err) : 0;
	if (image->raw || q2_data_file_is_raw(image)) {
		rc = zero_raw_data(image, offset, length, err);
		return rc ? q2_image_blame(image, rc, err) : 0;
	}
	bool has_backing = image->backing || image->backing_name.data || (flags & QCOW2_ZERO_OWN);
	/* Without a backing file what is not allocated is zeros already. */
	const struct q2_map_state zeros = {.kind = Q2_MAP_ZERO,
					   .free = (flags & QCOW2_ZERO_UNMAP) && !(flags & QCOW2_ZERO_OWN),
					   .say = has_backing};
	if (image->meta.geo.version2 && has_backing)
		return write_zeros(image, offset, length, err);

	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t end = offset + length;
	uint64_t low = q2_round_up(offset, cluster_size);
	uint64_t high = end == image->size ? q2_round_up(end, cluster_size)
					   : q2_round_down(end, cluster_size);
	if (low > high) /* inside one cluster */
		rc = zero_part(image, offset, end, flags, err);
	else {
		if (offset < low)
			rc = zero_part(image, offset, q2_min(low, end), flags, err);
		if (!rc && image->meta.geo.version2)
			rc = q2_unmap_clusters(image, low, high, err);
		else if (!rc)
			rc = q2_map_set_range(&image->map, low, high, &zeros, err);
		if (!rc && high < end)
			rc = zero_part(image, high, end, flags, err);
	}
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_discard(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	int rc = check_range(image, offset, length, err);
	if (!rc)
		rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	if (rc || !length)
		return rc ? q2_image_blame(image, rc, err) : 0;
	if (image->raw || q2_data_file_is_raw(image)) {
		rc = zero_raw_data(image, offset, length, err);
		return rc ? q2_image_blame(image, rc, err) : 0;
	}
	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t end = offset + length;
	uint64_t low = q2_round_up(offset, cluster_size);
	uint64_t high = end == image->size ? q2_round_up(end, cluster_size)
					   : q2_round_down(end, cluster_size);
	bool has_backing = image->backing || image->backing_name.data;
	if (low >= high || (image->meta.geo.version2 && has_backing))
		return 0;
	/* Without a backing file an unallocated cluster reads as zeros; with one the entry has to say so. */
	const struct q2_map_state zeros = {.kind = Q2_MAP_ZERO, .free = true, .say = true};
	if (has_backing)
		rc = q2_map_set_range(&image->map, low, high, &zeros, err);
	else
		rc = q2_unmap_clusters(image, low, high, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
