/* SPDX-License-Identifier: MIT
 * An image that is made for a copy: open from its first byte on. */
#include "image/create.h"
#include "image/image.h"

int qcow2_create_open(struct qcow2_store *store, struct qcow2_store *data,
		      const struct qcow2_create_options *options, struct qcow2_image **out,
		      struct qcow2_error *err)
{
	struct qcow2_image *image = NULL;
	int rc = q2_create_image(store, data, options, true, err);
	if (!rc)
		rc = q2_image_open_hidden(store, &image, err);
	if (!rc && data)
		rc = qcow2_image_attach_data(image, data, err);
	if (!rc)
		rc = qcow2_image_begin(image, err);
	if (rc) {
		qcow2_image_unref(image);
		return rc;
	}
	*out = image;
	return 0;
}
