/* SPDX-License-Identifier: MIT
 * A raw target: workers write where the disk says, zeros become holes. */
#include "base/addr.h"
#include "base/mem.h"
#include "copy/copy_raw.h"
#include "data/zero.h"
#include "store/store.h"

#include <inttypes.h>
#include <string.h>

/* Zeros are looked for in units of this many bytes, aligned in the target: hosts keep no smaller holes. Who
 * asks for smaller ones gets sectors. */
#define GRAIN 4096u
#define SECTOR 512u

struct raw_sink {
	struct q2_copy_raw sink;
	struct qcow2_store *store;
	uint64_t sparse_size; /* 0: everything takes space */
	bool flush;
};

static int write_data(struct raw_sink *raw, uint64_t offset, const uint8_t *buf, size_t length,
		      struct qcow2_error *err)
{
	int rc = qcow2_store_write(raw->store, offset, buf, length, err);
	return rc ? q2_error_prefix(err, rc, "error while writing at byte %" PRIu64, offset) : 0;
}

/* Only called for targets that hold something else. */
static int raw_zero(struct q2_copy_raw *sink, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	struct raw_sink *raw = (struct raw_sink *)sink;
	int rc = qcow2_store_punch(raw->store, offset, length, err);
	/* The host's promise of space costs no writing: it leaves the range as zeros. */
	if (!rc && !raw->sparse_size)
		rc = q2_store_allocate(raw->store, offset, length, err);
	return rc ? q2_error_prefix(err, rc, "error while writing zeros at byte %" PRIu64, offset) : 0;
}

/*
 * The zeros at the start of buf, 0 when there are none or too few. `*data` = the bytes after them up to
 * the next zeros that are enough. A run that the buffer cuts short is enough when all of the buffer is zeros.
 */
static size_t leading_zeros(const struct raw_sink *raw, uint64_t offset, const uint8_t *buf, size_t length,
			    size_t *data)
{
	size_t enough = (size_t)q2_min(raw->sparse_size, length), zeros = 0, at = 0;
	size_t grain = raw->sparse_size < GRAIN ? SECTOR : GRAIN;
	*data = 0;
	while (at < length) {
		/* Up to the grid first, then whole units of it. */
		size_t ahead = (size_t)(q2_round_up(offset + at, grain) - (offset + at)), run;
		bool is_zero;
		if (ahead) {
			run = (size_t)q2_min(ahead, length - at);
			is_zero = q2_zero_test(buf + at, run);
		} else {
			run = q2_zero_run(buf + at, length - at, grain, &is_zero);
		}
		if (is_zero && run >= enough) {
			if (at)
				break;
			zeros = run;
		} else {
			*data += run;
		}
		at += run;
	}
	return zeros;
}

static int raw_write(struct q2_copy_raw *sink, uint64_t offset, const uint8_t *buf, size_t length,
		     struct qcow2_error *err)
{
	struct raw_sink *raw = (struct raw_sink *)sink;
	if (!raw->sparse_size)
		return write_data(raw, offset, buf, length, err);
	while (length) {
		size_t data, zeros = leading_zeros(raw, offset, buf, length, &data);
		int rc = 0;
		if (zeros && sink->wants_zeros)
			rc = raw_zero(sink, offset, zeros, err);
		if (!rc && data)
			rc = write_data(raw, offset + zeros, buf + zeros, data, err);
		if (rc)
			return rc;
		offset += zeros + data;
		buf += zeros + data;
		length -= zeros + data;
	}
	return 0;
}

static int raw_finish(struct q2_copy_raw *sink, struct qcow2_error *err)
{
	struct raw_sink *raw = (struct raw_sink *)sink;
	return raw->flush ? qcow2_store_flush(raw->store, err) : 0;
}

static void raw_free(struct q2_copy_raw *sink)
{
	qcow2_store_unref(((struct raw_sink *)sink)->store);
	free(sink);
}

static const struct q2_copy_raw_ops raw_ops = {
	.write = raw_write,
	.zero = raw_zero,
	.finish = raw_finish,
	.free = raw_free,
};

/* Empty and as long as the disk. gives: *is_zero = nothing of it needs to be made zeros. */
static int prepare_new(struct qcow2_store *store, uint64_t length, bool *is_zero, struct qcow2_error *err)
{
	int rc;
	*is_zero = !qcow2_store_is_device(store);
	if (!*is_zero)
		return qcow2_store_resize(store, length, err);
	rc = qcow2_store_resize(store, 0, err);
	return rc ? rc : qcow2_store_resize(store, length, err);
}

static int too_small(struct qcow2_store *store, uint64_t room, uint64_t length, struct qcow2_error *err)
{
	char name[256];
	const char *path = qcow2_store_name(store);
	q2_error_escape(name, sizeof name, path, strlen(path));
	return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
			    "output file is smaller than input file: '%s' has %" PRIu64 " bytes, %" PRIu64
			    " are needed",
			    name, room, length);
}

int q2_copy_raw_writer(struct qcow2_store *store, uint64_t length, const struct qcow2_copy_options *options,
		       struct q2_copy_raw **out, struct qcow2_error *err)
{
	uint64_t room = length;
	bool is_zero = options->target_is_zero;
	int rc = 0;
	if (!options->target_exists)
		rc = prepare_new(store, length, &is_zero, err);
	else
		rc = qcow2_store_length(store, &room, err);
	if (rc)
		return rc;
	/* A disk has whole sectors, whatever the file has. */
	if (room < length && q2_round_up(room, SECTOR) >= length) {
		rc = qcow2_store_resize(store, length, err);
		room = length;
	}
	if (!rc && room < length)
		rc = too_small(store, room, length, err);
	/* Nothing is to be sparse: the space of the zeros too is taken at once, the data finds it there. */
	if (!rc && is_zero && !options->sparse_size)
		rc = q2_store_allocate(store, 0, length, err);
	if (rc)
		return rc;
	struct raw_sink *raw = q2_new(1, sizeof *raw);
	if (!raw)
		return q2_error_nomem(err);
	raw->sink = (struct q2_copy_raw){.ops = &raw_ops, .wants_zeros = !is_zero};
	raw->store = qcow2_store_ref(store);
	raw->sparse_size = options->sparse_size;
	raw->flush = options->sync;
	*out = &raw->sink;
	return 0;
}
