/* SPDX-License-Identifier: MIT
 * Rebase: another backing file below a disk that shows the same bytes before, after and at every moment between.
 *
 *   1. what differs between the old and the new backing file is copied from the old one into the overlay
 *   2. flush
 *   3. one write of the header names the new one */
#include "copy/chain_job.h"
#include "base/options.h"

#include <string.h>

struct rebase {
	struct q2_chain_job layers;
	struct qcow2_image *overlay, *backing; /* a reference each; backing NULL: none */
	struct q2_source old, new;             /* images NULL: nothing there */
	uint8_t *name, *format;                /* owned; NULL: none */
	size_t name_length, format_length;
};

static int find_in(struct q2_source *source, uint64_t offset, uint64_t limit, struct q2_piece *piece,
		   struct qcow2_error *err)
{
	*piece = q2_piece_zeros(offset, limit);
	return source->images ? q2_source_find(source, offset, limit, piece, err) : 0;
}

static int find(struct q2_chain_job *layers, size_t survey, uint64_t offset, uint64_t limit,
		struct q2_chain_run *out, struct qcow2_error *err)
{
	struct rebase *rebase = (struct rebase *)layers;
	struct qcow2_image *image = survey ? layers->views[survey - 1] : rebase->overlay;
	struct qcow2_extent own;
	int rc = q2_chain_find(image, offset, limit, QCOW2_EXTENT_LAYER, false, &own, err);
	if (rc)
		return q2_image_blame(image, rc, err);
	*out = (struct q2_chain_run){.length = own.length};
	if (own.kind != QCOW2_EXTENT_UNALLOCATED)
		return 0;
	rc = find_in(&rebase->old, offset, own.length, &out->old, err);
	if (!rc)
		rc = find_in(&rebase->new, offset, out->old.length, &out->new, err);
	if (rc)
		return rc;
	uint64_t grain = layers->grain, length = out->new.length, end = offset + length;
	out->length = length;
	out->wanted = !q2_piece_same(&out->old, &out->new);
	if (out->wanted)
		return 0;
	/* A grain that differs in part goes into the overlay whole, so only whole ones are passed over. */
	if (offset % grain) {
		out->wanted = true;
		out->length = q2_min(length, grain - offset % grain);
	} else if (length < own.length && end % grain) {
		out->wanted = length < grain;
		out->length = out->wanted ? length : q2_round_down(end, grain) - offset;
	}
	return 0;
}

static int finish(struct q2_chain_job *layers, struct qcow2_error *err)
{
	struct rebase *rebase = (struct rebase *)layers;
	struct qcow2_image *overlay = rebase->overlay;
	int rc = qcow2_image_flush(overlay, err);
	if (!rc)
		rc = qcow2_image_set_backing(overlay, (struct qcow2_bytes){rebase->name, rebase->name_length},
					     (struct qcow2_bytes){rebase->format, rebase->format_length},
					     err);
	if (rc)
		return rc;
	/* What is above and below was looked at in the beginning. */
	struct qcow2_image *old = overlay->backing;
	overlay->backing = rebase->backing;
	rebase->backing = old;
	return 0;
}

static void free_rebase(struct q2_chain_job *layers)
{
	struct rebase *rebase = (struct rebase *)layers;
	q2_source_free(&rebase->old);
	q2_source_free(&rebase->new);
	qcow2_image_unref(rebase->backing);
	qcow2_image_unref(rebase->overlay);
	free(rebase->name);
	free(rebase->format);
	free(rebase);
}

static int keep(struct qcow2_bytes bytes, uint8_t **copy, size_t *length, struct qcow2_error *err)
{
	*length = bytes.length;
	if (!bytes.data)
		return 0;
	*copy = q2_new(bytes.length, 1);
	if (!*copy)
		return q2_error_nomem(err);
	memcpy(*copy, bytes.data, bytes.length);
	return 0;
}

/* Refuses what could not be finished, before a byte is copied. */
static int check(struct qcow2_image *overlay, struct qcow2_image *backing,
		 const struct qcow2_rebase_options *options, struct qcow2_error *err)
{
	if (overlay->raw)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "A raw image has no backing file");
	if (!qcow2_image_writable(overlay))
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    "The image was not opened for writing");
	if (!backing != !options->name.data)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "A new backing file needs both its name and the image");
	if (overlay->backing_name.data && !overlay->backing)
		return q2_error_set(err, QCOW2_E_MISSING, Q2_NO_OFFSET,
				    "The old backing file is not attached");
	if (options->compress && overlay->meta.geo.external_data)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "Clusters in an external data file cannot be compressed");
	if (!backing)
		return 0;
	/* Attached for a moment, to hear what speaks against it. */
	struct qcow2_image *old = overlay->backing;
	overlay->backing = NULL;
	int rc = qcow2_image_attach_backing(overlay, backing, err);
	if (!rc)
		qcow2_image_unref(backing);
	overlay->backing = old;
	return rc;
}

int qcow2_rebase_new(struct qcow2_image *overlay, struct qcow2_image *backing,
		     const struct qcow2_rebase_options *given, struct qcow2_job **out,
		     struct qcow2_error *err)
{
	struct qcow2_rebase_options own;
	const struct qcow2_rebase_options *options = &own;
	int taken = q2_options_take(&own, sizeof own, given, err);
	if (taken)
		return taken;
	static const struct q2_chain_job_ops ops = {.find = find, .finish = finish, .free = free_rebase};
	int rc = check(overlay, backing, options, err);
	if (!rc)
		rc = qcow2_image_flush(overlay, err);
	if (rc)
		return rc;
	struct rebase *rebase = q2_new(1, sizeof *rebase);
	if (!rebase)
		return q2_error_nomem(err);
	struct q2_chain_job *layers = &rebase->layers;
	q2_chain_job_init(layers, &ops, overlay);
	rebase->overlay = qcow2_image_ref(overlay);
	const struct q2_geometry *g = &overlay->meta.geo;
	layers->compress = options->compress;
	layers->grain = options->compress ? g->cluster_size : 1u << g->subcluster_bits;
	if (backing)
		rebase->backing = qcow2_image_ref(backing);
	rc = q2_hold_take(&layers->job.hold, overlay, err);
	if (!rc && backing)
		rc = q2_hold_take(&layers->job.hold, backing, err);
	if (!rc)
		rc = keep(options->name, &rebase->name, &rebase->name_length, err);
	if (!rc)
		rc = keep(options->format, &rebase->format, &rebase->format_length, err);
	if (!rc && overlay->backing)
		rc = q2_source_init(&rebase->old, &overlay->backing, 1, false, err);
	if (!rc && backing)
		rc = q2_source_init(&rebase->new, &backing, 1, false, err);
	if (!rc)
		rc = q2_chain_job_survey(layers, overlay, err);
	if (!rc)
		rc = q2_chain_job_start(layers, overlay->size, options->threads, err);
	if (rc) {
		qcow2_job_free(&layers->job.base);
		return rc;
	}
	*out = &layers->job.base;
	return 0;
}
