/* SPDX-License-Identifier: MIT
 * Guest writes: in place where the cluster is ours alone, else into new clusters that are then linked.
 *
 * Consecutive clusters of a request that go to one piece of the file are one *place*: one allocation, one refcount
 * update and few I/Os. Only a place's first and last cluster can be written in part; those are *edges*, whose
 * untouched bytes are composed from what the guest saw before. */
#include "image/image.h"

#include <inttypes.h>

static int entry_of(struct qcow2_image *image, uint64_t cluster, struct q2_entry *e, struct qcow2_error *err)
{
	uint64_t word, bitmap;
	q2_host at;
	int rc = q2_map_entry(&image->map, q2_guest_at(cluster), &word, &bitmap, &at, err);
	if (rc)
		return rc;
	*e = q2_entry_decode(&image->meta.geo, word, bitmap);
	/* The map's judgement of the entry, for the error. */
	struct q2_run run;
	return q2_map_find(&image->map, q2_guest_at(cluster), 1, &run, err);
}

/*
 * Writes one edge: guest bytes [from, to) of the cluster `guest` come from `buf`, the rest of the subclusters
 * they touch from what the guest saw; subclusters not touched are brought along when the cluster moves.
 * gives: the new subcluster bitmap.
 */
static int write_edge(struct qcow2_image *image, const struct q2_map_place *place, uint64_t guest,
		      uint64_t from, uint64_t to, const uint8_t *buf, uint64_t *bitmap,
		      struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t sub_size = 1ull << g->subcluster_bits;
	q2_host host = q2_host_add(place->host, guest - place->guest.v);
	struct q2_entry e;
	int rc = entry_of(image, guest, &e, err);
	if (rc)
		return rc;
	uint64_t low = q2_round_down(from - guest, sub_size), high = q2_round_up(to - guest, sub_size);
	if (e.compressed) {
		low = 0;
		high = g->cluster_size;
	}
	/* A data file ends with the disk: what lies behind it there is nobody's. */
	if (g->external_data)
		high = q2_min(high, q2_max(image->size, to) - guest);
	/* Zeros around the bytes need not be written where the file has zeros already. */
	bool zero = false;
	if (place->virgin)
		rc = q2_edit_reads_zero(image, guest + low, high - low, &zero, err);
	if (rc)
		return rc;
	if (zero) {
		rc = qcow2_store_write(q2_edit_data(image), host.v + (from - guest), buf, to - from, err);
	} else {
		q2_auto uint8_t *bytes = q2_new_pages(high - low);
		if (!bytes)
			return q2_error_nomem(err);
		rc = q2_edit_read(image, guest + low, bytes, from - (guest + low), err);
		if (!rc)
			rc = q2_edit_read(image, to, bytes + (to - guest - low), guest + high - to, err);
		if (rc)
			return rc;
		memcpy(bytes + (from - guest - low), buf, to - from);
		rc = qcow2_store_write(q2_edit_data(image), host.v + low, bytes, high - low, err);
	}
	if (rc)
		return rc;
	uint32_t alloc = place->moves ? 0 : e.alloc;
	for (unsigned s = 0; s < g->subclusters; s++) {
		uint64_t at = (uint64_t)s << g->subcluster_bits;
		bool touched = at >= low && at < high;
		if (!touched && place->moves && q2_entry_sub(&e, s) == Q2_SUB_DATA) {
			q2_auto uint8_t *bytes = q2_new_pages(sub_size);
			if (!bytes)
				return q2_error_nomem(err);
			rc = qcow2_store_read(image->store, e.host.v + at, bytes, sub_size, err);
			if (!rc)
				rc = qcow2_store_write(q2_edit_data(image), host.v + at, bytes, sub_size,
						       err);
			if (rc)
				return rc;
			touched = true;
		}
		if (touched) {
			alloc |= 1u << s;
			e.zero &= ~(1u << s);
		}
	}
	*bitmap = e.compressed ? alloc : (uint64_t)e.zero << 32 | alloc;
	return 0;
}

/* Writes bytes [offset, end) to the place: the edges composed, what is between them straight from `buf`. */
static int write_place(struct qcow2_image *image, struct q2_map_place *place, uint64_t offset, uint64_t end,
		       const uint8_t *buf, struct qcow2_error *err)
{
	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t first = place->guest.v, at = offset, last = q2_round_down(end - 1, cluster_size);
	int rc = 0;
	/* The disk's last cluster may be cut off by its end: then its rest belongs to nobody. */
	bool cut = end - last < cluster_size;
	if (at > first) {
		uint64_t to = q2_min(end, first + cluster_size);
		rc = write_edge(image, place, first, at, to, buf, &place->first, err);
		at = to;
	}
	uint64_t middle = cut ? last : end;
	if (!rc && middle > at) {
		rc = qcow2_store_write(q2_edit_data(image), place->host.v + (at - first), buf + (at - offset),
				       middle - at, err);
		at = middle;
	}
	if (!rc && at < end)
		rc = write_edge(image, place, last, at, end, buf + (at - offset),
				last == first ? &place->first : &place->last, err);
	return rc;
}

/* Writes what goes to one place of the request. gives: the bytes done. */
static int write_piece(struct qcow2_image *image, uint64_t offset, const uint8_t *buf, uint64_t length,
		       uint64_t *done, struct qcow2_error *err)
{
	struct q2_map_place place;
	int rc = q2_map_prepare(&image->map, q2_guest_at(offset), length, false, &place, err);
	if (rc)
		return rc;
	uint64_t end = place.guest.v + (place.count << image->meta.geo.cluster_bits);
	end = q2_min(end, offset + length);
	*done = end - offset;
	if (place.plain)
		return qcow2_store_write(q2_edit_data(image), place.host.v + (offset - place.guest.v), buf,
					 *done, err);
	rc = write_place(image, &place, offset, end, buf, err);
	if (!rc)
		return q2_map_commit(&image->map, &place, NULL, err);
	q2_map_abandon(&image->map, &place);
	return rc;
}

int qcow2_image_write(struct qcow2_image *image, uint64_t offset, const void *buf, size_t length,
		      struct qcow2_error *err)
{
	const uint8_t *from = buf;
	int rc = 0;
	if (!q2_fits(offset, length, image->size))
		rc = q2_error_set(err, QCOW2_E_RANGE, offset,
				  "Write of %zu bytes at %" PRIu64 " lies outside the disk of %" PRIu64
				  " bytes",
				  length, offset, image->size);
	if (!rc)
		rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	while (!rc && length) {
		uint64_t done = length;
		rc = q2_edit_begin(image, err);
		if (!rc && image->raw)
			rc = qcow2_store_write(q2_edit_data(image), offset, from, length, err);
		else if (!rc)
			rc = write_piece(image, offset, from, length, &done, err);
		from += done;
		offset += done;
		length -= done;
	}
	return rc ? q2_image_blame(image, rc, err) : 0;
}
