/* SPDX-License-Identifier: MIT
 * Version 2 to 3 and back: the header of the other version in one write of the first sector. */
#include "image/amend.h"
#include "image/create.h"
#include "image/header_cluster.h"

#include <inttypes.h>

/* Writes the header that meta.header has become, with the list; what it was comes back when it failed. */
static int switch_version(struct qcow2_image *image, const struct q2_header_cluster *head,
			  const struct qcow2_header *saved, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	int rc = q2_header_cluster_store_version(image, head, err);
	if (rc && !meta->failure.code)
		meta->header = *saved;
	if (!rc)
		q2_header_geometry(&meta->header, &meta->geo);
	return rc;
}

/* The table that tells other programs the features' names; merely useful, so room for it is no condition. */
static int add_feature_names(struct qcow2_image *image, struct q2_header_cluster *head,
			     struct qcow2_error *err)
{
	if (image->meta.geo.cluster_size < Q2_FEATURE_NAMES_FROM)
		return 0;
	uint32_t length = q2_create_feature_names(NULL);
	q2_auto uint8_t *names = q2_new(length, 1);
	if (!names)
		return q2_error_nomem(err);
	q2_create_feature_names(names);
	int rc = q2_header_cluster_set(head, (uint32_t)Q2_EXT_FEATURE_NAMES, names, length, err);
	if (!rc)
		rc = q2_header_cluster_store(image, head, err);
	return rc == QCOW2_E_NOSPACE && !image->meta.failure.code ? 0 : rc;
}

int q2_amend_upgrade(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct q2_header_cluster head = {0};
	/* Version 2 ignores the additional fields, so they may come first. */
	int rc = q2_snapshot_complete(image, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = q2_header_cluster_load(image, &head, err);
	if (!rc) {
		const struct qcow2_header saved = meta->header;
		meta->header.version = 3;
		rc = switch_version(image, &head, &saved, err);
	}
	if (!rc)
		rc = add_feature_names(image, &head, err);
	q2_header_cluster_free(&head);
	return rc;
}

static int refuse(struct qcow2_error *err, const char *why)
{
	return q2_error_set(err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET, "%s", why);
}

int q2_amend_downgrade_check(struct qcow2_image *image, uint64_t size, unsigned order,
			     struct qcow2_error *err)
{
	const struct qcow2_header *h = &image->meta.header;
	uint64_t lost = h->incompatible_features & ~(uint64_t)Q2_INCOMPATIBLE_DIRTY;
	uint32_t bitmaps = 0, snapshots = 0;
	if (image->meta.geo.external_data)
		return refuse(err, "Cannot downgrade an image with a data file");
	if (lost)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, 72,
				    "Cannot downgrade an image with incompatible features %#" PRIx64 " set",
				    lost);
	if (order != 4)
		return refuse(err, "compat=0.10 requires refcount_bits=16");
	int rc = qcow2_image_bitmap_count(image, &bitmaps, err);
	if (!rc && bitmaps)
		return refuse(err, "Cannot downgrade an image with persistent bitmaps; remove them first");
	if (!rc)
		rc = qcow2_image_snapshot_count(image, &snapshots, err);
	for (uint32_t i = 0; i < snapshots && !rc; i++) {
		struct qcow2_snapshot s;
		rc = qcow2_image_snapshot(image, i, &s, err);
		/* Readers of version 2 take every snapshot for one of the disk's size. */
		if (!rc && (s.vm_state_size > UINT32_MAX || s.size != size))
			return refuse(err, "Internal snapshots prevent downgrade of image");
	}
	return rc;
}

int q2_amend_downgrade(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct q2_header_cluster head = {0};
	/* With the version the dirty bit goes: every count is on disk before. */
	int rc = q2_writeback_in_time(meta, err);
	if (!rc)
		rc = q2_header_cluster_load(image, &head, err);
	if (!rc)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_FEATURE_NAMES, NULL, 0, err);
	if (!rc) {
		const struct qcow2_header saved = meta->header;
		struct qcow2_header *h = &meta->header;
		h->version = 2;
		h->incompatible_features = h->compatible_features = h->autoclear_features = 0;
		h->compression_type = 0;
		rc = switch_version(image, &head, &saved, err);
	}
	q2_header_cluster_free(&head);
	return rc;
}
