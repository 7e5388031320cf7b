/* SPDX-License-Identifier: MIT
 * A store that writes a line for each call on its way to another store, with the owner of the place.
 *
 * It learns where tables lie from the bytes that pass: a header names the L1 table, the refcount table and the snapshot
 * table, an L1 table the L2 tables, a refcount table its blocks. What it has not seen is called data. So it knows nothing of
 * images, and the rest of the core nothing of it. */
#include "base/be.h"
#include "format/entry.h"
#include "store/kind.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A table of 64-bit entries that has been seen in part or whole; host order. */
struct seen_table {
	uint64_t at; /* bytes; 0: none */
	uint64_t entries;
	uint64_t *words; /* owned */
};

struct trace_store {
	struct qcow2_store store;
	struct qcow2_store *inner;
	int fd;
	unsigned events;
	pthread_mutex_t lock; /* over what follows */
	struct q2_geometry geo;
	bool known; /* a header was seen */
	struct qcow2_header header;
	struct seen_table l1, reftable;
};

static struct trace_store *trace(struct qcow2_store *store)
{
	return (struct trace_store *)store;
}

/* ---- what lies where ------------------------------------------------------------------------- */

static void place_table(struct seen_table *table, uint64_t at, uint64_t entries)
{
	if (table->at == at && table->entries == entries)
		return;
	free(table->words);
	table->words = q2_new(entries, sizeof *table->words);
	table->at = table->words ? at : 0;
	table->entries = table->words ? entries : 0;
}

static void learn_header(struct trace_store *t, const uint8_t *bytes, size_t length)
{
	struct qcow2_header header;
	uint8_t start[Q2_HEADER_FULL] = {0};
	memcpy(start, bytes, q2_min(length, sizeof start));
	if (q2_load32(start) == Q2_MAGIC_UNFINISHED)
		q2_store32(start, Q2_MAGIC);
	if (q2_header_parse(start, q2_min(length, sizeof start), &header, NULL) ||
	    q2_header_check(&header, UINT64_MAX >> 1, NULL))
		return;
	t->header = header;
	q2_header_geometry(&header, &t->geo);
	t->known = true;
	place_table(&t->l1, header.l1_table_offset, header.l1_size);
	place_table(&t->reftable, header.refcount_table_offset,
		    (uint64_t)header.refcount_table_clusters << (t->geo.cluster_bits - 3));
}

static void learn_table(struct seen_table *table, uint64_t offset, const uint8_t *bytes, uint64_t length)
{
	uint64_t end = table->at + table->entries * 8, at = q2_max(offset, table->at);
	if (!table->at)
		return;
	at = table->at + q2_round_up(at - table->at, 8);
	for (; at + 8 <= q2_min(end, offset + length); at += 8)
		table->words[(at - table->at) / 8] = q2_load64(bytes + (at - offset));
}

/* Bytes that were read or written without a failure. */
static void learn(struct trace_store *t, uint64_t offset, const void *bytes, uint64_t length)
{
	pthread_mutex_lock(&t->lock);
	if (offset == 0 && length >= Q2_HEADER_V2)
		learn_header(t, bytes, (size_t)length);
	learn_table(&t->l1, offset, bytes, length);
	learn_table(&t->reftable, offset, bytes, length);
	pthread_mutex_unlock(&t->lock);
}

/* The entry of the table that names the cluster of `offset`; UINT64_MAX: none does. */
static uint64_t entry_that_names(const struct seen_table *table, uint64_t mask, uint64_t offset,
				 uint64_t cluster_size)
{
	for (uint64_t i = 0; i < table->entries; i++) {
		uint64_t at = table->words[i] & mask;
		if (at && offset >= at && offset - at < cluster_size)
			return i;
	}
	return UINT64_MAX;
}

static bool is_in(const struct seen_table *table, uint64_t offset)
{
	return table->at && offset >= table->at && offset - table->at < table->entries * 8;
}

/* needs: the lock. */
static void name_owner(const struct trace_store *t, uint64_t offset, char *out, size_t room)
{
	uint64_t size = t->geo.cluster_size, index;
	unsigned bits = t->geo.cluster_bits + t->geo.l2_bits;
	if (!t->known)
		snprintf(out, room, "data");
	else if (offset < size)
		snprintf(out, room, "header");
	else if (is_in(&t->l1, offset))
		snprintf(out, room, "L1 of guest %#" PRIx64, ((offset - t->l1.at) / 8) << bits);
	else if (is_in(&t->reftable, offset))
		snprintf(out, room, "refcount table");
	else if (t->header.nb_snapshots && offset >= t->header.snapshots_offset &&
		 offset - t->header.snapshots_offset < size)
		snprintf(out, room, "snapshot table");
	else if ((index = entry_that_names(&t->l1, Q2_OFFSET_MASK, offset, size)) != UINT64_MAX)
		snprintf(out, room, "L2 of guest %#" PRIx64, index << bits);
	else if ((index = entry_that_names(&t->reftable, Q2_REFTABLE_MASK, offset, size)) != UINT64_MAX)
		snprintf(out, room, "refcount block %" PRIu64, index);
	else
		snprintf(out, room, "data");
}

/* ---- the lines ------------------------------------------------------------------------------------ */

static const char *const words[] = {"read", "write", "flush", "punch", "allocate", "resize", "extent"};

/* A line about a call that is over: its event, where, how long, whose place, and how it failed. */
static int tell(struct qcow2_store *store, enum qcow2_trace_event event, uint64_t offset, uint64_t length,
		int rc)
{
	struct trace_store *t = trace(store);
	char line[512], owner[64];
	int used;
	if (!(t->events & event))
		return rc;
	const char *word = words[__builtin_ctz(event)];
	const char *end = rc ? qcow2_error_word(rc) : "ok";
	pthread_mutex_lock(&t->lock);
	name_owner(t, offset, owner, sizeof owner);
	pthread_mutex_unlock(&t->lock);
	if (event == QCOW2_TRACE_FLUSH)
		used = snprintf(line, sizeof line, "%.200s: flush: %s\n", store->name, end);
	else if (event == QCOW2_TRACE_RESIZE)
		used = snprintf(line, sizeof line, "%.200s: resize to %" PRIu64 ": %s\n", store->name, length,
				end);
	else
		used = snprintf(line, sizeof line, "%.200s: %s %#" PRIx64 "+%" PRIu64 " (%s): %s\n",
				store->name, word, offset, length, owner, end);
	/* One call, so that lines of several threads do not mix. A trace that cannot be written is lost: the work is not. */
	ssize_t ignored = write(t->fd, line, (size_t)used);
	(void)ignored;
	return rc;
}

static int trace_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		      struct qcow2_error *err)
{
	int rc = qcow2_store_read(trace(store)->inner, offset, buf, length, err);
	if (!rc)
		learn(trace(store), offset, buf, length);
	return tell(store, QCOW2_TRACE_READ, offset, length, rc);
}

static int trace_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
		       struct qcow2_error *err)
{
	int rc = qcow2_store_write(trace(store)->inner, offset, buf, length, err);
	if (!rc)
		learn(trace(store), offset, buf, length);
	return tell(store, QCOW2_TRACE_WRITE, offset, length, rc);
}

static int trace_flush(struct qcow2_store *store, struct qcow2_error *err)
{
	return tell(store, QCOW2_TRACE_FLUSH, 0, 0, qcow2_store_flush(trace(store)->inner, err));
}

static int trace_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	return tell(store, QCOW2_TRACE_PUNCH, offset, length,
		    qcow2_store_punch(trace(store)->inner, offset, length, err));
}

static int trace_allocate(struct qcow2_store *store, uint64_t offset, uint64_t length,
			  struct qcow2_error *err)
{
	return tell(store, QCOW2_TRACE_ALLOCATE, offset, length,
		    q2_store_allocate(trace(store)->inner, offset, length, err));
}

static int trace_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	return tell(store, QCOW2_TRACE_RESIZE, 0, length,
		    qcow2_store_resize(trace(store)->inner, length, err));
}

static int trace_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err)
{
	return qcow2_store_length(trace(store)->inner, length, err);
}

static int trace_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err)
{
	return qcow2_store_allocated(trace(store)->inner, bytes, err);
}

static int trace_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
			uint64_t *length, struct qcow2_error *err)
{
	int rc = qcow2_store_extent(trace(store)->inner, offset, limit, is_data, length, err);
	return tell(store, QCOW2_TRACE_EXTENT, offset, rc ? limit : *length, rc);
}

static void trace_close(struct qcow2_store *store)
{
	struct trace_store *t = trace(store);
	qcow2_store_unref(t->inner);
	free(t->l1.words);
	free(t->reftable.words);
	pthread_mutex_destroy(&t->lock);
	q2_store_free(store);
}

/* No `descriptor`: every byte passes here. */
static const struct q2_store_ops trace_ops = {
	.kind = "trace",
	.read = trace_read,
	.write = trace_write,
	.flush = trace_flush,
	.punch = trace_punch,
	.allocate = trace_allocate,
	.resize = trace_resize,
	.length = trace_length,
	.allocated = trace_allocated,
	.extent = trace_extent,
	.close = trace_close,
};

int qcow2_store_trace(struct qcow2_store *inner, int fd, unsigned events, struct qcow2_store **out,
		      struct qcow2_error *err)
{
	struct trace_store *t = q2_store_new_around(sizeof *t, &trace_ops, inner, err);
	if (!t)
		return QCOW2_E_NOMEM;
	t->inner = qcow2_store_ref(inner);
	t->fd = fd;
	t->events = events;
	pthread_mutex_init(&t->lock, NULL);
	*out = &t->store;
	return 0;
}
