/* SPDX-License-Identifier: MIT
 * Emptying an image: nothing of the disk is its own any more, its backing file shows everywhere. */
#include "image/image.h"

int q2_image_empty(struct qcow2_image *image, struct qcow2_error *err)
{
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_unmap_clusters(image, 0, q2_round_up(image->size, image->meta.geo.cluster_size), err);
	if (!rc)
		rc = q2_commit_flush(&image->meta, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
