/* SPDX-License-Identifier: MIT
 * Fuzz target: opens an image for writing and does what a script in the input says: guest writes, zeros, discards,
 * compressed clusters, resizes, snapshots, bitmaps, amendments, a check and a repair.
 *
 * Input: a byte as in walk.c, the file in its pieces, then the script: steps of four bytes, and a last byte that says
 * how many (modulo 32). The image gets a data file and a backing file when it names them.
 *
 * Demanded: every step ends, with success or with a sentence; what was written reads back; and an image in which the
 * check found nothing wrong has nothing wrong afterwards, and shows the same disk but for what was written to it. */
#include "base/addr.h"
#include "qcow2.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)        \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

enum {
	PIECE = 512,
	WINDOW = 32 << 10,     /* of the disk's begin is watched, and written to */
	MOST_SIZE = 4 << 20,   /* of a resized disk */
	MOST_TURNS = 100000,   /* of a job's loop */
	SCRIPT_STEP = 4,       /* bytes */
	MOST_SCRIPT = 32,      /* steps */
	MOST_CLUSTER = 1 << 16 /* larger ones are written compressed nowhere */
};

static int checked(int rc, const struct qcow2_error *err)
{
	if (!rc)
		return 0;
	REQUIRE(rc < 0 && rc == err->code && err->text[0] && strlen(err->text) < sizeof err->text);
	REQUIRE(rc != QCOW2_E_BUG && rc != QCOW2_E_NOMEM && rc != QCOW2_E_IO);
	return rc;
}

static struct qcow2_store *store_of(const uint8_t *data, size_t size, uint64_t spread)
{
	struct qcow2_store *store;
	size_t pieces = (size + PIECE - 1) / PIECE;
	uint64_t length = pieces ? (pieces - 1) * spread + (size - (pieces - 1) * PIECE) : 0;

	REQUIRE(qcow2_store_memory(NULL, length, &store, NULL) == 0);
	for (size_t i = 0; i < pieces; i++)
		REQUIRE(qcow2_store_write(store, i * spread, data + i * PIECE,
					  q2_min(size - i * PIECE, PIECE), NULL) == 0);
	return store;
}

/* The files of one input: the image, its data file, its backing file. */
struct files {
	struct qcow2_store *image, *data, *backing;
};

static struct qcow2_image *open_image(const struct files *files)
{
	struct qcow2_error err;
	struct qcow2_image *image;

	if (checked(qcow2_image_open(files->image, &image, &err), &err))
		return NULL;
	if (qcow2_image_header(image)->incompatible_features & 4)
		REQUIRE(qcow2_image_attach_data(image, files->data, &err) == 0);
	if (qcow2_image_backing_name(image).data) {
		struct qcow2_image *backing;

		REQUIRE(qcow2_image_open_raw(files->backing, &backing, &err) == 0);
		REQUIRE(qcow2_image_attach_backing(image, backing, &err) == 0);
		qcow2_image_unref(backing);
	}
	return image;
}

static struct qcow2_job *run_check(struct qcow2_image *image)
{
	struct qcow2_check_options options = {.struct_size = sizeof options, .most = 1000, .threads = 1};
	struct qcow2_job *check;
	struct qcow2_error err;
	uint64_t done, total;
	int rc = qcow2_check_new(image, &options, &check, &err);

	if (checked(rc, &err))
		return NULL;
	for (int turn = 0; (rc = qcow2_job_step(check, &done, &total, &err)) > 0; turn++)
		REQUIRE(turn < MOST_TURNS);
	if (checked(rc, &err)) {
		qcow2_job_free(check);
		return NULL;
	}
	return check;
}

static bool is_sound(struct qcow2_image *image)
{
	struct qcow2_job *check = run_check(image);
	bool sound = false;

	if (check) {
		const struct qcow2_check_result *r = qcow2_check_result(check);

		/* Old bytes at the data file's begin are no fault of who makes the first L2 table. */
		sound = r->corruptions == qcow2_check_found(check, QCOW2_PROBLEM_DATA_FILE_LOST) &&
			!r->unreadable && !r->incomplete;
	}
	qcow2_job_free(check);
	return sound;
}

static void repair(struct qcow2_image *image)
{
	uint8_t wanted[QCOW2_PROBLEM_COUNT];
	struct qcow2_job *check = run_check(image);
	struct qcow2_job *job;
	struct qcow2_error err;
	uint64_t done, total;

	if (!check)
		return;
	qcow2_repair_want(wanted, true, true);
	int rc = qcow2_repair_new(check, wanted, &job, &err);
	if (!checked(rc, &err)) {
		for (int turn = 0; (rc = qcow2_job_step(job, &done, &total, &err)) > 0; turn++)
			REQUIRE(turn < MOST_TURNS);
		checked(rc, &err);
		qcow2_job_free(job);
	}
	qcow2_job_free(check);
}

/* ---- the script ---- */

struct play {
	struct qcow2_image *image;
	bool sound; /* the check found nothing wrong before the first step */
	bool known; /* `expected` is what the disk begins with */
	uint8_t expected[WINDOW];
	size_t watched;
};

static size_t watched_of(const struct play *p)
{
	return (size_t)q2_min(qcow2_image_size(p->image), WINDOW);
}

static void look(struct play *p)
{
	struct qcow2_error err;
	uint8_t now[WINDOW];
	size_t size = watched_of(p);
	bool read = !checked(qcow2_image_read(p->image, 0, now, size, &err), &err);

	if (p->sound && p->known) {
		REQUIRE(read && !memcmp(now, p->expected, q2_min(size, p->watched)));
		for (size_t i = p->watched; i < size; i++) /* grown: zeros */
			REQUIRE(!now[i]);
	}
	p->known = read;
	p->watched = size;
	memcpy(p->expected, now, read ? size : 0);
}

static void expect(struct play *p, uint64_t offset, const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length && offset + i < p->watched; i++)
		p->expected[offset + i] = bytes ? bytes[i] : 0;
}

/* Writes, zeros: a range of the window. */
static void change(struct play *p, unsigned what, const uint8_t step[SCRIPT_STEP])
{
	struct qcow2_error err;
	uint8_t bytes[8192];
	uint64_t size = watched_of(p);
	uint64_t offset = size ? ((uint64_t)step[1] << 7 | (step[3] & 127)) % size : 0;
	size_t length = (size_t)q2_min(size - offset, (uint64_t)(step[2] + 1) * 32);
	int rc;

	memset(bytes, step[3] | 1, length);
	if (what == 0)
		rc = qcow2_image_write(p->image, offset, bytes, length, &err);
	else
		rc = qcow2_image_zero(p->image, offset, length, what - 1, &err);
	if (!checked(rc, &err))
		expect(p, offset, what == 0 ? bytes : NULL, length);
	else
		p->known = false; /* a part of it may be done */
}

static void discard(struct play *p, const uint8_t step[SCRIPT_STEP])
{
	struct qcow2_error err;
	uint64_t size = watched_of(p), offset = q2_min(step[1] * 256ull, size);

	checked(qcow2_image_discard(p->image, offset, q2_min(size - offset, step[2] * 512ull), &err), &err);
	p->known = false; /* what is let go of depends on what is there */
}

static void compress(struct play *p, const uint8_t step[SCRIPT_STEP])
{
	struct qcow2_error err;
	uint8_t *bytes = calloc(1, MOST_CLUSTER);
	uint64_t size = qcow2_image_size(p->image), cluster = qcow2_image_geometry(p->image).cluster_size;
	uint64_t offset = step[1] * cluster;

	REQUIRE(bytes);
	if (cluster <= MOST_CLUSTER && offset < size) {
		size_t length = (size_t)q2_min(cluster, size - offset);

		memset(bytes, step[2], length / 2);
		if (checked(qcow2_image_write_compressed(p->image, offset, bytes, length, &err), &err))
			p->known = false;
		else
			expect(p, offset, bytes, length);
	}
	free(bytes);
}

static void resize(struct play *p, const uint8_t step[SCRIPT_STEP])
{
	struct qcow2_error err;
	uint64_t size = ((uint64_t)step[1] << 8 | step[2]) * 64 % MOST_SIZE;

	if (qcow2_image_size(p->image) > MOST_SIZE)
		return;
	/* Data behind a shrunk disk's end in its last sector may come back, as far as that goes. */
	if (size % 512 && size < qcow2_image_size(p->image))
		size = q2_round_up(size, 512);
	if (checked(qcow2_image_resize(p->image, size, step[3] & 1 ? QCOW2_RESIZE_SHRINK : 0,
				       QCOW2_PREALLOCATION_OFF, &err),
		    &err))
		p->known = false;
	else
		p->watched = q2_min(p->watched, watched_of(p));
}

static void snapshot(struct play *p, const uint8_t step[SCRIPT_STEP])
{
	struct qcow2_error err;
	struct timespec when = {1000, 0};
	uint32_t count, index;

	if (checked(qcow2_image_snapshot_count(p->image, &count, &err), &err))
		return;
	index = count ? step[2] % count : 0;
	switch (step[1] % 4) {
	case 0:
		checked(qcow2_image_snapshot_create(p->image, (struct qcow2_bytes){(const uint8_t *)"new", 3},
						    &when, &err),
			&err);
		break;
	case 1:
		checked(qcow2_image_snapshot_apply(p->image, index, &err), &err);
		p->known = false;
		break;
	case 2:
		checked(qcow2_image_snapshot_delete(p->image, index, &err), &err);
		break;
	case 3:
		checked(qcow2_image_snapshot_rename(p->image, index,
						    (struct qcow2_bytes){(const uint8_t *)"other", 5}, &err),
			&err);
		break;
	}
}

static void bitmap(struct play *p, const uint8_t step[SCRIPT_STEP])
{
	struct qcow2_error err;
	char letter = (char)('a' + step[2] % 4);
	uint32_t count, index;

	if (checked(qcow2_image_bitmap_count(p->image, &count, &err), &err))
		return;
	index = count ? step[2] % count : 0;
	switch (step[1] % 5) {
	case 0:
		checked(qcow2_image_bitmap_add(p->image, (struct qcow2_bytes){(uint8_t *)&letter, 1},
					       512ull << step[3] % 8, step[3] & 8, &err),
			&err);
		break;
	case 1:
		checked(qcow2_image_bitmap_remove(p->image, index, &err), &err);
		break;
	case 2:
		checked(qcow2_image_bitmap_enable(p->image, index, step[3] & 1, &err), &err);
		break;
	case 3:
		checked(qcow2_image_bitmap_change(p->image, index, 0,
						  q2_min(step[3] * 512ull, qcow2_image_size(p->image)),
						  step[3] & 1, &err),
			&err);
		break;
	case 4:
		checked(qcow2_image_bitmap_merge(p->image, index, p->image, count ? step[3] % count : 0,
						 &err),
			&err);
		break;
	}
}

static void amend(struct play *p, const uint8_t step[SCRIPT_STEP])
{
	struct qcow2_amend_options options = {.struct_size = sizeof options,
					      .lazy_refcounts = step[2] % 3 - 1,
					      .data_raw = -1};
	struct qcow2_error err;
	struct qcow2_job *task;
	uint64_t done, total;

	if (step[1] & 1)
		options.version = 2 + (step[1] >> 1 & 1);
	if (step[1] & 4)
		options.refcount_bits = 1u << step[3] % 7;
	int rc = qcow2_amend_new(p->image, &options, &task, &err);
	if (checked(rc, &err))
		return;
	for (int turn = 0; (rc = qcow2_job_step(task, &done, &total, &err)) > 0; turn++)
		REQUIRE(turn < MOST_TURNS);
	checked(rc, &err);
	qcow2_job_free(task);
}

static void play(struct play *p, const uint8_t *script, size_t steps)
{
	struct qcow2_error err;

	for (size_t i = 0; i < steps; i++) {
		const uint8_t *step = script + i * SCRIPT_STEP;

		switch (step[0] % 12) {
		case 0:
		case 1:
		case 2:
			change(p, 0, step);
			break;
		case 3:
		case 4:
			change(p, 1 + (step[0] / 12) % 2, step);
			break;
		case 5:
			discard(p, step);
			break;
		case 6:
			compress(p, step);
			break;
		case 7:
			resize(p, step);
			break;
		case 8:
			snapshot(p, step);
			break;
		case 9:
			bitmap(p, step);
			break;
		case 10:
			amend(p, step);
			break;
		case 11:
			checked(qcow2_image_flush(p->image, &err), &err);
			break;
		}
		look(p);
	}
}

static void run(const struct files *files, const uint8_t *script, size_t steps, bool mend)
{
	struct qcow2_error err;
	struct play p = {.image = open_image(files)};

	if (!p.image)
		return;
	if (mend) {
		repair(p.image);
		qcow2_image_unref(p.image);
		p.image = open_image(files);
		REQUIRE(p.image); /* a repair does not make an image unreadable */
	}
	p.sound = is_sound(p.image);
	if (!checked(qcow2_image_begin(p.image, &err), &err)) {
		look(&p);
		play(&p, script, steps);
		int rc = checked(qcow2_image_finish(p.image, &err), &err);
		qcow2_image_unref(p.image);
		p.image = open_image(files);
		if (p.sound) {
			REQUIRE(p.image && (rc || is_sound(p.image)));
			look(&p);
		}
	}
	qcow2_image_unref(p.image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	uint8_t mode = data[0];
	size_t steps = data[size - 1] % MOST_SCRIPT;
	steps = q2_min(steps, (size - 2) / SCRIPT_STEP);
	size_t script = size - 1 - steps * SCRIPT_STEP;
	uint64_t spread = (uint64_t)PIECE << mode % 13;
	struct files files = {store_of(data + 1, script - 1, spread), store_of(data + 1, script - 1, PIECE),
			      store_of(data + 1, script - 1, PIECE)};

	run(&files, data + script, steps, mode & 128);
	qcow2_store_unref(files.image);
	qcow2_store_unref(files.data);
	qcow2_store_unref(files.backing);
	return 0;
}
