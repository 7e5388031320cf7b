/* SPDX-License-Identifier: MIT
 * A store in memory, sparse: chunks that were never written cost nothing.
 *
 * `chunks` is sorted by index (offset / CHUNK) and has each index at most once. A byte at or past the
 * length is zero in every chunk that reaches there, so that growing shows zeros. */
#include "store/kind.h"

#include <pthread.h>
#include <string.h>

#define CHUNK ((uint64_t)1 << 16)

struct chunk {
	uint64_t index;
	uint8_t *bytes; /* CHUNK of them */
};

struct memory_store {
	struct qcow2_store store;
	pthread_rwlock_t lock; /* over all below */
	uint64_t length;
	struct q2_vec chunks; /* struct chunk */
};

static struct memory_store *memory(struct qcow2_store *store)
{
	return (struct memory_store *)store;
}

static struct chunk *chunk_at(const struct memory_store *m, size_t at)
{
	return (struct chunk *)m->chunks.items + at;
}

/* The place of the first chunk whose index is not below `index`; the count when there is none. */
static size_t chunk_place(const struct memory_store *m, uint64_t index)
{
	size_t low = 0, high = m->chunks.count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (chunk_at(m, middle)->index < index)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The bytes of a chunk, or NULL where there is a hole. */
static uint8_t *chunk_bytes(const struct memory_store *m, uint64_t index)
{
	size_t at = chunk_place(m, index);

	return at < m->chunks.count && chunk_at(m, at)->index == index ? chunk_at(m, at)->bytes : NULL;
}

/* The same, made when it was a hole; NULL when memory is out. */
static uint8_t *chunk_make(struct memory_store *m, uint64_t index)
{
	size_t at = chunk_place(m, index), behind = m->chunks.count - at;
	uint8_t *bytes;

	if (behind && chunk_at(m, at)->index == index)
		return chunk_at(m, at)->bytes;
	bytes = q2_new(1, CHUNK);
	if (!bytes || !q2_vec_push(&m->chunks, sizeof(struct chunk))) {
		free(bytes);
		return NULL;
	}
	memmove(chunk_at(m, at + 1), chunk_at(m, at), behind * sizeof(struct chunk));
	*chunk_at(m, at) = (struct chunk){.index = index, .bytes = bytes};
	return bytes;
}

/* Frees the chunks of index [first, end). */
static void chunks_drop(struct memory_store *m, uint64_t first, uint64_t end)
{
	size_t from = chunk_place(m, first), to = chunk_place(m, end);

	for (size_t at = from; at < to; at++)
		free(chunk_at(m, at)->bytes);
	if (from < to)
		memmove(chunk_at(m, from), chunk_at(m, to), (m->chunks.count - to) * sizeof(struct chunk));
	m->chunks.count -= to - from;
}

static int memory_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		       struct qcow2_error *err)
{
	struct memory_store *m = memory(store);
	uint8_t *to = buf;

	(void)err;
	pthread_rwlock_rdlock(&m->lock);
	while (length) {
		uint64_t within = offset % CHUNK;
		size_t n = (size_t)q2_min(length, CHUNK - within);
		const uint8_t *bytes = chunk_bytes(m, offset / CHUNK);

		if (bytes)
			memcpy(to, bytes + within, n);
		else
			memset(to, 0, n);
		to += n;
		offset += n;
		length -= n;
	}
	pthread_rwlock_unlock(&m->lock);
	return 0;
}

static int memory_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
			struct qcow2_error *err)
{
	struct memory_store *m = memory(store);
	const uint8_t *from = buf;
	uint64_t end = offset + length;
	int rc = 0;

	pthread_rwlock_wrlock(&m->lock);
	/* All memory first: a write that fails leaves nothing behind the end. */
	for (uint64_t index = offset / CHUNK; index <= (end - 1) / CHUNK; index++)
		if (!chunk_make(m, index)) {
			rc = q2_error_nomem(err);
			goto undo;
		}
	while (offset < end) {
		uint64_t within = offset % CHUNK;
		size_t n = (size_t)q2_min(end - offset, CHUNK - within);

		memcpy(chunk_bytes(m, offset / CHUNK) + within, from, n);
		from += n;
		offset += n;
	}
	m->length = q2_max(m->length, end);
undo:
	pthread_rwlock_unlock(&m->lock);
	return rc;
}

static int memory_flush(struct qcow2_store *store, struct qcow2_error *err)
{
	(void)store;
	(void)err;
	return 0;
}

/* needs: the lock. Zeros in [offset, end): whole chunks go, the two at the rims are wiped in part. */
static void wipe(struct memory_store *m, uint64_t offset, uint64_t end)
{
	uint64_t first = q2_div_up(offset, CHUNK), last = end / CHUNK;
	uint8_t *bytes;

	if (offset % CHUNK && (bytes = chunk_bytes(m, offset / CHUNK)))
		memset(bytes + offset % CHUNK, 0, (size_t)(q2_min(end, q2_round_up(offset, CHUNK)) - offset));
	if (end % CHUNK && last >= first && (bytes = chunk_bytes(m, last)))
		memset(bytes, 0, (size_t)(end % CHUNK));
	if (first < last)
		chunks_drop(m, first, last);
}

static int memory_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	struct memory_store *m = memory(store);

	(void)err;
	pthread_rwlock_wrlock(&m->lock);
	if (offset < m->length) {
		uint64_t end = q2_min(offset + length, m->length);

		/* Behind the end there are only zeros, so the last chunk may go whole. */
		wipe(m, offset, end == m->length ? q2_round_up(end, CHUNK) : end);
	}
	pthread_rwlock_unlock(&m->lock);
	return 0;
}

static int memory_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	struct memory_store *m = memory(store);

	(void)err;
	pthread_rwlock_wrlock(&m->lock);
	if (length < m->length)
		wipe(m, length, q2_round_up(m->length, CHUNK));
	m->length = length;
	pthread_rwlock_unlock(&m->lock);
	return 0;
}

static int memory_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err)
{
	struct memory_store *m = memory(store);

	(void)err;
	pthread_rwlock_rdlock(&m->lock);
	*length = m->length;
	pthread_rwlock_unlock(&m->lock);
	return 0;
}

static int memory_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err)
{
	struct memory_store *m = memory(store);

	(void)err;
	pthread_rwlock_rdlock(&m->lock);
	*bytes = m->chunks.count * CHUNK;
	pthread_rwlock_unlock(&m->lock);
	return 0;
}

static int memory_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
			 uint64_t *length, struct qcow2_error *err)
{
	struct memory_store *m = memory(store);
	uint64_t index = offset / CHUNK, end = offset + limit;
	size_t at;

	(void)err;
	pthread_rwlock_rdlock(&m->lock);
	at = chunk_place(m, index);
	*is_data = offset < m->length && at < m->chunks.count && chunk_at(m, at)->index == index;
	if (*is_data) {
		while (at < m->chunks.count && chunk_at(m, at)->index == index && index * CHUNK < end) {
			at++;
			index++;
		}
		end = q2_min(end, q2_min(index * CHUNK, m->length));
	} else if (offset < m->length && at < m->chunks.count && chunk_at(m, at)->index * CHUNK < m->length) {
		end = q2_min(end, chunk_at(m, at)->index * CHUNK);
	}
	*length = end - offset;
	pthread_rwlock_unlock(&m->lock);
	return 0;
}

static void memory_close(struct qcow2_store *store)
{
	struct memory_store *m = memory(store);

	chunks_drop(m, 0, UINT64_MAX);
	q2_vec_free(&m->chunks);
	pthread_rwlock_destroy(&m->lock);
	q2_store_free(store);
}

static const struct q2_store_ops memory_ops = {
	.kind = "memory",
	.read = memory_read,
	.write = memory_write,
	.flush = memory_flush,
	.punch = memory_punch,
	.resize = memory_resize,
	.length = memory_length,
	.allocated = memory_allocated,
	.extent = memory_extent,
	.close = memory_close,
};

int qcow2_store_memory(const void *bytes, uint64_t length, struct qcow2_store **out, struct qcow2_error *err)
{
	struct memory_store *m;
	int rc;

	if (length > Q2_STORE_MAX || (bytes && length > SIZE_MAX))
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "A store of %llu bytes is past the largest file offset",
				    (unsigned long long)length);
	m = q2_store_new(sizeof *m, &memory_ops, "memory", err);
	if (!m)
		return QCOW2_E_NOMEM;
	m->store.writable = true;
	rc = pthread_rwlock_init(&m->lock, NULL);
	if (rc) {
		q2_store_free(&m->store);
		return q2_error_os(err, rc, Q2_NO_OFFSET, "Could not make a store in memory");
	}
	m->length = length;
	rc = bytes ? qcow2_store_write(&m->store, 0, bytes, (size_t)length, err) : 0;
	if (rc) {
		memory_close(&m->store);
		return rc;
	}
	*out = &m->store;
	return 0;
}
