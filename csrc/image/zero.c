/* SPDX-License-Identifier: MIT
 * Zeros without data: zero and discard, by entries where the format can say it, by written zeros where not. */
#include "image/image.h"
#include "meta/map_edit.h"

#include <inttypes.h>

/* Explicit zeros are written in pieces of this. */
enum { ZERO_PIECE = 1 << 20 };

static int write_zeros(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	size_t room = q2_min(length, ZERO_PIECE);
	q2_auto uint8_t *zeros = q2_new(room, 1);
	if (!zeros)
		return q2_error_nomem(err);
	for (int rc; length; offset += room, length -= room) {
		room = q2_min(length, room);
		rc = qcow2_image_write(image, offset, zeros, room, err);
		if (rc)
			return rc;
	}
	return 0;
}

/* What becomes of clusters whose bytes go. */
enum zeroing {
	KEEP,  /* zeros; the space stays theirs */
	OWN,   /* the same, also where nothing but the backing file is zeros */
	UNMAP, /* zeros; the space is freed */
	EMPTY, /* nothing is said of them any more; the space is freed */
};

static bool frees(enum zeroing fate)
{
	return fate == UNMAP || fate == EMPTY;
}

/* The entry for the cluster of `old`. *release: `old` lets go of its clusters. */
static void new_entry(const struct qcow2_image *image, const struct q2_entry *old, enum zeroing fate,
		      uint64_t *word, uint64_t *bitmap, bool *release)
{
	const struct q2_geometry *g = &image->meta.geo;
	/* A compressed stream cannot stay under a zero cluster. */
	*release = old->has_host && (frees(fate) || old->compressed);
	uint64_t keep = *release ? 0 : old->raw & (Q2_OFFSET_MASK | Q2_COPIED);
	bool zero = fate != EMPTY;
	*word = keep | (zero && !g->extended_l2 ? Q2_ZERO : 0);
	*bitmap = zero && g->extended_l2 ? (uint64_t)UINT32_MAX << 32 : 0;
}

/* Gives the range of the external data file back to the host once the entries no longer need it. */
static int punch_later(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	struct q2_vec *list = &image->meta.pending_punch;
	struct q2_span *last = list->count ? (struct q2_span *)list->items + list->count - 1 : NULL;
	if (last && last->start + last->count == offset) {
		last->count += length;
		return 0;
	}
	struct q2_span *span = q2_vec_push(list, sizeof *span);
	if (!span)
		return q2_error_nomem(err);
	*span = (struct q2_span){offset, length};
	return 0;
}

/* Does the run need nothing done? */
static bool is_done(const struct qcow2_image *image, const struct q2_run *run, enum zeroing fate)
{
	bool has_backing = image->backing || image->backing_name.data;
	if (run->has_host && frees(fate))
		return false;
	return run->kind == Q2_SUB_UNALLOCATED ? fate == EMPTY || (fate != OWN && !has_backing)
					       : run->kind == Q2_SUB_ZERO && fate != EMPTY;
}

/* Changes the entries of whole clusters [start, end), by runs. */
static int change_clusters(struct qcow2_image *image, uint64_t start, uint64_t end, enum zeroing fate,
			   struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	while (start < end) {
		int rc = q2_edit_begin(image, err);
		struct q2_run run;
		if (!rc)
			rc = q2_map_find(&image->map, q2_guest_at(start), end - start, &run, err);
		if (rc)
			return rc;
		bool done = run.length >= g->cluster_size && is_done(image, &run, fate);
		/* Clusters that hold nothing may have a place all the same. */
		if (done && g->extended_l2 && run.kind == Q2_SUB_UNALLOCATED && frees(fate)) {
			rc = q2_map_placeless(&image->map, q2_guest_at(start), run.length, &run.length, err);
			if (rc)
				return rc;
			done = run.length >= g->cluster_size;
		}
		if (done) {
			start += q2_round_down(run.length, g->cluster_size);
			continue;
		}
		uint8_t *entry;
		uint32_t left;
		rc = q2_map_edit_edit(&image->map, q2_guest_at(start), &entry, &left, err);
		if (rc)
			return rc;
		for (; left && start < end; left--, start += g->cluster_size, entry += g->l2_entry_size) {
			struct q2_entry old = q2_map_edit_get(g, entry);
			uint64_t word, bitmap;
			bool release;
			new_entry(image, &old, fate, &word, &bitmap, &release);
			if (release)
				rc = q2_map_edit_release(&image->map, &old, err);
			if (!rc && release && g->external_data)
				rc = punch_later(image, start, g->cluster_size, err);
			if (rc)
				return q2_writeback_fail(meta, rc, err);
			q2_map_edit_put(g, entry, word, bitmap);
		}
		meta->punch_freed |= frees(fate);
	}
	return 0;
}

int q2_unmap_check(struct qcow2_image *image, uint64_t start, uint64_t end, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	unsigned bits = meta->geo.cluster_bits;
	while (start < end) {
		struct q2_run run;
		int rc = q2_map_find(&image->map, q2_guest_at(start), end - start, &run, err);
		if (!rc && run.has_host && !meta->geo.external_data) {
			uint64_t length = run.kind == Q2_SUB_COMPRESSED ? run.host_length : run.length;
			uint64_t first = run.host.v >> bits;
			rc = q2_map_edit_check(meta, first, ((run.host.v + length - 1) >> bits) - first + 1,
					       err);
		}
		if (rc)
			return rc;
		start += run.length;
	}
	return 0;
}

int q2_unmap_clusters(struct qcow2_image *image, uint64_t start, uint64_t end, struct qcow2_error *err)
{
	return change_clusters(image, start, end, EMPTY, err);
}

/* What the entries of L1 entry `index` hold is let go of, and the table with them. */
static int unmap_table(struct qcow2_image *image, uint64_t index, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	uint64_t guest = index << (g->cluster_bits + g->l2_bits);
	int rc = q2_edit_begin(image, err);
	for (uint64_t end = guest + (1ull << (g->cluster_bits + g->l2_bits)); !rc && guest < end;
	     guest += g->cluster_size) {
		uint64_t word, bitmap;
		q2_host at;
		rc = q2_map_entry(&image->map, q2_guest_at(guest), &word, &bitmap, &at, err);
		struct q2_entry old = {0};
		if (!rc)
			old = q2_entry_decode(g, word, bitmap);
		if (!rc && old.has_host)
			rc = q2_map_edit_release(&image->map, &old, err);
		if (!rc && old.has_host && g->external_data)
			rc = punch_later(image, guest, g->cluster_size, err);
	}
	if (!rc)
		rc = q2_map_edit_drop_table(&image->map, index, err);
	meta->punch_freed = true;
	return rc ? q2_writeback_fail(meta, rc, err) : 0;
}

int q2_unmap_tables(struct qcow2_image *image, uint64_t start, uint64_t end, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	unsigned bits = g->cluster_bits + g->l2_bits;
	/* The table that `start` lies in has entries before it; one that the disk ended in has none behind its end. */
	uint64_t first = q2_div_up(start, 1ull << bits), tables = q2_div_up(end, 1ull << bits);
	int rc = q2_unmap_clusters(image, start, q2_min(end, first << bits), err);
	for (uint64_t i = first; i < tables && !rc; i++)
		if (image->map.l1[i] & Q2_OFFSET_MASK)
			rc = unmap_table(image, i, err);
	return rc;
}

/* Sets the zero bits of subclusters [from, to) inside one cluster. needs: extended L2, not compressed, the
 * cluster unallocated or ours alone. */
static int zero_subclusters(struct qcow2_image *image, uint64_t from, uint64_t to, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t cluster = q2_round_down(from, g->cluster_size);
	uint8_t *entry;
	uint32_t left;
	int rc = q2_map_edit_edit(&image->map, q2_guest_at(cluster), &entry, &left, err);
	if (rc)
		return rc;
	struct q2_entry old = q2_map_edit_get(g, entry);
	uint32_t mask = 0;
	for (uint64_t at = from - cluster; at < to - cluster; at += 1ull << g->subcluster_bits)
		mask |= 1u << (at >> g->subcluster_bits);
	q2_map_edit_put(g, entry, old.raw, (uint64_t)(old.zero | mask) << 32 | (old.alloc & ~mask));
	return 0;
}

/* Zeros in a part of one cluster. */
static int zero_part(struct qcow2_image *image, uint64_t from, uint64_t to, unsigned flags,
		     struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	bool zero = false;
	int rc = 0;
	if (!(flags & QCOW2_ZERO_OWN))
		rc = q2_edit_reads_zero(image, from, to - from, &zero, err);
	if (rc || zero)
		return rc;
	uint64_t word, bitmap;
	q2_host at;
	rc = q2_map_entry(&image->map, q2_guest_at(from), &word, &bitmap, &at, err);
	if (rc)
		return rc;
	struct q2_entry e = q2_entry_decode(g, word, bitmap);
	uint64_t sub = 1ull << g->subcluster_bits, low = q2_round_up(from, sub);
	/* The disk's end stands for the end of its last subcluster. */
	uint64_t high = to == image->size ? q2_round_up(to, sub) : q2_round_down(to, sub);
	bool own = !e.compressed && (!e.has_host || g->external_data || (word & Q2_COPIED));
	if (!g->extended_l2 || !own || low >= high)
		return write_zeros(image, from, to - from, err);
	if (low > from)
		rc = write_zeros(image, from, low - from, err);
	if (!rc)
		rc = zero_subclusters(image, low, high, err);
	if (!rc && to > high)
		rc = write_zeros(image, high, to - high, err);
	return rc;
}

/* A raw external data file is the disk: zeros have to be there, and need be nowhere else. */
static int zero_raw_data(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	uint64_t file;
	struct qcow2_store *data = q2_edit_data(image);
	int rc = qcow2_store_length(data, &file, err);
	if (!rc && offset < file)
		rc = qcow2_store_punch(data, offset, q2_min(length, file - offset), err);
	return rc;
}

static int check_range(const struct qcow2_image *image, uint64_t offset, uint64_t length,
		       struct qcow2_error *err)
{
	if (q2_fits(offset, length, image->size))
		return 0;
	return q2_error_set(err, QCOW2_E_RANGE, offset,
			    "Range at %" PRIu64 " of %" PRIu64 " bytes lies outside the disk of %" PRIu64
			    " bytes",
			    offset, length, image->size);
}

int qcow2_image_zero(struct qcow2_image *image, uint64_t offset, uint64_t length, unsigned flags,
		     struct qcow2_error *err)
{
	int rc = check_range(image, offset, length, err);
	if (!rc)
		rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	if (rc || !length)
		return rc ? q2_image_blame(image, rc, err) : 0;
	if (image->raw || q2_data_file_is_raw(image)) {
		rc = zero_raw_data(image, offset, length, err);
		return rc ? q2_image_blame(image, rc, err) : 0;
	}
	bool has_backing = image->backing || image->backing_name.data || (flags & QCOW2_ZERO_OWN);
	enum zeroing fate = flags & QCOW2_ZERO_OWN ? OWN : flags & QCOW2_ZERO_UNMAP ? UNMAP : KEEP;
	if (image->meta.geo.version2 && has_backing)
		return write_zeros(image, offset, length, err);

	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t end = offset + length;
	uint64_t low = q2_round_up(offset, cluster_size);
	uint64_t high = end == image->size ? q2_round_up(end, cluster_size)
					   : q2_round_down(end, cluster_size);
	if (low > high) /* inside one cluster */
		rc = zero_part(image, offset, end, flags, err);
	else {
		if (offset < low)
			rc = zero_part(image, offset, q2_min(low, end), flags, err);
		if (!rc && image->meta.geo.version2)
			rc = q2_unmap_clusters(image, low, high, err);
		else if (!rc)
			rc = change_clusters(image, low, high, fate, err);
		if (!rc && high < end)
			rc = zero_part(image, high, end, flags, err);
	}
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int qcow2_image_discard(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	int rc = check_range(image, offset, length, err);
	if (!rc)
		rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	if (rc || !length)
		return rc ? q2_image_blame(image, rc, err) : 0;
	if (image->raw || q2_data_file_is_raw(image)) {
		rc = zero_raw_data(image, offset, length, err);
		return rc ? q2_image_blame(image, rc, err) : 0;
	}
	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t end = offset + length;
	uint64_t low = q2_round_up(offset, cluster_size);
	uint64_t high = end == image->size ? q2_round_up(end, cluster_size)
					   : q2_round_down(end, cluster_size);
	bool has_backing = image->backing || image->backing_name.data;
	if (low >= high || (image->meta.geo.version2 && has_backing))
		return 0;
	/* Without a backing file an unallocated cluster reads as zeros; with one the entry has to say so. */
	if (has_backing)
		rc = change_clusters(image, low, high, UNMAP, err);
	else
		rc = q2_unmap_clusters(image, low, high, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
