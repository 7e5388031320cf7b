/* SPDX-License-Identifier: MIT
 * A repair as a job: its passes in order, the switch, and the public face. */
#include "check/repair.h"

#include "image/header_cluster.h"

#include "base/be.h"
#include "base/clock.h"

#include <string.h>

/* Tables may be read so often: whole three times, and a little more. */
#define READS 4u
#define READ_LEAST (UINT64_C(256) << 20)
/* Clusters behind the file that may be taken, beside twice the file's own. */
#define ROOM (UINT64_C(8) << 20)

/* ---- passes of this file ----------------------------------------------------------------------- */

static int extend_data_file(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	struct qcow2_store *data = repair->image->data;
	/* Only a raw file promises to be the disk; others may end where their last cluster does. */
	if (!(repair->check->header->autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW) ||
	    !repair->check->report.found[QCOW2_PROBLEM_DATA_FILE_SHORT] ||
	    !q2_repair_wants(repair, QCOW2_PROBLEM_DATA_FILE_SHORT) || !data)
		return 0;
	if (!qcow2_store_writable(data))
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    "The external data file was opened read-only");
	int rc = qcow2_store_resize(data, repair->check->header->size, err);
	return rc ? rc : qcow2_store_flush(data, err);
}

/* Gives everything that several claim a place of its own, with the bytes that its entries show now. */
int q2_repair_place_moves(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	const struct q2_geometry *g = repair->geo;
	(void)more;
	for (size_t i = 0; i < repair->moves.count && repair->beside; i++) {
		struct q2_move *move = (struct q2_move *)repair->moves.items + i;
		uint64_t from = move->key, clusters = 1;
		if (move->key & Q2_COMPRESSED) {
			struct q2_entry e = q2_entry_decode(g, move->key, 0);
			from = q2_round_down(e.host.v, g->cluster_size);
			clusters = q2_div_up(e.host.v + e.host_length - from, g->cluster_size);
		}
		int rc = q2_repair_take(repair, clusters << g->cluster_bits, move->refs, &move->fresh, err);
		for (uint64_t n = 0; !rc && n < clusters; n++) {
			uint64_t done = n << g->cluster_bits;
			if (move->key == Q2_MOVE_ZEROS)
				memset(repair->table, 0, g->cluster_size);
			else
				rc = qcow2_store_read(repair->store, from + done, repair->table,
						      g->cluster_size, err);
			if (!rc)
				rc = q2_repair_write(repair, move->fresh + done, repair->table,
						     g->cluster_size, err);
		}
		if (rc)
			return rc;
	}
	return q2_census_settle(&repair->will, err);
}

/* The header with another bitmap directory, or none. */
static int store_directory(struct q2_repair *repair, struct qcow2_error *err)
{
	struct qcow2_image *image = repair->image;
	uint32_t count = (uint32_t)repair->bitmaps.count;
	struct q2_header_cluster head;
	uint8_t ext[24] = {0};
	q2_store32(ext, count);
	q2_store64(ext + 8, repair->directory.count);
	q2_store64(ext + 16, repair->directory_at);
	if (!count)
		image->meta.header.autoclear_features &= ~(uint64_t)Q2_AUTOCLEAR_BITMAPS;
	int rc = q2_header_cluster_load(image, &head, err);
	if (!rc)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_BITMAPS, count ? ext : NULL, sizeof ext,
					   err);
	if (!rc)
		rc = q2_header_cluster_store(image, &head, err);
	q2_header_cluster_free(&head);
	return rc;
}

/* The image in memory knows nothing of its tables any more. */
static int reload(struct qcow2_image *image, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	q2_cache_drop(&meta->cache);
	free(q2_take(&meta->reftable));
	meta->reftable_entries = 0;
	q2_map_free(&image->map);
	image->map = (struct q2_map){.meta = meta,
				     .l1_offset = meta->header.l1_table_offset,
				     .l1_entries = meta->header.l1_size,
				     .size = meta->header.size};
	free(q2_take(&image->snapshot_table));
	q2_vec_free(&image->snapshots);
	image->snapshots_loaded = false;
	q2_image_forget_bitmaps(image);
	image->bitmap_serials.count = 0;
	q2_view_end(image, Q2_EVERY_VIEW);
	image->expanded_host = UINT64_MAX;
	q2_header_geometry(&meta->header, &meta->geo);
	int rc = qcow2_store_length(image->store, &meta->file_length, err);
	return rc ? rc : q2_image_reload_header(image, err);
}

static int switch_over(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	struct q2_meta *meta = &repair->image->meta;
	const struct qcow2_header saved = meta->header;
	uint64_t length;
	int rc = 0;
	(void)more;
	if (!repair->beside)
		return reload(repair->image, err);
	rc = qcow2_store_length(repair->store, &length, err);
	if (!rc && length < repair->reach)
		rc = qcow2_store_resize(repair->store, repair->reach, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	if (rc)
		return rc;
	meta->header = repair->header;
	meta->header.autoclear_features &= Q2_AUTOCLEAR_KNOWN;
	rc = repair->bitmaps_change ? store_directory(repair, err) : q2_writeback_header(meta, err);
	if (rc) {
		meta->header = saved;
		return rc;
	}
	return reload(repair->image, err);
}

/* The host gets the space of leaked clusters back, if it wants it. needs: nothing on disk reaches them any more. */
static int give_back(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	const struct qcow2_finding *list = repair->check->report.findings.items;
	unsigned bits = repair->geo->cluster_bits;
	(void)more;
	(void)err;
	if (!repair->lower || repair->incomplete || qcow2_store_is_device(repair->store))
		return 0;
	for (size_t i = 0; i < repair->check->report.findings.count; i++) {
		if (list[i].problem != QCOW2_PROBLEM_LEAK || list[i].references)
			continue;
		uint64_t c = list[i].host_offset >> bits, end = c + list[i].count;
		while (c < end) {
			uint64_t start = c;
			while (c < end && !q2_census_get(&repair->will, c))
				c++;
			/* The repair is done; a host that keeps the space is no reason to call it failed. */
			if (c > start &&
			    qcow2_store_punch(repair->store, start << bits, (c - start) << bits, NULL))
				return 0;
			c += c == start;
		}
	}
	return 0;
}

/* ---- the job ----------------------------------------------------------------------------------- */

static q2_repair_pass *const passes[] = {
	extend_data_file,
	/* What there will be. */
	q2_repair_plan_side,
	q2_repair_plan_l1,
	q2_repair_plan_l2,
	q2_repair_choose_order,
	q2_repair_survey,
	q2_repair_survey_l1,
	q2_repair_survey_counts,
	/* In place. */
	q2_repair_raise,
	q2_repair_write_entries,
	q2_repair_lower,
	/* Beside. */
	q2_repair_place_moves,
	q2_repair_place_l2,
	q2_repair_place_l1,
	q2_repair_place_side,
	q2_repair_build_counts,
	switch_over,
	give_back,
};
enum { PASSES = sizeof passes / sizeof *passes };

void qcow2_repair_want(uint8_t wanted[QCOW2_PROBLEM_COUNT], bool leaks, bool all)
{
	memset(wanted, QCOW2_REPAIR_NOT, QCOW2_PROBLEM_COUNT);
	for (unsigned i = 0; all && i < QCOW2_PROBLEM_COUNT; i++)
		if (qcow2_problem_facts((enum qcow2_problem)i)->repair != QCOW2_REPAIR_NOT)
			wanted[i] = QCOW2_REPAIR_SAFE;
	if (leaks)
		wanted[QCOW2_PROBLEM_LEAK] = wanted[QCOW2_PROBLEM_BITMAPS_STALE] = QCOW2_REPAIR_SAFE;
}

static int refuse(const struct q2_check *check, const uint8_t *wanted, struct qcow2_error *err)
{
	const struct qcow2_check_result *sum = &check->report.sum;
	if (!qcow2_store_writable(check->store) || check->image->begun)
		return q2_error_set(err, QCOW2_E_READONLY, Q2_NO_OFFSET,
				    check->image->begun
					    ? "An image that is being written to cannot be repaired"
					    : "The image was opened read-only");
	if (sum->unreadable)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "Some structures could not be read, so nothing can be repaired");
	if (sum->incomplete && sum->leaks && wanted[QCOW2_PROBLEM_LEAK] &&
	    !wanted[QCOW2_PROBLEM_REFCOUNT_LOW])
		return q2_error_set(
			err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
			"A table of the image cannot be followed, so clusters may only seem to be "
			"leaked: they cannot be repaired alone");
	return 0;
}

static int prepare(struct q2_repair *repair, struct qcow2_error *err)
{
	uint64_t spent, clusters = repair->file_clusters;
	int rc = qcow2_store_allocated(repair->store, &spent, err);
	if (rc)
		return rc;
	uint64_t real = q2_min(clusters, q2_div_up(spent, repair->geo->cluster_size));
	repair->read_budget = READS * spent + READ_LEAST;
	repair->room_budget = repair->read_budget;
	rc = q2_census_init(&repair->will, 3 * clusters + ROOM, real, err);
	if (rc)
		return rc;
	repair->limit = repair->will.clusters;
	repair->buffer = q2_new_pages(q2_max(Q2_PIECE, repair->geo->cluster_size));
	repair->table = q2_new_pages(repair->geo->cluster_size);
	return repair->buffer && repair->table ? 0 : q2_error_nomem(err);
}

static int step(struct qcow2_job *base, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	struct q2_repair *repair = (struct q2_repair *)base;
	uint64_t deadline = q2_clock_now() + Q2_STEP_NSEC;
	while (repair->pass < PASSES && !repair->failure.code) {
		bool more = false;
		struct qcow2_error failure;
		int rc = passes[repair->pass](repair, &more, &failure);
		if (rc) {
			q2_image_blame(repair->image, rc, &failure);
			repair->failure = failure;
			break;
		}
		if (!more) {
			repair->pass++;
			repair->position = 0;
			repair->end =
				q2_max(repair->end, q2_div_up(repair->reach, repair->geo->cluster_size));
		}
		if (q2_clock_now() >= deadline)
			break;
	}
	if (repair->failure.code || repair->pass == PASSES)
		q2_hold_end(&repair->hold);
	if (repair->failure.code) {
		if (err)
			*err = repair->failure;
		return repair->failure.code;
	}
	*done = repair->pass == PASSES ? repair->total : q2_min(repair->done, repair->total);
	*total = repair->total;
	return repair->pass < PASSES;
}

static void free_repair(struct qcow2_job *base)
{
	struct q2_repair *repair = (struct q2_repair *)base;
	q2_census_free(&repair->will);
	q2_vec_free(&repair->moves);
	q2_vec_free(&repair->snapshot_table);
	q2_vec_free(&repair->snapshots);
	q2_vec_free(&repair->directory);
	q2_vec_free(&repair->bitmaps);
	q2_vec_free(&repair->copied.findings);
	free(repair->l1);
	free(repair->l1_extra);
	free(repair->l2_fresh);
	free(repair->buffer);
	free(repair->table);
	q2_hold_end(&repair->hold);
	free(repair);
}

static const struct q2_job_kind kind = {.step = step, .free = free_repair};

int qcow2_repair_new(struct qcow2_job *job, const uint8_t wanted[QCOW2_PROBLEM_COUNT], struct qcow2_job **out,
		     struct qcow2_error *err)
{
	struct q2_check *check = q2_check_of(job);
	if (!check)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "The job is no check");
	int rc = refuse(check, wanted, err);
	if (!rc && q2_view_is_held(check->image, Q2_EVERY_VIEW))
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				  "A job that has not ended reads a snapshot of the image");
	if (rc)
		return q2_image_blame(check->image, rc, err);
	struct q2_repair *repair = q2_new(1, sizeof *repair);
	if (!repair)
		return q2_error_nomem(err);
	repair->base.kind = &kind;
	repair->check = check;
	repair->image = check->image;
	repair->store = check->store;
	repair->geo = check->geo;
	repair->header = *check->header;
	memcpy(repair->wanted, wanted, sizeof repair->wanted);
	repair->raise = q2_repair_wants(repair, QCOW2_PROBLEM_REFCOUNT_LOW);
	repair->lower = q2_repair_wants(repair, QCOW2_PROBLEM_LEAK);
	repair->apart = check->report.found[QCOW2_PROBLEM_OVERLAP] &&
			q2_repair_wants(repair, QCOW2_PROBLEM_OVERLAP);
	repair->file_clusters = repair->end = check->census.clusters;
	repair->cursor = check->report.sum.incomplete ? repair->file_clusters : 1;
	repair->copied.most = check->report.most;
	repair->total = 3 * ((uint64_t)check->l2.count << check->geo->cluster_bits);
	rc = q2_hold_take(&repair->hold, repair->image, err);
	if (!rc)
		rc = prepare(repair, err);
	if (rc) {
		qcow2_job_free(&repair->base);
		return rc;
	}
	*out = &repair->base;
	return 0;
}

uint64_t qcow2_repair_flags_fixed(const struct qcow2_job *job)
{
	const struct q2_repair *repair = (const struct q2_repair *)job;
	return job->kind == &kind ? repair->copied.found[QCOW2_PROBLEM_COPIED_L2] +
					    repair->copied.found[QCOW2_PROBLEM_COPIED_DATA]
				  : 0;
}

const struct qcow2_finding *qcow2_repair_finding(const struct qcow2_job *job, uint64_t index)
{
	const struct q2_repair *repair = (const struct q2_repair *)job;
	return job->kind == &kind && index < repair->copied.findings.count
		       ? (const struct qcow2_finding *)repair->copied.findings.items + index
		       : NULL;
}

int qcow2_check_accept(struct qcow2_job *job, struct qcow2_error *err)
{
	struct q2_check *check = q2_check_of(job);
	if (!check)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "The job is no check");
	struct q2_meta *meta = &check->image->meta;
	const struct qcow2_check_result *sum = &check->report.sum;
	uint64_t marks = Q2_INCOMPATIBLE_DIRTY | Q2_INCOMPATIBLE_CORRUPT;
	if (sum->corruptions || sum->unreadable || check->image->begun || !qcow2_store_writable(check->store))
		return q2_image_blame(check->image,
				      q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
						   "The image is not sound, or not there to be written to"),
				      err);
	if (!(meta->header.incompatible_features & marks))
		return 0;
	int rc = q2_writeback_barrier(meta, err);
	if (!rc) {
		meta->header.incompatible_features &= ~marks;
		meta->header.autoclear_features &= Q2_AUTOCLEAR_KNOWN;
		rc = q2_writeback_header(meta, err);
	}
	return rc ? q2_image_blame(check->image, rc, err) : 0;
}
