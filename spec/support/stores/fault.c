/* SPDX-License-Identifier: MIT
 * A store that counts the calls on their way to another one and lets a chosen one fail. */
#include "store/kind.h"
#include "spec/support/stores/test_store.h"

#include <string.h>

struct fault_store {
	struct qcow2_store store;
	struct qcow2_store *inner;
	char kinds[6]; /* the letters that count */
	uint64_t nth;
	int os_errno;
	bool sticky;
	atomic_ullong calls;
};

static const struct q2_store_ops fault_ops;

static struct fault_store *fault(struct qcow2_store *store)
{
	return (struct fault_store *)store;
}

/* Counts one call. gives: 0, or the failure that it is its turn to be. */
static int turn(struct qcow2_store *store, char kind, const char *verb, uint64_t offset,
		struct qcow2_error *err)
{
	struct fault_store *f = fault(store);
	uint64_t number;

	if (!strchr(f->kinds, kind))
		return 0;
	number = atomic_fetch_add(&f->calls, 1) + 1;
	if (!f->nth || number < f->nth || (number > f->nth && !f->sticky))
		return 0;
	return q2_store_fail(store, verb, offset, f->os_errno, err);
}

static int fault_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		      struct qcow2_error *err)
{
	int rc = turn(store, 'r', "read", offset, err);

	return rc ? rc : qcow2_store_read(fault(store)->inner, offset, buf, length, err);
}

static int fault_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
		       struct qcow2_error *err)
{
	int rc = turn(store, 'w', "write", offset, err);

	return rc ? rc : qcow2_store_write(fault(store)->inner, offset, buf, length, err);
}

static int fault_flush(struct qcow2_store *store, struct qcow2_error *err)
{
	int rc = turn(store, 'f', "flush", Q2_NO_OFFSET, err);

	return rc ? rc : qcow2_store_flush(fault(store)->inner, err);
}

static int fault_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	int rc = turn(store, 'p', "discard", offset, err);

	return rc ? rc : qcow2_store_punch(fault(store)->inner, offset, length, err);
}

static int fault_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	int rc = turn(store, 's', "resize", Q2_NO_OFFSET, err);

	return rc ? rc : qcow2_store_resize(fault(store)->inner, length, err);
}

static int fault_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err)
{
	return qcow2_store_length(fault(store)->inner, length, err);
}

static int fault_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err)
{
	return qcow2_store_allocated(fault(store)->inner, bytes, err);
}

static int fault_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
			uint64_t *length, struct qcow2_error *err)
{
	return qcow2_store_extent(fault(store)->inner, offset, limit, is_data, length, err);
}

static void fault_close(struct qcow2_store *store)
{
	qcow2_store_unref(fault(store)->inner);
	q2_store_free(store);
}

/* No `allocate` and no `descriptor`: every call that moves bytes is one that counts. */
static const struct q2_store_ops fault_ops = {
	.kind = "fault",
	.read = fault_read,
	.write = fault_write,
	.flush = fault_flush,
	.punch = fault_punch,
	.resize = fault_resize,
	.length = fault_length,
	.allocated = fault_allocated,
	.extent = fault_extent,
	.close = fault_close,
};

int qcow2_store_fault(struct qcow2_store *inner, const char *kinds, uint64_t nth, int os_errno, bool sticky,
		      struct qcow2_store **out, struct qcow2_error *err)
{
	struct fault_store *f;

	if (!*kinds || strspn(kinds, "rwfps") != strlen(kinds) || strlen(kinds) >= sizeof f->kinds ||
	    os_errno <= 0)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "A fault store needs an errno and up to five letters of \"rwfps\"");
	f = q2_store_new_around(sizeof *f, &fault_ops, inner, err);
	if (!f)
		return QCOW2_E_NOMEM;
	memcpy(f->kinds, kinds, strlen(kinds));
	f->nth = nth;
	f->os_errno = os_errno;
	f->sticky = sticky;
	atomic_init(&f->calls, 0);
	f->inner = qcow2_store_ref(inner);
	*out = &f->store;
	return 0;
}

uint64_t qcow2_store_fault_calls(struct qcow2_store *store)
{
	return store->ops == &fault_ops ? atomic_load(&fault(store)->calls) : 0;
}
