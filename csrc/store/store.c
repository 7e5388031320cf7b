/* SPDX-License-Identifier: MIT
 * The public face of stores: bounds the arguments, then calls the kind's slot. */
#include "store/kind.h"

#include <fcntl.h>
#include <string.h>

void *q2_store_new(size_t size, const struct q2_store_ops *ops, const char *name, struct qcow2_error *err)
{
	struct qcow2_store *store = q2_new(1, size);

	if (!store || !(store->name = strdup(name))) {
		free(store);
		q2_error_nomem(err);
		return NULL;
	}
	store->ops = ops;
	atomic_init(&store->refs, 1);
	return store;
}

void *q2_store_new_around(size_t size, const struct q2_store_ops *ops, const struct qcow2_store *inner,
			  struct qcow2_error *err)
{
	struct qcow2_store *store = q2_store_new(size, ops, inner->name, err);

	if (!store)
		return NULL;
	store->writable = inner->writable;
	store->is_device = inner->is_device;
	store->has_identity = inner->has_identity;
	memcpy(store->identity, inner->identity, sizeof store->identity);
	return store;
}

void q2_store_free(struct qcow2_store *store)
{
	free(store->name);
	free(store);
}

int q2_store_fail(const struct qcow2_store *store, const char *verb, uint64_t offset, int os_errno,
		  struct qcow2_error *err)
{
	char name[256];

	q2_error_escape(name, sizeof name, store->name, strlen(store->name));
	if (offset == Q2_NO_OFFSET)
		return q2_error_os(err, os_errno, offset, "Could not %s '%s'", verb, name);
	return q2_error_os(err, os_errno, offset, "Could not %s '%s' at offset %llu", verb, name,
			   (unsigned long long)offset);
}

/* No range may reach past what the host can address. */
static int check_range(struct qcow2_store *store, const char *verb, uint64_t offset, uint64_t length,
		       struct qcow2_error *err)
{
	char name[256];

	if (q2_fits(offset, length, Q2_STORE_MAX))
		return 0;
	q2_error_escape(name, sizeof name, store->name, strlen(store->name));
	return q2_error_set(err, QCOW2_E_RANGE, offset,
			    "Could not %s '%s': %llu bytes at offset %llu reach past the largest file offset",
			    verb, name, (unsigned long long)length, (unsigned long long)offset);
}

int q2_store_check_change(struct qcow2_store *store, const char *verb, uint64_t offset, uint64_t length,
			  struct qcow2_error *err)
{
	char name[256];

	if (store->writable)
		return check_range(store, verb, offset, length, err);
	q2_error_escape(name, sizeof name, store->name, strlen(store->name));
	return q2_error_set(err, QCOW2_E_READONLY, offset, "Could not %s '%s': it is open for reading only",
			    verb, name);
}

struct qcow2_store *qcow2_store_ref(struct qcow2_store *store)
{
	atomic_fetch_add_explicit(&store->refs, 1, memory_order_relaxed);
	return store;
}

void qcow2_store_unref(struct qcow2_store *store)
{
	/* The closing thread must see what every other holder did before it let go. */
	if (store && atomic_fetch_sub_explicit(&store->refs, 1, memory_order_acq_rel) == 1)
		store->ops->close(store);
}

int qcow2_store_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		     struct qcow2_error *err)
{
	int rc = check_range(store, "read", offset, length, err);

	return rc || !length ? rc : store->ops->read(store, offset, buf, length, err);
}

int qcow2_store_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
		      struct qcow2_error *err)
{
	int rc = q2_store_check_change(store, "write", offset, length, err);

	if (rc || !length)
		return rc;
	return q2_store_changed(store, store->ops->write(store, offset, buf, length, err));
}

int qcow2_store_flush(struct qcow2_store *store, struct qcow2_error *err)
{
	return store->writable ? store->ops->flush(store, err) : 0;
}

int qcow2_store_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	int rc = q2_store_check_change(store, "discard", offset, length, err);

	if (rc || !length)
		return rc;
	return q2_store_changed(store, store->ops->punch(store, offset, length, err));
}

int qcow2_store_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	int rc = q2_store_check_change(store, "resize", 0, length, err);

	return rc ? rc : q2_store_changed(store, store->ops->resize(store, length, err));
}

int qcow2_store_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err)
{
	return store->ops->length(store, length, err);
}

int qcow2_store_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err)
{
	return store->ops->allocated(store, bytes, err);
}

int qcow2_store_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
		       uint64_t *length, struct qcow2_error *err)
{
	uint64_t end, bounded, run;
	bool data;
	int rc;

	if (!limit)
		return q2_error_set(err, QCOW2_E_RANGE, offset, "Could not look for data in 0 bytes");
	if (offset >= Q2_STORE_MAX) {
		*is_data = false;
		*length = limit;
		return 0;
	}
	bounded = q2_min(limit, Q2_STORE_MAX - offset);
	if (store->ops->extent) {
		rc = store->ops->extent(store, offset, bounded, &data, &run, err);
		if (rc)
			return rc;
	} else {
		rc = store->ops->length(store, &end, err);
		if (rc)
			return rc;
		data = offset < end;
		run = data ? q2_min(bounded, end - offset) : bounded;
	}
	*is_data = data;
	/* What lies past the largest offset is a hole like all that lies past the end. */
	*length = !data && run == bounded ? limit : run;
	return 0;
}

void q2_store_begin_flush(struct qcow2_store *store)
{
	int fd = q2_store_descriptor(store);

	/* Without a flag to wait: such a call would be told of errors, and the flush no more. */
	if (fd >= 0)
		(void)sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

void q2_store_forget(struct qcow2_store *store, uint64_t offset, uint64_t length)
{
	int fd = q2_store_descriptor(store);

	if (fd >= 0)
		(void)posix_fadvise(fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
}

const char *qcow2_store_name(struct qcow2_store *store)
{
	return store->name;
}

bool qcow2_store_writable(struct qcow2_store *store)
{
	return store->writable;
}

bool qcow2_store_identity(struct qcow2_store *store, uint64_t id[2])
{
	if (store->has_identity)
		memcpy(id, store->identity, sizeof store->identity);
	return store->has_identity;
}

bool qcow2_store_is_device(struct qcow2_store *store)
{
	return store->is_device;
}
