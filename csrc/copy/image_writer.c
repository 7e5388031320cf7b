/* SPDX-License-Identifier: MIT
 * Writing into an open image from several threads. */
#include "copy/image_writer.h"

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
	pthread_mutex_lock(&target->gate);
	while (target->next != number)
		pthread_cond_wait(&target->moved, &target->gate);
	if (target->placed < LOOK_EVERY)
		return 0;
	target->placed = 0;
	while (target->flying)
		pthread_cond_wait(&target->moved, &target->gate);
	return q2_write_is_full(target->image, 4) ? q2_write_tables(target->image, err) : 0;
}

void q2_image_writer_leave(struct q2_image_writer *target)
{
	target->next++;
	pthread_cond_broadcast(&target->moved);
	pthread_mutex_unlock(&target->gate);
}

/* A stretch whose bytes are still to be written. */
struct target_place {
	struct q2_write_place place;
	const uint8_t *buf;
};

int q2_image_writer_place(struct q2_image_writer *target, uint64_t offset, const uint8_t *buf,
			  uint64_t length, struct q2_vec *places, struct qcow2_error *err)
{
	struct qcow2_image *image = target->image;
	target->placed += length;
	for (uint64_t done = 0; length; offset += done, buf += done, length -= done) {
		/* Room first: a place that was taken must not be lost. */
		struct target_place *one = q2_vec_push(places, sizeof *one);
		int rc = one ? q2_write_prepare(image, offset, length, &one->place, err)
			     : q2_error_nomem(err);
		done = rc ? 0 : one->place.length;
		if (!rc && one->place.direct) {
			one->buf = buf;
			target->flying += places->count == 1;
			continue;
		}
		places->count -= one != NULL;
		if (!rc)
			rc = qcow2_image_write(image, offset, buf, done, err);
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
		rc = qcow2_store_write(store, place->place.host, place->buf, place->place.length, err);
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
		int one = q2_write_finish(image, &list[i].place, rc, rc ? NULL : err);
		rc = rc ? rc : one;
		bytes += list[i].place.length;
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
