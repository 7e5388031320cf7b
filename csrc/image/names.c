/* SPDX-License-Identifier: MIT
 * The backing file that the header names: its name and its format, replaced as one by head.c's switch. */
#include "image/head.h"

static int set_backing(struct qcow2_image *image, struct qcow2_bytes name, struct qcow2_bytes format,
		       struct qcow2_error *err)
{
	struct q2_head head;
	if (image->raw)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "A raw image has no backing file");
	if (name.data && !name.length)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "The backing file's name is empty");
	if (name.data && (image->meta.header.autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "An image whose raw data file is the disk has no backing file");
	int rc = q2_edit_begin(image, err);
	if (rc)
		return rc;
	if (!name.data)
		format = (struct qcow2_bytes){0};
	rc = q2_head_load(image, &head, err);
	if (!rc)
		rc = q2_head_set(&head, (uint32_t)Q2_EXT_BACKING_FORMAT, format.data, (uint32_t)format.length,
				 err);
	if (!rc)
		rc = q2_head_set_backing(&head, name.data, (uint32_t)q2_min(name.length, UINT32_MAX), err);
	if (!rc)
		rc = q2_head_store(image, &head, err);
	q2_head_free(&head);
	return rc;
}

int qcow2_image_set_backing(struct qcow2_image *image, struct qcow2_bytes name, struct qcow2_bytes format,
			    struct qcow2_error *err)
{
	int rc = set_backing(image, name, format, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
