/* SPDX-License-Identifier: MIT
 * For specs: stores of a program's own at their borders. custom_store CASE prints what happened. */
#include "qcow2.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROOM = 16 << 20 };

struct bytes {
	unsigned char *at;
	uint64_t length;
	pthread_mutex_t lock;
	int running, most, writes, closed;
	int write_errno; /* what each write answers */
};

static void enter(struct bytes *b)
{
	pthread_mutex_lock(&b->lock);
	b->running++;
	b->most = b->running > b->most ? b->running : b->most;
	pthread_mutex_unlock(&b->lock);
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void leave(struct bytes *b)
{
	pthread_mutex_lock(&b->lock);
	b->running--;
	pthread_mutex_unlock(&b->lock);
}

static int length(void *opaque, uint64_t *out)
{
	*out = ((struct bytes *)opaque)->length;
	return 0;
}

static int no_length(void *opaque, uint64_t *out)
{
	(void)opaque;
	(void)out;
	return EACCES;
}

static int read_bytes(void *opaque, uint64_t offset, void *buf, size_t count)
{
	struct bytes *b = opaque;
	if (offset + count > b->length)
		return EDOM; /* was promised not to come */
	enter(b);
	memcpy(buf, b->at + offset, count);
	leave(b);
	return 0;
}

static int write_bytes(void *opaque, uint64_t offset, const void *buf, size_t count)
{
	struct bytes *b = opaque;
	if (b->write_errno)
		return b->write_errno;
	if (offset + count > ROOM)
		return ENOSPC;
	b->writes++;
	memcpy(b->at + offset, buf, count);
	b->length = offset + count > b->length ? offset + count : b->length;
	return 0;
}

static int resize(void *opaque, uint64_t new_length)
{
	struct bytes *b = opaque;
	if (new_length > ROOM)
		return ENOSPC;
	if (new_length > b->length)
		memset(b->at + b->length, 0, new_length - b->length);
	b->length = new_length;
	return 0;
}

static int no_punch(void *opaque, uint64_t offset, uint64_t count)
{
	(void)opaque;
	(void)offset;
	(void)count;
	return ENOTSUP;
}

static int nothing(void *opaque, uint64_t offset, uint64_t limit, int *is_data, uint64_t *out)
{
	(void)opaque;
	(void)offset;
	*is_data = 0;
	*out = limit > UINT64_MAX / 2 ? limit : limit * 2; /* more than was asked */
	return 0;
}

static void closed(void *opaque)
{
	((struct bytes *)opaque)->closed++;
}

static void tell(const char *what, int rc, const struct qcow2_error *err)
{
	if (rc < 0)
		printf("%s: %s %s\n", what, qcow2_error_word(rc), err->text);
	else
		printf("%s: fine\n", what);
}

static int copy(struct qcow2_store *store, unsigned threads, struct qcow2_error *err)
{
	struct qcow2_copy_options options = QCOW2_COPY_OPTIONS_INIT;
	struct qcow2_store *target;
	struct qcow2_image *image;
	struct qcow2_job *job;
	uint64_t done, total;
	int rc = qcow2_image_open_raw(store, &image, err);
	if (!rc)
		rc = qcow2_store_memory(NULL, 0, &target, err);
	options.threads = threads;
	if (!rc)
		rc = qcow2_copy_new(&image, 1, target, &options, &job, err);
	while (!rc && (rc = qcow2_job_step(job, &done, &total, err)) > 0)
		rc = 0;
	qcow2_job_free(job);
	qcow2_image_unref(image);
	qcow2_store_unref(target);
	return rc;
}

int main(int argc, char **argv)
{
	struct bytes b = {.length = 8 << 20};
	struct qcow2_store_ops ops = QCOW2_STORE_OPS_INIT;
	struct qcow2_store *store = NULL;
	struct qcow2_error err;
	const char *test = argc > 1 ? argv[1] : "";
	unsigned char four[4] = {0};
	uint64_t run;
	bool is_data;
	pthread_mutex_init(&b.lock, NULL);
	b.at = calloc(1, ROOM);
	memset(b.at, 'a', 8 << 20);
	ops.length = length;
	ops.read = read_bytes;
	ops.write = write_bytes;
	ops.resize = resize;
	ops.close = closed;
	if (!strcmp(test, "refused")) {
		ops.struct_size = 0;
		tell("no size", qcow2_store_custom(&ops, &b, "own", &store, &err), &err);
		ops.struct_size = sizeof ops;
		ops.read = NULL;
		tell("no read", qcow2_store_custom(&ops, &b, "own", &store, &err), &err);
		ops.read = read_bytes;
		ops.length = no_length;
		tell("no length", qcow2_store_custom(&ops, &b, "own", &store, &err), &err);
		struct {
			struct qcow2_store_ops ops;
			uint64_t unknown;
		} later = {.ops = ops, .unknown = 1};
		later.ops.struct_size = sizeof later;
		tell("unknown", qcow2_store_custom(&later.ops, &b, "own", &store, &err), &err);
		printf("closed %d\n", b.closed);
		free(b.at);
		return 0;
	}
	if (!strcmp(test, "fixed"))
		ops.resize = NULL;
	if (!strcmp(test, "readonly"))
		ops.write = NULL;
	if (!strcmp(test, "holes"))
		ops.extent = nothing;
	if (!strcmp(test, "punch"))
		ops.punch = no_punch;
	if (!strncmp(test, "threads", 7))
		ops.concurrency = (unsigned)atoi(test + 7);
	if (!strcmp(test, "older")) /* a program that knew no more members than `write` */
		ops.struct_size = offsetof(struct qcow2_store_ops, flush);
	int rc = qcow2_store_custom(&ops, &b, "own", &store, &err);
	tell("open", rc, &err);
	if (rc) {
		free(b.at);
		return 1;
	}
	if (!strcmp(test, "errors")) {
		b.write_errno = ENOSPC;
		tell("full", qcow2_store_write(store, 0, "abcd", 4, &err), &err);
		b.write_errno = -7;
		tell("nonsense", qcow2_store_write(store, 4, "abcd", 4, &err), &err);
	} else if (!strcmp(test, "threads1") || !strcmp(test, "threads3")) {
		tell("copy", copy(store, 8, &err), &err);
		printf("at most %s\n", b.most <= (int)ops.concurrency ? "as many as asked" : "too many");
		printf("together %s\n", b.most > 1 ? "yes" : "no");
	} else {
		tell("read behind the end", qcow2_store_read(store, (8 << 20) - 2, four, 4, &err), &err);
		printf("%d %d %d %d\n", four[0], four[1], four[2], four[3]);
		tell("write behind the end", qcow2_store_write(store, 9 << 20, "abcd", 4, &err), &err);
		tell("shorter", qcow2_store_resize(store, 4096, &err), &err);
		tell("punch", qcow2_store_punch(store, 0, 1 << 20, &err), &err);
		rc = qcow2_store_extent(store, 0, 100, &is_data, &run, &err);
		printf("%s %llu\n", is_data ? "data" : "hole", (unsigned long long)run);
		tell("flush", qcow2_store_flush(store, &err), &err);
		rc = qcow2_store_length(store, &run, &err);
		printf("%llu bytes, %s, first %d, %d writes\n", (unsigned long long)run,
		       qcow2_store_writable(store) ? "writable" : "readonly", b.at[0], b.writes);
	}
	qcow2_store_unref(store);
	printf("closed %d\n", b.closed);
	free(b.at);
	return rc < 0;
}
