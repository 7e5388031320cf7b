/* SPDX-License-Identifier: MIT
 * One compressed cluster in, one cluster out, and back: deflate (libdeflate, zlib) and zstd.
 *
 * A codec is a reusable context for one compression type; one thread uses it at a time. What is
 * compressed here must be readable by QEMU: raw deflate streams (RFC 1951, no zlib header) or one zstd
 * frame. The same input gives the same output on every run and in every thread. */
#ifndef Q2_DATA_CODEC_H
#define Q2_DATA_CODEC_H

#include "base/error.h"

/* The header's compression_type field (byte 104). */
enum q2_compression {
	Q2_COMPRESSION_DEFLATE = 0,
	Q2_COMPRESSION_ZSTD = 1,
};

struct q2_codec;

/* fails: `unsupported` when this build has no such codec (the text says which library is missing),
 * `nomem`. */
int q2_codec_new(int compression, struct q2_codec **out, struct qcow2_error *err);
void q2_codec_free(struct q2_codec *codec);

/* "zlib", "zstd": the names the specification and qemu-img use; NULL for an unknown type. */
const char *q2_codec_name(int compression);
/* What serves it in this build ("libdeflate 1.14", "zlib 1.2.13", "libzstd 1.5.4"); NULL: not built in. */
const char *q2_codec_backend(int compression);

/*
 * needs: out_length > 0; `in` holds in_length bytes; trailing bytes after the stream's end are normal (the
 * descriptor counts 512-byte sectors) and ignored. gives: exactly out_length bytes in `out`.
 * A deflate stream that would go on past out_length simply stops there; one that ends or breaks before is
 * `corrupt`, and so is one that is visibly broken right behind the last byte (QEMU refuses it too).
 * zstd frames must yield at least out_length together; a window is capped at 8 MiB, never at what a frame
 * claims (one whole frame of at most out_length needs none).
 * Never reads past in_length or writes past out_length; on failure `out` holds garbage. The error's text
 * does not name offsets: the caller prefixes them.
 */
int q2_codec_expand(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_length,
		    struct qcow2_error *err);

/*
 * gives: *used = bytes of the stream, 0 when it does not fit in out_room (incompressible: store plainly).
 * Speed and size: over a whole file system no larger than what QEMU writes (zlib level 6 with a 4 KiB
 * window; zstd level 3), several times faster for deflate; deflate.c has the figures.
 */
int q2_codec_compress(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_room,
		      size_t *used, struct qcow2_error *err);

/*
 * The same for a cluster that is one of many. *slack, 0 before the first of a run, counts what the run is
 * smaller than QEMU's would be, about; where it suffices the cluster is compressed faster and weaker. What
 * comes out depends on the input and *slack alone.
 */
int q2_codec_compress_run(struct q2_codec *codec, const void *in, size_t in_length, void *out,
			  size_t out_room, int64_t *slack, size_t *used, struct qcow2_error *err);

#endif
