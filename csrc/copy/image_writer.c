/* SPDX-License-Identifier: MIT
 * Writing into an open image from several threads. */
#include "copy/image_writer.h"

#include "meta/map_edit.h"
#include "store/store.h"

/* So many written bytes are worth a call that lets the system begin to write them down. */
#define BEGIN_FLUSH ((uint64_t)16 << 20)

/* After so many bytes the tables are looked at: far less than a quarter of the cache can hold changes of. */
#define LOOK_EVERY ((uint64_t)64 << 20)

void q2_image_writer_init(struct q2_image_writer *target, struct qcow2_image *image)
{
	target->image = image;
	pthread_mutex_init(&target->gate, NULL);
	pthread_mutex_init(&target->writer, NULL);
	pthread_cond_init(&target->moved, NULL);
}

void q2_image_writer_destroy(struct q2_image_writer *target)
{
	pthread_cond_destroy(&target->moved);
	pthread_mutex_destroy(&target->writer);
	pthread_mutex_destroy(&target->gate);
}

int q2_image_writer_enter(struct q2_image_writer *target, uint64_t number, struct qcow2_error *err)
{
	struct q2_cache *cache = &target->image->meta.cache;
	pthread_mutex_lock(&target->gate);
	while (target->next != number)
		pthread_cond_wait(&target->moved, &target->gate);
	if (target->placed < LOOK_EVERY)
		return 0;
	target->placed = 0;
	while (target->flying)
		pthread_cond_wait(&target->moved, &target->gate);
	return cache->dirty > cache->most / 4 ? q2_writeback(&target->image->meta, err) : 0;
}

void q2_image_writer_leave(struct q2_image_writer *target)
{
	target->next++;
	pthread_cond_broadcast(&target->moved);
	pthread_mutex_unlock(&target->gate);
}

/* How a stretch of a range is written. */
struct way {
	uint64_t length; /* bytes of it */
	bool direct;     /* to `host` of the data store, without the gate */
	bool link;       /* direct, and then the entries have to name it */
	uint64_t host;   /* bytes */
};

/* A stretch whose bytes are still to be written. */
struct target_place {
	struct way way;
	uint64_t offset; /* of the disk */
	const uint8_t *buf;
};

/* Whole clusters at `offset` that get a place of their own: as many as one free place has. */
static int take_place(struct qcow2_image *image, uint64_t offset, uint64_t clusters, struct way *way,
		      struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	uint64_t start = offset >> g->cluster_bits, got = clusters;
	int rc = q2_map_edit_table(&image->map, q2_guest_at(offset), err);
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
		    q2_live_metadata_has(&image->meta.live, run.host.v >> g->cluster_bits,
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
		int rc = q2_map_edit_edit(&image->map, q2_guest_at(offset + done), &entry, &left, err);
		if (rc)
			return rc;
		for (; left && done < way->length;
		     left--, entry += g->l2_entry_size, done += g->cluster_size) {
			struct q2_entry old = q2_map_edit_get(g, entry);
			rc = q2_map_edit_release(&image->map, &old, err);
			if (rc)
				return rc;
			q2_map_edit_put(g, entry, (way->host + done) | Q2_COPIED, UINT32_MAX);
		}
	}
	return 0;
}

/* needs: the gate. `rc`: how the writing ended. */
static int finish_place(struct qcow2_image *image, uint64_t offset, const struct way *way, int rc,
			struct qcow2_error *err)
{
	const struct q2_geometry *g = &image->meta.geo;
	if (!way->link)
		return rc;
	if (rc) {
		if (!g->external_data)
			q2_alloc_abandon(&image->meta, way->host >> g->cluster_bits,
					 way->length >> g->cluster_bits, NULL);
		return rc;
	}
	rc = link_place(image, offset, way, err);
	return rc ? q2_writeback_fail(&image->meta, rc, err) : 0;
}

int q2_image_writer_place(struct q2_image_writer *target, uint64_t offset, const uint8_t *buf,
			  uint64_t length, struct q2_vec *places, struct qcow2_error *err)
{
	struct qcow2_image *image = target->image;
	target->placed += length;
	for (struct way way; length; offset += way.length, buf += way.length, length -= way.length) {
		/* Room first: a place that was taken must not be lost. */
		struct target_place *place = q2_vec_push(places, sizeof *place);
		int rc = place ? choose(image, offset, length, &way, err) : q2_error_nomem(err);
		if (!rc && way.direct) {
			*place = (struct target_place){way, offset, buf};
			target->flying += places->count == 1;
			continue;
		}
		places->count -= place != NULL;
		if (!rc)
			rc = qcow2_image_write(image, offset, buf, way.length, err);
		if (rc)
			return q2_image_blame(image, rc, err);
	}
	return 0;
}

/* Linked in memory before it is written, so no commit may come in between: all of it with the gate. */
int q2_image_writer_stream(struct q2_image_writer *target, uint64_t offset, const uint8_t *stream,
			   uint32_t length, struct qcow2_error *err)
{
	struct qcow2_image *image = target->image;
	uint64_t host;
	target->placed += image->meta.geo.cluster_size;
	int rc = q2_edit_begin(image, err);
	if (!rc)
		rc = q2_track_mark(image, offset, q2_min(image->meta.geo.cluster_size, image->size - offset),
				   err);
	if (!rc)
		rc = q2_compress_place(image, offset, length, &host, err);
	if (rc)
		return q2_image_blame(image, rc, err);
	rc = qcow2_store_write(q2_edit_data(image), host, stream, length, err);
	return rc ? q2_image_blame(image, q2_writeback_fail(&image->meta, rc, err), err) : 0;
}

int q2_image_writer_zero(struct q2_image_writer *target, uint64_t offset, uint64_t length, unsigned flags,
			 struct qcow2_error *err)
{
	target->placed += length;
	return qcow2_image_zero(target->image, offset, length, flags, err);
}

static int write_places(struct q2_image_writer *target, const struct q2_vec *places, struct qcow2_error *err)
{
	struct qcow2_image *image = target->image;
	struct qcow2_store *store = image->meta.data ? image->meta.data : image->store;
	const struct target_place *place = places->items;
	int rc = 0;
	pthread_mutex_lock(&target->writer);
	for (size_t i = 0; i < places->count && !rc; i++, place++)
		rc = qcow2_store_write(store, place->way.host, place->buf, place->way.length, err);
	pthread_mutex_unlock(&target->writer);
	return rc;
}

int q2_image_writer_finish(struct q2_image_writer *target, struct q2_vec *places, int rc,
			   struct qcow2_error *err)
{
	struct qcow2_image *image = target->image;
	const struct target_place *list = places->items;
	const bool failed = rc; /* then the record is complete */
	uint64_t bytes = 0;
	if (!places->count)
		return rc;
	if (!rc)
		rc = write_places(target, places, err);
	pthread_mutex_lock(&target->gate);
	for (size_t i = 0; i < places->count; i++) {
		int one = finish_place(image, list[i].offset, &list[i].way, rc, rc ? NULL : err);
		rc = rc ? rc : one;
		bytes += list[i].way.length;
	}
	places->count = 0;
	target->flying--;
	pthread_cond_broadcast(&target->moved);
	target->waiting += bytes;
	bool many = target->waiting >= BEGIN_FLUSH;
	if (many)
		target->waiting = 0;
	struct qcow2_store *store = image->meta.data ? image->meta.data : image->store;
	pthread_mutex_unlock(&target->gate);
	/* The job ends with a flush: the disk may as well work beside it. */
	if (many && !rc)
		q2_store_begin_flush(store);
	return rc && !failed ? q2_image_blame(image, rc, err) : rc;
}
