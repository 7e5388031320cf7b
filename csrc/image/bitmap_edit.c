/* SPDX-License-Identifier: MIT
 * Persistent bitmaps: add, remove, clear, enable, disable, merge, set and clear ranges.
 *
 * The directory is replaced, never edited: new bits, tables and directory go to fresh clusters, then one
 * switch of the header's extension names the new directory, then the old is freed. So no cut loses a bitmap,
 * and the autoclear bit that says "bitmaps are valid" is never off in between (invariant 5). */
#include "base/be.h"
#include "format/record.h"
#include "image/bitmap_pages.h"
#include "image/header_cluster.h"

#include <inttypes.h>

/* A new directory in the making. */
struct directory {
	struct q2_vec bytes; /* uint8_t */
	uint32_t count;
	struct q2_vec taken; /* struct q2_span: fresh clusters, given back when it comes to nothing */
	struct q2_vec freed; /* struct q2_span: clusters that the old one alone names */
};

/* The end of the work on a directory: what was taken for it and is not in force goes back. */
static void directory_free(struct qcow2_image *image, struct directory *dir)
{
	for (size_t i = 0; i < dir->taken.count && !image->meta.failure.code; i++) {
		const struct q2_span *span = (struct q2_span *)dir->taken.items + i;
		q2_alloc_abandon(&image->meta, span->start, span->count, NULL);
	}
	q2_vec_free(&dir->bytes);
	q2_vec_free(&dir->taken);
	q2_vec_free(&dir->freed);
}

static int push_span(struct q2_vec *list, uint64_t start, uint64_t count, struct qcow2_error *err)
{
	struct q2_span *span = q2_vec_push(list, sizeof *span);
	if (!span)
		return q2_error_nomem(err);
	*span = (struct q2_span){start, count};
	return 0;
}

/* Fresh clusters in one piece for `bytes` bytes, which are written there, padded with zeros. */
static int write_fresh(struct qcow2_image *image, struct directory *dir, const void *bytes, uint64_t length,
		       uint64_t *at, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint64_t clusters = q2_max(1, q2_div_up(length, meta->geo.cluster_size)), start, got;
	int rc = q2_alloc(meta, clusters, true, &start, &got, err);
	if (rc)
		return rc;
	rc = push_span(&dir->taken, start, clusters, err);
	if (rc) {
		q2_alloc_abandon(meta, start, clusters, NULL);
		return rc;
	}
	q2_auto uint8_t *padded = q2_new(clusters << meta->geo.cluster_bits, 1);
	if (!padded)
		return q2_error_nomem(err);
	if (length)
		memcpy(padded, bytes, length);
	*at = start << meta->geo.cluster_bits;
	return qcow2_store_write(image->store, *at, padded, clusters << meta->geo.cluster_bits, err);
}

static int append(struct directory *dir, const void *bytes, size_t length, struct qcow2_error *err)
{
	return q2_vec_append(&dir->bytes, bytes, length, 1) ? 0 : q2_error_nomem(err);
}

/* Appends an entry (specification, "Bitmap directory"). */
static int append_entry(struct directory *dir, const struct qcow2_bitmap *b, struct qcow2_error *err)
{
	uint8_t fixed[Q2_BITMAP_FIXED];
	static const uint8_t padding[8];
	q2_store64(fixed, b->table_offset);
	q2_store32(fixed + 8, b->table_entries);
	q2_store32(fixed + 12, b->flags);
	fixed[16] = b->type;
	fixed[17] = (uint8_t)__builtin_ctzll(b->granularity);
	q2_store16(fixed + 18, (uint16_t)b->name.length);
	q2_store32(fixed + 20, (uint32_t)b->extra_data.length);
	dir->count++;
	int rc = append(dir, fixed, sizeof fixed, err);
	if (!rc)
		rc = append(dir, b->extra_data.data, b->extra_data.length, err);
	if (!rc)
		rc = append(dir, b->name.data, b->name.length, err);
	return rc ? rc : append(dir, padding, -dir->bytes.count & 7, err);
}

/* The clusters that a bitmap's table and data hold, to be freed. */
static int give_up(struct qcow2_image *image, struct directory *dir, const struct qcow2_bitmap *b,
		   struct qcow2_error *err)
{
	unsigned bits = image->meta.geo.cluster_bits;
	q2_auto uint64_t *table = NULL;
	int rc = q2_meta_read_table(&image->meta, "Bitmap table", b->table_offset, b->table_entries, &table,
				    err);
	if (!rc && b->table_entries)
		rc = push_span(&dir->freed, b->table_offset >> bits,
			       q2_div_up(b->table_entries * 8ull, image->meta.geo.cluster_size), err);
	for (uint32_t i = 0; i < b->table_entries && !rc; i++)
		if (table[i] & Q2_OFFSET_MASK)
			rc = push_span(&dir->freed, (table[i] & Q2_OFFSET_MASK) >> bits, 1, err);
	return rc;
}

static int begin(struct qcow2_image *image, struct qcow2_error *err)
{
	int rc = q2_edit_tables(image, err);
	if (!rc && (image->raw || image->meta.header.version < 3))
		rc = q2_error_set(err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET,
				  "Persistent bitmaps need a qcow2 image of version 3");
	/* What writes have set so far goes to disk, so that the disk alone is to be changed. */
	if (!rc)
		rc = q2_track_end(image, err);
	return rc ? rc : q2_writeback_flush(&image->meta, err);
}

/* Writes the directory, switches to it and with the same write to a disk of `size` bytes, frees what only the old one
 * named. */
static int install(struct qcow2_image *image, struct directory *dir, uint64_t size, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct qcow2_header saved = meta->header;
	struct q2_header_cluster head = {0};
	struct q2_bitmaps_ext old;
	uint64_t at = 0;
	uint8_t ext[24] = {0};
	int rc = q2_image_bitmaps_extension(image, &old, err);
	if (!rc && (dir->count > Q2_MAX_BITMAPS || dir->bytes.count > Q2_MAX_BITMAP_DIRECTORY))
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "There would be too many bitmaps");
	if (!rc && dir->count)
		rc = write_fresh(image, dir, dir->bytes.items, dir->bytes.count, &at, err);
	/* The counts of all that is new are on disk, and so are its bytes, before the header names it. */
	if (!rc)
		rc = q2_writeback_counts(meta, err);
	q2_store32(ext, dir->count);
	q2_store64(ext + 8, dir->bytes.count);
	q2_store64(ext + 16, at);
	if (!rc)
		rc = q2_header_cluster_load(image, &head, err);
	if (!rc)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_BITMAPS, dir->count ? ext : NULL,
					   sizeof ext, err);
	if (!rc) {
		if (dir->count)
			meta->header.autoclear_features |= Q2_AUTOCLEAR_BITMAPS;
		else
			meta->header.autoclear_features &= ~(uint64_t)Q2_AUTOCLEAR_BITMAPS;
		meta->header.size = size;
		rc = q2_header_cluster_store(image, &head, err);
	}
	q2_header_cluster_free(&head);
	if (rc) {
		meta->header = saved;
		return rc;
	}
	dir->taken.count = 0; /* in force */
	if (old.directory_size)
		rc = push_span(&dir->freed, old.directory_offset >> meta->geo.cluster_bits,
			       q2_div_up(old.directory_size, meta->geo.cluster_size), err);
	for (size_t i = 0; i < dir->freed.count && !rc; i++) {
		const struct q2_span *span = (struct q2_span *)dir->freed.items + i;
		rc = q2_alloc_release(meta, span->start, span->count, err);
	}
	q2_image_forget_bitmaps(image);
	return rc ? rc : q2_writeback_flush(meta, err);
}

/*
 * The directory with entry `index` changed: `with` stands in its place, or nothing when NULL; past the last
 * entry `with` is added.
 */
static int replace(struct qcow2_image *image, struct directory *dir, uint32_t index,
		   const struct qcow2_bitmap *with, struct qcow2_error *err)
{
	uint32_t count = 0;
	int rc = qcow2_image_bitmap_count(image, &count, err);
	for (uint32_t i = 0; i <= count && !rc; i++) {
		struct qcow2_bitmap b;
		if (i == index) {
			if (with)
				rc = append_entry(dir, with, err);
		} else if (i < count) {
			rc = qcow2_image_bitmap(image, i, &b, err);
			if (!rc)
				rc = append_entry(dir, &b, err);
		}
	}
	if (!rc)
		rc = install(image, dir, image->meta.header.size, err);
	if (!rc && index < count && !with)
		q2_image_drop_serial(image, index);
	else if (!rc && index == count)
		q2_image_add_serial(image);
	return rc;
}

static int check_room(uint64_t size, uint64_t granularity, struct qcow2_error *err)
{
	/* It would have a table of no entries, with which QEMU opens no image. */
	if (!size)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "A disk of 0 bytes can have no bitmap");
	if (q2_div_up(q2_div_up(size, granularity), 8) <= Q2_MAX_BITMAP_BYTES)
		return 0;
	return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
			    "A bitmap of granularity %" PRIu64 " is too large for a disk of %" PRIu64
			    " bytes; use a larger granularity",
			    granularity, size);
}

int qcow2_image_bitmap_add(struct qcow2_image *image, struct qcow2_bytes name, uint64_t granularity,
			   bool enabled, struct qcow2_error *err)
{
	struct directory dir = {0};
	uint32_t count = 0;
	int rc = begin(image, err);
	if (!rc)
		rc = qcow2_image_bitmap_count(image, &count, err);
	if (!rc && (!name.length || name.length > Q2_MAX_BITMAP_NAME))
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				  "A bitmap's name has 1 to %u bytes, not %zu", Q2_MAX_BITMAP_NAME,
				  name.length);
	if (!rc && (granularity < 512 || granularity > 1ull << 31 || (granularity & (granularity - 1))))
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				  "Granularity %" PRIu64 " is not a power of two from 512 bytes to 2 GiB",
				  granularity);
	for (uint32_t i = 0; !rc && i < count; i++) {
		struct qcow2_bitmap b;
		rc = qcow2_image_bitmap(image, i, &b, err);
		if (!rc && b.name.length == name.length && !memcmp(b.name.data, name.data, name.length))
			rc = q2_error_set(err, QCOW2_E_EXISTS, Q2_NO_OFFSET,
					  "There is a bitmap of that name already");
	}
	if (!rc)
		rc = check_room(image->size, granularity, err);
	if (rc)
		return q2_image_blame(image, rc, err);
	unsigned bits = (unsigned)__builtin_ctzll(granularity);
	struct qcow2_bitmap b = {
		.name = name,
		.type = 1,
		.granularity = granularity,
		.flags = enabled ? Q2_BITMAP_AUTO : 0,
		.table_entries = q2_bitmap_pages_entries(image, image->size, bits),
	};
	q2_auto uint64_t *zeros = q2_new(b.table_entries, 8);
	rc = zeros ? write_fresh(image, &dir, zeros, b.table_entries * 8ull, &b.table_offset, err)
		   : q2_error_nomem(err);
	if (!rc)
		rc = replace(image, &dir, count, &b, err);
	directory_free(image, &dir);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_bitmap_remove(struct qcow2_image *image, uint32_t index, struct qcow2_error *err)
{
	struct directory dir = {0};
	struct qcow2_bitmap b = {0};
	int rc = begin(image, err);
	if (!rc)
		rc = qcow2_image_bitmap(image, index, &b, err);
	if (!rc)
		rc = give_up(image, &dir, &b, err);
	if (!rc)
		rc = replace(image, &dir, index, NULL, err);
	directory_free(image, &dir);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

/* An inconsistent bitmap can only be removed (specification: IN_USE means its bits cannot be trusted). */
static int usable(struct qcow2_image *image, uint32_t index, struct qcow2_bitmap *b, struct qcow2_error *err)
{
	char name[256];
	int rc = qcow2_image_bitmap(image, index, b, err);
	if (!rc && b->in_use)
		rc = q2_error_set(err, QCOW2_E_CONFLICT, b->offset,
				  "Bitmap '%s' is inconsistent (marked in use) and can only be removed",
				  q2_error_escape(name, sizeof name, b->name.data, b->name.length));
	return rc;
}

int qcow2_image_bitmap_enable(struct qcow2_image *image, uint32_t index, bool enabled,
			      struct qcow2_error *err)
{
	struct directory dir = {0};
	struct qcow2_bitmap b = {0};
	int rc = begin(image, err);
	if (!rc)
		rc = usable(image, index, &b, err);
	if (!rc && b.autoset != enabled) {
		b.flags = (b.flags & ~Q2_BITMAP_AUTO) | (enabled ? Q2_BITMAP_AUTO : 0);
		rc = replace(image, &dir, index, &b, err);
	}
	directory_free(image, &dir);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

/* Writes changed bits and a new table beside the old ones, which are to be freed. gives: *b names the new table. */
static int write_bits(struct qcow2_image *image, struct directory *dir, struct qcow2_bitmap *b,
		      struct q2_bitmap_pages *bits, struct qcow2_error *err)
{
	uint32_t cluster_size = image->meta.geo.cluster_size;
	unsigned cluster_bits = image->meta.geo.cluster_bits;
	int rc = push_span(&dir->freed, b->table_offset >> cluster_bits,
			   q2_div_up(b->table_entries * 8ull, cluster_size), err);
	q2_auto uint64_t *raw = q2_new(bits->entries, 8);
	if (!rc && !raw)
		rc = q2_error_nomem(err);
	for (uint32_t p = 0; p < bits->entries && !rc; p++) {
		uint64_t old = bits->table[p] & Q2_OFFSET_MASK;
		if (bits->pages[p]) {
			if (old)
				rc = push_span(&dir->freed, old >> cluster_bits, 1, err);
			bool zero = bits->pages[p][0] == 0 &&
				    !memcmp(bits->pages[p], bits->pages[p] + 1, cluster_size - 1);
			bits->table[p] = 0;
			if (!rc && !zero)
				rc = write_fresh(image, dir, bits->pages[p], cluster_size, &bits->table[p],
						 err);
		}
		raw[p] = htobe64(bits->table[p]);
	}
	b->table_entries = bits->entries;
	return rc ? rc : write_fresh(image, dir, raw, bits->entries * 8ull, &b->table_offset, err);
}

/* Writes changed bits and switches to them. */
static int rewrite(struct qcow2_image *image, uint32_t index, struct qcow2_bitmap *b,
		   struct q2_bitmap_pages *bits, struct qcow2_error *err)
{
	struct directory dir = {0};
	int rc = write_bits(image, &dir, b, bits, err);
	if (!rc)
		rc = replace(image, &dir, index, b, err);
	directory_free(image, &dir);
	return rc;
}

int q2_bitmaps_check_size(struct qcow2_image *image, uint64_t size, struct qcow2_error *err)
{
	uint32_t count = 0;
	int rc = qcow2_image_bitmap_count(image, &count, err);
	for (uint32_t i = 0; i < count && !rc; i++) {
		struct qcow2_bitmap b;
		struct q2_bitmap_pages bits = {0};
		rc = usable(image, i, &b, err);
		if (!rc)
			rc = q2_bitmap_pages_load(image, &b, &bits, err);
		q2_bitmap_pages_free(&bits);
		if (!rc)
			rc = check_room(size, b.granularity, err);
	}
	return rc;
}

/* The bits and the table of one bitmap for a disk of `size` bytes; what only the old table names is to be freed. */
static int fit(struct qcow2_image *image, struct directory *dir, struct qcow2_bitmap *b, uint64_t size,
	       struct qcow2_error *err)
{
	struct q2_bitmap_pages bits = {0};
	int rc = q2_bitmap_pages_load(image, b, &bits, err);
	uint32_t kept =
		q2_bitmap_pages_entries(image, q2_min(size, image->meta.header.size), bits.granularity_bits);
	for (uint32_t p = kept; p < bits.entries && !rc; p++)
		if (bits.table[p] & Q2_OFFSET_MASK)
			rc = push_span(&dir->freed,
				       (bits.table[p] & Q2_OFFSET_MASK) >> image->meta.geo.cluster_bits, 1,
				       err);
	if (!rc)
		rc = q2_bitmap_pages_resize(image, &bits, size, err);
	if (!rc)
		rc = write_bits(image, dir, b, &bits, err);
	q2_bitmap_pages_free(&bits);
	return rc;
}

int q2_bitmaps_resize(struct qcow2_image *image, uint64_t size, struct qcow2_error *err)
{
	struct directory dir = {0};
	uint32_t count = 0;
	int rc = qcow2_image_bitmap_count(image, &count, err);
	for (uint32_t i = 0; i < count && !rc; i++) {
		struct qcow2_bitmap b;
		rc = qcow2_image_bitmap(image, i, &b, err);
		if (!rc)
			rc = fit(image, &dir, &b, size, err);
		if (!rc)
			rc = append_entry(&dir, &b, err);
	}
	if (!rc && count) {
		rc = install(image, &dir, size, err);
	} else if (!rc) {
		image->meta.header.size = size;
		rc = q2_writeback_header(&image->meta, err);
	}
	directory_free(image, &dir);
	return rc;
}

int qcow2_image_bitmap_change(struct qcow2_image *image, uint32_t index, uint64_t offset, uint64_t length,
			      bool dirty, struct qcow2_error *err)
{
	struct qcow2_bitmap b = {0};
	struct q2_bitmap_pages bits = {0};
	int rc = begin(image, err);
	if (!rc && !q2_fits(offset, length, image->size))
		rc = q2_error_set(err, QCOW2_E_RANGE, offset, "Range lies outside the disk");
	if (!rc)
		rc = usable(image, index, &b, err);
	if (!rc)
		rc = q2_bitmap_pages_load(image, &b, &bits, err);
	if (!rc)
		rc = q2_bitmap_pages_change(image, &bits, offset, length, dirty, err);
	if (!rc)
		rc = rewrite(image, index, &b, &bits, err);
	q2_bitmap_pages_free(&bits);
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_bitmap_merge(struct qcow2_image *image, uint32_t index, struct qcow2_image *source,
			     uint32_t source_index, struct qcow2_error *err)
{
	struct qcow2_bitmap b = {0}, from = {0};
	struct q2_bitmap_pages bits = {0};
	int rc = begin(image, err);
	if (!rc)
		rc = usable(source, source_index, &from, err);
	if (!rc)
		rc = usable(image, index, &b, err);
	if (!rc && source->size != image->size)
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				  "Bitmaps of disks of %" PRIu64 " and %" PRIu64 " bytes cannot be merged",
				  source->size, image->size);
	if (!rc)
		rc = q2_bitmap_pages_load(image, &b, &bits, err);
	for (uint64_t at = 0; !rc && at < source->size;) {
		bool dirty;
		uint64_t length;
		rc = qcow2_image_bitmap_extent(source, source_index, at, source->size - at, &dirty, &length,
					       err);
		if (!rc && dirty)
			rc = q2_bitmap_pages_change(image, &bits, at, length, true, err);
		at += rc ? 0 : length;
	}
	if (!rc)
		rc = rewrite(image, index, &b, &bits, err);
	q2_bitmap_pages_free(&bits);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
