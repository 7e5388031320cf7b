/* SPDX-License-Identifier: MIT
 * Verify: is an external data file, byte for byte, the disk that the guest sees? Every divergence is listed with its
 * cause, and mended in either direction on request.
 *
 * Entries are read raw, since the map refuses the very ones that are looked for. Where an entry is plain data at its
 * place both are the same bytes; where the guest reads zeros the data file is searched for anything else. */
#include "base/be.h"
#include "data/zero.h"
#include "image/image_job.h"

#include <inttypes.h>

enum {
	SECTOR = 512,
	PIECE = 1 << 20,    /* bytes of the data file that are searched at once */
	MOST_KEPT = 100000, /* divergences */
};

struct verify {
	struct q2_image_job job;
	enum qcow2_resync resync;
	uint64_t at;        /* guest offset */
	uint64_t length;    /* of the data file */
	struct q2_vec list; /* struct qcow2_divergence */
	uint64_t found, mended;
	uint8_t *piece;
	bool tail_seen;
};

static const struct {
	const char *word, *meaning;
} causes[QCOW2_CAUSE_COUNT] = {
#define CAUSE(NAME, word, meaning) {word, meaning},
#include "image/divergences.def"
#undef CAUSE
};

const char *qcow2_cause_word(enum qcow2_cause cause, const char **meaning)
{
	if (cause >= QCOW2_CAUSE_COUNT)
		return NULL;
	if (meaning)
		*meaning = causes[cause].meaning;
	return causes[cause].word;
}

/* Does a resync in this direction take care of it? Entries that are wrong by themselves have no contents that the
 * data file could be given. */
static bool mends(enum qcow2_resync resync, enum qcow2_cause cause)
{
	switch (cause) {
	case QCOW2_CAUSE_ZERO:
	case QCOW2_CAUSE_UNALLOCATED:
	case QCOW2_CAUSE_LOST:
	case QCOW2_CAUSE_COPIED:
	case QCOW2_CAUSE_SHORT:
		return resync != QCOW2_RESYNC_NONE;
	case QCOW2_CAUSE_TAIL:
		return resync == QCOW2_RESYNC_DATA;
	case QCOW2_CAUSE_OFFSET:
	case QCOW2_CAUSE_COMPRESSED:
	case QCOW2_CAUSE_INVALID:
		return resync == QCOW2_RESYNC_METADATA;
	case QCOW2_CAUSE_BACKING:
	case QCOW2_CAUSE_COUNT:
		break;
	}
	return false;
}

/* Notes a divergence; one that goes on where the last ended is the same. */
static int note(struct verify *v, enum qcow2_cause cause, uint64_t offset, uint64_t length,
		struct qcow2_error *err)
{
	struct qcow2_divergence *last =
		v->list.count ? (struct qcow2_divergence *)v->list.items + v->list.count - 1 : NULL;
	if (last && last->cause == cause && last->offset + last->length == offset &&
	    v->found == v->list.count) {
		last->length += length;
		return 0;
	}
	v->found++;
	v->mended += mends(v->resync, cause);
	if (v->list.count == MOST_KEPT)
		return 0;
	struct qcow2_divergence *d = q2_vec_push(&v->list, sizeof *d);
	if (!d)
		return q2_error_nomem(err);
	*d = (struct qcow2_divergence){cause, offset, length};
	return 0;
}

/* ---- mending ----------------------------------------------------------------------------------- */

/* The data file gets the zeros that the guest reads. */
static int zero_data(struct verify *v, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	return qcow2_store_punch(v->job.image->meta.data, offset, length, err);
}

/* The cluster's entry says "data, here": the guest reads what the file has. */
static int map_plain(struct verify *v, uint64_t cluster, struct qcow2_error *err)
{
	struct qcow2_image *image = v->job.image;
	const struct q2_map_state here = {.kind = Q2_MAP_DATA, .host = q2_host_at(cluster)};
	uint64_t size = image->meta.geo.cluster_size;
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, cluster, q2_min(size, image->size - cluster), err);
	return rc ? rc : q2_map_set_range(&image->map, cluster, cluster + size, &here, err);
}

/* The cluster's entry gets its COPIED back and says what it said. */
static int set_copied(struct verify *v, uint64_t cluster, struct qcow2_error *err)
{
	struct qcow2_image *image = v->job.image;
	const struct q2_map_state copied = {.kind = Q2_MAP_COPIED};
	int rc = q2_edit_begin(image, err);
	return rc ? rc
		  : q2_map_set_range(&image->map, cluster, cluster + image->meta.geo.cluster_size, &copied,
				     err);
}

/* ---- looking ----------------------------------------------------------------------------------- */

/* The guest reads zeros in the range: where does the data file have something else? *any is set when it does. */
static int search(struct verify *v, enum qcow2_cause cause, uint64_t offset, uint64_t end, bool *any,
		  struct qcow2_error *err)
{
	struct qcow2_store *data = v->job.image->data;
	end = q2_min(end, v->length);
	while (offset < end) {
		bool is_data;
		uint64_t run;
		int rc = qcow2_store_extent(data, offset, end - offset, &is_data, &run, err);
		if (!rc && is_data) {
			run = q2_min(run, PIECE);
			rc = qcow2_store_read(data, offset, v->piece, run, err);
		}
		for (uint64_t done = 0; !rc && is_data && done < run;) {
			bool zero;
			size_t length = q2_zero_run(v->piece + done, run - done, SECTOR, &zero);
			if (!zero) {
				*any = true;
				rc = note(v, cause, offset + done, length, err);
				if (!rc && v->resync == QCOW2_RESYNC_DATA)
					rc = zero_data(v, offset + done, length, err);
			}
			done += length;
		}
		if (rc)
			return rc;
		offset += run;
	}
	return 0;
}

/* What is wrong with the entry itself; QCOW2_CAUSE_COUNT: nothing. */
static enum qcow2_cause judge(const struct q2_geometry *g, const struct q2_entry *e, uint64_t guest)
{
	if (e->compressed)
		return QCOW2_CAUSE_COMPRESSED;
	/* Before has_host: an offset without COPIED at 0 is none at all. */
	if ((e->raw & Q2_OFFSET_MASK) && e->host.v != guest)
		return QCOW2_CAUSE_OFFSET;
	if (e->has_host && !(e->raw & Q2_COPIED) && (e->alloc || !g->extended_l2))
		return QCOW2_CAUSE_COPIED;
	if (e->has_host && e->host.v != guest)
		return QCOW2_CAUSE_OFFSET;
	return e->invalid ? QCOW2_CAUSE_INVALID : QCOW2_CAUSE_COUNT;
}

/* One cluster whose entry is sound: zeros and gaps of its subclusters. */
static int look_inside(struct verify *v, const struct q2_entry *e, uint64_t guest, bool *any,
		       struct qcow2_error *err)
{
	struct qcow2_image *image = v->job.image;
	const struct q2_geometry *g = &image->meta.geo;
	for (unsigned s = 0; s < g->subclusters; s++) {
		uint64_t from = guest + ((uint64_t)s << g->subcluster_bits);
		uint64_t end = q2_min(from + (1ull << g->subcluster_bits), image->size);
		enum q2_sub kind = q2_entry_sub(e, s);
		int rc = 0;
		if (from >= image->size)
			break;
		if (kind == Q2_SUB_ZERO) {
			rc = search(v, QCOW2_CAUSE_ZERO, from, end, any, err);
		} else if (kind == Q2_SUB_UNALLOCATED && image->backing_name.data) {
			*any = true;
			rc = note(v, QCOW2_CAUSE_BACKING, from, end - from, err);
		} else if (kind == Q2_SUB_UNALLOCATED) {
			bool lost = guest == 0 && !(e->raw & Q2_COPIED);
			rc = search(v, lost ? QCOW2_CAUSE_LOST : QCOW2_CAUSE_UNALLOCATED, from, end, any,
				    err);
		}
		if (rc)
			return rc;
	}
	return 0;
}

static int look_at(struct verify *v, uint64_t guest, struct qcow2_error *err)
{
	struct qcow2_image *image = v->job.image;
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t word, bitmap, length = q2_min(g->cluster_size, image->size - guest);
	q2_host at;
	bool any = false;
	int rc = q2_map_entry(&image->map, q2_guest_at(guest), &word, &bitmap, &at, err);
	if (rc)
		return rc;
	struct q2_entry e = q2_entry_decode(g, word, bitmap);
	enum qcow2_cause cause = judge(g, &e, guest);
	if (cause != QCOW2_CAUSE_COUNT) {
		any = true;
		rc = note(v, cause, guest, length, err);
	}
	/* An entry that only lacks COPIED has contents like any other. */
	bool sound = cause == QCOW2_CAUSE_COUNT || cause == QCOW2_CAUSE_COPIED;
	if (!rc && sound && e.alloc != (g->extended_l2 ? UINT32_MAX : 1))
		rc = look_inside(v, &e, guest, &any, err);
	if (rc || !any)
		return rc;
	if (v->resync == QCOW2_RESYNC_METADATA)
		return map_plain(v, guest, err);
	/* Towards the data file zeros were written on the way. */
	return v->resync == QCOW2_RESYNC_DATA && cause == QCOW2_CAUSE_COPIED ? set_copied(v, guest, err) : 0;
}

/* Unallocated all over: how far does a gap of the L1 table reach from `guest` on? 0: there is a table. */
static uint64_t gap(const struct qcow2_image *image, uint64_t guest)
{
	const struct q2_geometry *g = &image->meta.geo;
	unsigned bits = g->cluster_bits + g->l2_bits;
	uint64_t index = guest >> bits, end = guest;
	while (end < image->size &&
	       (index >= image->map.l1_entries || !(image->map.l1[index] & Q2_OFFSET_MASK)))
		end = ++index << bits;
	return q2_min(end, image->size) - guest;
}

/* The file's own end: too early, or not the end of what it holds. */
static int look_at_end(struct verify *v, struct qcow2_error *err)
{
	struct qcow2_image *image = v->job.image;
	bool any = false;
	int rc = 0;
	if (v->length < image->size) {
		rc = note(v, QCOW2_CAUSE_SHORT, v->length, image->size - v->length, err);
		if (!rc && v->resync != QCOW2_RESYNC_NONE) {
			rc = qcow2_store_resize(image->meta.data, image->size, err);
		}
	} else if (v->length > image->size && !qcow2_store_is_device(image->data)) {
		/* A raw file is exactly the disk, whatever lies behind its end. */
		rc = q2_data_file_is_raw(image)
			     ? note(v, QCOW2_CAUSE_TAIL, image->size, v->length - image->size, err)
			     : search(v, QCOW2_CAUSE_TAIL, image->size, v->length, &any, err);
		if (!rc && v->resync == QCOW2_RESYNC_DATA)
			rc = q2_data_file_resize(image, image->size, err);
	}
	return rc;
}

static int step(struct q2_image_job *job, struct qcow2_error *err)
{
	struct verify *v = (struct verify *)job;
	struct qcow2_image *image = job->image;
	uint64_t deadline = q2_image_job_deadline(), cluster_size = image->meta.geo.cluster_size;
	while (v->at < image->size) {
		uint64_t length = gap(image, v->at);
		bool is_data = true;
		int rc = 0;
		/* No tables, no entries: only the file is asked, and where it has a hole nothing differs. */
		if (length && !image->backing_name.data)
			rc = qcow2_store_extent(image->data, v->at, length, &is_data, &length, err);
		if (rc)
			return rc;
		if (!is_data && length < image->size - v->at)
			length = q2_round_down(length, cluster_size);
		if (is_data || !length) {
			length = q2_min(cluster_size, image->size - v->at);
			rc = look_at(v, v->at, err);
		}
		if (rc)
			return rc;
		v->at += length;
		job->done = v->at;
		if (q2_image_job_late(deadline))
			return 1;
	}
	int rc = v->tail_seen ? 0 : look_at_end(v, err);
	v->tail_seen = true;
	if (!rc && v->resync != QCOW2_RESYNC_NONE)
		rc = q2_writeback_flush(&image->meta, err);
	return rc;
}

static void verify_free(struct q2_image_job *job)
{
	struct verify *v = (struct verify *)job;
	q2_vec_free(&v->list);
	free(v->piece);
	free(v);
}

static int prepare(struct verify *v, struct qcow2_error *err)
{
	struct qcow2_image *image = v->job.image;
	struct qcow2_store *data;
	if (image->raw || !image->meta.geo.external_data)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The image has no external data file");
	int rc = q2_image_data_store(image, &data, err);
	if (!rc && v->resync != QCOW2_RESYNC_NONE)
		rc = q2_edit_begin(image, err);
	if (!rc && v->resync == QCOW2_RESYNC_METADATA && image->backing_name.data)
		rc = q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				  "The image has a backing file, which plain data everywhere would hide");
	if (!rc)
		rc = q2_map_read(&image->map, err);
	if (!rc)
		rc = qcow2_store_length(data, &v->length, err);
	v->piece = q2_new_pages(PIECE);
	return rc ? rc : v->piece ? 0 : q2_error_nomem(err);
}

static const struct q2_image_job_ops ops = {step, verify_free};

/* NULL for jobs of other kinds. */
static const struct verify *verify_of(const struct qcow2_job *job)
{
	const struct verify *v = (const struct verify *)job;
	return job->kind == &q2_image_job_kind && v->job.ops == &ops ? v : NULL;
}

int qcow2_verify_new(struct qcow2_image *image, enum qcow2_resync resync, struct qcow2_job **out,
		     struct qcow2_error *err)
{
	struct verify *v = q2_new(1, sizeof *v);
	if (!v)
		return q2_error_nomem(err);
	v->job = (struct q2_image_job){.base = {&q2_image_job_kind},
				       .ops = &ops,
				       .image = qcow2_image_ref(image),
				       .total = image->size};
	v->resync = resync;
	return q2_image_job_ready(&v->job, q2_image_blame(image, prepare(v, err), err), out, err);
}

const struct qcow2_divergence *qcow2_verify_divergence(const struct qcow2_job *job, uint64_t index)
{
	const struct verify *v = verify_of(job);
	return v && index < v->list.count ? (const struct qcow2_divergence *)v->list.items + index : NULL;
}

void qcow2_verify_counts(const struct qcow2_job *job, uint64_t *found, uint64_t *mended)
{
	const struct verify *v = verify_of(job);
	*found = v ? v->found : 0;
	*mended = v ? v->mended : 0;
}
