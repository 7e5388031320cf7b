/* SPDX-License-Identifier: MIT
 * Internalize: the clusters of an external data file move into the image file.
 *
 * Data is copied to fresh clusters, new L2 tables and a new L1 table name them, nothing of the old is touched; one
 * switch of the header makes it true. The data file is only read, and stays. */
#include "base/be.h"
#include "image/header_cluster.h"
#include "image/image_job.h"
#include "store/store.h"

#include <inttypes.h>

/* Bytes that are copied between two looks at the clock. */
enum { MOST_AT_ONCE = 8 << 20 };

struct inward {
	struct q2_image_job job;
	uint32_t index;      /* L1 entry that is worked on */
	uint32_t next;       /* L2 entry that comes next, when `loaded` */
	bool loaded;         /* `old` has the table */
	uint8_t *old, *new;  /* one L2 table each */
	uint64_t *l1;        /* the new table, host order */
	struct q2_vec taken; /* struct q2_span: fresh clusters, given back when it comes to nothing */
	bool switched;
};

static int take(struct inward *in, uint64_t want, bool exact, uint64_t *start, uint64_t *got,
		struct qcow2_error *err)
{
	struct q2_meta *meta = &in->job.image->meta;
	int rc = q2_alloc(meta, want, exact, start, got, err);
	if (rc)
		return rc;
	rc = q2_span_push(&in->taken, *start, *got, err);
	if (rc)
		q2_alloc_abandon(meta, *start, *got, NULL);
	return rc;
}

/* Refuses what cannot be followed; otherwise the entry's data, if any, lies at its guest offset. */
static int check_entry(const struct q2_entry *e, uint64_t guest, struct qcow2_error *err)
{
	if (!e->compressed && !e->invalid && (!e->has_host || e->host.v == guest))
		return 0;
	return q2_error_set(err, QCOW2_E_CORRUPT, guest,
			    "L2 entry %#" PRIx64 " of guest offset %#" PRIx64
			    " does not refer to its place in the data file (verify says more)",
			    e->raw, guest);
}

/* The entry of a cluster whose bytes the host has a hole for, or that has none: zeros need no place. */
static void put_empty(struct inward *in, uint32_t j, const struct q2_entry *e)
{
	const struct q2_geometry *g = &in->job.image->meta.geo;
	bool backed = in->job.image->backing_name.data;
	uint32_t zero = backed ? e->zero | e->alloc : e->zero;
	uint8_t *entry = in->new + (size_t)j * g->l2_entry_size;
	q2_entry_store(g, entry, zero && !g->extended_l2 ? Q2_ZERO : 0, (uint64_t)zero << 32);
}

/* How many clusters from entry `j` on have data in the file, or (*is_data false) have none. */
static int find_run(struct inward *in, uint32_t j, uint64_t guest, uint32_t *count, bool *is_data,
		    struct qcow2_error *err)
{
	struct qcow2_image *image = in->job.image;
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t run = 0;
	*count = 0;
	for (; j + *count < 1u << g->l2_bits && guest < image->size; guest += g->cluster_size) {
		struct q2_entry e = q2_entry_load(g, in->old + (size_t)(j + *count) * g->l2_entry_size);
		int rc = check_entry(&e, guest, err);
		bool data = e.alloc != 0;
		/* The host is asked once for a whole stretch. */
		if (!rc && data && run < g->cluster_size) {
			rc = qcow2_store_extent(image->data, guest, image->size - guest, &data, &run, err);
			/* A cluster that is data in part is data. */
			data = data || run < q2_min(g->cluster_size, image->size - guest);
			run = data ? q2_round_up(run, g->cluster_size) : run;
			if (!data && run < image->size - guest)
				run = q2_round_down(run, g->cluster_size);
		} else if (data) {
			data = *is_data;
		}
		if (rc)
			return rc;
		if (*count && data != *is_data)
			return 0;
		*is_data = data;
		++*count;
		run -= q2_min(run, g->cluster_size);
		if ((uint64_t)*count << g->cluster_bits >= MOST_AT_ONCE)
			return 0;
	}
	return 0;
}

/* Copies `count` clusters from entry `j` on into fresh ones. gives: *done of them. */
static int copy_run(struct inward *in, uint32_t j, uint64_t guest, uint32_t count, uint32_t *done,
		    struct qcow2_error *err)
{
	struct qcow2_image *image = in->job.image;
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t start, got;
	int rc = take(in, count, false, &start, &got, err);
	if (rc)
		return rc;
	uint64_t bytes = q2_min(got << g->cluster_bits, image->size - guest), host = start << g->cluster_bits;
	rc = q2_store_copy(image->data, guest, image->store, host, bytes, err);
	/* The rest of the disk's last cluster may have bytes of whoever had the place before. */
	if (!rc && bytes < got << g->cluster_bits) {
		q2_auto uint8_t *zeros = q2_new(g->cluster_size, 1);
		rc = zeros ? qcow2_store_write(image->store, host + bytes, zeros,
					       (got << g->cluster_bits) - bytes, err)
			   : q2_error_nomem(err);
	}
	for (uint32_t i = 0; i < got && !rc; i++) {
		size_t at = (size_t)(j + i) * g->l2_entry_size;
		struct q2_entry e = q2_entry_load(g, in->old + at);
		q2_entry_store(g, in->new + at, (host + ((uint64_t)i << g->cluster_bits)) | Q2_COPIED,
			       (uint64_t)e.zero << 32 | e.alloc);
	}
	*done = (uint32_t)got;
	return rc;
}

/* Reads the next old table. */
static int load(struct inward *in, struct qcow2_error *err)
{
	struct qcow2_image *image = in->job.image;
	uint64_t at = image->map.l1[in->index] & Q2_OFFSET_MASK;
	uint32_t size = image->meta.geo.cluster_size;
	memset(in->new, 0, size);
	in->next = 0;
	in->loaded = true;
	int rc = q2_meta_bound(&image->meta, "L2 table", at, size, err);
	return rc ? rc : qcow2_store_read(image->store, at, in->old, size, err);
}

/* Writes the new table, when it says anything. */
static int store(struct inward *in, struct qcow2_error *err)
{
	struct qcow2_image *image = in->job.image;
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t start, got;
	in->loaded = false;
	if (!in->new[0] && !memcmp(in->new, in->new + 1, g->cluster_size - 1))
		return 0;
	int rc = take(in, 1, true, &start, &got, err);
	if (rc)
		return rc;
	q2_live_metadata_add(&image->meta.live, start, 1);
	in->l1[in->index] = start << g->cluster_bits | Q2_COPIED;
	rc = qcow2_store_write(image->store, start << g->cluster_bits, in->new, g->cluster_size, err);
	return rc;
}

/* After the switch: the old tables are free, and the name of the data file goes. */
static int forget_old(struct inward *in, uint64_t old_at, const uint64_t *old, uint32_t entries,
		      struct qcow2_error *err)
{
	struct qcow2_image *image = in->job.image;
	struct q2_meta *meta = &image->meta;
	unsigned bits = meta->geo.cluster_bits;
	struct q2_header_cluster head = {0};
	int rc = 0;
	if (entries)
		rc = q2_alloc_release(meta, old_at >> bits, q2_div_up(entries * 8ull, meta->geo.cluster_size),
				      err);
	for (uint32_t i = 0; i < entries && !rc; i++)
		if (old[i] & Q2_OFFSET_MASK)
			rc = q2_alloc_release(meta, (old[i] & Q2_OFFSET_MASK) >> bits, 1, err);
	if (!rc)
		rc = q2_writeback_flush(meta, err);
	if (!rc)
		rc = q2_header_cluster_load(image, &head, err);
	if (!rc)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_DATA_FILE, NULL, 0, err);
	if (!rc)
		rc = q2_header_cluster_store(image, &head, err);
	q2_header_cluster_free(&head);
	return rc;
}

static int finish(struct inward *in, struct qcow2_error *err)
{
	struct qcow2_image *image = in->job.image;
	struct q2_meta *meta = &image->meta;
	uint32_t entries = image->map.l1_entries;
	uint64_t clusters = q2_div_up(entries * 8ull, meta->geo.cluster_size), start = 0, got;
	q2_auto uint64_t *raw = q2_new(clusters << meta->geo.cluster_bits, 1);
	int rc = raw ? 0 : q2_error_nomem(err);
	if (!rc && clusters)
		rc = take(in, clusters, true, &start, &got, err);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < entries; i++)
		raw[i] = htobe64(in->l1[i]);
	if (clusters) {
		q2_live_metadata_add(&meta->live, start, clusters);
		rc = qcow2_store_write(image->store, start << meta->geo.cluster_bits, raw,
				       clusters << meta->geo.cluster_bits, err);
	}
	if (!rc)
		rc = q2_writeback_in_time(meta, err);
	if (rc)
		return rc;
	meta->header.incompatible_features &= ~(uint64_t)Q2_INCOMPATIBLE_DATA_FILE;
	meta->header.autoclear_features &= ~(uint64_t)Q2_AUTOCLEAR_DATA_FILE_RAW;
	meta->header.l1_table_offset = start << meta->geo.cluster_bits;
	in->switched = true; /* also when it fails: what is on disk then is unknown */
	rc = q2_writeback_header(meta, err);
	if (rc)
		return rc;
	q2_auto uint64_t *old = image->map.l1;
	uint64_t old_at = image->map.l1_offset;
	image->map.l1 = q2_take(&in->l1);
	image->map.l1_offset = meta->header.l1_table_offset;
	qcow2_store_unref(image->data);
	image->data = NULL;
	q2_writeback_attach(meta, NULL);
	q2_header_geometry(&meta->header, &meta->geo);
	q2_cache_drop(&meta->cache);
	return forget_old(in, old_at, old, entries, err);
}

static int step(struct q2_image_job *job, struct qcow2_error *err)
{
	struct inward *in = (struct inward *)job;
	struct qcow2_image *image = job->image;
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t deadline = q2_image_job_deadline();
	int rc = 0;
	while (!rc && in->index < image->map.l1_entries) {
		uint64_t first = (uint64_t)in->index << (g->cluster_bits + g->l2_bits);
		if (!in->loaded && (image->map.l1[in->index] & Q2_OFFSET_MASK))
			rc = load(in, err);
		uint64_t guest = first + ((uint64_t)in->next << g->cluster_bits);
		uint32_t count = 0;
		bool is_data = false;
		if (!rc && in->loaded)
			rc = find_run(in, in->next, guest, &count, &is_data, err);
		if (!rc && count && is_data)
			rc = copy_run(in, in->next, guest, count, &count, err);
		for (uint32_t i = 0; !rc && !is_data && i < count; i++) {
			struct q2_entry e =
				q2_entry_load(g, in->old + (size_t)(in->next + i) * g->l2_entry_size);
			put_empty(in, in->next + i, &e);
		}
		in->next += count;
		job->done = q2_min(guest + ((uint64_t)count << g->cluster_bits), job->total);
		if (!rc && !count) { /* no table, its end, or the disk's */
			if (in->loaded)
				rc = store(in, err);
			in->index++;
			in->next = 0;
		}
		if (!rc && q2_cache_is_full(&image->meta.cache))
			rc = q2_writeback(&image->meta, err);
		if (!rc && q2_image_job_late(deadline))
			return 1;
	}
	return rc ? rc : finish(in, err);
}

static void inward_free(struct q2_image_job *job)
{
	struct inward *in = (struct inward *)job;
	struct q2_meta *meta = &job->image->meta;
	for (size_t i = 0; i < in->taken.count && !in->switched && !meta->failure.code; i++) {
		const struct q2_span *span = (struct q2_span *)in->taken.items + i;
		q2_alloc_abandon(meta, span->start, span->count, NULL);
	}
	q2_vec_free(&in->taken);
	free(in->old);
	free(in->new);
	free(in->l1);
	free(in);
}

static int prepare(struct inward *in, struct qcow2_error *err)
{
	struct qcow2_image *image = in->job.image;
	struct qcow2_store *data;
	int rc = q2_edit_tables(image, err);
	if (!rc && (image->raw || !image->meta.geo.external_data))
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "The image has no external data file");
	if (!rc)
		rc = q2_image_data_store(image, &data, err);
	if (!rc)
		rc = q2_track_end(image, err);
	if (!rc)
		rc = q2_writeback_flush(&image->meta, err);
	if (!rc)
		rc = q2_map_load(&image->map, err);
	if (rc)
		return rc;
	in->old = q2_new_pages(image->meta.geo.cluster_size);
	in->new = q2_new_pages(image->meta.geo.cluster_size);
	in->l1 = q2_new(image->map.l1_entries, sizeof *in->l1);
	return in->old && in->new && in->l1 ? 0 : q2_error_nomem(err);
}

int qcow2_internalize_new(struct qcow2_image *image, struct qcow2_job **out, struct qcow2_error *err)
{
	static const struct q2_image_job_ops ops = {step, inward_free};
	struct inward *in = q2_new(1, sizeof *in);
	if (!in)
		return q2_error_nomem(err);
	in->job = (struct q2_image_job){.base = {&q2_image_job_kind},
					.ops = &ops,
					.image = qcow2_image_ref(image),
					.total = image->size};
	return q2_image_job_ready(&in->job, q2_image_blame(image, prepare(in, err), err), out, err);
}
