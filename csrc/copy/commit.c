/* SPDX-License-Identifier: MIT
 * Commit: what the layers above a base hold moves into the base.
 *
 *   1. the base grows when it is shorter; the new part is zeros, as it was for who looked past its end
 *   2. every byte that a layer above has is written into the base; the layers above still hide it
 *   3. flush
 *   4. the overlay lets go of its clusters, unless it is kept */
#include "copy/chain_job.h"
#include "base/options.h"

struct commit {
	struct q2_chain_job layers;
	struct qcow2_image *overlay, *base; /* a reference each */
	uint32_t depth;                     /* of the base */
	bool keep;
	struct q2_source disk;
	struct q2_source *snapshots; /* one a survey */
};

static int find(struct q2_chain_job *layers, size_t survey, uint64_t offset, uint64_t limit,
		struct q2_chain_run *out, struct qcow2_error *err)
{
	struct commit *commit = (struct commit *)layers;
	*out = (struct q2_chain_run){.length = limit};
	if (offset >= commit->overlay->size)
		return 0; /* a snapshot of a larger disk: nothing is written there */
	limit = q2_min(limit, commit->overlay->size - offset);
	int rc = q2_source_find(&commit->disk, offset, limit, &out->new, err);
	if (rc)
		return rc;
	out->length = out->new.length;
	out->wanted = out->new.depth < commit->depth;
	out->old = out->new;
	if (!survey || !out->wanted)
		return 0;
	/* What a snapshot sees in the base is about to become what the disk shows. */
	rc = q2_source_find(&commit->snapshots[survey - 1], offset, out->length, &out->old, err);
	out->length = out->old.length;
	out->wanted = out->old.depth >= commit->depth && !q2_piece_same(&out->old, &out->new);
	return rc;
}

static int begin(struct q2_chain_job *layers, struct qcow2_error *err)
{
	struct commit *commit = (struct commit *)layers;
	if (commit->base->size >= commit->overlay->size)
		return 0;
	int rc = qcow2_image_resize(commit->base, commit->overlay->size, 0, QCOW2_PREALLOCATION_OFF, err);
	/* A raw base has its new length on disk before writes behind the old one can give it another. */
	return rc ? rc : qcow2_image_flush(commit->base, err);
}

static int finish(struct q2_chain_job *layers, struct qcow2_error *err)
{
	struct commit *commit = (struct commit *)layers;
	int rc = qcow2_image_flush(commit->base, err);
	return rc || commit->keep ? rc : q2_image_empty(commit->overlay, err);
}

static void free_commit(struct q2_chain_job *layers)
{
	struct commit *commit = (struct commit *)layers;
	for (size_t i = 0; commit->snapshots && i < layers->surveys; i++)
		q2_source_free(&commit->snapshots[i]);
	free(commit->snapshots);
	q2_source_free(&commit->disk);
	qcow2_image_unref(commit->overlay);
	qcow2_image_unref(commit->base);
	free(commit);
}

static int check(struct qcow2_image *overlay, struct qcow2_image *base, bool kept, uint32_t *depth,
		 struct qcow2_error *err)
{
	*depth = 1;
	struct qcow2_image *layer = overlay->backing;
	for (; layer && layer != base; layer = layer->backing)
		++*depth;
	if (!layer)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The base is no layer of the image's backing chain");
	if (!qcow2_image_writable(base))
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    "The base was not opened for writing");
	if (!kept && !qcow2_image_writable(overlay))
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    "The image was not opened for writing, so it cannot be emptied");
	return 0;
}

/* The snapshots of the overlay see the base too. */
static int survey(struct commit *commit, struct qcow2_error *err)
{
	struct q2_chain_job *layers = &commit->layers;
	int rc = q2_chain_job_survey(layers, commit->overlay, err);
	if (rc)
		return rc;
	commit->snapshots = q2_new(layers->surveys, sizeof *commit->snapshots);
	if (!commit->snapshots)
		return q2_error_nomem(err);
	for (size_t i = 0; i < layers->surveys && !rc; i++)
		rc = q2_source_init(&commit->snapshots[i], &layers->views[i], 1, false, err);
	return rc;
}

int qcow2_commit_new(struct qcow2_image *overlay, struct qcow2_image *base,
		     const struct qcow2_commit_options *given, struct qcow2_job **out,
		     struct qcow2_error *err)
{
	struct qcow2_commit_options own;
	const struct qcow2_commit_options *options = &own;
	int taken = q2_options_take(&own, sizeof own, given, err);
	if (taken)
		return taken;
	static const struct q2_chain_job_ops ops = {.find = find,
						    .begin = begin,
						    .finish = finish,
						    .free = free_commit};
	uint32_t depth;
	int rc = check(overlay, base, options->keep, &depth, err);
	if (!rc)
		rc = qcow2_image_flush(overlay, err);
	if (!rc)
		rc = qcow2_image_flush(base, err);
	if (rc)
		return rc;
	struct commit *commit = q2_new(1, sizeof *commit);
	if (!commit)
		return q2_error_nomem(err);
	q2_chain_job_init(&commit->layers, &ops, base);
	commit->layers.job.rate = options->rate;
	commit->overlay = qcow2_image_ref(overlay);
	commit->base = qcow2_image_ref(base);
	commit->depth = depth;
	commit->keep = options->keep;
	commit->layers.emptied = options->keep ? NULL : overlay->store;
	rc = q2_hold_take(&commit->layers.job.hold, overlay, err);
	if (!rc)
		rc = survey(commit, err);
	if (!rc)
		rc = q2_source_init(&commit->disk, &overlay, 1, false, err);
	if (!rc)
		rc = q2_chain_job_start(&commit->layers, overlay->size, options->threads, err);
	if (rc) {
		qcow2_job_free(&commit->layers.job.base);
		return rc;
	}
	*out = &commit->layers.job.base;
	return 0;
}
