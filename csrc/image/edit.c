/* SPDX-License-Identifier: MIT
 * The gate that every change of an image goes through first, and what changes share. */
#include "base/be.h"
#include "data/codec.h"
#include "format/record.h"
#include "image/image.h"
#include "store/store.h"

#include <inttypes.h>

int q2_edit_tables(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct qcow2_header *h = &meta->header;
	if (!image->begun)
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    "The image was not opened for writing");
	int rc = q2_writeback_check(meta, err);
	if (rc || image->raw)
		return rc;
	image->expanded_host = UINT64_MAX;
	if (!image->prepared) {
		bool lazy = h->version >= 3 && (h->compatible_features & Q2_COMPATIBLE_LAZY_REFCOUNTS);
		uint64_t autoclear = h->autoclear_features & Q2_AUTOCLEAR_KNOWN;
		if (lazy || autoclear != h->autoclear_features) {
			h->autoclear_features = autoclear;
			if (lazy)
				h->incompatible_features |= Q2_INCOMPATIBLE_DIRTY;
			rc = q2_writeback_header(meta, err);
			if (rc)
				return rc;
			if (lazy)
				q2_writeback_lazily(meta);
		}
		image->prepared = true;
	}
	return q2_cache_is_full(&meta->cache) ? q2_writeback(meta, err) : 0;
}

int q2_edit_begin(struct qcow2_image *image, struct qcow2_error *err)
{
	struct qcow2_store *data;
	int rc = q2_edit_tables(image, err);
	if (rc || image->raw)
		return rc;
	if (image->meta.geo.external_data && !image->meta.data) {
		/* Begun for the tables alone. */
		rc = q2_image_data_store(image, &data, err);
		if (!rc && !qcow2_store_writable(data))
			rc = q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
					  "The external data file was opened read-only");
		if (rc)
			return rc;
		q2_writeback_attach(&image->meta, data);
	}
	if (!image->edited) {
		rc = q2_track_begin(image, err);
		image->edited = !rc;
	}
	return rc;
}

struct qcow2_store *q2_edit_data(struct qcow2_image *image)
{
	return image->meta.data ? image->meta.data : image->store;
}

int q2_edit_reads_zero(struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero,
		       struct qcow2_error *err)
{
	*zero = true;
	length = offset < image->size ? q2_min(length, image->size - offset) : 0;
	while (length) {
		struct qcow2_extent extent;
		int rc = q2_chain_find(image, offset, length, 0, false, &extent, err);
		if (rc)
			return rc;
		if (extent.kind != QCOW2_EXTENT_ZERO && extent.kind != QCOW2_EXTENT_UNALLOCATED) {
			*zero = false;
			return 0;
		}
		offset += extent.length;
		length -= extent.length;
	}
	return 0;
}

int q2_edit_read(struct qcow2_image *image, uint64_t offset, void *buf, uint64_t length,
		 struct qcow2_error *err)
{
	uint64_t inside = offset < image->size ? q2_min(length, image->size - offset) : 0;
	memset((uint8_t *)buf + inside, 0, length - inside);
	return inside ? qcow2_image_read(image, offset, buf, inside, err) : 0;
}
