/* SPDX-License-Identifier: MIT
 * L1 tables and L2 tables: every entry judged, every cluster that they reach counted. */
#include "check/check.h"

#include "base/be.h"

/* The list of L2 tables is sorted and made unique when it has grown by so many, and to twice its size. */
#define L2_SLACK ((size_t)1 << 18)
/* Units handed to the threads at once. */
#define UNITS 32u

/* ---- L1 ---------------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
	const struct q2_l2_table *x = a, *y = b;
	if (x->at != y->at)
		return x->at < y->at ? -1 : 1;
	/* The active table's entries come first, then by number: the first one names the guest's offset. */
	if (x->active != y->active)
		return x->active > y->active ? -1 : 1;
	if (x->snapshot != y->snapshot)
		return x->snapshot < y->snapshot ? -1 : 1;
	return x->l1_index < y->l1_index ? -1 : x->l1_index > y->l1_index;
}

static void report_shared(struct q2_check *check, const struct q2_l2_table *table)
{
	if (table->active < 2)
		return;
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_L2_SHARED);
	finding.count = table->active - 1;
	finding.host_offset = table->at;
	finding.host_length = check->geo->cluster_size;
	finding.index = table->l1_index;
	q2_report_add(&check->report, &finding);
}

/* Sorts the list, makes one of several entries for one table, drops tables that are holes: they say nothing. */
static int compact(struct q2_check *check, struct qcow2_error *err)
{
	struct q2_l2_table *list = check->l2.items;
	size_t count = check->l2.count, kept = 0;
	bool sorted = true;
	for (size_t i = 1; i < count && sorted; i++)
		sorted = by_place(&list[i - 1], &list[i]) <= 0;
	if (!sorted)
		qsort(list, count, sizeof *list, by_place);
	struct q2_scan scan = {0};
	q2_scan_over(&scan, check, 0, check->file_length);
	for (size_t i = 0; i < count;) {
		struct q2_l2_table one = list[i];
		for (i++; i < count && list[i].at == one.at; i++) {
			one.times = (uint32_t)q2_min((uint64_t)one.times + list[i].times, Q2_WORD_COUNT);
			one.active += list[i].active;
		}
		bool data;
		int rc = q2_scan_has_data(&scan, one.at, check->geo->cluster_size, &data, err);
		if (rc)
			return rc;
		if (data)
			list[kept++] = one;
		else
			report_shared(check, &one);
	}
	check->l2.count = check->l2_compact = kept;
	return 0;
}

static void judge_l1(struct q2_check *check, const struct q2_stretch *stretch, uint64_t at, uint64_t entry,
		     enum qcow2_problem problem)
{
	const struct q2_geometry *g = check->geo;
	struct qcow2_finding finding = q2_report_blank(problem);
	finding.entry = entry;
	finding.entry_offset = at;
	finding.index = (at - stretch->base) / 8;
	finding.snapshot = stretch->owner;
	finding.guest_offset = finding.index << (g->cluster_bits + g->l2_bits);
	finding.guest_length = 1ull << (g->cluster_bits + g->l2_bits);
	if (entry & Q2_OFFSET_MASK) {
		finding.host_offset = entry & Q2_OFFSET_MASK;
		finding.host_length = g->cluster_size;
	}
	q2_report_add(&check->report, &finding);
	if (problem == QCOW2_PROBLEM_L2_UNALIGNED || problem == QCOW2_PROBLEM_L2_OUTSIDE)
		check->report.sum.incomplete = true;
}

/* One entry that is not 0, which `stretch->times` L1 tables have at `at`. */
static int take_l1(struct q2_check *check, const struct q2_stretch *stretch, uint64_t at, uint64_t entry,
		   struct qcow2_error *err)
{
	uint32_t cluster_size = check->geo->cluster_size;
	uint64_t host = entry & Q2_OFFSET_MASK;
	bool active = stretch->owner == QCOW2_NONE;
	if (!host) {
		judge_l1(check, stretch, at, entry, QCOW2_PROBLEM_L1_EMPTY);
		return 0;
	}
	if (entry & Q2_L1_RESERVED)
		judge_l1(check, stretch, at, entry, QCOW2_PROBLEM_L1_RESERVED);
	uint32_t marks = !active ? 0 : entry & Q2_COPIED ? Q2_WORD_COPIED : Q2_WORD_UNCOPIED;
	int rc = q2_scan_count(check, host, cluster_size, q2_census_word(Q2_OWNER_L2, marks, stretch->times),
			       err);
	if (rc)
		return rc;
	if (!q2_is_aligned(host, cluster_size)) {
		judge_l1(check, stretch, at, entry, QCOW2_PROBLEM_L2_UNALIGNED);
		return 0;
	}
	/* A table that the file's end cuts is broken, but what it still says is worth counting. */
	if (!q2_fits(host, cluster_size, check->file_length)) {
		judge_l1(check, stretch, at, entry, QCOW2_PROBLEM_L2_OUTSIDE);
		if (host >= check->file_length)
			return 0;
	}
	struct q2_l2_table *table = q2_vec_push(&check->l2, sizeof *table);
	if (!table)
		return q2_error_nomem(err);
	*table = (struct q2_l2_table){.at = host,
				      .snapshot = stretch->owner,
				      .l1_index = (uint32_t)((at - stretch->base) / 8),
				      .times = (uint32_t)q2_min(stretch->times, Q2_WORD_COUNT),
				      .active = active};
	return check->l2.count > 2 * check->l2_compact + L2_SLACK ? compact(check, err) : 0;
}

static int walk_stretch(struct q2_check *check, const struct q2_stretch *stretch, struct qcow2_error *err)
{
	uint8_t *bytes = check->hands[0].buffer;
	struct q2_scan scan = {0};
	uint64_t at, length;
	bool unread;
	int rc;
	q2_scan_over(&scan, check, stretch->at, stretch->bytes);
	while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
		q2_scan_read(check, &check->report, at, bytes, length, &unread);
		for (uint64_t i = 0; i + 8 <= length; i += 8) {
			uint64_t entry = q2_load64(bytes + i);
			rc = entry ? take_l1(check, stretch, at + i, entry, err) : 0;
			if (rc)
				return rc;
		}
	}
	return rc;
}

static int walk_active(struct q2_check *check, struct qcow2_error *err)
{
	const struct qcow2_header *h = check->header;
	uint64_t bytes = (uint64_t)h->l1_size * 8;
	struct q2_stretch stretch = {h->l1_table_offset, bytes, h->l1_table_offset, QCOW2_NONE, 1};
	if (!bytes)
		return 0;
	int rc = q2_scan_count(check, h->l1_table_offset, bytes, q2_census_word(Q2_OWNER_L1, 0, 1), err);
	if (rc)
		return rc;
	if (q2_scan_fits(check, h->l1_table_offset, bytes))
		return walk_stretch(check, &stretch, err);
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_L1_OUTSIDE);
	finding.first = q2_census_owner(Q2_OWNER_L1);
	finding.host_offset = h->l1_table_offset;
	finding.host_length = bytes;
	q2_report_add(&check->report, &finding);
	check->report.sum.incomplete = true;
	return 0;
}

int q2_check_l1(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	(void)more;
	struct q2_vec stretches = {0};
	int rc = walk_active(check, err);
	if (!rc)
		rc = q2_scan_count_tables(check, &check->snapshots, Q2_OWNER_SNAPSHOT_L1, err);
	/* However many snapshots share a table, its entries are read once. */
	if (!rc)
		rc = q2_scan_tables(check->snapshots.items, check->snapshots.count, &stretches, err);
	for (size_t i = 0; !rc && i < stretches.count; i++)
		rc = walk_stretch(check, (struct q2_stretch *)stretches.items + i, err);
	q2_vec_free(&stretches);
	if (!rc)
		rc = compact(check, err);
	for (size_t i = 0; !rc && i < check->l2.count; i++)
		report_shared(check, (struct q2_l2_table *)check->l2.items + i);
	check->total += check->l2.count << check->geo->cluster_bits;
	return rc;
}

/* ---- L2 ---------------------------------------------------------------------------------------- */

/* What one thread sees of one table. */
struct eye {
	struct q2_check *check;
	struct q2_report *report;
	struct q2_vec *runs;
	const struct q2_l2_table *table;
	struct q2_run_of_words run; /* not yet pushed; count 0: none */
	uint64_t next;              /* the offset that would go on without a break; 0: none yet */
	uint32_t copied, uncopied;  /* words of data with and without COPIED */
	uint64_t allocated, fragmented, compressed;
	bool nomem;
};

static void push_run(struct eye *eye)
{
	struct q2_run_of_words *item = eye->run.count ? q2_vec_push(eye->runs, sizeof *item) : NULL;
	if (item)
		*item = eye->run;
	else if (eye->run.count)
		eye->nomem = true;
	eye->run.count = 0;
}

static inline void count_clusters(struct eye *eye, uint64_t cluster, uint32_t count, uint32_t word)
{
	if (eye->run.word == word && eye->run.start + eye->run.count == cluster && eye->run.count &&
	    eye->run.count <= UINT32_MAX - count) {
		eye->run.count += count;
		return;
	}
	push_run(eye);
	eye->run = (struct q2_run_of_words){cluster, count, word};
}

/* `count` entries in a row with clusters in a row, the first of them at `host`. */
static inline void count_allocated(struct eye *eye, uint64_t host, uint64_t count)
{
	eye->allocated += count;
	eye->fragmented += eye->next && host != eye->next;
	eye->next = host + (count << eye->check->geo->cluster_bits);
}

static uint64_t guest_of(const struct eye *eye, uint64_t index)
{
	const struct q2_geometry *g = eye->check->geo;
	return (((uint64_t)eye->table->l1_index << g->l2_bits) + index) << g->cluster_bits;
}

static void report_entry(struct eye *eye, enum qcow2_problem problem, uint64_t index, uint64_t word,
			 uint64_t bitmap, uint64_t host, uint64_t length)
{
	const struct q2_geometry *g = eye->check->geo;
	struct qcow2_finding finding = q2_report_blank(problem);
	finding.entry = word;
	finding.bitmap = g->extended_l2 ? bitmap : QCOW2_NONE;
	finding.entry_offset = eye->table->at + index * g->l2_entry_size;
	finding.index = index;
	finding.snapshot = eye->table->snapshot;
	finding.guest_offset = guest_of(eye, index);
	finding.guest_length = g->cluster_size;
	if (length) {
		finding.host_offset = host;
		finding.host_length = length;
	}
	if (problem == QCOW2_PROBLEM_COPIED_DATA)
		finding.refcount = 1; /* in an external data file it is one without being counted */
	q2_report_add(eye->report, &finding);
}

/* Counts the clusters of [at, at + length) that the file has, if only a part of. */
static void count_bytes(struct eye *eye, uint64_t at, uint64_t length, uint32_t word)
{
	unsigned bits = eye->check->geo->cluster_bits;
	uint64_t end = q2_min(at + length, q2_round_up(eye->check->file_length, 1ull << bits));
	if (at < end)
		count_clusters(eye, at >> bits, (uint32_t)(((end - 1) >> bits) - (at >> bits) + 1), word);
}

static void judge_compressed(struct eye *eye, uint64_t index, uint64_t word, uint64_t bitmap)
{
	const struct q2_geometry *g = eye->check->geo;
	uint64_t file_length = eye->check->file_length;
	struct q2_entry e = q2_entry_decode(g, word & ~Q2_COPIED, 0);
	if (word & Q2_COPIED)
		report_entry(eye, QCOW2_PROBLEM_COPIED_COMPRESSED, index, word, bitmap, e.host.v,
			     e.host_length);
	if (g->external_data) {
		report_entry(eye, QCOW2_PROBLEM_COMPRESSED_DATA_FILE, index, word, bitmap, 0, 0);
		return;
	}
	if (bitmap)
		report_entry(eye, QCOW2_PROBLEM_COMPRESSED_BITMAP, index, word, bitmap, e.host.v,
			     e.host_length);
	/* The file may end inside the last sector: streams are not padded. */
	if (e.host.v >= file_length || e.host.v + e.host_length > q2_round_up(file_length, 512))
		report_entry(eye, QCOW2_PROBLEM_COMPRESSED_OUTSIDE, index, word, bitmap, e.host.v,
			     e.host_length);
	count_bytes(eye, e.host.v, e.host_length, q2_census_word(Q2_OWNER_COMPRESSED, 0, eye->table->times));
	/* Streams share sectors with their neighbours, so each is a fragment. */
	eye->allocated++;
	eye->compressed++;
	eye->fragmented++;
}

/* An entry that is not plainly a data cluster in its place. */
static void judge_entry(struct eye *eye, uint64_t index, uint64_t word, uint64_t bitmap)
{
	struct q2_check *check = eye->check;
	const struct q2_geometry *g = check->geo;
	uint32_t cluster_size = g->cluster_size;
	if (word & Q2_COMPRESSED) {
		judge_compressed(eye, index, word, bitmap);
		return;
	}
	uint64_t host = word & Q2_OFFSET_MASK, length = host ? cluster_size : 0;
	bool zero = (word & Q2_ZERO) && !g->extended_l2;
	bool has_host = host || (g->external_data && (word & Q2_COPIED) && !zero);
	uint32_t alloc = (uint32_t)bitmap, zeros = (uint32_t)(bitmap >> 32);
	if (word & Q2_L2_RESERVED)
		report_entry(eye, QCOW2_PROBLEM_L2_RESERVED, index, word, bitmap, host, length);
	if (zero && g->version2)
		report_entry(eye, QCOW2_PROBLEM_ZERO_VERSION_2, index, word, bitmap, host, length);
	if ((word & Q2_ZERO) && g->extended_l2)
		report_entry(eye, QCOW2_PROBLEM_ZERO_EXTENDED, index, word, bitmap, host, length);
	if (alloc && !has_host)
		report_entry(eye, QCOW2_PROBLEM_SUBCLUSTER_HOMELESS, index, word, bitmap, host, length);
	else if (alloc & zeros)
		report_entry(eye, QCOW2_PROBLEM_SUBCLUSTER_BOTH, index, word, bitmap, host, length);
	if (!has_host)
		return;
	bool aligned = q2_is_aligned(host, cluster_size);
	if (!aligned)
		report_entry(eye, QCOW2_PROBLEM_DATA_UNALIGNED, index, word, bitmap, host, cluster_size);
	count_allocated(eye, host, 1);
	if (g->external_data) {
		if (aligned && host != guest_of(eye, index))
			report_entry(eye, QCOW2_PROBLEM_DATA_FILE_OFFSET, index, word, bitmap, host,
				     cluster_size);
		if (!(word & Q2_COPIED))
			report_entry(eye, QCOW2_PROBLEM_COPIED_DATA, index, word, bitmap, host, cluster_size);
		return;
	}
	if (host >= check->file_length)
		report_entry(eye, QCOW2_PROBLEM_DATA_OUTSIDE, index, word, bitmap, host, cluster_size);
	count_bytes(eye, host, cluster_size, word & Q2_COPIED ? eye->copied : eye->uncopied);
}

/*
 * How many entries from the one at `bytes` on go on with the next cluster each, in the file and with the same flag.
 * needs: the first one is a plain data cluster.
 */
static uint32_t row_of(const struct eye *eye, const uint8_t *bytes, const uint8_t *end)
{
	const struct q2_geometry *g = eye->check->geo;
	uint64_t word = q2_load64(bytes), host = word & Q2_OFFSET_MASK;
	uint64_t most = ((eye->check->file_length - 1 - host) >> g->cluster_bits) + 1;
	most = q2_min(most, (uint64_t)(end - bytes) / g->l2_entry_size);
	uint32_t count = 1;
	if (g->extended_l2) {
		for (; count < most; count++) {
			const uint8_t *entry = bytes + (size_t)count * 16;
			uint64_t bitmap = q2_load64(entry + 8);
			if (q2_load64(entry) != (word += g->cluster_size) || (bitmap & bitmap >> 32))
				break;
		}
	} else {
		while (count < most && q2_load64(bytes + (size_t)count * 8) == (word += g->cluster_size))
			count++;
	}
	return count;
}

/* Entries of a table in `bytes`, the first of them number `index`. */
static void judge_entries(struct eye *eye, const uint8_t *bytes, uint64_t length, uint64_t index)
{
	const struct q2_geometry *g = eye->check->geo;
	const uint64_t file_length = eye->check->file_length, within = g->cluster_size - 1;
	const uint32_t size = g->l2_entry_size;
	uint32_t row;
	for (const uint8_t *end = bytes + length; bytes < end; bytes += (size_t)row * size, index += row) {
		uint64_t word = q2_load64(bytes);
		uint64_t bitmap = g->extended_l2 ? q2_load64(bytes + 8) : 0;
		uint64_t host = word & ~Q2_COPIED;
		row = 1;
		if (!(word | bitmap))
			continue;
		/* Nearly all of nearly every image: data, whole, where it may be. */
		bool plain = host && !(host & (~Q2_OFFSET_MASK | within)) && !(bitmap & bitmap >> 32);
		if (plain && !g->external_data && host < file_length) {
			row = row_of(eye, bytes, end);
			count_allocated(eye, host, row);
			count_clusters(eye, host >> g->cluster_bits, row,
				       word & Q2_COPIED ? eye->copied : eye->uncopied);
		} else if (plain && g->external_data && host != word && host == guest_of(eye, index)) {
			count_allocated(eye, host, 1);
		} else {
			judge_entry(eye, index, word, bitmap);
		}
	}
}

/* Begins with a table, ends with the one before. */
static void turn_to(struct eye *eye, const struct q2_l2_table *table)
{
	if (eye->table && eye->table->active) {
		eye->report->sum.allocated_clusters += eye->allocated * eye->table->active;
		eye->report->sum.fragmented_clusters += eye->fragmented * eye->table->active;
		eye->report->sum.compressed_clusters += eye->compressed * eye->table->active;
	}
	eye->table = table;
	eye->next = eye->allocated = eye->fragmented = eye->compressed = 0;
	if (!table)
		return;
	uint32_t word = q2_census_word(Q2_OWNER_DATA, 0, table->times);
	eye->copied = word | (table->active ? Q2_WORD_COPIED : 0);
	eye->uncopied = word | (table->active ? Q2_WORD_UNCOPIED : 0);
}

static int take_runs(struct eye *eye, struct qcow2_error *err)
{
	struct q2_check *check = eye->check;
	int rc = 0;
	push_run(eye);
	if (eye->nomem)
		return q2_error_nomem(err);
	const struct q2_run_of_words *run = eye->runs->items;
	pthread_mutex_lock(&check->lock);
	for (size_t i = 0; !rc && i < eye->runs->count; i++)
		rc = q2_census_add(&check->census, run[i].start, run[i].count, run[i].word, err);
	pthread_mutex_unlock(&check->lock);
	eye->runs->count = 0;
	return rc;
}

/* How many tables from `index` on lie one behind the other in the file and fit one piece. */
static size_t neighbours(const struct q2_check *check, size_t index, size_t end)
{
	const struct q2_l2_table *list = check->l2.items;
	size_t count = 1, most = q2_max(Q2_PIECE >> check->geo->cluster_bits, 1);
	while (index + count < end && count < most &&
	       list[index + count].at == list[index].at + ((uint64_t)count << check->geo->cluster_bits))
		count++;
	return count;
}

static int walk_unit(struct q2_check *check, struct q2_hand *hand, size_t unit, struct q2_report *report,
		     struct qcow2_error *err)
{
	const struct q2_geometry *g = check->geo;
	const struct q2_l2_table *list = check->l2.items;
	size_t each = q2_max(Q2_PIECE >> g->cluster_bits, 1);
	size_t index = unit * each, end = q2_min(index + each, check->l2.count), count;
	struct eye eye = {.check = check, .report = report, .runs = &hand->runs};
	struct q2_scan scan = {0};
	for (; index < end; index += count) {
		uint64_t at, length;
		bool unread;
		int rc;
		count = neighbours(check, index, end);
		uint64_t first = list[index].at, bytes = (uint64_t)count << g->cluster_bits;
		q2_scan_over(&scan, check, first, q2_min(bytes, check->file_length - first));
		while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
			q2_scan_read(check, report, at, hand->buffer, length, &unread);
			for (uint64_t done = 0, part; done < length; done += part) {
				const struct q2_l2_table *table =
					&list[index + ((at + done - first) >> g->cluster_bits)];
				uint64_t within = (at + done) & (g->cluster_size - 1);
				part = q2_min(length - done, g->cluster_size - within);
				if (table != eye.table)
					turn_to(&eye, table);
				judge_entries(&eye, hand->buffer + done,
					      q2_round_down(part, g->l2_entry_size),
					      within / g->l2_entry_size);
			}
		}
		if (rc)
			return rc;
	}
	turn_to(&eye, NULL);
	return take_runs(&eye, err);
}

int q2_check_l2(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	size_t each = q2_max(Q2_PIECE >> check->geo->cluster_bits, 1);
	size_t units = q2_div_up(check->l2.count, each);
	size_t count = q2_min(UNITS, units - check->position);
	int rc = q2_scan_units(check, walk_unit, check->position, count, err);
	check->position += count;
	check->done += (uint64_t)count * each << check->geo->cluster_bits;
	*more = check->position < units;
	return rc;
}

/* ---- external data file ------------------------------------------------------------------------ */

/* Is any byte of the data file's first cluster not zero? */
static int begins_with_data(struct q2_check *check, bool *data, struct qcow2_error *err)
{
	struct qcow2_store *store = check->image->data;
	uint64_t length = q2_min(check->geo->cluster_size, check->header->size);
	uint8_t *bytes = check->hands[0].buffer;
	*data = false;
	for (uint64_t at = 0, part; at < length && !*data; at += part) {
		part = q2_min(Q2_PIECE, length - at);
		int rc = qcow2_store_read(store, at, bytes, part, err);
		if (rc)
			return rc;
		for (uint64_t i = 0; i < part && !*data; i++)
			*data = bytes[i] != 0;
	}
	return 0;
}

/*
 * Offset 0 without COPIED reads as "not allocated". A raw file is the disk, so there the flag was lost. Elsewhere a
 * discard that was cut off before its punch looks the same, and its bytes must not come back.
 */
static int judge_cluster_0(struct q2_check *check, struct qcow2_error *err)
{
	struct qcow2_image *image = check->image;
	bool is_raw = check->header->autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW, data;
	uint64_t word, bitmap;
	q2_host at;
	if (!check->header->size || !check->header->l1_size ||
	    q2_map_entry(&image->map, q2_guest_at(0), &word, &bitmap, &at, NULL) || word || bitmap)
		return 0;
	if (!is_raw && !at.v)
		return 0;
	int rc = begins_with_data(check, &data, err);
	if (rc || !data)
		return rc;
	struct qcow2_finding finding =
		q2_report_blank(is_raw ? QCOW2_PROBLEM_DATA_FILE_LOST : QCOW2_PROBLEM_DATA_FILE_STALE);
	finding.guest_offset = 0;
	finding.guest_length = q2_min(check->geo->cluster_size, check->header->size);
	finding.host_offset = 0;
	finding.host_length = finding.guest_length;
	finding.entry = word;
	if (at.v)
		finding.entry_offset = at.v;
	q2_report_add(&check->report, &finding);
	return 0;
}

int q2_check_data_file(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	(void)more;
	uint64_t length, size = check->header->size;
	if (!check->geo->external_data)
		return 0;
	if (!check->image->data) {
		struct qcow2_finding unseen = q2_report_blank(QCOW2_PROBLEM_DATA_FILE_UNSEEN);
		q2_report_add(&check->report, &unseen);
		return 0;
	}
	int rc = qcow2_store_length(check->image->data, &length, err);
	if (rc)
		return rc;
	/* A raw file is the disk; QEMU's others are whole clusters long. */
	bool is_raw = check->header->autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW;
	bool is_long = length > (is_raw ? size : q2_round_up(size, check->geo->cluster_size)) &&
		       !qcow2_store_is_device(check->image->data);
	if (length < size || is_long) {
		struct qcow2_finding finding = q2_report_blank(is_long ? QCOW2_PROBLEM_DATA_FILE_LONG
								       : QCOW2_PROBLEM_DATA_FILE_SHORT);
		finding.host_offset = q2_min(length, size);
		finding.host_length = q2_max(length, size) - finding.host_offset;
		if (!is_long) {
			finding.guest_offset = finding.host_offset;
			finding.guest_length = finding.host_length;
		}
		q2_report_add(&check->report, &finding);
	}
	return judge_cluster_0(check, err);
}
