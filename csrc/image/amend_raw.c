/* SPDX-License-Identifier: MIT
 * An external data file becomes the disk itself: what the guest reads as zeros is made zeros there, entries become
 * plain data 1:1, and only when both are proved does the header say so. */
#include "image/amend.h"
#include "image/image_job.h"

#include <inttypes.h>

/* Makes the range of the data file read as zeros; behind its end there is nothing to do. */
static int clear_data(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	uint64_t file;
	int rc = qcow2_store_length(image->meta.data, &file, err);
	if (rc || offset >= file)
		return rc;
	return qcow2_store_punch(image->meta.data, offset, q2_min(length, file - offset), err);
}

int q2_fill_raw(struct qcow2_image *image, uint64_t *at, uint64_t deadline, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t end = q2_round_up(image->size, g->cluster_size);
	while (*at < end) {
		struct q2_run run = {0};
		int rc = q2_edit_tables(image, err);
		if (!rc)
			rc = q2_map_find(&image->map, q2_guest_at(*at), end - *at, &run, err);
		if (rc)
			return rc;
		/* Entries are written behind a flush of the data file, so its zeros are there before them. */
		uint64_t stop = *at + run.length;
		if (run.kind != Q2_SUB_DATA)
			rc = clear_data(image, *at, q2_min(stop, image->size) - *at, err);
		/* A cluster's entry goes when its last subcluster is dealt with. */
		uint64_t first = q2_round_down(*at, g->cluster_size),
			 last = q2_round_down(stop, g->cluster_size);
		bool plain = run.kind == Q2_SUB_DATA && run.copied && q2_is_aligned(*at, g->cluster_size);
		const struct q2_map_state here = {.kind = Q2_MAP_DATA, .host = q2_host_at(first)};
		if (!rc && first < last && !plain)
			rc = q2_map_set_range(&image->map, first, last, &here, err);
		if (rc)
			return rc;
		*at = stop;
		if (q2_image_job_late(deadline))
			return *at < end;
	}
	return 0;
}

int q2_declare_raw(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint64_t length, end = q2_round_up(image->size, meta->geo.cluster_size);
	int rc = qcow2_store_length(meta->data, &length, err);
	if (!rc && length < image->size) {
		rc = qcow2_store_resize(meta->data, image->size, err);
	}
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	for (uint64_t at = 0; at < end && !rc;) {
		struct q2_run run = {0};
		rc = q2_map_find(&image->map, q2_guest_at(at), end - at, &run, err);
		if (!rc && (run.kind != Q2_SUB_DATA || !run.copied || run.host.v != at))
			rc = q2_error_set(err, QCOW2_E_CORRUPT, at,
					  "Guest offset %#" PRIx64 " is not plain data of the data file", at);
		at += run.length;
	}
	if (rc)
		return rc;
	meta->header.autoclear_features |= Q2_AUTOCLEAR_DATA_FILE_RAW;
	return q2_writeback_header(meta, err);
}
