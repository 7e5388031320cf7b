/* SPDX-License-Identifier: MIT
 * Amending an image: what may be changed together, and in which order.
 *
 * Everything that can be refused is refused before anything changes. Then one phase after the other, each one switch
 * of the header; whoever opens the image in between finds some of the options done and the same disk. */
#include "image/amend.h"
#include "base/options.h"
#include "image/header_cluster.h"
#include "image/image_job.h"

#include <inttypes.h>
#include <string.h>

enum phase {
	NAMES, /* names of other files, and the raw bit off: a raw data file and a backing file exclude each other */
	UPGRADE,
	SIZE,
	WIDTH,
	FILL, /* raw on */
	LAZY,
	EXPAND,
	SNAPSHOTS,
	DOWNGRADE,
	PHASES,
};

struct amend {
	struct q2_image_job job;
	struct qcow2_amend_options options;
	uint8_t *names[3]; /* what options' data_name, backing_name and backing_format point to */
	bool wanted[PHASES];
	unsigned phase;
	uint64_t at;         /* guest offset within the phase */
	struct q2_vec drops; /* struct q2_span */
};

static int refuse(struct qcow2_error *err, int code, const char *why)
{
	return q2_error_set(err, code, Q2_NO_OFFSET, "%s", why);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static int check_width(struct qcow2_image *image, const struct qcow2_amend_options *o, uint32_t version,
		       unsigned *order, struct qcow2_error *err)
{
	*order = image->meta.header.refcount_order;
	if (o->refcount_bits) {
		if (o->refcount_bits > 64 || (o->refcount_bits & (o->refcount_bits - 1)))
			return refuse(err, QCOW2_E_RANGE,
				      "Refcount width must be a power of two and may not exceed 64 bits");
		*order = (unsigned)__builtin_ctz(o->refcount_bits);
		if (version < 3 && *order != 4)
			return refuse(
				err, QCOW2_E_CONFLICT,
				"Refcount widths other than 16 bits require compatibility level 1.1 or above "
				"(use compat=1.1 or greater)");
	}
	return *order < image->meta.header.refcount_order ? q2_amend_width_check(image, *order, err) : 0;
}

static int check_names(struct qcow2_image *image, const struct qcow2_amend_options *o,
		       struct qcow2_error *err)
{
	const struct q2_meta *meta = &image->meta;
	if (!meta->geo.external_data && o->data_name.data)
		return refuse(err, QCOW2_E_CONFLICT,
			      "data-file can only be set for images that use an external data file");
	if (!meta->geo.external_data && o->data_raw > 0)
		return refuse(err, QCOW2_E_CONFLICT,
			      "data-file-raw can only be set for images that use an external data file");
	if ((o->data_name.data && memchr(o->data_name.data, 0, o->data_name.length)) ||
	    (o->backing_name.data &&
	     (!o->backing_name.length || memchr(o->backing_name.data, 0, o->backing_name.length))))
		return refuse(err, QCOW2_E_RANGE, "A file's name is empty or has a NUL in it");
	if (o->backing_name.length > Q2_MAX_BACKING_NAME)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "Backing file name of %zu bytes is longer than %u",
				    o->backing_name.length, Q2_MAX_BACKING_NAME);
	if (o->data_name.length > meta->geo.cluster_size || o->backing_format.length > meta->geo.cluster_size)
		return refuse(err, QCOW2_E_NOSPACE, "A name does not fit into the header cluster");
	bool raw = o->data_raw >= 0 ? o->data_raw
				    : (meta->header.autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW) != 0;
	bool backed = o->set_backing ? o->backing_name.data != NULL : image->backing_name.data != NULL;
	if (meta->geo.external_data && raw && backed)
		return refuse(err, QCOW2_E_CONFLICT,
			      "An image whose raw data file is the disk has no backing file");
	return 0;
}

static int check_size(struct qcow2_image *image, const struct qcow2_amend_options *o, uint32_t version,
		      struct qcow2_error *err)
{
	uint32_t snapshots = 0;
	if (!o->set_size || o->size == image->size)
		return 0;
	if (o->size > INT64_MAX - 511)
		return refuse(err, QCOW2_E_RANGE, "The new size is too large");
	if (o->size < image->size && !o->shrink)
		return refuse(
			err, QCOW2_E_CONFLICT,
			"Shrinking would lose what lies behind the new end; it has to be asked for (--force)");
	if (q2_header_l1_entries(&image->meta.geo, o->size) > Q2_MAX_L1_BYTES / 8)
		return refuse(err, QCOW2_E_RANGE, "The new size needs an L1 table that is too large");
	int rc = q2_bitmaps_check_size(image, o->size, err);
	if (!rc)
		rc = qcow2_image_snapshot_count(image, &snapshots, err);
	if (!rc && snapshots && image->meta.header.version < 3 && version < 3)
		return refuse(err, QCOW2_E_UNSUPPORTED,
			      "A version 2 image that has snapshots cannot be resized");
	return rc;
}

/* Refuses what cannot be, and finds out which phases there will be. */
static int check(struct amend *a, struct qcow2_error *err)
{
	struct qcow2_image *image = a->job.image;
	const struct qcow2_amend_options *o = &a->options;
	const struct qcow2_header *h = &image->meta.header;
	uint32_t version = o->version ? o->version : h->version;
	unsigned order = h->refcount_order;
	int rc = q2_edit_tables(image, err);
	if (!rc && image->raw)
		rc = refuse(err, QCOW2_E_UNSUPPORTED,
			    "Format driver 'raw' does not support option amendment");
	if (!rc && version != 2 && version != 3)
		rc = refuse(err, QCOW2_E_RANGE, "Unknown compatibility level");
	/* What writes have set in bitmaps goes to disk, so that nothing is pending. */
	if (!rc)
		rc = q2_track_end(image, err);
	if (!rc)
		rc = check_names(image, o, err);
	if (!rc)
		rc = check_size(image, o, version, err);
	if (!rc)
		rc = check_width(image, o, version, &order, err);
	if (!rc && o->lazy_refcounts > 0 && version < 3)
		rc = refuse(
			err, QCOW2_E_CONFLICT,
			"Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or "
			"greater)");
	if (!rc && version < h->version)
		rc = q2_amend_downgrade_check(image, o->set_size ? o->size : image->size, order, err);
	struct qcow2_store *data;
	bool raw = h->autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW;
	bool resized = o->set_size && o->size != image->size;
	if (!rc && image->meta.geo.external_data && (resized || (o->data_raw > 0 && !raw))) {
		rc = q2_image_data_store(image, &data, err);
		if (!rc && !qcow2_store_writable(data))
			rc = refuse(err, QCOW2_E_READONLY, "The external data file was opened read-only");
		if (!rc)
			q2_writeback_attach(&image->meta, data);
	}
	bool lazy = h->compatible_features & Q2_COMPATIBLE_LAZY_REFCOUNTS;
	a->wanted[NAMES] = o->data_name.data || o->set_backing || (o->data_raw == 0 && raw);
	a->wanted[UPGRADE] = version > h->version;
	a->wanted[SIZE] = resized;
	a->wanted[WIDTH] = order != h->refcount_order;
	a->wanted[FILL] = o->data_raw > 0 && !raw;
	a->wanted[LAZY] = o->lazy_refcounts >= 0 && lazy != (o->lazy_refcounts != 0);
	a->wanted[EXPAND] = a->wanted[SNAPSHOTS] = a->wanted[DOWNGRADE] = version < h->version;
	return rc;
}

/* ---- phases ---------------------------------------------------------------------------------- */

static int set_names(struct qcow2_image *image, const struct qcow2_amend_options *o, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct q2_header_cluster head = {0};
	int rc = q2_header_cluster_load(image, &head, err);
	if (!rc && o->data_name.data)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_DATA_FILE,
					   o->data_name.length ? o->data_name.data : NULL,
					   (uint32_t)o->data_name.length, err);
	if (!rc && o->set_backing)
		rc = q2_header_cluster_set_backing(&head, o->backing_name.data,
						   (uint32_t)o->backing_name.length, err);
	if (!rc && o->set_backing)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_BACKING_FORMAT,
					   o->backing_name.data ? o->backing_format.data : NULL,
					   (uint32_t)o->backing_format.length, err);
	const struct qcow2_header saved = meta->header;
	if (!rc && o->data_raw == 0)
		meta->header.autoclear_features &= ~(uint64_t)Q2_AUTOCLEAR_DATA_FILE_RAW;
	if (!rc)
		rc = q2_header_cluster_store(image, &head, err);
	if (rc)
		meta->header = saved;
	q2_header_cluster_free(&head);
	if (!rc && o->set_backing) {
		/* The image that is attached is no longer the one that is named. */
		qcow2_image_unref(image->backing);
		image->backing = NULL;
	}
	return rc;
}

static int set_lazy(struct qcow2_image *image, bool on, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	/* The dirty bit goes with the counts on disk; from now on they are kept in time. */
	int rc = q2_writeback_in_time(meta, err);
	if (rc)
		return rc;
	if (on)
		meta->header.compatible_features |= Q2_COMPATIBLE_LAZY_REFCOUNTS;
	else
		meta->header.compatible_features &= ~(uint64_t)Q2_COMPATIBLE_LAZY_REFCOUNTS;
	meta->header.incompatible_features &= ~(uint64_t)Q2_INCOMPATIBLE_DIRTY;
	return q2_writeback_header(meta, err);
}

static int expand_snapshots(struct amend *a, struct qcow2_error *err)
{
	struct qcow2_image *image = a->job.image;
	uint32_t count = 0;
	int rc = qcow2_image_snapshot_count(image, &count, err);
	for (uint32_t i = 0; i < count && !rc; i++)
		rc = q2_expand_snapshot(image, i, &a->drops, err);
	if (!rc && a->drops.count)
		rc = q2_snapshot_let_go(image, a->drops.items, a->drops.count, err);
	return rc;
}

/* One phase, or a while of it. gives: 1 when it goes on. */
static int work(struct amend *a, struct qcow2_error *err)
{
	struct qcow2_image *image = a->job.image;
	const struct qcow2_amend_options *o = &a->options;
	int rc;
	switch ((enum phase)a->phase) {
	case NAMES:
		return set_names(image, o, err);
	case UPGRADE:
		return q2_amend_upgrade(image, err);
	case SIZE:
		return qcow2_image_resize(image, o->size, o->shrink ? QCOW2_RESIZE_SHRINK : 0,
					  QCOW2_PREALLOCATION_OFF, err);
	case WIDTH:
		return q2_amend_width(image, (unsigned)__builtin_ctz(o->refcount_bits), err);
	case FILL:
		/* Before anything changes: it may be refused. */
		rc = a->at ? 0
			   : q2_data_file_cut(image->meta.data, image->size, image->meta.geo.cluster_size,
					      err);
		if (!rc)
			rc = q2_fill_raw(image, &a->at, q2_image_job_deadline(), err);
		return rc ? rc : q2_declare_raw(image, err);
	case LAZY:
		return set_lazy(image, o->lazy_refcounts != 0, err);
	case EXPAND:
		return q2_expand_disk(image, &a->at, q2_image_job_deadline(), err);
	case SNAPSHOTS:
		return expand_snapshots(a, err);
	case DOWNGRADE:
		return q2_amend_downgrade(image, err);
	case PHASES:
		break;
	}
	return 0;
}

static int step(struct q2_image_job *job, struct qcow2_error *err)
{
	struct amend *a = (struct amend *)job;
	for (; a->phase < PHASES; a->phase++, a->at = 0) {
		if (!a->wanted[a->phase])
			continue;
		int rc = work(a, err);
		if (rc < 0)
			return rc;
		bool long_one = a->phase == FILL || a->phase == EXPAND;
		job->done = rc ? q2_min(a->at, job->total) : long_one ? job->total : job->done;
		if (rc)
			return 1;
	}
	return 0;
}

static void amend_free(struct q2_image_job *job)
{
	struct amend *a = (struct amend *)job;
	for (unsigned i = 0; i < 3; i++)
		free(a->names[i]);
	q2_vec_free(&a->drops);
	free(a);
}

/* Keeps a copy of what `bytes` points to. */
static int keep(uint8_t **copy, struct qcow2_bytes *bytes)
{
	if (!bytes->data)
		return 0;
	*copy = q2_new(q2_max(bytes->length, 1), 1);
	if (!*copy)
		return QCOW2_E_NOMEM;
	memcpy(*copy, bytes->data, bytes->length);
	bytes->data = *copy;
	return 0;
}

int qcow2_amend_new(struct qcow2_image *image, const struct qcow2_amend_options *given,
		    struct qcow2_job **out, struct qcow2_error *err)
{
	struct qcow2_amend_options own;
	const struct qcow2_amend_options *options = &own;
	int taken = q2_options_take(&own, sizeof own, given, err);
	if (taken)
		return taken;
	static const struct q2_image_job_ops ops = {step, amend_free};
	struct amend *a = q2_new(1, sizeof *a);
	if (!a)
		return q2_error_nomem(err);
	a->job = (struct q2_image_job){.base = {&q2_image_job_kind},
				       .ops = &ops,
				       .image = qcow2_image_ref(image),
				       .total = image->size};
	a->options = *options;
	int rc = 0;
	if (keep(&a->names[0], &a->options.data_name) || keep(&a->names[1], &a->options.backing_name) ||
	    keep(&a->names[2], &a->options.backing_format))
		rc = q2_error_nomem(err);
	if (!rc)
		rc = q2_image_blame(image, check(a, err), err);
	return q2_image_job_ready(&a->job, rc, out, err);
}
