/* SPDX-License-Identifier: MIT
 * Compressed writes: one cluster's stream, packed behind the last one at byte granularity. */
#include "data/codec.h"
#include "image/image.h"

#include <inttypes.h>

/*
 * A place for `length` bytes of stream. Streams share clusters: each stream that touches a cluster is one
 * reference to it. gives: the host offset; the counts are raised.
 */
static int place_stream(struct qcow2_image *image, uint32_t length, q2_host *host, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	unsigned bits = meta->geo.cluster_bits;
	uint64_t at = meta->stream_at, end = meta->stream_end, start, got;
	int rc;
	if (at < end) {
		uint64_t count;
		rc = q2_refcount_read(meta, at >> bits, &count, err);
		if (rc)
			return rc;
		if (count == q2_refcount_max(meta->geo.refcount_order)) /* no room for another reference */
			at = end = 0;
	}
	if (at + length > end) {
		rc = q2_alloc(meta, 1, false, &start, &got, err);
		if (rc)
			return rc;
		/* A stream may run on into the next cluster of the file when that is the one just taken. */
		if (at >= end || start << bits != end)
			at = start << bits;
		end = (start + 1) << bits;
		if (at >> bits == start) {
			meta->stream_at = at + length;
			meta->stream_end = end;
			*host = q2_host_at(at);
			return 0;
		}
	}
	/* Its first cluster is shared with the stream before. */
	rc = q2_refcount_add(meta, at >> bits, 1, 1, err);
	if (rc)
		return rc;
	meta->stream_at = at + length;
	meta->stream_end = end;
	*host = q2_host_at(at);
	return 0;
}

/* Gives back what place_stream took. */
static void abandon_stream(struct q2_meta *meta, q2_host at, uint32_t length)
{
	uint64_t first = at.v >> meta->geo.cluster_bits, last = (at.v + length - 1) >> meta->geo.cluster_bits;
	q2_alloc_abandon(meta, first, last - first + 1, NULL);
	meta->stream_at = meta->stream_end = 0;
}

/* Makes the entry of the cluster at guest `offset` name the stream. */
static int link_stream(struct qcow2_image *image, uint64_t offset, q2_host at, uint32_t length,
		       struct qcow2_error *err)
{
	const struct q2_map_state stream = {.kind = Q2_MAP_COMPRESSED, .host = at, .length = length};
	int rc = q2_map_set_range(&image->map, offset, offset + image->meta.geo.cluster_size, &stream, err);
	if (rc)
		abandon_stream(&image->meta, at, length);
	return rc;
}

int q2_compress_place(struct qcow2_image *image, uint64_t offset, uint32_t length, uint64_t *host,
		      struct qcow2_error *err)
{
	q2_host at = {0};
	int rc = q2_map_table(&image->map, q2_guest_at(offset), err);
	if (!rc)
		rc = place_stream(image, length, &at, err);
	if (!rc)
		rc = link_stream(image, offset, at, length, err);
	if (!rc)
		*host = at.v;
	return rc;
}

/* The stream before the entry: when it cannot be written the cluster keeps what it had. */
static int write_stream(struct qcow2_image *image, uint64_t offset, const void *stream, uint32_t length,
			struct qcow2_error *err)
{
	q2_host at = {0};
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_map_table(&image->map, q2_guest_at(offset), err);
	if (!rc)
		rc = place_stream(image, length, &at, err);
	if (rc)
		return rc;
	rc = qcow2_store_write(q2_edit_data(image), at.v, stream, length, err);
	if (rc) {
		abandon_stream(&image->meta, at, length);
		return rc;
	}
	return link_stream(image, offset, at, length, err);
}

int qcow2_image_write_compressed(struct qcow2_image *image, uint64_t offset, const void *buf, size_t length,
				 struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	int rc = q2_edit_begin(image, err);
	if (!rc && (image->raw || g->external_data))
		rc = q2_error_set(err, QCOW2_E_CONFLICT, offset,
				  image->raw ? "A raw image has no compressed clusters"
					     : "Clusters in an external data file cannot be compressed");
	else if (!rc && (!q2_fits(offset, length, image->size) || !q2_is_aligned(offset, g->cluster_size) ||
			 length != q2_min(g->cluster_size, image->size - offset)))
		rc = q2_error_set(err, QCOW2_E_RANGE, offset,
				  "A compressed write is one whole cluster of %" PRIu32
				  " bytes inside the disk",
				  g->cluster_size);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	if (!rc && !image->codec)
		rc = q2_codec_new(image->meta.header.compression_type, &image->codec, err);
	if (rc)
		return q2_image_blame(image, rc, err);
	q2_auto uint8_t *whole = q2_new_pages(g->cluster_size);
	q2_auto uint8_t *stream = q2_new_pages(g->cluster_size);
	if (!whole || !stream)
		return q2_error_nomem(err);
	memcpy(whole, buf, length);
	memset(whole + length, 0, g->cluster_size - length);
	size_t used;
	rc = q2_codec_compress(image->codec, whole, g->cluster_size, stream, g->cluster_size - 1, &used, err);
	if (!rc && !used)
		return qcow2_image_write(image, offset, buf, length, err);
	if (!rc)
		rc = write_stream(image, offset, stream, (uint32_t)used, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
