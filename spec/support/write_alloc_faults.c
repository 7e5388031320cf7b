/* SPDX-License-Identifier: MIT
 * Writes far apart into an image while no memory can be had from the Nth allocation on: `write_alloc_faults IMAGE N`.
 *
 * Linked with --wrap for malloc, calloc, realloc and posix_memalign. Demanded: the write ends, with `nomem`; once there
 * is memory it succeeds, all that was written is there, and the end of writing is a success. Prints "failed" or, when
 * so many allocations were not made, "through". */
#include "qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WRITES = 300, APART = 32768, LENGTH = 512 };

static unsigned long calls, first_failure; /* 0: none fails */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
int __real_posix_memalign(void **p, size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
int __wrap_posix_memalign(void **p, size_t alignment, size_t size);

static int fails(void)
{
	return first_failure && ++calls >= first_failure;
}

void *__wrap_malloc(size_t size)
{
	return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return fails() ? NULL : __real_realloc(p, size);
}

int __wrap_posix_memalign(void **p, size_t alignment, size_t size)
{
	return fails() ? ENOMEM : __real_posix_memalign(p, alignment, size);
}

static void demand(int rc, const char *what, const struct qcow2_error *err)
{
	if (!rc)
		return;
	fprintf(stderr, "%s: %s\n", what, err->text);
	exit(1);
}

int main(int argc, char **argv)
{
	static uint8_t bytes[LENGTH], read[LENGTH];
	struct qcow2_error err = {0};
	struct qcow2_store *store;
	struct qcow2_image *image;
	unsigned failures = 0;
	if (argc != 3)
		return 2;
	demand(qcow2_store_file(argv[1], QCOW2_STORE_WRITE, &store, &err), "store", &err);
	demand(qcow2_image_open(store, &image, &err), "open", &err);
	demand(qcow2_image_begin(image, &err), "begin", &err);
	first_failure = strtoul(argv[2], NULL, 10);
	for (unsigned i = 0; i < WRITES; i++) {
		memset(bytes, (int)(i % 255) + 1, LENGTH);
		int rc = qcow2_image_write(image, (uint64_t)i * APART, bytes, LENGTH, &err);
		if (!rc)
			continue;
		if (rc != QCOW2_E_NOMEM || err.code != rc || !err.text[0])
			demand(rc, "the failure", &err);
		failures++;
		first_failure = 0;
		demand(qcow2_image_write(image, (uint64_t)i * APART, bytes, LENGTH, &err), "afterwards",
		       &err);
	}
	first_failure = 0;
	demand(qcow2_image_finish(image, &err), "finish", &err);
	qcow2_image_unref(image);
	demand(qcow2_image_open(store, &image, &err), "open again", &err);
	for (unsigned i = 0; i < WRITES; i++) {
		memset(bytes, (int)(i % 255) + 1, LENGTH);
		demand(qcow2_image_read(image, (uint64_t)i * APART, read, LENGTH, &err), "read", &err);
		if (memcmp(bytes, read, LENGTH)) {
			fprintf(stderr, "write %u is lost\n", i);
			return 1;
		}
	}
	qcow2_image_unref(image);
	qcow2_store_unref(store);
	puts(failures ? "failed" : "through");
	return 0;
}
