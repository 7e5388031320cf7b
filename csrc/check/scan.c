/* SPDX-License-Identifier: MIT
 * How a check gets at the file: past holes, by stretches that tables share, on all threads. */
#include "check/check.h"

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

/* Entries are at most this large, and no piece cuts one. */
enum { ENTRY = 16 };

/* Records that one unit may keep: units in flight share no limit. */
enum { UNIT_FINDINGS = 4096 };

/* Has the host's answer about `at` at hand. */
static int ask(struct q2_scan *scan, uint64_t at, struct qcow2_error *err)
{
	if (at >= scan->from && at < scan->known)
		return 0;
	uint64_t length = UINT64_MAX - at;
	bool data = false;
	int rc = 0;
	if (at < scan->limit)
		rc = qcow2_store_extent(scan->store, at, scan->limit - at, &data, &length, err);
	if (rc)
		return rc;
	scan->data = data;
	scan->from = at;
	scan->known = at + length;
	return 0;
}

int q2_scan_next(struct q2_scan *scan, uint64_t most, uint64_t *at, uint64_t *length, struct qcow2_error *err)
{
	while (scan->at < scan->end) {
		int rc = ask(scan, scan->at, err);
		if (rc)
			return rc;
		uint64_t stop = q2_min(scan->known, scan->end);
		if (!scan->data) {
			scan->at = stop;
			continue;
		}
		*at = q2_round_down(scan->at, ENTRY);
		*length = q2_min(most, q2_min(q2_round_up(stop, ENTRY), scan->end) - *at);
		scan->at = *at + *length;
		return 1;
	}
	return 0;
}

int q2_scan_has_data(struct q2_scan *scan, uint64_t at, uint64_t length, bool *data, struct qcow2_error *err)
{
	*data = false;
	for (uint64_t pos = at; pos < at + length; pos = scan->known) {
		int rc = ask(scan, pos, err);
		if (rc)
			return rc;
		if (scan->data) {
			*data = true;
			return 0;
		}
	}
	return 0;
}

static int by_place(const void *a, const void *b)
{
	const struct q2_table_place *x = a, *y = b;
	return x->at < y->at ? -1 : x->at > y->at;
}

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

int q2_scan_tables(struct q2_table_place *tables, size_t count, struct q2_vec *stretches,
		   struct qcow2_error *err)
{
	if (!count)
		return 0;
	q2_auto uint64_t *ends = q2_new(count, sizeof *ends);
	if (!ends)
		return q2_error_nomem(err);
	qsort(tables, count, sizeof *tables, by_place);
	for (size_t i = 0; i < count; i++)
		ends[i] = tables[i].at + tables[i].bytes;
	qsort(ends, count, sizeof *ends, by_number);

	/* Among the tables that have begun, the one that ends last covers whatever any of them covers. */
	const struct q2_table_place *cover = NULL;
	uint64_t over = 0;
	for (size_t begun = 0, ended = 0; ended < count;) {
		uint64_t pos = begun < count ? q2_min(tables[begun].at, ends[ended]) : ends[ended];
		for (; begun < count && tables[begun].at == pos; begun++, over++)
			if (!cover || tables[begun].at + tables[begun].bytes > cover->at + cover->bytes)
				cover = &tables[begun];
		for (; ended < count && ends[ended] == pos; ended++)
			over--;
		if (!over)
			continue;
		uint64_t next = begun < count ? q2_min(tables[begun].at, ends[ended]) : ends[ended];
		struct q2_stretch *item = q2_vec_push(stretches, sizeof *item);
		if (!item)
			return q2_error_nomem(err);
		*item = (struct q2_stretch){pos, next - pos, cover->at, cover->owner, over};
	}
	return 0;
}

bool q2_scan_fits(const struct q2_check *check, uint64_t at, uint64_t bytes)
{
	uint32_t cluster_size = check->geo->cluster_size;
	return q2_is_aligned(at, cluster_size) && at >= cluster_size &&
	       q2_fits(at, bytes, check->file_length);
}

int q2_scan_count(struct q2_check *check, uint64_t at, uint64_t bytes, uint32_t word, struct qcow2_error *err)
{
	if (!bytes || at >= check->file_length)
		return 0;
	bytes = q2_min(bytes, check->file_length - at);
	unsigned bits = check->geo->cluster_bits;
	uint64_t first = at >> bits;
	return q2_census_add(&check->census, first, ((at + bytes - 1) >> bits) - first + 1, word, err);
}

int q2_scan_count_tables(struct q2_check *check, const struct q2_vec *tables, enum q2_owner owner,
			 struct qcow2_error *err)
{
	const struct q2_table_place *table = tables->items;
	struct q2_vec stretches = {0};
	q2_auto struct q2_table_place *whole = q2_new(tables->count, sizeof *whole);
	if (!whole)
		return q2_error_nomem(err);
	for (size_t i = 0; i < tables->count; i++) {
		whole[i] = table[i];
		whole[i].bytes = q2_round_up(table[i].bytes, check->geo->cluster_size);
	}
	int rc = q2_scan_tables(whole, tables->count, &stretches, err);
	for (size_t i = 0; !rc && i < stretches.count; i++) {
		const struct q2_stretch *s = (struct q2_stretch *)stretches.items + i;
		/* Where the second one of a kind is one too many, the census has to meet it. */
		uint64_t again = owner >= Q2_OWNER_L1 && s->times > 1;
		rc = q2_scan_count(check, s->at, s->bytes, q2_census_word(owner, 0, s->times - again), err);
		if (!rc && again)
			rc = q2_scan_count(check, s->at, s->bytes, q2_census_word(owner, 0, again), err);
	}
	q2_vec_free(&stretches);
	return rc;
}

void q2_scan_read(struct q2_check *check, struct q2_report *report, uint64_t at, void *buf, size_t length,
		  bool *unread)
{
	struct qcow2_error err;
	*unread = qcow2_store_read(check->store, at, buf, length, &err) != 0;
	if (!*unread)
		return;
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_UNREADABLE);
	finding.host_offset = at;
	finding.host_length = length;
	finding.os_errno = err.os_errno;
	q2_report_add(report, &finding);
	report->sum.incomplete = true;
	memset(buf, 0, length);
}

/* ---- threads ----------------------------------------------------------------------------------- */

struct crew {
	struct q2_check *check;
	q2_unit_work *work;
	size_t first, count;
	atomic_size_t next;
	struct q2_report *reports;
	struct qcow2_error *errors;
	int *codes;
};

struct member {
	struct crew *crew;
	struct q2_hand *hand;
	pthread_t thread;
};

static void *run_member(void *argument)
{
	struct member *member = argument;
	struct crew *crew = member->crew;
	for (;;) {
		size_t unit = atomic_fetch_add(&crew->next, 1);
		if (unit >= crew->count)
			return NULL;
		crew->codes[unit] = crew->work(crew->check, member->hand, crew->first + unit,
					       &crew->reports[unit], &crew->errors[unit]);
		/* Units before it are taken already, those behind it are not wanted. */
		if (crew->codes[unit])
			atomic_store(&crew->next, crew->count);
	}
}

/* Starts helpers beside the calling thread; fewer than hoped for do the work too. */
static unsigned start_helpers(struct crew *crew, struct member *members, unsigned wanted)
{
	sigset_t all, before;
	unsigned started = 0;
	/* The host program's signals are its own business: a new thread inherits the mask. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (started < wanted) {
		members[started] = (struct member){.crew = crew, .hand = &crew->check->hands[started + 1]};
		if (pthread_create(&members[started].thread, NULL, run_member, &members[started]))
			break;
		started++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return started;
}

int q2_scan_units(struct q2_check *check, q2_unit_work *work, size_t first, size_t count,
		  struct qcow2_error *err)
{
	struct crew crew = {.check = check, .work = work, .first = first, .count = count};
	unsigned helpers = (unsigned)q2_min(check->threads, count) - (count ? 1 : 0);
	q2_auto struct q2_report *reports = crew.reports = q2_new(count, sizeof *reports);
	q2_auto struct qcow2_error *errors = crew.errors = q2_new(count, sizeof *errors);
	q2_auto int *codes = crew.codes = q2_new(count, sizeof *codes);
	q2_auto struct member *members = q2_new(helpers, sizeof *members);
	if (!reports || !errors || !codes || !members)
		return q2_error_nomem(err);
	atomic_init(&crew.next, 0);
	for (size_t i = 0; i < count; i++)
		reports[i].most = q2_min(UNIT_FINDINGS, check->report.most - check->report.findings.count);

	helpers = start_helpers(&crew, members, helpers);
	run_member(&(struct member){.crew = &crew, .hand = &check->hands[0]});
	for (unsigned i = 0; i < helpers; i++)
		pthread_join(members[i].thread, NULL);

	int rc = 0;
	for (size_t i = 0; i < count; i++) {
		q2_report_append(&check->report, &reports[i]);
		if (codes[i] && !rc) {
			rc = codes[i];
			if (err)
				*err = errors[i];
		}
	}
	return rc;
}
