/* SPDX-License-Identifier: MIT
 * own_store IMAGE RAW: makes an image inside the program's own memory through functions of its own, as a program does
 * whose bytes lie in a database or behind a protocol; then copies its disk to the file RAW and its bytes to IMAGE.
 *
 *   cc own_store.c $(pkg-config --cflags --libs qcow2) -o own_store */
#include <errno.h>
#include <qcow2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bytes {
	unsigned char *at;
	uint64_t length;
	unsigned long flushes;
};

static int length(void *opaque, uint64_t *out)
{
	*out = ((struct bytes *)opaque)->length;
	return 0;
}

static int read_bytes(void *opaque, uint64_t offset, void *buf, size_t count)
{
	memcpy(buf, ((struct bytes *)opaque)->at + offset, count);
	return 0;
}

static int resize(void *opaque, uint64_t new_length)
{
	struct bytes *b = opaque;
	unsigned char *at = realloc(b->at, new_length ? new_length : 1);
	if (!at)
		return ENOMEM;
	if (new_length > b->length)
		memset(at + b->length, 0, new_length - b->length);
	b->at = at;
	b->length = new_length;
	return 0;
}

static int write_bytes(void *opaque, uint64_t offset, const void *buf, size_t count)
{
	struct bytes *b = opaque;
	if (offset + count > b->length && resize(b, offset + count))
		return ENOMEM;
	memcpy(b->at + offset, buf, count);
	return 0;
}

static int flush(void *opaque)
{
	((struct bytes *)opaque)->flushes++;
	return 0;
}

static int make(struct qcow2_store *store, struct qcow2_image **image, struct qcow2_error *err)
{
	struct qcow2_create_options options = QCOW2_CREATE_OPTIONS_INIT;
	options.size = 3 << 20;
	options.cluster_size = 4096;
	int rc = qcow2_create(store, NULL, &options, err);
	if (!rc)
		rc = qcow2_image_open(store, image, err);
	if (!rc)
		rc = qcow2_image_begin(*image, err);
	for (uint64_t at = 0; !rc && at < 3 << 20; at += 100000)
		rc = qcow2_image_write(*image, at, "a part of the disk", 18, err);
	return rc ? rc : qcow2_image_finish(*image, err);
}

static int copy(struct qcow2_image *image, const char *path, struct qcow2_error *err)
{
	struct qcow2_copy_options options = QCOW2_COPY_OPTIONS_INIT;
	struct qcow2_store *target;
	struct qcow2_job *job;
	uint64_t done, total;
	int rc = qcow2_store_file(path, QCOW2_STORE_CREATE | QCOW2_STORE_WRITE, &target, err);
	if (rc)
		return rc;
	rc = qcow2_copy_new(&image, 1, target, &options, &job, err);
	if (!rc) {
		while ((rc = qcow2_job_step(job, &done, &total, err)) > 0)
			;
		qcow2_job_free(job);
	}
	qcow2_store_unref(target);
	return rc;
}

int main(int argc, char **argv)
{
	struct bytes bytes = {0};
	struct qcow2_store_ops ops = QCOW2_STORE_OPS_INIT;
	struct qcow2_store *store;
	struct qcow2_image *image = NULL;
	struct qcow2_error err;
	if (argc != 3)
		return 2;
	ops.length = length;
	ops.read = read_bytes;
	ops.write = write_bytes;
	ops.flush = flush;
	ops.resize = resize;
	int rc = qcow2_store_custom(&ops, &bytes, "in memory", &store, &err);
	if (!rc) {
		rc = make(store, &image, &err);
		qcow2_store_unref(store);
	}
	if (!rc)
		rc = copy(image, argv[2], &err);
	qcow2_image_unref(image);
	FILE *file = rc ? NULL : fopen(argv[1], "wb");
	if (rc || !file || fwrite(bytes.at, 1, bytes.length, file) != bytes.length || fclose(file)) {
		fprintf(stderr, "own_store: %s\n", rc ? err.text : "could not write the image");
		return 1;
	}
	printf("%s\n", bytes.flushes ? "flushed" : "never flushed");
	free(bytes.at);
	return 0;
}
