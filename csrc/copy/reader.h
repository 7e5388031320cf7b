/* SPDX-License-Identifier: MIT
 * A worker's hands for reading pieces: its own codecs and buffers. One thread uses a reader at a time. */
#ifndef Q2_COPY_READER_H
#define Q2_COPY_READER_H

#include "copy/source.h"

struct q2_codec;

#define Q2_READER_CODECS 2 /* compression types there are */

struct q2_reader {
	struct q2_codec *codecs[Q2_READER_CODECS];

	/* Neighbouring streams are read together: what the buffer holds of which store. */
	uint8_t *stream;
	size_t stream_room;
	struct qcow2_store *stream_store; /* NULL: nothing */
	uint64_t stream_start, stream_end;

	/* The last cluster that was wanted in parts. */
	uint8_t *cluster;
	size_t cluster_room;
	struct qcow2_store *cluster_store; /* NULL: none */
	uint64_t cluster_host;

	bool salvage;
	uint64_t lost; /* bytes that salvage made zeros; the owner collects and clears it */
};

/* A zeroed struct is a fresh reader. */
void q2_reader_free(struct q2_reader *reader);

/*
 * Reads [offset, offset + length) of the disk into buf, from `count` pieces in order; what none of them
 * covers, and zero pieces, become zeros. gives: *any = some of it is not known to be zeros; when false, buf
 * was not touched. fails: `io`, `corrupt`, ..., naming the disk's offset; with `salvage` unreadable
 * sectors and broken clusters become zeros instead.
 */
int q2_reader_fill(struct q2_reader *reader, const struct q2_piece *pieces, size_t count, uint64_t offset,
		   size_t length, uint8_t *buf, bool *any, struct qcow2_error *err);

#endif
