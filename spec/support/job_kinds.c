/* SPDX-License-Identifier: MIT
 * For specs: asks jobs for the results of jobs of other kinds. */
#include "qcow2.h"

#include <inttypes.h>
#include <stdio.h>

static int run(struct qcow2_job *job)
{
	struct qcow2_error err;
	uint64_t done, total;
	int rc;
	while ((rc = qcow2_job_step(job, &done, &total, &err)) > 0)
		;
	printf("step %d, %s\n", rc, done == total ? "all" : "a part");
	return rc;
}

static void ask(struct qcow2_job *job)
{
	uint8_t wanted[QCOW2_PROBLEM_COUNT] = {0};
	uint64_t from = 1, to = 1, found = 1, mended = 1, offset;
	struct qcow2_error err = {0};
	struct qcow2_job *repair = NULL;
	enum qcow2_difference difference = qcow2_compare_result(job, &offset);
	uint64_t missing = qcow2_copy_missing(job, &from, &to);
	qcow2_verify_counts(job, &found, &mended);
	printf("lost %" PRIu64 ", missing %" PRIu64 ", difference %d, divergences %" PRIu64 " %" PRIu64
	       ", %s, flags %" PRIu64 ", found %" PRIu64 "\n",
	       qcow2_copy_lost(job), missing, difference, found, mended,
	       qcow2_check_result(job) ? "a check" : "no check", qcow2_repair_flags_fixed(job),
	       qcow2_check_found(job, QCOW2_PROBLEM_LEAK));
	if (qcow2_verify_divergence(job, 0) || qcow2_check_finding(job, 0) || qcow2_repair_finding(job, 0))
		printf("a finding\n");
	if (qcow2_check_result(job))
		return;
	int rc = qcow2_repair_new(job, wanted, &repair, &err);
	printf("repair: %s %s\n", qcow2_error_word(rc), err.text);
	rc = qcow2_check_accept(job, &err);
	printf("accept: %s %s\n", qcow2_error_word(rc), err.text);
}

int main(void)
{
	struct qcow2_create_options options = QCOW2_CREATE_OPTIONS_INIT;
	struct qcow2_copy_options how = QCOW2_COPY_OPTIONS_INIT;
	struct qcow2_store *store, *target;
	struct qcow2_image *image;
	struct qcow2_job *check, *copy, *compare;
	struct qcow2_error err;
	options.size = 1 << 20;
	if (qcow2_store_memory(NULL, 0, &store, &err) || qcow2_store_memory(NULL, 0, &target, &err) ||
	    qcow2_create(store, NULL, &options, &err) || qcow2_image_open(store, &image, &err) ||
	    qcow2_check_new(image, NULL, &check, &err) || run(check))
		return 1;
	ask(check);
	qcow2_job_free(check);
	if (qcow2_copy_new(&image, 1, target, &how, &copy, &err) || run(copy))
		return 1;
	ask(copy);
	qcow2_job_free(copy);
	if (qcow2_compare_new(image, image, false, 1, &compare, &err) || run(compare))
		return 1;
	ask(compare);
	qcow2_job_free(compare);
	qcow2_job_free(NULL);
	qcow2_image_unref(image);
	qcow2_store_unref(store);
	qcow2_store_unref(target);
	return 0;
}
