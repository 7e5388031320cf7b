/* SPDX-License-Identifier: MIT
 * Writing into an open image from several threads. */
#include "copy/target.h"

#include "meta/link.h"
#include "store/store.h"

/* So many written bytes are worth a call that lets the host begin to write them down. */
#define BEGIN_FLUSH ((uint64_t)16 << 20)

/* How a stretch of the range is written. */
struct way {
	uint64_t length; /* bytes of it */
	bool direct;     /* to `host` of the data store, without the gate */
	bool link;       /* direct, and then the entries have to name it */
	uint64_t host;   /* bytes */
};

/* Whole clusters at `offset` that get a place of their own: as many as one free place has. */
static int take_place(struct qcow2_image *image, uint64_t offset, uint64_t clusters, struct way *way,
		      struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t start = offset >> g->cluster_bits, got = clusters;
	int rc = q2_link_table(&image->map, q2_guest_at(offset), err);
	if (!rc && !g->external_data)
		rc = q2_alloc(&image->meta, clusters, false, &start, &got, err);
	if (!rc)
		*way = (struct way){got << g->cluster_bits, true, true, start << g->cluster_bits};
	return rc;
}

/* needs: the gate. */
static int choose(struct qcow2_image *image, uint64_t offset, uint64_t length, struct way *way,
		  struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	struct q2_run run;
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, length, err);
	if (rc)
		return rc;
	if (image->raw) {
		*way = (struct way){length, true, false, offset};
		return 0;
	}
	rc = q2_map_find(&image->map, q2_guest_at(offset), length, &run, err);
	if (rc)
		return rc;
	bool own = run.has_host && run.kind != Q2_SUB_COMPRESSED && (run.copied || g->external_data);
	uint64_t start = offset & (g->cluster_size - 1);
	uint64_t clusters = start ? 0 : q2_min(run.length, length) >> g->cluster_bits;
	/* With extended L2 clusters that hold nothing may have their place already. */
	uint64_t fresh = own ? 0 : clusters;
	if (fresh && g->extended_l2 && run.kind == Q2_SUB_UNALLOCATED) {
		rc = q2_map_placeless(&image->map, q2_guest_at(offset), fresh << g->cluster_bits, &fresh,
				      err);
		if (rc)
			return rc;
		fresh >>= g->cluster_bits;
	}
	/* An entry of a broken image may name live metadata; qcow2_image_write refuses it. */
	bool live = run.has_host && !g->external_data &&
		    q2_guard_has(&image->meta.guard, run.host.v >> g->cluster_bits,
				 ((run.host.v + run.length - 1) >> g->cluster_bits) -
					 (run.host.v >> g->cluster_bits) + 1);
	if (own && run.kind == Q2_SUB_DATA && !live)
		*way = (struct way){run.length, true, false, run.host.v};
	else if (fresh && !image->meta.pending_punch.count)
		return take_place(image, offset, fresh, way, err);
	else if (clusters)
		*way = (struct way){clusters << g->cluster_bits, false, false, 0};
	else
		*way = (struct way){q2_min(length, g->cluster_size - start), false, false, 0};
	return 0;
}

/* Lets the entries of whole clusters name their new place. needs: the gate; the bytes are written. */
static int link_place(struct qcow2_image *image, uint64_t offset, const struct way *way,
		      struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	for (uint64_t done = 0; done < way->length;) {
		uint8_t *entry;
		uint32_t left;
		int rc = q2_link_edit(&image->map, q2_guest_at(offset + done), &entry, &left, err);
		if (rc)
			return rc;
		for (; left && done < way->length;
		     left--, entry += g->l2_entry_size, done += g->cluster_size) {
			struct q2_entry old = q2_link_get(g, entry);
			rc = q2_link_release(&image->map, &old, err);
			if (rc)
				return rc;
			q2_link_put(g, entry, (way->host + done) | Q2_COPIED, UINT32_MAX);
		}
	}
	return 0;
}

/* needs: the gate. `rc`: how the writing ended. */
static int finish_place(struct qcow2_image *image, uint64_t offset, const struct way *way, int rc,
			struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	q2_edit_data(image); /* after the write: a flush in between does not count */
	if (!way->link)
		return rc;
	if (rc) {
		if (!g->external_data)
			q2_alloc_abandon(&image->meta, way->host >> g->cluster_bits,
					 way->length >> g->cluster_bits, NULL);
		return rc;
	}
	rc = link_place(image, offset, way, err);
	return rc ? q2_commit_fail(&image->meta, rc, err) : 0;
}

static int write_some(struct q2_target *target, uint64_t offset, const uint8_t *buf, struct way *way,
		      struct qcow2_error *err)
{
	struct qcow2_image *image = target->image;
	uint64_t length = way->length;
	pthread_mutex_lock(&target->gate);
	int rc = choose(image, offset, length, way, err);
	if (!rc && !way->direct)
		rc = qcow2_image_write(image, offset, buf, way->length, err);
	struct qcow2_store *store = image->meta.data ? image->meta.data : image->store;
	pthread_mutex_unlock(&target->gate);
	if (rc || !way->direct)
		return rc;
	pthread_mutex_lock(&target->turn);
	rc = qcow2_store_write(store, way->host, buf, way->length, err);
	pthread_mutex_unlock(&target->turn);
	pthread_mutex_lock(&target->gate);
	rc = finish_place(image, offset, way, rc, err);
	target->waiting += way->length;
	bool many = target->waiting >= BEGIN_FLUSH;
	if (many)
		target->waiting = 0;
	pthread_mutex_unlock(&target->gate);
	/* The job ends with a flush: the disk may as well work beside it. */
	if (many)
		q2_store_begin_flush(store);
	return rc;
}

int q2_target_write(struct q2_target *target, uint64_t offset, const uint8_t *buf, uint64_t length,
		    struct qcow2_error *err)
{
	while (length) {
		struct way way = {.length = length};
		int rc = write_some(target, offset, buf, &way, err);
		if (rc)
			return q2_image_blame(target->image, rc, err);
		offset += way.length;
		buf += way.length;
		length -= way.length;
	}
	return 0;
}

/* Linked in memory before it is written, so no commit may come in between: all of it under the gate. */
static int write_stream(struct qcow2_image *image, uint64_t offset, const uint8_t *stream, uint32_t length,
			struct qcow2_error *err)
{
	uint64_t host;
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, q2_min(image->meta.geo.cluster_size, image->size - offset),
				   err);
	if (!rc)
		rc = q2_compress_place(image, offset, length, &host, err);
	if (rc)
		return rc;
	rc = qcow2_store_write(q2_edit_data(image), host, stream, length, err);
	return rc ? q2_commit_fail(&image->meta, rc, err) : 0;
}

int q2_target_stream(struct q2_target *target, uint64_t offset, const uint8_t *stream, uint32_t length,
		     struct qcow2_error *err)
{
	pthread_mutex_lock(&target->gate);
	int rc = write_stream(target->image, offset, stream, length, err);
	pthread_mutex_unlock(&target->gate);
	return rc ? q2_image_blame(target->image, rc, err) : 0;
}

int q2_target_zero(struct q2_target *target, uint64_t offset, uint64_t length, unsigned flags,
		   struct qcow2_error *err)
{
	pthread_mutex_lock(&target->gate);
	int rc = qcow2_image_zero(target->image, offset, length, flags, err);
	pthread_mutex_unlock(&target->gate);
	return rc;
}
