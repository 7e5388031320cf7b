/* SPDX-License-Identifier: MIT
 * Views of internal snapshots: images of their own over the same file.
 *
 * A view knows the image that it was opened from, and that image its views, so that the end of a snapshot is the end of
 * its views: its clusters belong to others soon. */
#include "image/image.h"

#include <inttypes.h>

int qcow2_image_open_snapshot(struct qcow2_image *image, uint32_t index, struct qcow2_image **out,
			      struct qcow2_error *err)
{
	struct qcow2_snapshot snap;
	int rc = qcow2_image_snapshot(image, index, &snap, err);
	if (rc)
		return rc;
	if (snap.l1_entries > Q2_MAX_L1_BYTES / 8)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, snap.offset,
				  "Snapshot L1 table too large: %" PRIu32 " entries", snap.l1_entries);
	else if (snap.size > INT64_MAX || q2_header_l1_entries(&image->meta.geo, snap.size) > snap.l1_entries)
		rc = q2_error_set(err, QCOW2_E_CORRUPT, snap.offset,
				  "Snapshot L1 table is too small for a disk of %" PRIu64 " bytes",
				  snap.size);
	if (rc)
		return q2_image_blame(image, rc, err);
	struct qcow2_image *view;
	rc = qcow2_image_open(image->store, &view, err);
	if (rc)
		return rc;
	view->is_snapshot = true;
	view->size = view->map.size = snap.size;
	view->map.l1_offset = snap.l1_offset;
	view->map.l1_entries = snap.l1_entries;
	if (image->data)
		view->data = qcow2_store_ref(image->data);
	if (image->backing)
		view->backing = qcow2_image_ref(image->backing);
	view->view_of = image;
	view->next_view = image->views;
	image->views = view;
	*out = view;
	return 0;
}

bool q2_view_is_held(const struct qcow2_image *image, uint64_t l1_offset)
{
	for (const struct qcow2_image *view = image->views; view; view = view->next_view)
		if (view->held && (l1_offset == Q2_EVERY_VIEW || view->map.l1_offset == l1_offset))
			return true;
	return false;
}

void q2_view_end(struct qcow2_image *image, uint64_t l1_offset)
{
	for (struct qcow2_image *view = image->views; view; view = view->next_view)
		if (l1_offset == Q2_EVERY_VIEW || view->map.l1_offset == l1_offset) {
			q2_map_free(&view->map);
			view->map.gone = true;
		}
}

void q2_view_part(struct qcow2_image *image)
{
	while (image->views) {
		struct qcow2_image *view = image->views;
		image->views = view->next_view;
		view->next_view = view->view_of = NULL;
	}
	if (!image->view_of)
		return;
	struct qcow2_image **link = &image->view_of->views;
	while (*link != image)
		link = &(*link)->next_view;
	*link = image->next_view;
	image->view_of = image->next_view = NULL;
}
