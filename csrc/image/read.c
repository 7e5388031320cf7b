/* SPDX-License-Identifier: MIT
 * Guest reads: by runs, straight into the caller's buffer. */
#include "base/mem.h"
#include "data/codec.h"
#include "image/image.h"

#include <inttypes.h>
#include <string.h>

int q2_read_compressed(const struct qcow2_extent *extent, const uint8_t **bytes, struct qcow2_error *err)
{
	struct qcow2_image *layer = extent->image;
	uint32_t cluster_size = layer->meta.geo.cluster_size;
	uint64_t guest = extent->offset - extent->within;
	if (layer->expanded_host == extent->host_offset) {
		*bytes = layer->expanded;
		return 0;
	}
	int rc = 0;
	if (!layer->codec)
		rc = q2_codec_new(layer->meta.header.compression_type, &layer->codec, err);
	if (rc)
		return rc;
	/* The descriptor counts sectors, so a stream never needs more than two clusters and a sector. */
	if (!layer->expanded)
		layer->expanded = q2_new_pages(cluster_size);
	if (!layer->stream)
		layer->stream = q2_new_pages(2ull * cluster_size + 512);
	if (!layer->expanded || !layer->stream)
		return q2_error_nomem(err);
	layer->expanded_host = UINT64_MAX;
	/* The last sector may be cut off by the file's end: what is missing there belongs to no stream. */
	uint64_t left = layer->meta.file_length - extent->host_offset;
	size_t length = q2_min(extent->host_length, left);
	rc = qcow2_store_read(layer->store, extent->host_offset, layer->stream, length, err);
	if (!rc)
		rc = q2_codec_expand(layer->codec, layer->stream, length, layer->expanded, cluster_size, err);
	if (rc)
		return q2_error_prefix(err, rc, "Compressed cluster at guest offset %#" PRIx64, guest);
	layer->expanded_host = extent->host_offset;
	*bytes = layer->expanded;
	return 0;
}

static int read_extent(const struct qcow2_extent *extent, uint8_t *buf, struct qcow2_error *err)
{
	const uint8_t *cluster;
	struct qcow2_store *store;
	int rc;
	switch (extent->kind) {
	case QCOW2_EXTENT_ZERO:
	case QCOW2_EXTENT_UNALLOCATED:
		memset(buf, 0, extent->length);
		return 0;
	case QCOW2_EXTENT_COMPRESSED:
		rc = q2_read_compressed(extent, &cluster, err);
		if (!rc)
			memcpy(buf, cluster + extent->within, extent->length);
		return rc;
	default:
		rc = q2_image_data_store(extent->image, &store, err);
		if (!rc)
			rc = qcow2_store_read(store, extent->host_offset, buf, extent->length, err);
		return rc;
	}
}

int qcow2_image_read(struct qcow2_image *image, uint64_t offset, void *buf, size_t length,
		     struct qcow2_error *err)
{
	int rc = 0;
	uint8_t *to = buf;
	if (!q2_fits(offset, length, image->size))
		rc = q2_error_set(err, QCOW2_E_RANGE, offset,
				  "Read of %zu bytes at %" PRIu64 " lies outside the disk of %" PRIu64
				  " bytes",
				  length, offset, image->size);
	while (!rc && length) {
		struct qcow2_extent extent;
		rc = q2_chain_find(image, offset, length, 0, false, &extent, err);
		if (rc)
			break;
		if (!extent.image->raw && extent.image->meta.header.crypt_method && extent.present)
			rc = q2_error_set(err, QCOW2_E_UNSUPPORTED, offset,
					  "The image is encrypted; reading encrypted data is not supported");
		else
			rc = read_extent(&extent, to, err);
		to += extent.length;
		offset += extent.length;
		length -= extent.length;
	}
	return rc ? q2_image_blame(image, rc, err) : 0;
}
