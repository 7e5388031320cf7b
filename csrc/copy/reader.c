/* SPDX-License-Identifier: MIT
 * Reads pieces: plain bytes straight into the caller's buffer, compressed clusters through a buffer of
 * neighbouring streams. */
#include "copy/reader.h"

#include "base/addr.h"
#include "base/mem.h"
#include "data/codec.h"

#include <inttypes.h>
#include <string.h>

#define SECTOR 512u

/* Streams are read in one call up to this many bytes, over gaps that cost less than a call. */
#define STREAM_SPAN ((uint64_t)256 << 10)
#define STREAM_GAP ((uint64_t)16 << 10)

void q2_reader_free(struct q2_reader *reader)
{
	for (int i = 0; i < Q2_READER_CODECS; i++)
		q2_codec_free(reader->codecs[i]);
	free(reader->stream);
	free(reader->cluster);
	*reader = (struct q2_reader){0};
}

static bool can_be_salvaged(const struct q2_reader *reader, int code)
{
	return reader->salvage && (code == QCOW2_E_IO || code == QCOW2_E_CORRUPT);
}

/* A buffer of at least `want` bytes, whose contents may go. */
static int make_room(uint8_t **buf, size_t *room, size_t want, struct qcow2_error *err)
{
	if (*room >= want)
		return 0;
	free(*buf);
	*room = 0;
	*buf = q2_new_pages(want);
	if (!*buf)
		return q2_error_nomem(err);
	*room = want;
	return 0;
}

/* One sector at a time, as the disk gives them; the others are zeros. */
static int read_sectors(struct q2_reader *reader, const struct q2_piece *part, uint8_t *buf,
			struct qcow2_error *err)
{
	for (uint64_t done = 0; done < part->length;) {
		size_t n = (size_t)q2_min(part->length - done, SECTOR - (part->host + done) % SECTOR);
		int rc = qcow2_store_read(part->store, part->host + done, buf + done, n, err);
		if (rc && !can_be_salvaged(reader, rc))
			return rc;
		if (rc) {
			memset(buf + done, 0, n);
			reader->lost += n;
		}
		done += n;
	}
	return 0;
}

static int read_data(struct q2_reader *reader, const struct q2_piece *part, uint8_t *buf,
		     struct qcow2_error *err)
{
	int rc = qcow2_store_read(part->store, part->host, buf, part->length, err);
	if (can_be_salvaged(reader, rc))
		rc = read_sectors(reader, part, buf, err);
	return rc ? q2_error_prefix(err, rc, "error while reading at byte %" PRIu64, part->offset) : 0;
}

static int read_span(struct q2_reader *reader, struct qcow2_store *store, uint64_t start, uint64_t end,
		     struct qcow2_error *err)
{
	reader->stream_store = NULL;
	int rc = make_room(&reader->stream, &reader->stream_room, end - start, err);
	if (!rc)
		rc = qcow2_store_read(store, start, reader->stream, end - start, err);
	if (rc)
		return rc;
	reader->stream_store = store;
	reader->stream_start = start;
	reader->stream_end = end;
	return 0;
}

/* The stream of pieces[0]; the streams that follow it in the file are read along. */
static int read_stream(struct q2_reader *reader, const struct q2_piece *pieces, size_t count,
		       const uint8_t **stream, struct qcow2_error *err)
{
	const struct q2_piece *first = pieces;
	uint64_t start = first->host, end = start + first->host_length;
	if (reader->stream_store != first->store || start < reader->stream_start ||
	    end > reader->stream_end) {
		uint64_t span = end;
		for (size_t i = 1; i < count; i++) {
			const struct q2_piece *next = &pieces[i];
			uint64_t next_end = next->host + next->host_length;
			if (next->kind != QCOW2_EXTENT_COMPRESSED || next->store != first->store ||
			    next->host < start || next->host > span + STREAM_GAP ||
			    next_end > start + STREAM_SPAN)
				break;
			span = q2_max(span, next_end);
		}
		int rc = read_span(reader, first->store, start, span, err);
		/* What is wrong with a neighbour is not this cluster's trouble. */
		if (rc && span > end)
			rc = read_span(reader, first->store, start, end, err);
		if (rc)
			return rc;
	}
	*stream = reader->stream + (start - reader->stream_start);
	return 0;
}

static int expand(struct q2_reader *reader, const struct q2_piece *pieces, size_t count, uint8_t *out,
		  struct qcow2_error *err)
{
	const struct q2_piece *piece = pieces;
	const uint8_t *stream;
	int rc = 0;
	if (piece->compression >= Q2_READER_CODECS || !reader->codecs[piece->compression]) {
		struct q2_codec *codec;
		rc = q2_codec_new(piece->compression, &codec, err);
		if (!rc)
			reader->codecs[piece->compression] = codec;
	}
	if (!rc)
		rc = read_stream(reader, pieces, count, &stream, err);
	if (!rc)
		rc = q2_codec_expand(reader->codecs[piece->compression], stream, piece->host_length, out,
				     piece->cluster_size, err);
	return rc;
}

/* [offset, offset + length) of the compressed piece pieces[0]; `count` pieces may be looked at ahead. */
static int read_compressed(struct q2_reader *reader, const struct q2_piece *pieces, size_t count,
			   uint64_t offset, size_t length, uint8_t *buf, struct qcow2_error *err)
{
	const struct q2_piece *piece = pieces;
	uint64_t within = piece->within + (offset - piece->offset);
	int rc = 0;
	if (length == piece->cluster_size) {
		rc = expand(reader, pieces, count, buf, err);
	} else {
		if (reader->cluster_store != piece->store || reader->cluster_host != piece->host) {
			reader->cluster_store = NULL;
			rc = make_room(&reader->cluster, &reader->cluster_room, piece->cluster_size, err);
			if (!rc)
				rc = expand(reader, pieces, count, reader->cluster, err);
			if (!rc) {
				reader->cluster_store = piece->store;
				reader->cluster_host = piece->host;
			}
		}
		if (!rc)
			memcpy(buf, reader->cluster + within, length);
	}
	if (can_be_salvaged(reader, rc)) {
		memset(buf, 0, length);
		reader->lost += length;
		return 0;
	}
	if (!rc)
		return 0;
	char name[256];
	const char *path = qcow2_store_name(piece->store);
	q2_error_escape(name, sizeof name, path, strlen(path));
	return q2_error_prefix(err, rc,
			       "error while reading at byte %" PRIu64
			       ": Compressed cluster at offset %" PRIu64 " of '%s'",
			       offset, piece->host, name);
}

int q2_reader_fill(struct q2_reader *reader, const struct q2_piece *pieces, size_t count, uint64_t offset,
		   size_t length, uint8_t *buf, bool *any, struct qcow2_error *err)
{
	uint64_t at = offset, end = offset + length;
	*any = false;
	for (size_t i = 0; i < count && pieces[i].offset < end; i++) {
		const struct q2_piece *piece = &pieces[i];
		if (q2_piece_is_zero(piece) || piece->offset + piece->length <= at)
			continue;
		/* Zeros are only written where something else stands in the same buffer. */
		uint64_t from = q2_max(at, piece->offset), to = q2_min(end, piece->offset + piece->length);
		memset(buf + (at - offset), 0, from - at);
		*any = true;
		int rc;
		if (piece->kind == QCOW2_EXTENT_COMPRESSED) {
			rc = read_compressed(reader, piece, count - i, from, to - from, buf + (from - offset),
					     err);
		} else {
			struct q2_piece part = q2_piece_part(piece, from, to - from);
			rc = read_data(reader, &part, buf + (from - offset), err);
		}
		if (rc)
			return rc;
		at = to;
	}
	if (*any)
		memset(buf + (at - offset), 0, end - at);
	return 0;
}
