/* SPDX-License-Identifier: MIT
 * Writes whose bytes a copy's workers write: a place first, the entries behind the bytes. */
#include "image/image.h"

int q2_write_prepare(struct qcow2_image *image, uint64_t offset, uint64_t length,
		     struct q2_write_place *place, struct qcow2_error *err)
{
	*place = (struct q2_write_place){.length = length, .direct = image->raw, .host = offset};
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	if (rc || image->raw)
		return rc;
	struct q2_map_place *at = &place->at;
	rc = q2_map_prepare(&image->map, q2_guest_at(offset), length, true, at, err);
	if (rc)
		return rc;
	uint64_t end = at->guest.v + (at->count << image->meta.geo.cluster_bits);
	place->length = q2_min(end, offset + length) - offset;
	place->direct = !at->composed;
	place->linked = at->plain || at->composed;
	place->host = at->host.v + (offset - at->guest.v);
	return 0;
}

int q2_write_finish(struct qcow2_image *image, const struct q2_write_place *place, int rc,
		    struct qcow2_error *err)
{
	if (image->raw || place->linked)
		return rc;
	if (!rc)
		return q2_map_commit(&image->map, &place->at, NULL, err);
	q2_map_abandon(&image->map, &place->at);
	return rc;
}

int q2_write_link(struct qcow2_image *image, uint64_t offset, uint64_t count, const uint64_t *bitmaps,
		  uint64_t *host, uint64_t *got, struct qcow2_error *err)
{
	struct q2_map_place place;
	int rc = q2_map_prepare(&image->map, q2_guest_at(offset), count << image->meta.geo.cluster_bits, true,
				&place, err);
	if (rc)
		return rc;
	*host = place.host.v;
	*got = place.count;
	return q2_map_commit(&image->map, &place, bitmaps, err);
}

bool q2_write_is_full(const struct qcow2_image *image, unsigned part)
{
	return image->meta.cache.dirty > image->meta.cache.most / part;
}

int q2_write_tables(struct qcow2_image *image, struct qcow2_error *err)
{
	return q2_writeback(&image->meta, err);
}
