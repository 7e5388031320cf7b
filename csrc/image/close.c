/* SPDX-License-Identifier: MIT
 * The end of writing: flush, finish, show a new image, let go. */
#include "image/image.h"

#include "base/be.h"
#include "store/store.h"

int qcow2_image_flush(struct qcow2_image *image, struct qcow2_error *err)
{
	int rc = 0;
	if (!image->begun)
		return 0;
	if (image->raw)
		rc = q2_writeback_barrier(&image->meta, err);
	else
		rc = q2_writeback_flush(&image->meta, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

/* Devices and programs that move images by sectors see all of a file that ends with one. */
static int round_length(struct qcow2_image *image, struct qcow2_error *err)
{
	uint64_t length;
	int rc = qcow2_store_length(image->store, &length, err);
	if (rc || length % 512 == 0 || qcow2_store_is_device(image->store))
		return rc;
	rc = qcow2_store_resize(image->store, q2_round_up(length, 512), err);
	return rc ? q2_writeback_fail(&image->meta, rc, err) : 0;
}

int qcow2_image_finish(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	if (!image->begun)
		return 0;
	int rc = q2_writeback_check(meta, err);
	if (!rc)
		rc = q2_track_end(image, err);
	if (!rc && !image->raw)
		rc = q2_writeback_flush(meta, err);
	if (!rc && !image->raw && q2_store_changes(image->store) != image->changes)
		rc = round_length(image, err);
	rc = rc ? q2_image_blame(image, rc, err) : qcow2_image_flush(image, err);
	if (!rc && (meta->header.incompatible_features & Q2_INCOMPATIBLE_DIRTY)) {
		/* Every count is on disk before the bit that excused them goes. */
		rc = q2_writeback_in_time(meta, err);
		if (!rc) {
			meta->header.incompatible_features &= ~(uint64_t)Q2_INCOMPATIBLE_DIRTY;
			rc = q2_writeback_header(meta, err);
		}
		rc = q2_image_blame(image, rc, err);
	}
	if (!rc)
		image->begun = false;
	return rc;
}

int q2_image_hide(struct qcow2_image *image, struct qcow2_error *err)
{
	image->meta.hidden = true;
	return q2_writeback_header(&image->meta, err);
}

int q2_image_show(struct qcow2_image *image, bool flush, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	int rc = q2_track_end(image, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = round_length(image, err);
	/* Everything first, the magic last: when the caller wants it on disk, in that order there too. */
	if (!rc && flush) {
		/* Who made the file flushed nothing either. */
		q2_writeback_unsettled(meta);
		meta->hidden = false;
		rc = q2_writeback_barrier(meta, err);
		meta->hidden = true;
	}
	uint8_t magic[4];
	q2_store32(magic, Q2_MAGIC);
	if (!rc)
		rc = qcow2_store_write(meta->store, 0, magic, sizeof magic, err);
	if (rc)
		return rc;
	meta->hidden = false;
	if (flush)
		return q2_writeback_barrier(meta, err);
	/* Nothing waits for a flush at the close. */
	q2_writeback_settled(meta);
	return 0;
}

void qcow2_image_unref(struct qcow2_image *image)
{
	/* A loop down the chain, so that a long one needs no deep stack. */
	while (image && --image->refs == 0) {
		struct qcow2_image *backing = image->backing;
		/* Who cares for the answer has called qcow2_image_finish; this saves what can be saved. */
		int ignored = qcow2_image_finish(image, NULL);
		(void)ignored;
		q2_view_part(image);
		q2_track_free(image);
		q2_image_free(image);
		image = backing;
	}
}
