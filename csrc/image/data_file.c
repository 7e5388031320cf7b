/* SPDX-License-Identifier: MIT
 * The length of an external data file. A raw one is exactly the disk (specification, "raw external data"); others may
 * be longer or shorter, what is missing reads as zeros. A block device has the length it has. */
#include "image/image.h"

#include <inttypes.h>
#include <string.h>

bool q2_data_file_is_raw(const struct qcow2_image *image)
{
	return image->meta.geo.external_data &&
	       (image->meta.header.autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW);
}

int q2_data_file_resize(struct qcow2_image *image, uint64_t size, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint64_t length;
	if (!meta->data || qcow2_store_is_device(meta->data))
		return 0;
	int rc = qcow2_store_length(meta->data, &length, err);
	if (rc || length == size || (length > size && !q2_data_file_is_raw(image)))
		return rc;
	return qcow2_store_resize(meta->data, size, err);
}

int q2_data_file_cut(struct qcow2_store *data, uint64_t size, uint32_t cluster_size, struct qcow2_error *err)
{
	uint64_t length, at = q2_round_up(size, cluster_size);
	int rc = qcow2_store_length(data, &length, err);
	if (rc || length <= size || qcow2_store_is_device(data))
		return rc;
	enum { PIECE = 65536 };
	q2_auto uint8_t *bytes = q2_new_pages(PIECE);
	if (!bytes)
		return q2_error_nomem(err);
	while (at < length && !rc) {
		bool is_data;
		uint64_t run;
		rc = qcow2_store_extent(data, at, length - at, &is_data, &run, err);
		if (!rc && is_data) {
			run = q2_min(run, PIECE);
			rc = qcow2_store_read(data, at, bytes, run, err);
			if (!rc && (bytes[0] || memcmp(bytes, bytes + 1, run - 1)))
				return q2_error_set(err, QCOW2_E_CONFLICT, at,
						    "The external data file is longer than the disk of "
						    "%" PRIu64 " bytes and holds something at offset %" PRIu64
						    "; a raw data file has to be the disk",
						    size, at);
		}
		at += run;
	}
	return rc ? rc : qcow2_store_resize(data, size, err);
}
