/* SPDX-License-Identifier: MIT
 * The structures beside the tables of clusters: header, encryption header, snapshot table, bitmaps. */
#include "check/check.h"

#include "base/be.h"
#include "format/record.h"

/* From a record's start: all of its fixed part, and the extra data's fields that are judged. */
enum { RECORD_HEAD = 64 };

static void add(struct q2_check *check, struct qcow2_finding finding)
{
	q2_report_add(&check->report, &finding);
}

const struct q2_extension *q2_check_extension(const struct q2_check *check, uint32_t type)
{
	return q2_image_extension(check->image, type);
}

/* ---- header ------------------------------------------------------------------------------------ */

static int count_crypto(struct q2_check *check, struct qcow2_error *err)
{
	if (check->header->crypt_method != Q2_CRYPT_LUKS)
		return 0;
	const struct q2_extension *e = q2_check_extension(check, (uint32_t)Q2_EXT_ENCRYPTION);
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_CRYPTO_OUTSIDE);
	if (e && e->length != 16) {
		finding.problem = QCOW2_PROBLEM_CRYPTO_POINTER;
		finding.entry_offset = e->offset;
	}
	if (!e || e->length != 16)
		add(check, finding);
	if (!e || e->length < 16)
		return 0;
	finding = q2_report_blank(QCOW2_PROBLEM_CRYPTO_OUTSIDE);
	uint64_t at = q2_load64(check->image->head + e->offset);
	uint64_t length = q2_load64(check->image->head + e->offset + 8);
	if (!q2_scan_fits(check, at, length)) {
		finding.entry_offset = e->offset;
		finding.host_offset = at;
		finding.host_length = length;
		add(check, finding);
	}
	return q2_scan_count(check, at, length, q2_census_word(Q2_OWNER_CRYPTO, 0, 1), err);
}

int q2_check_header(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	(void)more;
	const struct qcow2_header *h = check->header;
	/* An image that is open for writing here is dirty by its own doing. */
	if ((h->incompatible_features & Q2_INCOMPATIBLE_DIRTY) && !check->image->begun)
		add(check, q2_report_blank(QCOW2_PROBLEM_DIRTY));
	if (h->incompatible_features & Q2_INCOMPATIBLE_CORRUPT)
		add(check, q2_report_blank(QCOW2_PROBLEM_MARKED_CORRUPT));
	int rc =
		q2_scan_count(check, 0, check->geo->cluster_size, q2_census_word(Q2_OWNER_HEADER, 0, 1), err);
	return rc ? rc : count_crypto(check, err);
}

/* ---- snapshot table ---------------------------------------------------------------------------- */

/* The table's bytes from `at` on, in a window that moves. */
struct window {
	uint64_t from, to; /* bytes of the file that `bytes` holds */
	uint64_t stop;     /* nothing is read from here on */
	uint8_t *bytes;
};

/* gives: at least `want` bytes at `at`, or those up to `stop`; *room says how many. */
static const uint8_t *look_at(struct q2_check *check, struct window *window, uint64_t at, size_t want,
			      uint64_t *room)
{
	bool unread;
	if (at < window->from || at + want > window->to) {
		window->from = window->to = at;
		if (at < window->stop) {
			size_t length = q2_min(Q2_PIECE, window->stop - at);
			q2_scan_read(check, &check->report, at, window->bytes, length, &unread);
			window->to = at + length;
		}
	}
	*room = window->to - at;
	return window->bytes + (at - window->from);
}

static int judge_snapshot(struct q2_check *check, uint32_t index, uint64_t at, const uint8_t *bytes,
			  const struct q2_snapshot_record *r, struct qcow2_error *err)
{
	const struct q2_geometry *g = check->geo;
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_SNAPSHOT_EXTRA);
	finding.snapshot = index;
	finding.entry_offset = at;
	if (r->extra_length > Q2_SNAPSHOT_MAX_EXTRA)
		add(check, finding);
	if (check->header->version >= 3 && r->extra_length < 16) {
		finding.problem = QCOW2_PROBLEM_SNAPSHOT_INCOMPLETE;
		add(check, finding);
	}
	if (!r->l1_size)
		return 0;
	uint64_t disk = r->extra_length >= 16 ? q2_load64(bytes + Q2_SNAPSHOT_FIXED + 8) : 0;
	finding.host_offset = r->l1_table_offset;
	finding.host_length = (uint64_t)r->l1_size * 8;
	if (r->l1_size > Q2_MAX_L1_BYTES / 8 || disk > INT64_MAX ||
	    q2_header_l1_entries(g, disk) > r->l1_size) {
		finding.problem = QCOW2_PROBLEM_SNAPSHOT_L1_SIZE;
		add(check, finding);
		if (r->l1_size > Q2_MAX_L1_BYTES / 8) {
			check->report.sum.incomplete = true;
			return 0;
		}
	}
	if (!q2_scan_fits(check, r->l1_table_offset, finding.host_length)) {
		bool aligned = q2_is_aligned(r->l1_table_offset, g->cluster_size);
		finding.problem = aligned ? QCOW2_PROBLEM_L1_OUTSIDE : QCOW2_PROBLEM_SNAPSHOT_L1_UNALIGNED;
		finding.first = q2_census_owner(Q2_OWNER_SNAPSHOT_L1);
		add(check, finding);
		check->report.sum.incomplete = true;
		return 0;
	}
	struct q2_table_place *table = q2_vec_push(&check->snapshots, sizeof *table);
	if (!table)
		return q2_error_nomem(err);
	*table = (struct q2_table_place){r->l1_table_offset, finding.host_length, index};
	return 0;
}

int q2_check_snapshots(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	(void)more;
	const struct qcow2_header *h = check->header;
	uint64_t at = h->snapshots_offset;
	uint32_t index = 0;
	if (!h->nb_snapshots) {
		/* Nothing is there, but QEMU opens no image that says so in this way. */
		if (!q2_is_aligned(at, check->geo->cluster_size) || at > INT64_MAX) {
			struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_SNAPSHOT_TABLE);
			finding.host_offset = at;
			add(check, finding);
		}
		return 0;
	}
	if (check->geo->external_data)
		add(check, q2_report_blank(QCOW2_PROBLEM_SNAPSHOT_DATA_FILE));
	bool fits = q2_scan_fits(check, at, Q2_SNAPSHOT_FIXED);
	/* The last entry of a file may have been written without its padding. */
	struct window window = {.stop = q2_min(q2_round_up(check->file_length, 8),
					       at + Q2_MAX_SNAPSHOT_TABLE),
				.bytes = check->hands[0].buffer};
	uint32_t most = q2_min(h->nb_snapshots, Q2_MAX_SNAPSHOTS);
	if (h->nb_snapshots > most) {
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_SNAPSHOT_SURPLUS);
		add(check, finding);
	}
	for (; fits && index < most; index++) {
		struct q2_snapshot_record r;
		uint64_t room;
		const uint8_t *bytes = look_at(check, &window, at, RECORD_HEAD, &room);
		if (room < Q2_SNAPSHOT_FIXED)
			break;
		q2_record_snapshot(bytes, room, &r);
		if (r.length > window.stop - at)
			break;
		int rc = judge_snapshot(check, index, at, bytes, &r, err);
		if (rc)
			return rc;
		at += r.length;
	}
	if (index < most) {
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_SNAPSHOT_TABLE);
		finding.snapshot = index;
		finding.host_offset = at;
		add(check, finding);
		check->report.sum.incomplete = true;
	}
	return q2_scan_count(check, h->snapshots_offset, at - h->snapshots_offset,
			     q2_census_word(Q2_OWNER_SNAPSHOTS, 0, 1), err);
}

/* ---- bitmaps ----------------------------------------------------------------------------------- */

static int broken_directory(struct q2_check *check, uint64_t index, uint64_t at)
{
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_BITMAP_DIRECTORY);
	finding.index = index;
	finding.host_offset = at;
	add(check, finding);
	check->report.sum.incomplete = true;
	return 0;
}

bool q2_check_bitmap_possible(const struct q2_check *check, const struct q2_bitmap_record *r)
{
	if (r->granularity_bits < 9 || r->granularity_bits > 31 || !r->name_length ||
	    r->name_length > Q2_MAX_BITMAP_NAME || (r->flags & ~Q2_BITMAP_FLAGS_KNOWN) ||
	    r->table_entries > Q2_MAX_BITMAP_TABLE || r->type != 1)
		return false;
	/* QEMU opens no image with a bitmap of another length than the disk's, unless it is inconsistent anyway. */
	uint64_t bits = q2_div_up(check->header->size, 1ull << r->granularity_bits);
	uint64_t entries = q2_div_up(q2_div_up(bits, 8), check->geo->cluster_size);
	return r->table_entries == entries || (r->flags & Q2_BITMAP_IN_USE);
}

static int judge_bitmap(struct q2_check *check, uint32_t index, uint64_t at, const struct q2_bitmap_record *r,
			struct q2_vec *tables, struct qcow2_error *err)
{
	struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_BITMAP_ENTRY);
	finding.index = index;
	finding.entry_offset = at;
	if (!q2_check_bitmap_possible(check, r))
		add(check, finding);
	if (r->extra_length) {
		finding.problem = QCOW2_PROBLEM_BITMAP_EXTRA;
		add(check, finding);
	}
	/* The bitmaps that a writer keeps in memory are marked by its own doing. */
	if ((r->flags & Q2_BITMAP_IN_USE) && !check->image->begun) {
		finding.problem = QCOW2_PROBLEM_BITMAP_IN_USE;
		add(check, finding);
	}
	if (!r->table_entries)
		return 0;
	uint64_t bytes = (uint64_t)r->table_entries * 8;
	if (!q2_scan_fits(check, r->table_offset, bytes)) {
		finding.problem = QCOW2_PROBLEM_BITMAP_TABLE;
		finding.host_offset = r->table_offset;
		finding.host_length = bytes;
		add(check, finding);
		check->report.sum.incomplete = true;
		return 0;
	}
	struct q2_table_place *table = q2_vec_push(tables, sizeof *table);
	if (!table)
		return q2_error_nomem(err);
	*table = (struct q2_table_place){r->table_offset, bytes, index};
	return 0;
}

/* What a name is known by: two bitmaps of one name have the same. */
struct name_mark {
	uint64_t hash[2], at; /* of the entry */
	uint32_t index;
};

static int by_name(const void *a, const void *b)
{
	const struct name_mark *x = a, *y = b;
	for (int i = 0; i < 2; i++)
		if (x->hash[i] != y->hash[i])
			return x->hash[i] < y->hash[i] ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

static int by_place(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static int mark_name(struct q2_vec *names, const uint8_t *name, size_t length, uint64_t at, uint32_t index,
		     struct qcow2_error *err)
{
	struct name_mark *mark = q2_vec_push(names, sizeof *mark);
	if (!mark)
		return q2_error_nomem(err);
	*mark = (struct name_mark){{0xcbf29ce484222325, length}, at, index};
	for (size_t i = 0; i < length; i++) {
		mark->hash[0] = (mark->hash[0] ^ name[i]) * 0x100000001b3;
		mark->hash[1] = (mark->hash[1] + name[i] + 1) * 0x9e3779b97f4a7c15;
	}
	return 0;
}

/* Of several bitmaps of one name the first has it. */
static int find_same_names(struct q2_check *check, struct q2_vec *names, struct qcow2_error *err)
{
	struct name_mark *marks = names->items;
	if (names->count)
		qsort(marks, names->count, sizeof *marks, by_name);
	for (size_t i = 1; i < names->count; i++) {
		if (memcmp(marks[i].hash, marks[i - 1].hash, sizeof marks->hash) != 0)
			continue;
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_BITMAP_SAME_NAME);
		finding.index = marks[i].index;
		finding.entry_offset = marks[i].at;
		add(check, finding);
		uint64_t *at = q2_vec_push(&check->same_names, sizeof *at);
		if (!at)
			return q2_error_nomem(err);
		*at = marks[i].at;
	}
	if (check->same_names.count)
		qsort(check->same_names.items, check->same_names.count, sizeof(uint64_t), by_place);
	return 0;
}

bool q2_check_has_same_name(const struct q2_check *check, uint64_t at)
{
	return check->same_names.count &&
	       bsearch(&at, check->same_names.items, check->same_names.count, sizeof at, by_place);
}

static int read_directory(struct q2_check *check, const struct q2_bitmaps_ext *ext, struct q2_vec *tables,
			  struct qcow2_error *err)
{
	struct window window = {.stop = ext->directory_offset + ext->directory_size,
				.bytes = check->hands[0].buffer};
	uint64_t at = ext->directory_offset;
	struct q2_vec names = {0};
	int rc = 0;
	for (uint32_t i = 0; i < ext->count && !rc; i++) {
		struct q2_bitmap_record r = {0};
		uint64_t room;
		const uint8_t *bytes = look_at(check, &window, at, Q2_BITMAP_FIXED, &room);
		if (room >= Q2_BITMAP_FIXED)
			q2_record_bitmap(bytes, room, &r);
		if (room < Q2_BITMAP_FIXED || r.length > window.stop - at) {
			q2_vec_free(&names);
			return broken_directory(check, i, at);
		}
		rc = judge_bitmap(check, i, at, &r, tables, err);
		if (!rc && r.name_length <= Q2_MAX_BITMAP_NAME) {
			bytes = look_at(check, &window, at + r.name_at, r.name_length, &room);
			rc = mark_name(&names, bytes, r.name_length, at, i, err);
		}
		at += r.length;
	}
	if (!rc)
		rc = find_same_names(check, &names, err);
	q2_vec_free(&names);
	if (!rc && at < window.stop) {
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_BITMAP_DIRECTORY_SIZE);
		finding.host_offset = at;
		finding.host_length = window.stop - at;
		add(check, finding);
	}
	return rc;
}

bool q2_check_bits_possible(const struct q2_check *check, uint64_t entry)
{
	uint64_t host = entry & Q2_OFFSET_MASK;
	return !(entry & Q2_BITMAP_RESERVED) && (!host || (!(entry & 1) && q2_scan_fits(check, host, 1)));
}

/* The entries of a piece of a bitmap table. */
static int judge_bitmap_entries(struct q2_check *check, const struct q2_stretch *stretch, uint64_t at,
				const uint8_t *bytes, uint64_t length, struct qcow2_error *err)
{
	uint32_t cluster_size = check->geo->cluster_size;
	uint32_t word = q2_census_word(Q2_OWNER_BITMAP_DATA, 0, stretch->times);
	for (uint64_t i = 0; i + 8 <= length; i += 8) {
		uint64_t entry = q2_load64(bytes + i), host = entry & Q2_OFFSET_MASK;
		if (!host && !(entry & Q2_BITMAP_RESERVED))
			continue;
		if (!q2_check_bits_possible(check, entry)) {
			struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_BITMAP_TABLE_ENTRY);
			finding.index = stretch->owner;
			finding.entry = entry;
			finding.entry_offset = at + i;
			finding.host_offset = host;
			finding.host_length = cluster_size;
			add(check, finding);
		}
		int rc = host ? q2_scan_count(check, host, cluster_size, word, err) : 0;
		if (rc)
			return rc;
	}
	return 0;
}

static int follow_bitmap(struct q2_check *check, const struct q2_stretch *stretch, struct qcow2_error *err)
{
	struct q2_scan scan = {0};
	uint64_t at, length;
	bool unread;
	int rc;
	q2_scan_over(&scan, check, stretch->at, stretch->bytes);
	while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
		q2_scan_read(check, &check->report, at, check->hands[0].buffer, length, &unread);
		rc = judge_bitmap_entries(check, stretch, at, check->hands[0].buffer, length, err);
		if (rc)
			break;
	}
	return rc;
}

/* Counts the clusters of bitmap tables, then follows their entries. */
static int follow_bitmaps(struct q2_check *check, struct q2_vec *tables, struct qcow2_error *err)
{
	struct q2_vec stretches = {0};
	int rc = q2_scan_count_tables(check, tables, Q2_OWNER_BITMAP_TABLE, err);
	if (!rc)
		rc = q2_scan_tables(tables->items, tables->count, &stretches, err);
	for (size_t i = 0; !rc && i < stretches.count; i++)
		rc = follow_bitmap(check, (struct q2_stretch *)stretches.items + i, err);
	q2_vec_free(&stretches);
	return rc;
}

int q2_check_bitmaps(struct q2_check *check, bool *more, struct qcow2_error *err)
{
	(void)more;
	const struct q2_extension *e = q2_check_extension(check, (uint32_t)Q2_EXT_BITMAPS);
	struct q2_bitmaps_ext ext;
	if (!e)
		return 0;
	if (!(check->header->autoclear_features & Q2_AUTOCLEAR_BITMAPS)) {
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_BITMAPS_STALE);
		finding.entry_offset = e->offset;
		add(check, finding);
		return 0;
	}
	if (q2_extension_bitmaps(check->image->head + e->offset, e->length, &ext, NULL) || !ext.count ||
	    ext.count > Q2_MAX_BITMAPS || ext.directory_size > Q2_MAX_BITMAP_DIRECTORY ||
	    !q2_scan_fits(check, ext.directory_offset, ext.directory_size))
		return broken_directory(check, QCOW2_NONE, e->offset);
	if (ext.reserved) {
		struct qcow2_finding finding = q2_report_blank(QCOW2_PROBLEM_BITMAPS_RESERVED);
		finding.entry_offset = e->offset;
		add(check, finding);
	}
	int rc = q2_scan_count(check, ext.directory_offset, ext.directory_size,
			       q2_census_word(Q2_OWNER_BITMAP_DIRECTORY, 0, 1), err);
	struct q2_vec tables = {0};
	if (!rc)
		rc = read_directory(check, &ext, &tables, err);
	if (!rc)
		rc = follow_bitmaps(check, &tables, err);
	q2_vec_free(&tables);
	return rc;
}
