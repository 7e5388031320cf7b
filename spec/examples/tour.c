/* SPDX-License-Identifier: MIT
 * tour IMAGE: opens a qcow2 image for writing, says where its disk lies, writes a sentence behind the first MiB, reads it
 * back.
 *
 *   cc tour.c $(pkg-config --cflags --libs qcow2) -o tour */
#include <inttypes.h>
#include <qcow2.h>
#include <stdio.h>
#include <string.h>

#define AT (UINT64_C(1) << 20)

static int fail(const struct qcow2_error *err)
{
	fprintf(stderr, "tour: %s (%s)\n", err->text, qcow2_error_word(err->code));
	return 1;
}

static int print_map(struct qcow2_image *image, struct qcow2_error *err)
{
	static const char *const kinds[] = {"data", "zero", "unallocated", "compressed"};
	struct qcow2_extent extent;
	for (uint64_t at = 0, size = qcow2_image_size(image); at < size; at += extent.length) {
		int rc = qcow2_image_extent(image, at, size - at, 0, &extent, err);
		if (rc)
			return rc;
		printf("%" PRIu64 " %" PRIu64 " %s\n", at, extent.length, kinds[extent.kind]);
	}
	return 0;
}

static int write_and_read(struct qcow2_image *image, struct qcow2_error *err)
{
	static const char sentence[] = "written by a program in C";
	char back[sizeof sentence];
	int rc = qcow2_image_begin(image, err);
	if (!rc)
		rc = qcow2_image_write(image, AT, sentence, sizeof sentence, err);
	/* The answer of the last flush is the answer of all writes before. */
	if (!rc)
		rc = qcow2_image_finish(image, err);
	if (!rc)
		rc = qcow2_image_read(image, AT, back, sizeof back, err);
	if (!rc)
		printf("%s\n", back);
	return rc;
}

int main(int argc, char **argv)
{
	struct qcow2_error err;
	struct qcow2_store *store;
	struct qcow2_image *image;
	if (argc != 2)
		return 2;
	if (strcmp(qcow2_version(), QCOW2_VERSION) != 0)
		fprintf(stderr, "tour: compiled for %s, runs with %s\n", QCOW2_VERSION, qcow2_version());
	if (qcow2_store_file(argv[1], QCOW2_STORE_WRITE, &store, &err))
		return fail(&err);
	int rc = qcow2_image_open(store, &image, &err);
	qcow2_store_unref(store); /* the image has a reference of its own */
	if (rc)
		return fail(&err);
	rc = print_map(image, &err);
	if (!rc)
		rc = write_and_read(image, &err);
	qcow2_image_unref(image);
	return rc ? fail(&err) : 0;
}
