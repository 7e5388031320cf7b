/* SPDX-License-Identifier: MIT
 * Reads everything of an image with the Nth allocation failing, for every N: `alloc_faults IMAGE [BACKING]`.
 *
 * Linked with --wrap for malloc, calloc, realloc, posix_memalign, strdup and free, so that only the library's
 * own calls count. Demanded: a failure is `nomem` with a sentence, the same step then succeeds with the same
 * bytes, and nothing is left allocated. Prints "N allocations, M failures". */
#include "qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long countdown, calls; /* the call that makes countdown 0 fails; 0: none does */
static long live;

static int fails(void)
{
	calls++;
	return countdown && --countdown == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
int __real_posix_memalign(void **p, size_t alignment, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
int __wrap_posix_memalign(void **p, size_t alignment, size_t size);
void __wrap_free(void *p);
char *__real_strdup(const char *text);
char *__wrap_strdup(const char *text);

static void *counted(void *p)
{
	live += p != NULL;
	return p;
}

void *__wrap_malloc(size_t size)
{
	return fails() ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
	return fails() ? NULL : counted(__real_calloc(count, size));
}

void *__wrap_realloc(void *p, size_t size)
{
	if (fails())
		return NULL;
	void *q = __real_realloc(p, size);
	live += q && !p;
	return q;
}

int __wrap_posix_memalign(void **p, size_t alignment, size_t size)
{
	if (fails())
		return ENOMEM;
	int rc = __real_posix_memalign(p, alignment, size);
	live += rc == 0;
	return rc;
}

char *__wrap_strdup(const char *text)
{
	return fails() ? NULL : counted(__real_strdup(text));
}

void __wrap_free(void *p)
{
	live -= p != NULL;
	__real_free(p);
}

static void die(const char *what, const struct qcow2_error *err)
{
	fprintf(stderr, "%s: %s\n", what, err ? err->text : "");
	exit(1);
}

static uint64_t hash(uint64_t h, const void *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		h = (h ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3ull;
	return h;
}

/* ---- the steps: each reads one thing whole and gives a hash of it ------------------------------- */

static int read_disk(struct qcow2_image *image, uint64_t *sum, struct qcow2_error *err)
{
	static uint8_t buf[40000];
	uint64_t size = qcow2_image_size(image);
	for (uint64_t at = 0; at < size; at += sizeof buf) {
		size_t n = size - at < sizeof buf ? (size_t)(size - at) : sizeof buf;
		int rc = qcow2_image_read(image, at, buf, n, err);
		if (rc)
			return rc;
		*sum = hash(*sum, buf, n);
	}
	return 0;
}

static int read_extents(struct qcow2_image *image, uint64_t *sum, struct qcow2_error *err)
{
	uint64_t size = qcow2_image_size(image);
	struct qcow2_extent e;
	for (uint64_t at = 0; at < size; at += e.length) {
		int rc = qcow2_image_extent(image, at, size - at, QCOW2_EXTENT_HOLES, &e, err);
		if (rc)
			return rc;
		uint64_t key[] = {e.offset, e.length, e.kind, e.host_offset};
		*sum = hash(*sum, key, sizeof key);
	}
	return 0;
}

static int read_tables(struct qcow2_image *image, uint64_t *sum, struct qcow2_error *err)
{
	uint64_t raw, bitmap, at;
	bool preallocated;
	int rc = qcow2_image_l1_entry(image, 0, &raw, err);
	for (uint64_t i = 0; !rc && i < 64; i++) {
		rc = qcow2_image_l2_entry(image, 0, i, &raw, &bitmap, &at, err);
		*sum = hash(*sum, &raw, rc ? 0 : sizeof raw);
	}
	for (uint64_t i = 0; !rc && i < 64; i++) {
		rc = qcow2_image_refcount(image, i, &raw, err);
		*sum = hash(*sum, &raw, rc ? 0 : sizeof raw);
	}
	return rc ? rc : qcow2_image_is_preallocated(image, &preallocated, err);
}

static int read_snapshots(struct qcow2_image *image, uint64_t *sum, struct qcow2_error *err)
{
	uint32_t count;
	int rc = qcow2_image_snapshot_count(image, &count, err);
	for (uint32_t i = 0; !rc && i < count; i++) {
		struct qcow2_image *view;
		rc = qcow2_image_open_snapshot(image, i, &view, err);
		if (rc)
			break;
		rc = read_disk(view, sum, err);
		qcow2_image_unref(view);
	}
	return rc;
}

static int read_bitmaps(struct qcow2_image *image, uint64_t *sum, struct qcow2_error *err)
{
	uint64_t size = qcow2_image_size(image), length;
	uint32_t count;
	int rc = qcow2_image_bitmap_count(image, &count, err);
	for (uint32_t i = 0; !rc && i < count; i++)
		for (uint64_t at = 0; !rc && at < size; at += length) {
			bool dirty;
			rc = qcow2_image_bitmap_extent(image, i, at, size - at, &dirty, &length, err);
			*sum = hash(*sum, &length, rc ? 0 : sizeof length);
		}
	return rc;
}

static int (*const steps[])(struct qcow2_image *, uint64_t *,
			    struct qcow2_error *) = {read_disk, read_extents, read_tables, read_snapshots,
						     read_bitmaps};
enum { STEPS = sizeof steps / sizeof *steps };

static int open_one(const char *path, bool raw, struct qcow2_image **image, struct qcow2_error *err)
{
	struct qcow2_store *store;
	int rc = qcow2_store_file(path, 0, &store, err);
	if (rc)
		return rc;
	rc = raw ? qcow2_image_open_raw(store, image, err) : qcow2_image_open(store, image, err);
	qcow2_store_unref(store);
	return rc;
}

/* ---- the loop --------------------------------------------------------------------------------- */

static unsigned failures;

/* After a failure: was it a clean one? From here on nothing fails. */
static void judge(int rc, struct qcow2_error *err, const char *what)
{
	if (rc != QCOW2_E_NOMEM || err->code != rc || !err->text[0])
		die(what, err);
	failures++;
	countdown = 0;
}

static void run(unsigned long nth, const char *path, const char *backing_path, uint64_t sums[STEPS])
{
	struct qcow2_error err = {0};
	struct qcow2_image *image, *backing;
	long before = live;
	calls = 0;
	countdown = nth;
	int rc = open_one(path, false, &image, &err);
	if (rc) {
		judge(rc, &err, "open");
		if (live != before)
			die("leak after a failed open", NULL);
		if (open_one(path, false, &image, &err))
			die("second open", &err);
	}
	if (backing_path) {
		rc = open_one(backing_path, true, &backing, &err);
		if (rc) {
			judge(rc, &err, "open of the backing file");
			if (open_one(backing_path, true, &backing, &err))
				die("second open of the backing file", &err);
		}
		rc = qcow2_image_attach_backing(image, backing, &err);
		if (rc)
			die("attach", &err);
		qcow2_image_unref(backing);
	}
	for (int i = 0; i < STEPS; i++) {
		uint64_t sum = 1;
		rc = steps[i](image, &sum, &err);
		if (rc) {
			judge(rc, &err, "step");
			sum = 1;
			if (steps[i](image, &sum, &err))
				die("the same step once more", &err);
		}
		if (nth == 0)
			sums[i] = sum;
		else if (sums[i] != sum)
			die("other bytes after a failed allocation", NULL);
	}
	countdown = 0;
	qcow2_image_unref(image);
	if (live != before)
		die(nth ? "leak after a failure" : "leak", NULL);
}

int main(int argc, char **argv)
{
	uint64_t sums[STEPS];
	if (argc < 2)
		return 2;
	run(0, argv[1], argv[2], sums);
	unsigned long all = calls;
	for (unsigned long nth = 1; nth <= all; nth++)
		run(nth, argv[1], argv[2], sums);
	printf("%lu allocations, %u failures\n", all, failures);
	return 0;
}
