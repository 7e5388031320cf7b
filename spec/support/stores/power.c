/* SPDX-License-Identifier: MIT
 * A store that remembers every change on its way to another one, to tell what a disk could hold after a
 * power cut.
 *
 * A disk may keep any part of what was not flushed: an operation of the record is *covered* when a flush
 * stands behind it, and then it is there; all others are there or not, each for itself, and a write that was
 * under way may have stopped in the middle. */
#include "store/kind.h"
#include "spec/support/stores/test_store.h"

#include <pthread.h>
#include <string.h>

struct record {
	struct qcow2_power_op op;
	uint8_t *bytes; /* of a write: op.length of them */
};

struct power_store {
	struct qcow2_store store;
	struct qcow2_store *inner;
	struct qcow2_store *base;  /* in memory: what inner held at the start */
	pthread_mutex_t lock;      /* the order of the record is the order at inner */
	struct q2_vec records;     /* struct record */
	struct qcow2_store *clock; /* whose ticks number the operations; NULL: its own */
	atomic_ullong ticks;
};

static const struct q2_store_ops power_ops;

static struct power_store *power(struct qcow2_store *store)
{
	return (struct power_store *)store;
}

static struct record *record_at(struct power_store *p, size_t index)
{
	return (struct record *)p->records.items + index;
}

/* needs: the lock. Room for one more record, whose copy of `bytes` is made, so that nothing can fail once
 * inner has changed. gives: it, not yet counted; NULL: `nomem`. */
static struct record *record_prepare(struct power_store *p, char kind, uint64_t offset, uint64_t length,
				     const void *bytes, struct qcow2_error *err)
{
	q2_auto uint8_t *copy = bytes ? malloc((size_t)length) : NULL;
	struct record *record;

	if ((bytes && !copy) || !(record = q2_vec_push(&p->records, sizeof *record))) {
		q2_error_nomem(err);
		return NULL;
	}
	p->records.count--;
	if (bytes)
		memcpy(copy, bytes, (size_t)length);
	record->op = (struct qcow2_power_op){
		.kind = kind,
		.offset = offset,
		.length = length,
		.sequence = atomic_fetch_add(&(p->clock ? power(p->clock) : p)->ticks, 1),
	};
	record->bytes = q2_take(&copy);
	return record;
}

/* An operation that failed at inner is none. */
static int record_finish(struct power_store *p, struct record *record, int rc)
{
	if (rc)
		free(record->bytes);
	else
		p->records.count++;
	return rc;
}

/* One change: recorded, and done at inner, in the same order for all threads. */
static int change(struct qcow2_store *store, char kind, uint64_t offset, uint64_t length, const void *bytes,
		  struct qcow2_error *err)
{
	struct power_store *p = power(store);
	struct record *record;
	int rc;

	pthread_mutex_lock(&p->lock);
	record = record_prepare(p, kind, offset, length, bytes, err);
	if (!record) {
		rc = QCOW2_E_NOMEM;
		goto undo;
	}
	switch (kind) {
	case 'w':
		rc = qcow2_store_write(p->inner, offset, bytes, (size_t)length, err);
		break;
	case 'p':
		rc = qcow2_store_punch(p->inner, offset, length, err);
		break;
	case 'r':
		rc = qcow2_store_resize(p->inner, length, err);
		break;
	default:
		rc = qcow2_store_flush(p->inner, err);
		break;
	}
	rc = record_finish(p, record, rc);
undo:
	pthread_mutex_unlock(&p->lock);
	return rc;
}

static int power_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		      struct qcow2_error *err)
{
	return qcow2_store_read(power(store)->inner, offset, buf, length, err);
}

static int power_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
		       struct qcow2_error *err)
{
	return change(store, 'w', offset, length, buf, err);
}

static int power_flush(struct qcow2_store *store, struct qcow2_error *err)
{
	return change(store, 'f', 0, 0, NULL, err);
}

static int power_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	return change(store, 'p', offset, length, NULL, err);
}

static int power_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	return change(store, 'r', 0, length, NULL, err);
}

static int power_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err)
{
	return qcow2_store_length(power(store)->inner, length, err);
}

static int power_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err)
{
	return qcow2_store_allocated(power(store)->inner, bytes, err);
}

static int power_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
			uint64_t *length, struct qcow2_error *err)
{
	return qcow2_store_extent(power(store)->inner, offset, limit, is_data, length, err);
}

static void power_close(struct qcow2_store *store)
{
	struct power_store *p = power(store);

	for (size_t i = 0; i < p->records.count; i++)
		free(record_at(p, i)->bytes);
	q2_vec_free(&p->records);
	qcow2_store_unref(p->base);
	qcow2_store_unref(p->inner);
	qcow2_store_unref(p->clock);
	pthread_mutex_destroy(&p->lock);
	q2_store_free(store);
}

/* No `allocate` and no `descriptor`: all that changes the inner store shows up as a write. */
static const struct q2_store_ops power_ops = {
	.kind = "power",
	.read = power_read,
	.write = power_write,
	.flush = power_flush,
	.punch = power_punch,
	.resize = power_resize,
	.length = power_length,
	.allocated = power_allocated,
	.extent = power_extent,
	.close = power_close,
};

/* A sparse copy in memory. */
static int snapshot(struct qcow2_store *from, struct qcow2_store **out, struct qcow2_error *err)
{
	struct qcow2_store *copy = NULL;
	uint64_t length, run;
	bool is_data;
	int rc;

	rc = qcow2_store_length(from, &length, err);
	if (!rc)
		rc = qcow2_store_memory(NULL, length, &copy, err);
	for (uint64_t at = 0; !rc && at < length; at += run) {
		rc = qcow2_store_extent(from, at, length - at, &is_data, &run, err);
		if (!rc && is_data)
			rc = q2_store_copy(from, at, copy, at, run, err);
	}
	if (rc)
		qcow2_store_unref(copy);
	else
		*out = copy;
	return rc;
}

int qcow2_store_power(struct qcow2_store *inner, struct qcow2_store **out, struct qcow2_error *err)
{
	struct power_store *p = q2_store_new_around(sizeof *p, &power_ops, inner, err);
	int rc;

	if (!p)
		return QCOW2_E_NOMEM;
	rc = pthread_mutex_init(&p->lock, NULL);
	if (rc) {
		q2_store_free(&p->store);
		return q2_error_os(err, rc, Q2_NO_OFFSET, "Could not make a power store");
	}
	p->inner = qcow2_store_ref(inner);
	atomic_init(&p->ticks, 0);
	rc = snapshot(inner, &p->base, err);
	if (rc) {
		power_close(&p->store);
		return rc;
	}
	*out = &p->store;
	return 0;
}

static int check_power(struct qcow2_store *store, struct qcow2_error *err)
{
	if (store->ops == &power_ops)
		return 0;
	return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "Not a power store but a %s store",
			    store->ops->kind);
}

int qcow2_store_power_join(struct qcow2_store *store, struct qcow2_store *other, struct qcow2_error *err)
{
	int rc = check_power(store, err);

	if (!rc)
		rc = check_power(other, err);
	if (rc)
		return rc;
	if (power(other)->clock)
		other = power(other)->clock;
	if (other == store || power(store)->clock || atomic_load(&power(store)->ticks))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "Only a power store without a record of its own can join another one");
	power(store)->clock = qcow2_store_ref(other);
	return 0;
}

size_t qcow2_store_power_count(struct qcow2_store *store)
{
	size_t count;

	if (store->ops != &power_ops)
		return 0;
	pthread_mutex_lock(&power(store)->lock);
	count = power(store)->records.count;
	pthread_mutex_unlock(&power(store)->lock);
	return count;
}

int qcow2_store_power_op(struct qcow2_store *store, size_t index, struct qcow2_power_op *op,
			 struct qcow2_error *err)
{
	int rc = check_power(store, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&power(store)->lock);
	if (index < power(store)->records.count)
		*op = record_at(power(store), index)->op;
	else
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "There is no operation %zu in the record",
				  index);
	pthread_mutex_unlock(&power(store)->lock);
	return rc;
}

static int replay_one(const struct record *record, struct qcow2_store *to, uint64_t length,
		      struct qcow2_error *err)
{
	switch (record->op.kind) {
	case 'w':
		return qcow2_store_write(to, record->op.offset, record->bytes, (size_t)length, err);
	case 'p':
		return qcow2_store_punch(to, record->op.offset, length, err);
	case 'r':
		return qcow2_store_resize(to, length, err);
	default:
		return 0;
	}
}

/* needs: the lock, count within the record. */
static int replay(struct power_store *p, size_t count, const uint8_t *keep, size_t torn, size_t torn_bytes,
		  struct qcow2_store **out, struct qcow2_error *err)
{
	struct qcow2_store *to;
	size_t covered = count; /* operations [0, covered) have a flush behind them */
	int rc;

	while (covered && record_at(p, covered - 1)->op.kind != 'f')
		covered--;
	if (torn != SIZE_MAX && (torn < covered || torn >= count || record_at(p, torn)->op.kind != 'w'))
		return q2_error_set(
			err, QCOW2_E_RANGE, Q2_NO_OFFSET,
			"Operation %zu cannot be torn: it is no write, flushed, or not among the first %zu",
			torn, count);
	rc = snapshot(p->base, &to, err);
	if (rc)
		return rc;
	for (size_t i = 0; i < count && !rc; i++) {
		const struct record *record = record_at(p, i);

		if (i == torn)
			rc = replay_one(record, to, q2_min(torn_bytes, record->op.length), err);
		else if (i < covered || !keep || keep[i])
			rc = replay_one(record, to, record->op.length, err);
	}
	if (rc)
		qcow2_store_unref(to);
	else
		*out = to;
	return rc;
}

int qcow2_store_power_replay(struct qcow2_store *store, size_t count, const uint8_t *keep, size_t torn,
			     size_t torn_bytes, struct qcow2_store **out, struct qcow2_error *err)
{
	int rc = check_power(store, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&power(store)->lock);
	if (count <= power(store)->records.count)
		rc = replay(power(store), count, keep, torn, torn_bytes, out, err);
	else
		rc = q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "The record has %zu operations, not %zu",
				  power(store)->records.count, count);
	pthread_mutex_unlock(&power(store)->lock);
	return rc;
}
