/* SPDX-License-Identifier: MIT
 * A job's hold on its images. */
#include "image/hold.h"

bool qcow2_image_is_held(const struct qcow2_image *image)
{
	return image->held;
}

static bool has(const struct q2_hold *hold, const struct qcow2_image *image)
{
	struct qcow2_image *const *images = hold->images.items;
	for (size_t i = 0; i < hold->images.count; i++)
		if (images[i] == image)
			return true;
	return false;
}

int q2_hold_take(struct q2_hold *hold, struct qcow2_image *image, struct qcow2_error *err)
{
	for (; image; image = image->backing) {
		if (has(hold, image))
			continue;
		if (image->held)
			return q2_image_blame(image,
					      q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
							   "The image is held by a job that has not ended"),
					      err);
		struct qcow2_image **item = q2_vec_push(&hold->images, sizeof *item);
		if (!item)
			return q2_error_nomem(err);
		*item = qcow2_image_ref(image);
		image->held = true;
	}
	return 0;
}

void q2_hold_end(struct q2_hold *hold)
{
	struct q2_vec images = hold->images;
	hold->images = (struct q2_vec){0};
	for (size_t i = 0; i < images.count; i++) {
		struct qcow2_image *image = ((struct qcow2_image **)images.items)[i];
		image->held = false;
		qcow2_image_unref(image);
	}
	q2_vec_free(&images);
}
