/* SPDX-License-Identifier: MIT
 * The zstd backend: one frame a cluster, through libzstd. */
#ifdef Q2_HAVE_LIBZSTD

#include "base/mem.h"
#include "data/backend.h"

#include <zstd.h>
#include <zstd_errors.h>

/* libzstd's own default, and what QEMU writes. */
#define LEVEL 3

/* 8 MiB: what a streaming decoder may be made to allocate. No cluster exceeds 2 MiB, so no sane
 * writer's window does. */
#define WINDOW_LOG_MAX 23

/* A frame's first four bytes, little-endian; the low four bits of a skippable frame's are free. */
#define MAGIC 0xfd2fb528u
#define MAGIC_SKIPPABLE 0x184d2a50u

struct zstd_codec {
	struct q2_codec codec;
	ZSTD_DCtx *decoder; /* both made at first use: a reader never pays for a compressor */
	ZSTD_CCtx *encoder;
};

static void zstd_free(struct q2_codec *codec)
{
	struct zstd_codec *z = (struct zstd_codec *)codec;

	ZSTD_freeDCtx(z->decoder);
	ZSTD_freeCCtx(z->encoder);
	free(z);
}

static int zstd_new(struct q2_codec **out, struct qcow2_error *err)
{
	struct zstd_codec *z = q2_new(1, sizeof *z);

	if (!z)
		return q2_error_nomem(err);
	z->codec.backend = &q2_zstd_backend;
	*out = &z->codec;
	return 0;
}

static int get_decoder(struct zstd_codec *z, struct qcow2_error *err)
{
	if (z->decoder)
		return 0;
	z->decoder = ZSTD_createDCtx();
	if (!z->decoder)
		return q2_error_nomem(err);
	if (ZSTD_isError(ZSTD_DCtx_setParameter(z->decoder, ZSTD_d_windowLogMax, WINDOW_LOG_MAX))) {
		ZSTD_freeDCtx(z->decoder);
		z->decoder = NULL;
		return q2_error_set(err, QCOW2_E_BUG, Q2_NO_OFFSET, "libzstd refuses a window limit of 2^%d",
				    WINDOW_LOG_MAX);
	}
	return 0;
}

/* Frames of RFC 8878 only: many builds of libzstd still carry decoders for the formats of 2015 and 2016,
 * which no qcow2 writer ever used and nobody hardens. */
static bool is_frame(const void *in, size_t in_length)
{
	const uint8_t *p = in;

	if (in_length < 4)
		return false;
	uint32_t magic = p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
	return magic == MAGIC || (magic & ~0xfu) == MAGIC_SKIPPABLE;
}

/* The rare shapes: several frames in a row, skippable frames, a frame cut off behind the last byte
 * wanted, a frame that goes on. Stops when the cluster is full. */
static int expand_stream(struct zstd_codec *z, const void *in, size_t in_length, void *out, size_t out_length,
			 struct qcow2_error *err)
{
	ZSTD_inBuffer source = {in, in_length, 0};
	ZSTD_outBuffer target = {out, out_length, 0};
	size_t status = 0; /* 0: the next byte begins a frame */

	ZSTD_DCtx_reset(z->decoder, ZSTD_reset_session_only);
	while (target.pos < target.size) {
		size_t in_before = source.pos, out_before = target.pos;

		if (status == 0 && !is_frame((const uint8_t *)in + source.pos, in_length - source.pos))
			return q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET,
					    "the zstd stream has no frame after %zu of %zu bytes", target.pos,
					    out_length);
		status = ZSTD_decompressStream(z->decoder, &target, &source);
		if (ZSTD_isError(status)) {
			if (ZSTD_getErrorCode(status) == ZSTD_error_memory_allocation)
				return q2_error_nomem(err);
			return q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET,
					    "the zstd stream is damaged after %zu of %zu bytes: %s",
					    target.pos, out_length, ZSTD_getErrorName(status));
		}
		if (source.pos == in_before && target.pos == out_before)
			return q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET,
					    "the zstd stream ends after %zu of %zu bytes", target.pos,
					    out_length);
	}
	return 0;
}

static int zstd_expand(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_length,
		       struct qcow2_error *err)
{
	struct zstd_codec *z = (struct zstd_codec *)codec;
	int rc = get_decoder(z, err);

	if (rc < 0)
		return rc;

	/* One whole frame of one whole cluster, as every writer makes it, goes straight into `out`: that
	 * copies nothing through a window and allocates none, whatever window the frame claims. */
	size_t frame = is_frame(in, in_length) ? ZSTD_findFrameCompressedSize(in, in_length) : 0;
	if (frame && !ZSTD_isError(frame) &&
	    ZSTD_decompressDCtx(z->decoder, out, out_length, in, frame) == out_length)
		return 0;
	return expand_stream(z, in, in_length, out, out_length, err);
}

static int zstd_compress(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_room,
			 int64_t *slack, size_t *used, struct qcow2_error *err)
{
	struct zstd_codec *z = (struct zstd_codec *)codec;

	(void)slack; /* QEMU's own library at QEMU's level: there is none */
	if (!z->encoder)
		z->encoder = ZSTD_createCCtx();
	if (!z->encoder)
		return q2_error_nomem(err);

	size_t length = ZSTD_compressCCtx(z->encoder, out, out_room, in, in_length, LEVEL);
	if (ZSTD_isError(length)) {
		switch (ZSTD_getErrorCode(length)) {
		case ZSTD_error_dstSize_tooSmall:
			length = 0;
			break;
		case ZSTD_error_memory_allocation:
			return q2_error_nomem(err);
		default:
			return q2_error_set(err, QCOW2_E_BUG, Q2_NO_OFFSET, "libzstd cannot compress: %s",
					    ZSTD_getErrorName(length));
		}
	}
	*used = length;
	return 0;
}

const struct q2_backend q2_zstd_backend = {
	.library = "libzstd " ZSTD_VERSION_STRING,
	.create = zstd_new,
	.free = zstd_free,
	.expand = zstd_expand,
	.compress = zstd_compress,
};

#else
/* ISO C forbids an empty translation unit. */
extern int q2_zstd_absent;
#endif
