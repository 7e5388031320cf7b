/* SPDX-License-Identifier: MIT
 * The tables of a new image, each written as one stream through a bounded buffer. */
#include "image/create.h"

#include "base/be.h"
#include "base/mem.h"

#include <string.h>

/* What is written at once: large enough for the host, small beside any image that fills it. */
#define BUFFER ((size_t)1 << 20)

/* The last answer of the data file about its holes: guest bytes [start, end). */
struct scan {
	uint64_t start, end;
	bool is_data;
};

struct writer {
	const struct q2_create *c;
	uint8_t *buffer;
	struct scan scan;
};

/* Puts `count` entries from number `first` on into the buffer. */
typedef int fill_entries(struct writer *w, uint64_t first, uint64_t count, struct qcow2_error *err);

static int write_entries(struct writer *w, uint64_t at, uint64_t count, uint32_t entry_size,
			 fill_entries *fill, struct qcow2_error *err)
{
	for (uint64_t first = 0; first < count;) {
		uint64_t n = q2_min(count - first, BUFFER / entry_size);
		int rc = fill(w, first, n, err);
		if (!rc)
			rc = qcow2_store_write(w->c->store, at + first * entry_size, w->buffer,
					       n * entry_size, err);
		if (rc)
			return rc;
		first += n;
	}
	return 0;
}

static int fill_reftable(struct writer *w, uint64_t first, uint64_t count, struct qcow2_error *err)
{
	(void)err;
	for (uint64_t i = 0; i < count; i++)
		q2_store64(w->buffer + 8 * i, w->c->refblocks_at + ((first + i) << w->c->geo.cluster_bits));
	return 0;
}

static int fill_l1(struct writer *w, uint64_t first, uint64_t count, struct qcow2_error *err)
{
	(void)err;
	for (uint64_t i = 0; i < count; i++)
		q2_store64(w->buffer + 8 * i,
			   Q2_COPIED | (w->c->l2_at + ((first + i) << w->c->geo.cluster_bits)));
	return 0;
}

/* Counts may be smaller than a byte, so they are not entries: the same bytes again and again, and a last
 * piece that stops at the last cluster. */
static int write_refcounts(struct writer *w, struct qcow2_error *err)
{
	const struct q2_create *c = w->c;
	uint64_t per_buffer = (uint64_t)BUFFER * 8 >> c->geo.refcount_order, filled = 0;
	for (uint64_t first = 0; first < c->clusters;) {
		uint64_t n = q2_min(c->clusters - first, per_buffer);
		size_t bytes = (size_t)q2_div_up(n << c->geo.refcount_order, 8);
		if (n != filled) {
			memset(w->buffer, 0, bytes);
			for (uint64_t i = 0; i < n; i++)
				q2_refcount_set(w->buffer, i, c->geo.refcount_order, 1);
			filled = n;
		}
		uint64_t at = c->refblocks_at + (first << c->geo.refcount_order) / 8;
		int rc = qcow2_store_write(c->store, at, w->buffer, bytes, err);
		if (rc)
			return rc;
		first += n;
	}
	return 0;
}

static void put_l2(struct writer *w, uint64_t i, uint64_t word, uint64_t bitmap)
{
	uint8_t *entry = w->buffer + i * w->c->geo.l2_entry_size;
	q2_store64(entry, word);
	if (w->c->geo.extended_l2)
		q2_store64(entry + 8, bitmap);
}

static uint64_t mapped(const struct q2_create *c, uint64_t cluster)
{
	return Q2_COPIED | (c->data_at.v + (cluster << c->geo.cluster_bits));
}

/* Preallocation: every cluster has its place. Its subclusters are not allocated, so that a backing file
 * shows through; but where the data file's bytes are the disk's, they are. */
static int fill_l2(struct writer *w, uint64_t first, uint64_t count, struct qcow2_error *err)
{
	(void)err;
	const struct qcow2_create_options *o = w->c->options;
	uint64_t bitmap = o->data_raw || o->keep_data ? UINT32_MAX : 0;
	for (uint64_t i = 0; i < count; i++)
		put_l2(w, i, mapped(w->c, first + i), bitmap);
	return 0;
}

/* Does the data file have data in [offset, end)? */
static int find_data(struct writer *w, uint64_t offset, uint64_t end, bool *found, struct qcow2_error *err)
{
	struct scan *scan = &w->scan;
	*found = false;
	while (offset < end && !*found) {
		if (offset < scan->start || offset >= scan->end) {
			uint64_t length;
			int rc = qcow2_store_extent(w->c->data, offset, w->c->header.size - offset,
						    &scan->is_data, &length, err);
			if (rc)
				return rc;
			scan->start = offset;
			scan->end = offset + length;
		}
		*found = scan->is_data;
		offset = scan->end;
	}
	return 0;
}

/* A data file that has contents: what is data in it is mapped, its holes become zeros of the table. */
static int fill_l2_from_data(struct writer *w, uint64_t first, uint64_t count, struct qcow2_error *err)
{
	const struct q2_geometry *g = &w->c->geo;
	uint64_t unit = 1ull << g->subcluster_bits;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t at = (first + i) << g->cluster_bits;
		uint32_t alloc = 0, zero = 0;
		for (unsigned sub = 0; sub < g->subclusters; sub++, at += unit) {
			bool found;
			int rc = find_data(w, at, q2_min(at + unit, w->c->header.size), &found, err);
			if (rc)
				return rc;
			*(found ? &alloc : &zero) |= 1u << sub;
		}
		uint64_t word = alloc ? mapped(w->c, first + i) : g->extended_l2 ? 0 : Q2_ZERO;
		put_l2(w, i, word, (uint64_t)zero << 32 | alloc);
	}
	return 0;
}

int q2_create_tables_write(const struct q2_create *c, struct qcow2_error *err)
{
	q2_auto uint8_t *buffer = q2_new_pages(BUFFER);
	if (!buffer)
		return q2_error_nomem(err);
	struct writer w = {.c = c, .buffer = buffer};
	bool scan = c->options->keep_data && !c->options->data_raw && !c->options->keep_holes;
	int rc = write_entries(&w, c->header.refcount_table_offset, c->refblocks, 8, fill_reftable, err);
	if (!rc)
		rc = write_refcounts(&w, err);
	if (!rc)
		rc = write_entries(&w, c->header.l1_table_offset, c->l2_tables, 8, fill_l1, err);
	if (!rc)
		rc = write_entries(&w, c->l2_at, c->guest_clusters, c->geo.l2_entry_size,
				   scan ? fill_l2_from_data : fill_l2, err);
	return rc;
}
