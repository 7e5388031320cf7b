/* SPDX-License-Identifier: MIT
 * The check as a job: its passes in order, what they found, and the public face. */
#include "check/check.h"
#include "base/options.h"

#include "base/clock.h"

#include <stdio.h>
#include <string.h>

/* Records that are kept when the caller does not say. In Lua each is a table of some 700 bytes: with these a check of a
 * small file full of mistakes stays below 64 MiB. */
#define FINDINGS_MOST 50000u
/* More threads than this would wait for one another at the census. */
#define THREADS_MOST 16u
/* Refcount blocks that several table entries name are read again up to this many bytes in all. */
#define ALIASED_MOST (UINT64_C(64) << 20)

static int (*const passes[])(struct q2_check *, bool *, struct qcow2_error *) = {
	q2_check_header, q2_check_snapshots, q2_check_bitmaps,    q2_compare_reftable, q2_check_l1,
	q2_check_l2,     q2_check_data_file, q2_compare_overlaps, q2_compare_counts,   q2_check_copied,
};
enum { PASSES = sizeof passes / sizeof *passes };

const struct qcow2_problem_facts *qcow2_problem_facts(enum qcow2_problem problem)
{
	static const struct qcow2_problem_facts facts[] = {
#define PROBLEM(NAME, word, severity, repair, meaning, loss) \
	{word, QCOW2_SEVERITY_##severity, QCOW2_REPAIR_##repair, meaning, loss},
#include "check/problems.def"
#undef PROBLEM
	};
	return (unsigned)problem < QCOW2_PROBLEM_COUNT ? &facts[problem] : NULL;
}

static void conclude(struct q2_check *check)
{
	struct qcow2_check_result *sum = &check->report.sum;
	const struct q2_geometry *g = check->geo;
	uint64_t by_severity[4] = {0};
	for (unsigned i = 0; i < QCOW2_PROBLEM_COUNT; i++)
		by_severity[qcow2_problem_facts((enum qcow2_problem)i)->severity] += check->report.found[i];
	sum->corruptions = by_severity[QCOW2_SEVERITY_CORRUPTION];
	sum->leaks = by_severity[QCOW2_SEVERITY_LEAK];
	sum->unreadable = by_severity[QCOW2_SEVERITY_UNREADABLE];
	sum->findings = check->report.findings.count;
	sum->image_end_offset = check->highest << g->cluster_bits;
	sum->total_clusters = q2_div_up(q2_round_up(check->header->size, 512), g->cluster_size);
}

/* ---- the job ----------------------------------------------------------------------------------- */

static int prepare(struct q2_check *check, struct qcow2_error *err)
{
	uint64_t spent;
	int rc = qcow2_store_length(check->store, &check->file_length, err);
	/* A table that a device has lost, of a disk that holds nothing, is zeros behind the end. */
	if (check->image->lost_l1)
		check->file_length = q2_max(check->file_length, check->image->meta.file_length);
	if (!rc)
		rc = qcow2_store_allocated(check->store, &spent, err);
	if (rc)
		return rc;
	uint64_t clusters = q2_div_up(check->file_length, check->geo->cluster_size);
	uint64_t real = q2_min(clusters, q2_div_up(spent, check->geo->cluster_size));
	rc = q2_census_init(&check->census, clusters, real, err);
	if (rc)
		return rc;
	check->hands = q2_new(check->threads, sizeof *check->hands);
	if (!check->hands)
		return q2_error_nomem(err);
	for (unsigned i = 0; i < check->threads; i++) {
		check->hands[i].buffer = q2_new_pages(Q2_PIECE);
		if (!check->hands[i].buffer)
			return q2_error_nomem(err);
	}
	return 0;
}

/* Has all that the image was told so far in the file, lazy refcounts too: the check looks there. */
static int settle_image(struct qcow2_image *image, struct qcow2_error *err)
{
	return image->begun ? q2_image_blame(image, q2_writeback_counts(&image->meta, err), err) : 0;
}

static int step(struct qcow2_job *base, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	struct q2_check *check = (struct q2_check *)base;
	uint64_t deadline = q2_clock_now() + Q2_STEP_NSEC;
	while (check->pass < PASSES && !check->failure.code) {
		bool more = false;
		struct qcow2_error failure;
		int rc = passes[check->pass](check, &more, &failure);
		if (rc) {
			q2_image_blame(check->image, rc, &failure);
			check->failure = failure;
			break;
		}
		if (!more) {
			check->pass++;
			check->position = 0;
		}
		if (check->pass == PASSES)
			conclude(check);
		else if (q2_clock_now() >= deadline)
			break;
	}
	if (check->failure.code || check->pass == PASSES)
		q2_hold_end(&check->hold);
	if (check->failure.code) {
		if (err)
			*err = check->failure;
		return check->failure.code;
	}
	*done = check->pass == PASSES ? check->total : q2_min(check->done, check->total);
	*total = check->total;
	return check->pass < PASSES;
}

static void free_check(struct qcow2_job *base)
{
	struct q2_check *check = (struct q2_check *)base;
	for (unsigned i = 0; check->hands && i < check->threads; i++) {
		free(check->hands[i].buffer);
		q2_vec_free(&check->hands[i].runs);
	}
	free(check->hands);
	free(check->reftable);
	q2_census_free(&check->census);
	q2_vec_free(&check->report.findings);
	q2_vec_free(&check->snapshots);
	q2_vec_free(&check->l2);
	q2_vec_free(&check->far_wrong);
	q2_vec_free(&check->same_names);
	pthread_mutex_destroy(&check->lock);
	q2_hold_end(&check->hold);
	qcow2_image_unref(check->image);
	free(check);
}

static const struct q2_job_kind kind = {.step = step, .free = free_check};

struct q2_check *q2_check_of(const struct qcow2_job *job)
{
	return job->kind == &kind ? (struct q2_check *)job : NULL;
}

int qcow2_check_new(struct qcow2_image *image, const struct qcow2_check_options *given,
		    struct qcow2_job **out, struct qcow2_error *err)
{
	struct qcow2_check_options own = QCOW2_CHECK_OPTIONS_INIT;
	const struct qcow2_check_options *options = &own;
	int taken = given ? q2_options_take(&own, sizeof own, given, err) : 0;
	if (taken)
		return taken;
	if (image->raw)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "A raw image has no tables to check");
	if (image->is_snapshot)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "A snapshot is checked with the image that has it");
	struct q2_check *check = q2_new(1, sizeof *check);
	if (!check)
		return q2_error_nomem(err);
	check->base.kind = &kind;
	check->image = qcow2_image_ref(image);
	check->store = image->store;
	check->header = &image->meta.header;
	check->geo = &image->meta.geo;
	check->report.most = options->most ? options->most : FINDINGS_MOST;
	check->threads = options->threads ? options->threads : q2_clock_processors();
	check->threads = (unsigned)q2_min(check->threads, THREADS_MOST);
	check->aliased = ALIASED_MOST;
	pthread_mutex_init(&check->lock, NULL);
	int rc = q2_hold_take(&check->hold, image, err);
	if (!rc)
		rc = settle_image(image, err);
	if (!rc)
		rc = prepare(check, err);
	if (rc) {
		qcow2_job_free(&check->base);
		return rc;
	}
	*out = &check->base;
	return 0;
}

const struct qcow2_check_result *qcow2_check_result(const struct qcow2_job *job)
{
	const struct q2_check *check = q2_check_of(job);
	return check ? &check->report.sum : NULL;
}

uint64_t qcow2_check_found(const struct qcow2_job *job, enum qcow2_problem problem)
{
	const struct q2_check *check = q2_check_of(job);
	return check && (unsigned)problem < QCOW2_PROBLEM_COUNT ? check->report.found[problem] : 0;
}

const struct qcow2_finding *qcow2_check_finding(const struct qcow2_job *job, uint64_t index)
{
	const struct q2_check *check = q2_check_of(job);
	return check && index < check->report.findings.count
		       ? (const struct qcow2_finding *)check->report.findings.items + index
		       : NULL;
}
