/* SPDX-License-Identifier: MIT
 * Moves that are longer than a buffer: zeros into a range, and bytes from one store to another. */
#include "store/kind.h"

#include <unistd.h>

/* Between the two ends when the kernel cannot do it alone. */
#define BOUNCE ((size_t)1 << 20)

/* The kernel takes at most about 2 GiB in a call; a power of two keeps the pieces aligned. */
#define KERNEL_PIECE ((uint64_t)1 << 30)

int q2_store_write_zeros(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	size_t room = (size_t)q2_min(length, Q2_STORE_ZEROS);
	q2_auto uint8_t *zeros = q2_new(1, room);

	if (!zeros)
		return q2_error_nomem(err);
	while (length) {
		size_t n = (size_t)q2_min(length, room);
		int rc = store->ops->write(store, offset, zeros, n, err);

		if (rc)
			return rc;
		offset += n;
		length -= n;
	}
	return 0;
}

int q2_store_fill_holes(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	while (length) {
		uint64_t run;
		bool is_data;
		int rc = qcow2_store_extent(store, offset, length, &is_data, &run, err);

		if (!rc && !is_data)
			rc = q2_store_write_zeros(store, offset, run, err);
		if (rc)
			return rc;
		offset += run;
		length -= run;
	}
	return 0;
}

int q2_store_allocate(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	int rc = q2_store_check_change(store, "allocate", offset, length, err);

	if (rc || !length)
		return rc;
	if (store->ops->allocate)
		return q2_store_changed(store, store->ops->allocate(store, offset, length, err));
	return q2_store_changed(store, q2_store_fill_holes(store, offset, length, err));
}

/* Zeros at the target without spending space where that can be had: punch what is there, and let the last
 * byte grow the rest. */
static int copy_zeros(struct qcow2_store *to, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	static const uint8_t zero;
	uint64_t end;
	int rc;

	if (!length)
		return 0;
	rc = qcow2_store_punch(to, offset, length, err);
	if (!rc)
		rc = qcow2_store_length(to, &end, err);
	if (!rc && end < offset + length)
		rc = qcow2_store_write(to, offset + length - 1, &zero, 1, err);
	return rc;
}

/*
 * As far as the kernel goes by itself; gives the bytes done. A stop is no failure: what is left goes
 * through the buffer, which finds out at which end and where the trouble is.
 */
static uint64_t copy_in_kernel(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t length)
{
	uint64_t done = 0;

	while (done < length) {
		off_t in = (off_t)(from_offset + done), out = (off_t)(to_offset + done);
		ssize_t n =
			copy_file_range(from, &in, to, &out, (size_t)q2_min(length - done, KERNEL_PIECE), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	return done;
}

int q2_store_copy(struct qcow2_store *from, uint64_t from_offset, struct qcow2_store *to, uint64_t to_offset,
		  uint64_t length, struct qcow2_error *err)
{
	q2_auto uint8_t *buf = NULL;
	uint64_t end, there, done = 0;
	int rc, in, out;

	/* The empty write below says "read-only" before anything moves. */
	if (!q2_fits(from_offset, length, Q2_STORE_MAX))
		return q2_error_set(err, QCOW2_E_RANGE, from_offset,
				    "Could not copy past the largest file offset");
	if (!q2_fits(to_offset, length, Q2_STORE_MAX))
		return q2_error_set(err, QCOW2_E_RANGE, to_offset,
				    "Could not copy past the largest file offset");
	rc = qcow2_store_write(to, to_offset, NULL, 0, err);
	if (!rc)
		rc = qcow2_store_length(from, &end, err);
	if (rc)
		return rc;

	there = from_offset < end ? q2_min(length, end - from_offset) : 0;
	in = q2_store_descriptor(from);
	out = q2_store_descriptor(to);
	if (in >= 0 && out >= 0) {
		done = copy_in_kernel(in, from_offset, out, to_offset, there);
		q2_store_changed(to, 0);
	}

	if (done < there && !(buf = q2_new_pages((size_t)q2_min(there - done, BOUNCE))))
		return q2_error_nomem(err);
	while (done < there) {
		size_t n = (size_t)q2_min(there - done, BOUNCE);

		rc = qcow2_store_read(from, from_offset + done, buf, n, err);
		if (!rc)
			rc = qcow2_store_write(to, to_offset + done, buf, n, err);
		if (rc)
			return rc;
		done += n;
	}
	return copy_zeros(to, to_offset + there, length - there, err);
}
