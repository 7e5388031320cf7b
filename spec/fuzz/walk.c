/* SPDX-License-Identifier: MIT
 * Fuzz target: opens an image and walks everything that can be read of it.
 *
 * Input: one byte, then the file in pieces of 512 bytes, of which piece i lies at i * (512 << byte % 13):
 * so the interesting beginnings of large clusters fit into a small input. Bit 7 of the byte leaves out what
 * the image names. Otherwise the file is its own external data file, and its own backing file over a raw one.
 *
 * Demanded besides coming back: extents tile the disk, and reads agree with one another and with extents. */
#include "base/addr.h"
#include "qcow2.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)        \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

enum { PIECE = 512, WINDOW = 64 << 10, MOST_EXTENTS = 600, MOST_ENTRIES = 300, MOST_RECORDS = 6 };

/* A failure is a sentence with a kind. */
static void check_error(int rc, const struct qcow2_error *err)
{
	REQUIRE(rc < 0 && rc == err->code && err->text[0] && strlen(err->text) < sizeof err->text);
	REQUIRE(rc != QCOW2_E_BUG && rc != QCOW2_E_NOMEM && rc != QCOW2_E_IO);
	for (const char *c = err->text; *c; c++)
		REQUIRE((unsigned char)*c >= ' ' && *c != 127);
}

static struct qcow2_store *store_of(const uint8_t *data, size_t size, uint64_t spread)
{
	struct qcow2_store *store;
	size_t pieces = (size + PIECE - 1) / PIECE;
	uint64_t length = pieces ? (pieces - 1) * spread + (size - (pieces - 1) * PIECE) : 0;

	/* The last piece stands for a whole one of its size: what is spread ends with zeros. */
	if (spread > PIECE)
		length = pieces * spread;
	REQUIRE(qcow2_store_memory(NULL, length, &store, NULL) == 0);
	for (size_t i = 0; i < pieces; i++)
		REQUIRE(qcow2_store_write(store, i * spread, data + i * PIECE,
					  q2_min(PIECE, size - i * PIECE), NULL) == 0);
	return store;
}

/* Reads [offset, offset + length) whole and in odd pieces, which must say the same. */
static void walk_read(struct qcow2_image *image, uint64_t offset, uint64_t length)
{
	static uint8_t whole[WINDOW], pieces[WINDOW];
	struct qcow2_error err;
	uint64_t size = qcow2_image_size(image);

	offset = q2_min(offset, size);
	length = q2_min(length, size - offset);
	int rc = qcow2_image_read(image, offset, whole, length, &err);
	if (rc) {
		check_error(rc, &err);
		return;
	}
	for (uint64_t done = 0, step = 1; done < length; done += step, step = step * 3 + 511) {
		step = q2_min(step, length - done);
		REQUIRE(qcow2_image_read(image, offset + done, pieces + done, step, &err) == 0);
	}
	REQUIRE(memcmp(whole, pieces, length) == 0);
	/* The extents of the range say zeros only where there are zeros. */
	for (uint64_t done = 0; done < length;) {
		struct qcow2_extent e;

		REQUIRE(qcow2_image_extent(image, offset + done, length - done, QCOW2_EXTENT_HOLES, &e,
					   &err) == 0);
		REQUIRE(e.offset == offset + done && e.length > 0 && e.length <= length - done);
		if (e.kind == QCOW2_EXTENT_ZERO || e.kind == QCOW2_EXTENT_UNALLOCATED)
			for (uint64_t i = 0; i < e.length; i++)
				REQUIRE(whole[done + i] == 0);
		done += e.length;
	}
}

static void walk_extents(struct qcow2_image *image, unsigned flags)
{
	struct qcow2_error err;
	uint64_t size = qcow2_image_size(image), offset = 0;

	for (unsigned n = 0; offset < size && n < MOST_EXTENTS; n++) {
		struct qcow2_extent e, again;
		int rc = qcow2_image_extent(image, offset, size - offset, flags, &e, &err);

		if (rc) {
			check_error(rc, &err);
			return;
		}
		REQUIRE(e.offset == offset && e.length > 0 && e.length <= size - offset && e.image);
		/* From its middle on the run is the same run. */
		uint64_t half = e.length / 2;
		REQUIRE(qcow2_image_extent(image, offset + half, e.length - half, flags, &again, &err) == 0);
		REQUIRE(again.kind == e.kind && again.depth == e.depth && again.length == e.length - half);
		if (e.host_offset == UINT64_MAX || e.kind == QCOW2_EXTENT_COMPRESSED)
			REQUIRE(again.host_offset == e.host_offset);
		else
			REQUIRE(again.host_offset == e.host_offset + half);
		offset += e.length;
	}
}

static void walk_tables(struct qcow2_image *image, uint64_t file_length)
{
	struct qcow2_geometry g = qcow2_image_geometry(image);
	struct qcow2_error err;
	uint64_t raw, bitmap, at;
	int rc;

	for (uint64_t i = 0; i < q2_min(g.l1_entries, MOST_ENTRIES); i++) {
		rc = qcow2_image_l1_entry(image, i, &raw, &err);
		if (rc) {
			check_error(rc, &err);
			break;
		}
		for (uint64_t j = 0; j < q2_min(g.l2_entries, 40); j++) {
			struct qcow2_l2_entry e;

			rc = qcow2_image_l2_entry(image, i, j, &raw, &bitmap, &at, &err);
			if (rc) {
				check_error(rc, &err);
				break;
			}
			REQUIRE(at <= file_length - 8);
			qcow2_image_l2_decode(image, raw, bitmap, &e);
			REQUIRE(e.kind);
		}
	}
	REQUIRE(qcow2_image_l1_entry(image, g.l1_entries, &raw, &err) != 0);
	for (uint64_t i = 0; i < q2_min(g.reftable_entries, MOST_ENTRIES); i++) {
		rc = qcow2_image_reftable_entry(image, i, &raw, &err);
		if (rc)
			check_error(rc, &err);
	}
	for (uint64_t i = 0; i < MOST_ENTRIES; i++) {
		rc = qcow2_image_refcount(image, i < 200 ? i : i * 0x9e3779b97f4a7c15ull, &raw, &err);
		if (rc)
			check_error(rc, &err);
	}
	bool preallocated;
	rc = qcow2_image_is_preallocated(image, &preallocated, &err);
	if (rc)
		check_error(rc, &err);
}

static uint64_t sum_bytes(struct qcow2_bytes bytes)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < bytes.length; i++)
		sum += bytes.data[i];
	return sum;
}

/* Touches every byte of every name: a sanitizer sees those that are not there. */
static uint64_t walk_names(struct qcow2_image *image)
{
	struct qcow2_extension ext;
	uint64_t sum = sum_bytes(qcow2_image_backing_name(image)) +
		       sum_bytes(qcow2_image_backing_format(image)) + sum_bytes(qcow2_image_data_name(image));

	for (uint32_t i = 0; i < 64 && qcow2_image_extension(image, i, &ext, NULL) == 0; i++)
		sum += sum_bytes(ext.data) + strlen(ext.word);
	for (unsigned type = 0; type < 3; type++)
		for (unsigned bit = 0; bit < 64; bit++) {
			bool known;

			sum += sum_bytes(qcow2_image_feature_name(image, type, bit, &known));
		}
	return sum;
}

static void walk_bitmaps(struct qcow2_image *image)
{
	struct qcow2_error err;
	uint64_t size = qcow2_image_size(image);
	uint32_t count;
	int rc = qcow2_image_bitmap_count(image, &count, &err);

	if (rc)
		check_error(rc, &err);
	for (uint32_t i = 0; !rc && i < q2_min(count, MOST_RECORDS); i++) {
		struct qcow2_bitmap b;

		rc = qcow2_image_bitmap(image, i, &b, &err);
		if (rc) {
			check_error(rc, &err);
			break;
		}
		sum_bytes(b.name);
		sum_bytes(b.extra_data);
		uint64_t offset = 0, length;
		bool dirty, last = false;
		for (unsigned n = 0; offset < size && n < MOST_EXTENTS; n++) {
			int bad = qcow2_image_bitmap_extent(image, i, offset, size - offset, &dirty, &length,
							    &err);

			if (bad) {
				check_error(bad, &err);
				break;
			}
			REQUIRE(length > 0 && length <= size - offset && (n == 0 || dirty != last));
			last = dirty;
			offset += length;
		}
	}
}

static void walk_disk(struct qcow2_image *image, uint64_t where)
{
	uint64_t size = qcow2_image_size(image);

	walk_extents(image, 0);
	walk_extents(image, QCOW2_EXTENT_HOLES | QCOW2_EXTENT_LAYER);
	walk_read(image, 0, WINDOW);
	walk_read(image, size > WINDOW ? size - WINDOW : 0, WINDOW);
	walk_read(image, size ? where % size : 0, WINDOW);
}

static void walk_snapshots(struct qcow2_image *image, uint64_t where)
{
	struct qcow2_error err;
	uint32_t count;
	int rc = qcow2_image_snapshot_count(image, &count, &err);

	if (rc)
		check_error(rc, &err);
	for (uint32_t i = 0; !rc && i < q2_min(count, MOST_RECORDS); i++) {
		struct qcow2_snapshot s;
		struct qcow2_image *view;

		REQUIRE(qcow2_image_snapshot(image, i, &s, &err) == 0);
		sum_bytes(s.id);
		sum_bytes(s.name);
		sum_bytes(s.extra_data);
		int bad = qcow2_image_open_snapshot(image, i, &view, &err);
		if (bad) {
			check_error(bad, &err);
			continue;
		}
		walk_disk(view, where);
		qcow2_image_unref(view);
	}
}

/* Attaches what there is to attach; failures are answers. */
static void attach(struct qcow2_image *image, const uint8_t *data, size_t size, uint64_t spread,
		   unsigned depth)
{
	struct qcow2_error err;
	const struct qcow2_header *header = qcow2_image_header(image);

	if (header && header->incompatible_features & 4) {
		struct qcow2_store *store = store_of(data, size, spread);

		REQUIRE(qcow2_image_attach_data(image, store, &err) == 0);
		qcow2_store_unref(store);
	}
	if (header && qcow2_image_backing_name(image).data) {
		struct qcow2_store *store = store_of(data, size, spread);
		struct qcow2_image *backing;
		bool again = depth < 2;
		int rc = again ? qcow2_image_open(store, &backing, &err)
			       : qcow2_image_open_raw(store, &backing, &err);

		REQUIRE(rc == 0);
		if (again)
			attach(backing, data, size, spread, depth + 1);
		REQUIRE(qcow2_image_attach_backing(image, backing, &err) == 0);
		qcow2_image_unref(backing);
		qcow2_store_unref(store);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct qcow2_error err;
	struct qcow2_image *image;
	uint64_t length, where = 0;
	const char *format;

	if (size < 1)
		return 0;
	uint8_t mode = *data++;
	size--;
	uint64_t spread = (uint64_t)PIECE << mode % 13;
	for (size_t i = 0; i < size; i++)
		where = where * 131 + data[i];

	struct qcow2_store *store = store_of(data, size, spread);
	REQUIRE(qcow2_store_length(store, &length, &err) == 0);
	REQUIRE(qcow2_image_probe(store, &format, &err) == 0);
	int rc = qcow2_image_open(store, &image, &err);
	if (rc) {
		check_error(rc, &err);
	} else {
		REQUIRE(!strcmp(format, "qcow2"));
		if (!(mode & 128))
			attach(image, data, size, spread, 0);
		walk_names(image);
		walk_disk(image, where);
		walk_tables(image, length);
		walk_snapshots(image, where);
		walk_bitmaps(image);
		qcow2_image_unref(image);
	}
	REQUIRE(qcow2_image_open_raw(store, &image, &err) == 0);
	walk_disk(image, where);
	qcow2_image_unref(image);
	qcow2_store_unref(store);
	return 0;
}
