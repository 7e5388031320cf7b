/* SPDX-License-Identifier: MIT
 * Guest writes: in place where the cluster is ours alone, else into new clusters that are then linked.
 *
 * Clusters of a request are taken in *spans*: consecutive ones that go to one contiguous stretch of the file,
 * so a span is one allocation, one refcount update and few I/Os. Only a span's first and last cluster can be
 * written in part; those are *edges*, whose untouched bytes are composed from what the guest saw before. */
#include "image/image.h"
#include "meta/map_edit.h"

#include <inttypes.h>

/* A stretch of consecutive guest clusters that share their fate. */
struct span {
	uint64_t first; /* guest offset of the first cluster */
	uint64_t count; /* clusters */
	bool keep;      /* their host clusters stay (they are ours alone) */
	q2_host host;   /* of the first */
};

/* What an edge's entry becomes. */
struct edge {
	uint64_t guest; /* cluster offset; UINT64_MAX: no edge */
	uint64_t bitmap;
};

static int entry_of(struct qcow2_image *image, uint64_t cluster, struct q2_entry *e, struct qcow2_error *err)
{
	uint64_t word, bitmap;
	q2_host at;
	int rc = q2_map_entry(&image->map, q2_guest_at(cluster), &word, &bitmap, &at, err);
	if (rc)
		return rc;
	*e = q2_entry_decode(&image->meta.geo, word, bitmap);
	/* The map's judgement of the entry, for the error. */
	struct q2_run run;
	return q2_map_find(&image->map, q2_guest_at(cluster), 1, &run, err);
}

/* Is the entry's host cluster this disk's alone, so that it can be written in place? */
static bool is_own(const struct qcow2_image *image, const struct q2_entry *e)
{
	return e->has_host && !e->compressed && (image->meta.geo.external_data || (e->raw & Q2_COPIED));
}

/* The span that begins with the cluster of `offset`, within `length` bytes from `offset` on. */
static int find_span(struct qcow2_image *image, uint64_t offset, uint64_t length, struct span *span,
		     struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t cluster = q2_round_down(offset, g->cluster_size), end = offset + length;
	struct q2_entry e;
	int rc = entry_of(image, cluster, &e, err);
	if (rc)
		return rc;
	*span = (struct span){.first = cluster, .count = 1, .keep = is_own(image, &e), .host = e.host};
	while (span->first + (span->count << g->cluster_bits) < end) {
		uint64_t next = span->first + (span->count << g->cluster_bits);
		/* A wrong entry ends the span; the next call gets its error. */
		if (entry_of(image, next, &e, NULL) || is_own(image, &e) != span->keep)
			break;
		if (span->keep && e.host.v != span->host.v + (span->count << g->cluster_bits))
			break;
		span->count++;
	}
	return 0;
}

/*
 * Writes one edge: guest bytes [from, to) of the cluster `guest` come from `buf`, the rest of the subclusters
 * they touch from what the guest saw; subclusters not touched are brought along when the cluster moves.
 * `virgin`: the host cluster was never written. gives: the new subcluster bitmap.
 */
static int write_edge(struct qcow2_image *image, uint64_t guest, q2_host host, bool keep, bool virgin,
		      uint64_t from, uint64_t to, const uint8_t *buf, struct edge *edge,
		      struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t sub_size = 1ull << g->subcluster_bits;
	struct q2_entry e;
	int rc = entry_of(image, guest, &e, err);
	if (rc)
		return rc;
	uint64_t low = q2_round_down(from - guest, sub_size), high = q2_round_up(to - guest, sub_size);
	if (e.compressed) {
		low = 0;
		high = g->cluster_size;
	}
	/* A data file ends with the disk: what lies behind it there is nobody's. */
	if (g->external_data)
		high = q2_min(high, q2_max(image->size, to) - guest);
	/* Zeros around the bytes need not be written where the file has zeros already. */
	bool zero = false;
	if (virgin)
		rc = q2_edit_reads_zero(image, guest + low, high - low, &zero, err);
	if (rc)
		return rc;
	if (zero) {
		rc = qcow2_store_write(q2_edit_data(image), host.v + (from - guest), buf, to - from, err);
	} else {
		q2_auto uint8_t *bytes = q2_new_pages(high - low);
		if (!bytes)
			return q2_error_nomem(err);
		rc = q2_edit_read(image, guest + low, bytes, from - (guest + low), err);
		if (!rc)
			rc = q2_edit_read(image, to, bytes + (to - guest - low), guest + high - to, err);
		if (rc)
			return rc;
		memcpy(bytes + (from - guest - low), buf, to - from);
		rc = qcow2_store_write(q2_edit_data(image), host.v + low, bytes, high - low, err);
	}
	if (rc)
		return rc;
	edge->guest = guest;
	uint32_t alloc = keep ? e.alloc : 0;
	for (unsigned s = 0; s < g->subclusters; s++) {
		uint64_t at = (uint64_t)s << g->subcluster_bits;
		bool touched = at >= low && at < high;
		if (!touched && !keep && q2_entry_sub(&e, s) == Q2_SUB_DATA) {
			q2_auto uint8_t *bytes = q2_new_pages(sub_size);
			if (!bytes)
				return q2_error_nomem(err);
			rc = qcow2_store_read(image->store, e.host.v + at, bytes, sub_size, err);
			if (!rc)
				rc = qcow2_store_write(q2_edit_data(image), host.v + at, bytes, sub_size,
						       err);
			if (rc)
				return rc;
			touched = true;
		}
		if (touched) {
			alloc |= 1u << s;
			e.zero &= ~(1u << s);
		}
	}
	edge->bitmap = e.compressed ? alloc : (uint64_t)e.zero << 32 | alloc;
	return 0;
}

/* Writes the request's bytes of the span: the edges composed, what is between them straight from `buf`. */
static int write_span(struct qcow2_image *image, const struct span *span, bool virgin, uint64_t offset,
		      const uint8_t *buf, uint64_t length, struct edge edges[2], struct qcow2_error *err)
{
	uint32_t cluster_size = image->meta.geo.cluster_size;
	uint64_t at = offset, end = offset + length, last = q2_round_down(end - 1, cluster_size);
	int rc = 0;
	edges[0].guest = edges[1].guest = UINT64_MAX;
	/* The disk's last cluster may be cut off by its end: then its rest belongs to nobody. */
	bool cut = end - last < cluster_size;
	if (at > span->first) {
		uint64_t to = q2_min(end, span->first + cluster_size);
		rc = write_edge(image, span->first, span->host, span->keep, virgin, at, to, buf, &edges[0],
				err);
		at = to;
	}
	uint64_t middle = cut ? last : end;
	if (!rc && middle > at) {
		uint64_t host = span->host.v + (at - span->first);
		rc = qcow2_store_write(q2_edit_data(image), host, buf + (at - offset), middle - at, err);
		at = middle;
	}
	if (!rc && at < end)
		rc = write_edge(image, last, q2_host_add(span->host, last - span->first), span->keep, virgin,
				at, end, buf + (at - offset), &edges[1], err);
	return rc;
}

/* Makes the entries of the span say where its data is now. `bitmaps`: of each cluster; NULL: all is there. */
static int link_span(struct qcow2_image *image, const struct span *span, const struct edge edges[2],
		     const uint64_t *bitmaps, struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t all = UINT32_MAX;
	for (uint64_t i = 0; i < span->count;) {
		uint64_t guest = span->first + (i << g->cluster_bits);
		uint8_t *entry;
		uint32_t left;
		int rc = q2_map_edit_edit(&image->map, q2_guest_at(guest), &entry, &left, err);
		if (rc)
			return rc;
		for (; left && i < span->count;
		     left--, i++, entry += g->l2_entry_size, guest += g->cluster_size) {
			struct q2_entry old = q2_map_edit_get(g, entry);
			uint64_t host = span->host.v + (i << g->cluster_bits);
			uint64_t bitmap = guest == edges[0].guest   ? edges[0].bitmap
					  : guest == edges[1].guest ? edges[1].bitmap
					  : bitmaps                 ? bitmaps[i]
								    : all;
			if (!span->keep)
				rc = q2_map_edit_release(&image->map, &old, err);
			if (rc)
				return rc;
			q2_map_edit_put(g, entry, host | Q2_COPIED, bitmap);
		}
	}
	return 0;
}

/* Does anything of the span's entries change by the write? Plain data in place does not. */
static int needs_link(struct qcow2_image *image, const struct span *span, bool *needed,
		      struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t at = span->first, end = span->first + (span->count << g->cluster_bits);
	*needed = !span->keep;
	while (!*needed && at < end) {
		struct q2_run run;
		int rc = q2_map_find(&image->map, q2_guest_at(at), end - at, &run, err);
		if (rc)
			return rc;
		*needed = run.kind != Q2_SUB_DATA || !run.copied;
		at += run.length;
	}
	return 0;
}

/* A range of the data file that is still to be given back must not be written before that is done. */
static int settle_punches(struct qcow2_image *image, uint64_t start, uint64_t length, struct qcow2_error *err)
{
	const struct q2_vec *list = &image->meta.pending_punch;
	for (size_t i = 0; i < list->count; i++) {
		const struct q2_span *span = (struct q2_span *)list->items + i;
		if (q2_overlaps(span->start, span->count, start, length))
			return q2_writeback(&image->meta, err);
	}
	return 0;
}

/* Invariant 6: an entry of a broken image may say that its data lies where metadata lives. */
static int check_guard(const struct qcow2_image *image, const struct span *span, struct qcow2_error *err)
{
	const struct q2_meta *meta = &image->meta;
	uint64_t cluster = span->host.v >> meta->geo.cluster_bits;
	if (meta->geo.external_data || !q2_live_metadata_has(&meta->live, cluster, span->count))
		return 0;
	return q2_error_set(err, QCOW2_E_CORRUPT, span->first,
			    "Guest offset %#" PRIx64 " is mapped to host offset %#" PRIx64
			    ", where metadata lies; the image has to be repaired",
			    span->first, span->host.v);
}

/* Writes what the next span holds of the request. gives: the bytes done. */
static int write_piece(struct qcow2_image *image, uint64_t offset, const uint8_t *buf, uint64_t length,
		       uint64_t *done, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct q2_geometry *g = &meta->geo;
	struct span span;
	bool linked = true, virgin = false;
	int rc = settle_punches(image, offset, length, err);
	if (!rc)
		rc = find_span(image, offset, length, &span, err);
	if (!rc && span.keep)
		rc = check_guard(image, &span, err);
	if (!rc)
		rc = needs_link(image, &span, &linked, err);
	if (rc)
		return rc;
	bool allocate = !span.keep && !g->external_data;
	/* The table before the data, so that a new image has them in this order in the file. */
	if (!span.keep)
		rc = q2_map_edit_table(&image->map, q2_guest_at(span.first), err);
	uint64_t start = 0;
	if (!rc && allocate) {
		uint64_t was_virgin = meta->virgin;
		rc = q2_alloc(meta, span.count, false, &start, &span.count, err);
		span.host = q2_host_at(start << g->cluster_bits);
		virgin = !rc && start >= was_virgin;
	} else if (!span.keep) {
		span.host = q2_host_at(span.first);
	}
	if (rc)
		return rc;
	uint64_t end = q2_min(offset + length, span.first + (span.count << g->cluster_bits));
	*done = end - offset;
	struct edge edges[2];
	if (!linked)
		return qcow2_store_write(q2_edit_data(image), span.host.v + (offset - span.first), buf, *done,
					 err);
	rc = write_span(image, &span, virgin, offset, buf, *done, edges, err);
	if (rc) {
		if (allocate)
			q2_alloc_abandon(meta, start, span.count, NULL);
		return rc;
	}
	rc = link_span(image, &span, edges, NULL, err);
	/* Some entries may point there by now: the rest is leaked, and the image is at its end. */
	return rc ? q2_writeback_fail(meta, rc, err) : 0;
}

int q2_write_place(struct qcow2_image *image, uint64_t offset, uint64_t count, const uint64_t *bitmaps,
		   uint64_t *host, uint64_t *got, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	unsigned bits = meta->geo.cluster_bits;
	struct span span = {.first = offset, .count = count, .host = q2_host_at(offset)};
	const struct edge none[2] = {{UINT64_MAX, 0}, {UINT64_MAX, 0}};
	uint64_t start = 0;
	int rc = q2_map_edit_table(&image->map, q2_guest_at(offset), err);
	if (!rc && !meta->geo.external_data) {
		rc = q2_alloc(meta, count, false, &start, &span.count, err);
		span.host = q2_host_at(start << bits);
	}
	if (rc)
		return rc;
	*host = span.host.v;
	*got = span.count;
	rc = link_span(image, &span, none, bitmaps, err);
	return rc ? q2_writeback_fail(meta, rc, err) : 0;
}

int qcow2_image_write(struct qcow2_image *image, uint64_t offset, const void *buf, size_t length,
		      struct qcow2_error *err)
{
	const uint8_t *from = buf;
	int rc = 0;
	if (!q2_fits(offset, length, image->size))
		rc = q2_error_set(err, QCOW2_E_RANGE, offset,
				  "Write of %zu bytes at %" PRIu64 " lies outside the disk of %" PRIu64
				  " bytes",
				  length, offset, image->size);
	if (!rc)
		rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	while (!rc && length) {
		uint64_t done = length;
		rc = q2_edit_begin(image, err);
		if (!rc && image->raw)
			rc = qcow2_store_write(q2_edit_data(image), offset, from, length, err);
		else if (!rc)
			rc = write_piece(image, offset, from, length, &done, err);
		from += done;
		offset += done;
		length -= done;
	}
	return rc ? q2_image_blame(image, rc, err) : 0;
}
