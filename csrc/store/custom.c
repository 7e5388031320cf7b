/* SPDX-License-Identifier: MIT
 * A store that consists of a program's own functions. */
#include "base/options.h"
#include "store/kind.h"

#include <pthread.h>

struct custom {
	struct qcow2_store store;
	struct qcow2_store_ops ops;
	void *opaque;
	atomic_ullong length;
	/* How many calls run; no more than ops.concurrency do. */
	pthread_mutex_t lock;
	pthread_cond_t left;
	unsigned running;
};

static struct custom *custom(struct qcow2_store *store)
{
	return (struct custom *)store;
}

static void enter(struct custom *c)
{
	pthread_mutex_lock(&c->lock);
	while (c->running >= c->ops.concurrency)
		pthread_cond_wait(&c->left, &c->lock);
	c->running++;
	pthread_mutex_unlock(&c->lock);
}

/* gives: the code of what the program's function answered. */
static int leave(struct custom *c, int os_errno, const char *verb, uint64_t offset, struct qcow2_error *err)
{
	pthread_mutex_lock(&c->lock);
	c->running--;
	pthread_cond_signal(&c->left);
	pthread_mutex_unlock(&c->lock);
	/* A program that gives something else than an errno has failed all the same. */
	return os_errno ? q2_store_fail(&c->store, verb, offset, os_errno > 0 ? os_errno : EIO, err) : 0;
}

static int custom_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		       struct qcow2_error *err)
{
	struct custom *c = custom(store);
	uint64_t end = atomic_load(&c->length);
	size_t there = offset < end ? (size_t)q2_min(length, end - offset) : 0;

	memset((uint8_t *)buf + there, 0, length - there);
	if (!there)
		return 0;
	enter(c);
	return leave(c, c->ops.read(c->opaque, offset, buf, there), "read", offset, err);
}

static int custom_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
			struct qcow2_error *err)
{
	struct custom *c = custom(store);
	unsigned long long end = atomic_load(&c->length);
	int rc;

	if (!c->ops.resize && !q2_fits(offset, length, end))
		return q2_store_fail(store, "write", offset, ENOSPC, err);
	enter(c);
	rc = leave(c, c->ops.write(c->opaque, offset, buf, length), "write", offset, err);
	while (!rc && end < offset + length &&
	       !atomic_compare_exchange_weak(&c->length, &end, offset + length))
		;
	return rc;
}

static int custom_flush(struct qcow2_store *store, struct qcow2_error *err)
{
	struct custom *c = custom(store);

	if (!c->ops.flush)
		return 0;
	enter(c);
	return leave(c, c->ops.flush(c->opaque), "flush", Q2_NO_OFFSET, err);
}

static int custom_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	struct custom *c = custom(store);
	uint64_t end = atomic_load(&c->length);
	int os_errno = ENOTSUP;

	if (offset >= end)
		return 0;
	length = q2_min(length, end - offset);
	if (c->ops.punch) {
		enter(c);
		os_errno = c->ops.punch(c->opaque, offset, length);
		if (os_errno != ENOTSUP)
			return leave(c, os_errno, "discard", offset, err);
		leave(c, 0, "discard", offset, err);
	}
	return q2_store_write_zeros(store, offset, length, err);
}

static int custom_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	struct custom *c = custom(store);
	uint64_t end = atomic_load(&c->length);
	int rc;

	if (length == end)
		return 0;
	if (!c->ops.resize)
		return length < end ? 0 : q2_store_fail(store, "resize", Q2_NO_OFFSET, ENOSPC, err);
	enter(c);
	rc = leave(c, c->ops.resize(c->opaque, length), "resize", Q2_NO_OFFSET, err);
	if (!rc)
		atomic_store(&c->length, length);
	return rc;
}

static int custom_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err)
{
	(void)err;
	*length = atomic_load(&custom(store)->length);
	return 0;
}

static int custom_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err)
{
	struct custom *c = custom(store);

	if (!c->ops.allocated)
		return custom_length(store, bytes, err);
	enter(c);
	return leave(c, c->ops.allocated(c->opaque, bytes), "ask for the space of", Q2_NO_OFFSET, err);
}

static int custom_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
			 uint64_t *length, struct qcow2_error *err)
{
	struct custom *c = custom(store);
	uint64_t end = atomic_load(&c->length), run;
	int answer = 1, rc;

	*is_data = offset < end;
	*length = limit;
	if (!*is_data)
		return 0;
	*length = run = q2_min(limit, end - offset);
	if (!c->ops.extent)
		return 0;
	enter(c);
	rc = leave(c, c->ops.extent(c->opaque, offset, *length, &answer, &run), "look for data in", offset,
		   err);
	if (rc)
		return rc;
	*is_data = answer != 0;
	/* An answer that holds for nothing, or for more than was asked, is believed for what it can mean. */
	if (!run)
		return q2_store_fail(store, "look for data in", offset, EIO, err);
	*length = q2_min(run, *length);
	return 0;
}

static void custom_close(struct qcow2_store *store)
{
	struct custom *c = custom(store);

	if (c->ops.close)
		c->ops.close(c->opaque);
	pthread_cond_destroy(&c->left);
	pthread_mutex_destroy(&c->lock);
	q2_store_free(store);
}

static const struct q2_store_ops custom_ops = {
	.kind = "custom",
	.read = custom_read,
	.write = custom_write,
	.flush = custom_flush,
	.punch = custom_punch,
	.resize = custom_resize,
	.length = custom_length,
	.allocated = custom_allocated,
	.extent = custom_extent,
	.close = custom_close,
};

int qcow2_store_custom(const struct qcow2_store_ops *given, void *opaque, const char *name,
		       struct qcow2_store **out, struct qcow2_error *err)
{
	struct qcow2_store_ops ops;
	uint64_t length = 0;
	int rc = q2_options_take(&ops, sizeof ops, given, err), os_errno;

	if (rc)
		return rc;
	if (!ops.length || !ops.read)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "A store needs the functions `length` and `read`");
	struct custom *c = q2_store_new(sizeof *c, &custom_ops, name ? name : "custom", err);
	if (!c)
		return QCOW2_E_NOMEM;
	os_errno = ops.length(opaque, &length);
	if (!os_errno && length > Q2_STORE_MAX)
		os_errno = EFBIG;
	if (os_errno) {
		rc = q2_store_fail(&c->store, "get the length of", Q2_NO_OFFSET,
				   os_errno > 0 ? os_errno : EIO, err);
		q2_store_free(&c->store);
		return rc;
	}
	c->ops = ops;
	c->ops.concurrency = q2_max(ops.concurrency, 1);
	c->opaque = opaque;
	c->store.writable = ops.write != NULL;
	c->store.is_device = !ops.resize;
	atomic_init(&c->length, length);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->left, NULL);
	*out = &c->store;
	return 0;
}
