/* SPDX-License-Identifier: MIT
 * What lies beside the tables of clusters, in a repair: header, encryption header, snapshot table, bitmaps. */
#include "check/repair.h"

#include "base/be.h"
#include "format/record.h"

#include <string.h>

/* Extra data of a snapshot: what version 3 requires, and what the specification knows. */
enum { EXTRA_LEAST = 16, EXTRA_KNOWN = 24 };

static int append(struct q2_vec *vec, const void *bytes, size_t length)
{
	return q2_vec_append(vec, bytes, length, 1) ? 0 : QCOW2_E_NOMEM;
}

static int pad(struct q2_vec *vec)
{
	static const uint8_t zeros[8];
	return append(vec, zeros, -vec->count & 7);
}

/* Bytes of a region that the file does not hold: it must not grow over them. */
static void keep_out(struct q2_repair *repair, uint64_t at, uint64_t bytes)
{
	if (q2_is_aligned(at, repair->geo->cluster_size) && !q2_fits(at, bytes, repair->check->file_length))
		q2_repair_keep_out(repair, at);
}

static bool moves_away(const struct q2_repair *repair, uint64_t at, uint64_t bytes)
{
	return repair->apart && bytes && q2_repair_overlaps(repair, at, bytes);
}

/* ---- header ------------------------------------------------------------------------------------ */

static int plan_header(struct q2_repair *repair, struct qcow2_error *err)
{
	struct q2_check *check = repair->check;
	int rc = q2_repair_refer(repair, 0, repair->geo->cluster_size, 1, err);
	const struct q2_extension *e = q2_check_extension(check, (uint32_t)Q2_EXT_ENCRYPTION);
	if (rc || check->header->crypt_method != Q2_CRYPT_LUKS || !e || e->length < 16)
		return rc;
	uint64_t at = q2_load64(check->image->head + e->offset);
	uint64_t length = q2_load64(check->image->head + e->offset + 8);
	keep_out(repair, at, length);
	if (at >= check->file_length)
		return 0;
	return q2_repair_refer(repair, at, q2_min(length, check->file_length - at), 1, err);
}

/* ---- snapshots --------------------------------------------------------------------------------- */

/* The disk that an L1 table of so many entries can map, in bytes; at most `size`. */
static uint64_t mapped(const struct q2_repair *repair, uint32_t entries, uint64_t size)
{
	unsigned span = repair->geo->cluster_bits + repair->geo->l2_bits;
	return entries <= INT64_MAX >> span ? q2_min(size, (uint64_t)entries << span) : size;
}

/* Does it get the size of its disk, which it lacks? */
static bool is_completed(const struct q2_repair *repair, const struct q2_snapshot_record *r)
{
	return repair->check->header->version >= 3 && r->extra_length < EXTRA_LEAST &&
	       q2_repair_wants(repair, QCOW2_PROBLEM_SNAPSHOT_INCOMPLETE);
}

/* Appends the record as it will be, with `disk` for the size of its disk. needs: `bytes` holds all of it. */
static int keep_record(struct q2_repair *repair, const uint8_t *bytes, const struct q2_snapshot_record *r,
		       uint64_t disk, struct qcow2_error *err)
{
	struct q2_vec *table = &repair->snapshot_table;
	uint32_t extra = r->extra_length;
	uint8_t known[EXTRA_KNOWN] = {0};
	memcpy(known, bytes + r->extra_at, q2_min(extra, EXTRA_KNOWN));
	if (extra > Q2_SNAPSHOT_MAX_EXTRA && q2_repair_wants(repair, QCOW2_PROBLEM_SNAPSHOT_EXTRA))
		extra = EXTRA_KNOWN;
	if (is_completed(repair, r)) {
		q2_store64(known, r->vm_state_size);
		extra = EXTRA_LEAST;
	}
	size_t record = table->count;
	int rc = append(table, bytes, Q2_SNAPSHOT_FIXED);
	if (!rc && extra == r->extra_length)
		rc = append(table, bytes + r->extra_at, extra);
	else if (!rc)
		rc = append(table, known, extra);
	if (!rc)
		rc = append(table, bytes + r->id_at, (size_t)r->id_length + r->name_length);
	if (!rc)
		rc = pad(table);
	if (rc)
		return q2_error_nomem(err);
	uint8_t *copy = (uint8_t *)table->items + record;
	q2_store32(copy + 36, extra);
	if (extra >= EXTRA_LEAST)
		q2_store64(copy + Q2_SNAPSHOT_FIXED + 8, disk);
	repair->snapshots_change |= extra != r->extra_length ||
				    (extra >= EXTRA_LEAST && disk != r->disk_size);
	return 0;
}

/* What becomes of a snapshot. */
static int plan_snapshot(struct q2_repair *repair, const uint8_t *bytes, const struct q2_snapshot_record *r,
			 struct qcow2_error *err)
{
	struct q2_check *check = repair->check;
	uint64_t l1_bytes = (uint64_t)r->l1_size * 8;
	struct q2_kept_snapshot kept = {repair->snapshot_table.count, r->l1_table_offset, r->l1_size,
					r->l1_size};
	bool large = r->l1_size > Q2_MAX_L1_BYTES / 8;
	bool fits = !r->l1_size || q2_scan_fits(check, r->l1_table_offset, l1_bytes);
	bool aligned = q2_is_aligned(r->l1_table_offset, repair->geo->cluster_size);
	/* A size that is not there is the active disk's. */
	uint64_t disk = is_completed(repair, r) ? check->header->size : r->disk_size;
	if ((large && q2_repair_asked(repair, QCOW2_PROBLEM_SNAPSHOT_L1_SIZE)) ||
	    (!large && !fits && aligned && q2_repair_asked(repair, QCOW2_PROBLEM_L1_OUTSIDE)) ||
	    (!large && !fits && !aligned && q2_repair_asked(repair, QCOW2_PROBLEM_SNAPSHOT_L1_UNALIGNED))) {
		repair->snapshots_change = true;
		return 0;
	}
	if (large || !fits) {
		kept.l1_size = 0;
		repair->incomplete = true;
		keep_out(repair, r->l1_table_offset, l1_bytes);
	} else if (r->l1_size && (r->extra_length >= EXTRA_LEAST || is_completed(repair, r))) {
		uint64_t need = disk <= INT64_MAX ? q2_header_l1_entries(repair->geo, disk) : UINT64_MAX;
		/* Entries that are missing say "nothing here"; a disk that no table can map is cut. */
		if (need > Q2_MAX_L1_BYTES / 8 && q2_repair_asked(repair, QCOW2_PROBLEM_SNAPSHOT_L1_SIZE)) {
			disk = mapped(repair, r->l1_size, INT64_MAX & ~(uint64_t)511);
		} else if (need > r->l1_size && need <= Q2_MAX_L1_BYTES / 8 &&
			   (q2_repair_wants(repair, QCOW2_PROBLEM_SNAPSHOT_L1_SIZE) ||
			    is_completed(repair, r))) {
			kept.l1_new = (uint32_t)need;
			repair->snapshots_change = true;
		}
	}
	struct q2_kept_snapshot *item = q2_vec_push(&repair->snapshots, sizeof *item);
	if (!item)
		return q2_error_nomem(err);
	*item = kept;
	return keep_record(repair, bytes, r, disk, err);
}

static int plan_snapshots(struct q2_repair *repair, struct qcow2_error *err)
{
	struct q2_check *check = repair->check;
	const struct qcow2_header *h = check->header;
	uint64_t at = h->snapshots_offset;
	uint64_t stop = q2_min(q2_round_up(check->file_length, 8), at + Q2_MAX_SNAPSHOT_TABLE);
	uint32_t index = 0;
	if (!h->nb_snapshots) {
		repair->snapshots_change =
			(!q2_is_aligned(at, repair->geo->cluster_size) || at > INT64_MAX) &&
			q2_repair_wants(repair, QCOW2_PROBLEM_SNAPSHOT_TABLE);
		repair->beside |= repair->snapshots_change;
		return 0;
	}
	bool fits = q2_scan_fits(check, at, Q2_SNAPSHOT_FIXED);
	uint32_t most = q2_min(h->nb_snapshots, Q2_MAX_SNAPSHOTS);
	if (h->nb_snapshots > most) {
		if (q2_repair_wants(repair, QCOW2_PROBLEM_SNAPSHOT_SURPLUS))
			repair->snapshots_change = true;
		else
			repair->snapshots_frozen = true;
	}
	for (; fits && index < most; index++) {
		uint8_t fixed[Q2_SNAPSHOT_FIXED];
		struct q2_snapshot_record r;
		if (stop - at < sizeof fixed)
			break;
		int rc = qcow2_store_read(repair->store, at, fixed, sizeof fixed, err);
		if (rc)
			return rc;
		q2_record_snapshot(fixed, sizeof fixed, &r);
		if (r.length > stop - at)
			break;
		q2_auto uint8_t *bytes = q2_new(r.length, 1);
		if (!bytes)
			return q2_error_nomem(err);
		rc = qcow2_store_read(repair->store, at, bytes, r.length, err);
		if (rc)
			return rc;
		q2_record_snapshot(bytes, r.length, &r);
		rc = plan_snapshot(repair, bytes, &r, err);
		if (rc)
			return rc;
		at += r.length;
	}
	if (index < most) {
		if (q2_repair_wants(repair, QCOW2_PROBLEM_SNAPSHOT_TABLE)) {
			repair->snapshots_change = true;
		} else {
			repair->snapshots_frozen = repair->incomplete = true;
			keep_out(repair, h->snapshots_offset, at - h->snapshots_offset + Q2_SNAPSHOT_FIXED);
		}
	}
	repair->snapshots_bytes = at - h->snapshots_offset;
	if (moves_away(repair, h->snapshots_offset, repair->snapshots_bytes))
		repair->snapshots_change = true;
	if (repair->snapshots_change && repair->snapshots_frozen)
		return q2_error_set(err, QCOW2_E_CONFLICT, h->snapshots_offset,
				    "The snapshot table is broken; it has to be repaired with the rest");
	repair->beside |= repair->snapshots_change;
	repair->snapshots_counted = !repair->snapshots_change;
	return repair->snapshots_change
		       ? 0
		       : q2_repair_refer(repair, h->snapshots_offset, repair->snapshots_bytes, 1, err);
}

static int place_snapshots(struct q2_repair *repair, struct qcow2_error *err)
{
	struct q2_vec *table = &repair->snapshot_table;
	uint64_t at = 0;
	int rc = 0;
	if (!repair->snapshots_change)
		return 0;
	if (repair->snapshots_counted)
		rc = q2_repair_leave(repair, repair->check->header->snapshots_offset, repair->snapshots_bytes,
				     err);
	if (!rc && table->count)
		rc = q2_repair_take(repair, table->count, 1, &at, err);
	if (!rc && table->count)
		rc = q2_repair_write(repair, at, table->items, table->count, err);
	repair->header.nb_snapshots = (uint32_t)repair->snapshots.count;
	repair->header.snapshots_offset = at;
	return rc;
}

/* ---- bitmaps ----------------------------------------------------------------------------------- */

/* What the entries of a bitmap's table say of it, and when `count` the references of its data. */
struct bits_verdict {
	bool broken, overlap;
};

static int walk_bits(struct q2_repair *repair, const struct q2_bitmap_record *r, bool count,
		     struct bits_verdict *verdict, struct qcow2_error *err)
{
	uint32_t cluster_size = repair->geo->cluster_size;
	struct q2_scan scan = {0};
	uint64_t at, length;
	int rc;
	q2_scan_over(&scan, repair->check, r->table_offset, (uint64_t)r->table_entries * 8);
	while ((rc = q2_scan_next(&scan, Q2_PIECE, &at, &length, err)) > 0) {
		rc = q2_repair_spend(repair, length, err);
		if (!rc)
			rc = qcow2_store_read(repair->store, at, repair->buffer, length, err);
		for (uint64_t i = 0; !rc && i + 8 <= length; i += 8) {
			uint64_t entry = q2_load64(repair->buffer + i), host = entry & Q2_OFFSET_MASK;
			verdict->broken |= !q2_check_bits_possible(repair->check, entry);
			if (!host)
				continue;
			bool moves = q2_check_bits_possible(repair->check, entry) &&
				     moves_away(repair, host, cluster_size);
			verdict->overlap |= moves;
			if (count && !moves) {
				keep_out(repair, host, 1);
				rc = q2_repair_refer(repair, host, cluster_size, 1, err);
			}
		}
		if (rc)
			return rc;
	}
	return rc;
}

static int plan_bitmap(struct q2_repair *repair, const uint8_t *bytes, const struct q2_bitmap_record *r,
		       bool same_name, struct qcow2_error *err)
{
	uint64_t table_bytes = (uint64_t)r->table_entries * 8;
	bool fits = !table_bytes || q2_scan_fits(repair->check, r->table_offset, table_bytes);
	struct bits_verdict verdict = {0};
	int rc = table_bytes && fits ? walk_bits(repair, r, false, &verdict, err) : 0;
	if (rc)
		return rc;
	if ((!q2_check_bitmap_possible(repair->check, r) &&
	     q2_repair_wants(repair, QCOW2_PROBLEM_BITMAP_ENTRY)) ||
	    (r->extra_length && q2_repair_asked(repair, QCOW2_PROBLEM_BITMAP_EXTRA)) ||
	    ((r->flags & Q2_BITMAP_IN_USE) && q2_repair_asked(repair, QCOW2_PROBLEM_BITMAP_IN_USE)) ||
	    (same_name && q2_repair_asked(repair, QCOW2_PROBLEM_BITMAP_SAME_NAME)) ||
	    (!fits && q2_repair_wants(repair, QCOW2_PROBLEM_BITMAP_TABLE)) ||
	    (verdict.broken && q2_repair_wants(repair, QCOW2_PROBLEM_BITMAP_TABLE_ENTRY))) {
		repair->bitmaps_change = true;
		return 0;
	}
	struct q2_kept_bitmap kept = {repair->directory.count, r->table_offset, r->table_entries,
				      verdict.overlap};
	if (!fits) {
		kept.entries = 0;
		repair->incomplete = true;
		keep_out(repair, r->table_offset, table_bytes);
	} else if (moves_away(repair, r->table_offset, table_bytes)) {
		kept.moves = true;
	}
	repair->bitmaps_change |= kept.moves;
	if (kept.entries)
		rc = walk_bits(repair, r, true, &verdict, err);
	if (!rc && kept.entries && !kept.moves)
		rc = q2_repair_refer(repair, r->table_offset, table_bytes, 1, err);
	struct q2_kept_bitmap *item = rc ? NULL : q2_vec_push(&repair->bitmaps, sizeof *item);
	if (rc)
		return rc;
	if (!item || append(&repair->directory, bytes, r->length))
		return q2_error_nomem(err);
	*item = kept;
	return 0;
}

/* What is broken goes when that is wanted, else nothing of the directory can be changed. */
static void break_off(struct q2_repair *repair, bool *frozen)
{
	if (q2_repair_wants(repair, QCOW2_PROBLEM_BITMAP_DIRECTORY))
		repair->bitmaps_change = true;
	else
		*frozen = repair->incomplete = true;
}

static int plan_directory(struct q2_repair *repair, const struct q2_bitmaps_ext *ext, struct qcow2_error *err)
{
	uint64_t at = ext->directory_offset, stop = at + ext->directory_size;
	bool frozen = false;
	for (uint32_t i = 0; i < ext->count; i++) {
		uint8_t fixed[Q2_BITMAP_FIXED];
		struct q2_bitmap_record r = {.length = UINT32_MAX};
		int rc = 0;
		if (stop - at >= sizeof fixed) {
			rc = qcow2_store_read(repair->store, at, fixed, sizeof fixed, err);
			q2_record_bitmap(fixed, sizeof fixed, &r);
		}
		if (rc)
			return rc;
		if (r.length > stop - at) {
			break_off(repair, &frozen);
			break;
		}
		q2_auto uint8_t *bytes = q2_new(r.length, 1);
		if (!bytes)
			return q2_error_nomem(err);
		rc = qcow2_store_read(repair->store, at, bytes, r.length, err);
		if (rc)
			return rc;
		q2_record_bitmap(bytes, r.length, &r);
		rc = plan_bitmap(repair, bytes, &r, q2_check_has_same_name(repair->check, at), err);
		if (rc)
			return rc;
		at += r.length;
	}
	repair->bitmaps_change |= at < stop && !frozen &&
				  repair->check->report.found[QCOW2_PROBLEM_BITMAP_DIRECTORY_SIZE] &&
				  q2_repair_wants(repair, QCOW2_PROBLEM_BITMAP_DIRECTORY_SIZE);
	repair->bitmaps_change |= moves_away(repair, ext->directory_offset, ext->directory_size);
	if (frozen && repair->bitmaps_change)
		return q2_error_set(err, QCOW2_E_CONFLICT, ext->directory_offset,
				    "The bitmap directory is broken; it has to be repaired with the rest");
	return repair->bitmaps_change
		       ? 0
		       : q2_repair_refer(repair, ext->directory_offset, ext->directory_size, 1, err);
}

static int plan_bitmaps(struct q2_repair *repair, struct qcow2_error *err)
{
	struct q2_check *check = repair->check;
	const struct q2_extension *e = q2_check_extension(check, (uint32_t)Q2_EXT_BITMAPS);
	struct q2_bitmaps_ext ext = {0};
	bool frozen;
	int rc = 0;
	if (!e)
		return 0;
	if (!(check->header->autoclear_features & Q2_AUTOCLEAR_BITMAPS)) {
		repair->bitmaps_change = check->report.found[QCOW2_PROBLEM_BITMAPS_STALE] &&
					 q2_repair_wants(repair, QCOW2_PROBLEM_BITMAPS_STALE);
	} else if (q2_extension_bitmaps(check->image->head + e->offset, e->length, &ext, NULL) ||
		   !ext.count || ext.count > Q2_MAX_BITMAPS || ext.directory_size > Q2_MAX_BITMAP_DIRECTORY ||
		   !q2_scan_fits(check, ext.directory_offset, ext.directory_size)) {
		break_off(repair, &frozen);
		if (!repair->bitmaps_change)
			keep_out(repair, ext.directory_offset, ext.directory_size);
	} else {
		repair->bitmaps_change |= ext.reserved &&
					  q2_repair_wants(repair, QCOW2_PROBLEM_BITMAPS_RESERVED);
		rc = plan_directory(repair, &ext, err);
	}
	repair->beside |= repair->bitmaps_change;
	return rc;
}

/* Copies a bitmap's table, and those of its data that others claim too. */
static int place_bitmap(struct q2_repair *repair, const struct q2_kept_bitmap *bitmap,
			struct qcow2_error *err)
{
	uint32_t cluster_size = repair->geo->cluster_size;
	uint64_t bytes = (uint64_t)bitmap->entries * 8, to;
	q2_auto uint8_t *piece = q2_new_pages(Q2_PIECE);
	int rc = piece ? q2_repair_spend(repair, bytes, err) : q2_error_nomem(err);
	if (!rc)
		rc = q2_repair_take(repair, bytes, 1, &to, err);
	for (uint64_t done = 0, part; !rc && done < bytes; done += part) {
		part = q2_min(Q2_PIECE, bytes - done);
		rc = qcow2_store_read(repair->store, bitmap->table_at + done, piece, part, err);
		for (uint64_t i = 0; !rc && i < part; i += 8) {
			uint64_t entry = q2_load64(piece + i), host = entry & Q2_OFFSET_MASK, fresh;
			if (!host || !q2_check_bits_possible(repair->check, entry) ||
			    !moves_away(repair, host, cluster_size))
				continue;
			rc = qcow2_store_read(repair->store, host, repair->table, cluster_size, err);
			if (!rc)
				rc = q2_repair_take(repair, cluster_size, 1, &fresh, err);
			if (!rc)
				rc = q2_repair_write(repair, fresh, repair->table, cluster_size, err);
			if (!rc)
				q2_store64(piece + i, fresh);
		}
		if (!rc)
			rc = q2_repair_write(repair, to + done, piece, part, err);
	}
	if (!rc && !moves_away(repair, bitmap->table_at, bytes))
		rc = q2_repair_leave(repair, bitmap->table_at, bytes, err);
	if (!rc)
		q2_store64((uint8_t *)repair->directory.items + bitmap->record, to);
	return rc;
}

static int place_bitmaps(struct q2_repair *repair, struct qcow2_error *err)
{
	int rc = 0;
	if (!repair->bitmaps_change)
		return 0;
	for (size_t i = 0; !rc && i < repair->bitmaps.count; i++) {
		const struct q2_kept_bitmap *bitmap = (struct q2_kept_bitmap *)repair->bitmaps.items + i;
		if (bitmap->moves)
			rc = place_bitmap(repair, bitmap, err);
	}
	if (!rc && repair->directory.count)
		rc = q2_repair_take(repair, repair->directory.count, 1, &repair->directory_at, err);
	if (!rc && repair->directory.count)
		rc = q2_repair_write(repair, repair->directory_at, repair->directory.items,
				     repair->directory.count, err);
	return rc;
}

/* ---- passes ------------------------------------------------------------------------------------ */

int q2_repair_plan_side(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	int rc = plan_header(repair, err);
	if (!rc)
		rc = plan_snapshots(repair, err);
	return rc ? rc : plan_bitmaps(repair, err);
}

int q2_repair_place_side(struct q2_repair *repair, bool *more, struct qcow2_error *err)
{
	(void)more;
	if (!repair->beside)
		return 0;
	int rc = place_snapshots(repair, err);
	return rc ? rc : place_bitmaps(repair, err);
}
