/* SPDX-License-Identifier: MIT
 * Findings: how they are counted, kept and put together. */
#include "check/check.h"

struct qcow2_finding q2_report_blank(enum qcow2_problem problem)
{
	return (struct qcow2_finding){
		.problem = problem,
		.count = 1,
		.host_offset = QCOW2_NONE,
		.host_length = QCOW2_NONE,
		.guest_offset = QCOW2_NONE,
		.guest_length = QCOW2_NONE,
		.refcount = QCOW2_NONE,
		.references = QCOW2_NONE,
		.entry = QCOW2_NONE,
		.bitmap = QCOW2_NONE,
		.entry_offset = QCOW2_NONE,
		.index = QCOW2_NONE,
		.snapshot = QCOW2_NONE,
	};
}

/* Does `next` go on where `last` ends, with nothing else to say? */
static bool continues(const struct qcow2_finding *last, const struct qcow2_finding *next)
{
	return last->problem == next->problem &&
	       (next->problem == QCOW2_PROBLEM_LEAK || next->problem == QCOW2_PROBLEM_REFCOUNT_LOW) &&
	       last->host_offset + last->host_length == next->host_offset &&
	       last->refcount == next->refcount && last->references == next->references;
}

/* Keeps a record that is counted already. */
static void keep(struct q2_report *report, const struct qcow2_finding *finding)
{
	struct q2_vec *vec = &report->findings;
	struct qcow2_finding *last = vec->count ? (struct qcow2_finding *)vec->items + vec->count - 1 : NULL;
	if (last && continues(last, finding)) {
		last->count += finding->count;
		last->host_length += finding->host_length;
		return;
	}
	struct qcow2_finding *item = vec->count < report->most ? q2_vec_push(vec, sizeof *item) : NULL;
	if (item)
		*item = *finding;
	else
		report->sum.omitted++;
}

void q2_report_add(struct q2_report *report, const struct qcow2_finding *finding)
{
	report->found[finding->problem] += finding->count;
	keep(report, finding);
}

void q2_report_append(struct q2_report *report, struct q2_report *from)
{
	struct qcow2_check_result *to = &report->sum, *add = &from->sum;
	for (size_t i = 0; i < from->findings.count; i++)
		keep(report, (struct qcow2_finding *)from->findings.items + i);
	for (unsigned i = 0; i < QCOW2_PROBLEM_COUNT; i++)
		report->found[i] += from->found[i];
	to->omitted += add->omitted;
	to->incomplete |= add->incomplete;
	to->allocated_clusters += add->allocated_clusters;
	to->fragmented_clusters += add->fragmented_clusters;
	to->compressed_clusters += add->compressed_clusters;
	q2_vec_free(&from->findings);
	*add = (struct qcow2_check_result){0};
}
