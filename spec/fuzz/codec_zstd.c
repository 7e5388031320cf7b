/* SPDX-License-Identifier: MIT
 * Fuzz target: zstd streams, judged by libzstd's streaming decoder asked as QEMU asks it, and round trips.
 *
 * Input: one byte for the cluster size, then the stream, which is taken as a cluster's contents too:
 * compressed, expanded, and expanded again with single bits turned over, which reaches deep into a stream. */
#include "data/codec.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef Q2_HAVE_LIBZSTD
#include <zstd.h>

#define REQUIRE(condition)        \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

/* The formats before RFC 8878, which some builds of libzstd know, are not for us. */
static bool is_frame(const uint8_t *p, size_t length)
{
	return length >= 4 && (memcmp(p, "\x28\xb5\x2f\xfd", 4) == 0 ||
			       (p[0] >> 4 == 5 && memcmp(p + 1, "\x2a\x4d\x18", 3) == 0));
}

/* QEMU's loop: until the cluster is full, an error, or no progress. The window may be 8 MiB here too, lest
 * the judge needs gigabytes. */
static bool expand_by_stream(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
	ZSTD_inBuffer source = {in, in_length, 0};
	ZSTD_outBuffer target = {out, out_length, 0};
	ZSTD_DCtx *decoder = ZSTD_createDCtx();

	REQUIRE(decoder && !ZSTD_isError(ZSTD_DCtx_setParameter(decoder, ZSTD_d_windowLogMax, 23)));
	for (size_t status = 0; target.pos < target.size;) {
		size_t in_before = source.pos, out_before = target.pos;

		if (status == 0 && !is_frame(in + source.pos, in_length - source.pos))
			break;
		status = ZSTD_decompressStream(decoder, &target, &source);
		if (ZSTD_isError(status))
			break;
		if (source.pos == in_before && target.pos == out_before)
			break;
	}
	ZSTD_freeDCtx(decoder);
	return target.pos == target.size;
}

/* Whatever the stream decoder takes must be taken, with the same bytes. (More is taken: one whole frame
 * needs no window, so any window may be claimed.) */
static void check_expand(struct q2_codec *codec, const uint8_t *in, size_t in_length, size_t cluster)
{
	uint8_t *ours = malloc(cluster), *theirs = malloc(cluster);
	struct qcow2_error err;

	REQUIRE(ours && theirs);
	int rc = q2_codec_expand(codec, in, in_length, ours, cluster, &err);
	if (expand_by_stream(in, in_length, theirs, cluster))
		REQUIRE(rc == 0 && memcmp(ours, theirs, cluster) == 0);
	else
		REQUIRE(rc == 0 || rc == QCOW2_E_CORRUPT);
	free(ours);
	free(theirs);
}

static void check_round_trip(struct q2_codec *codec, const uint8_t *bytes, size_t length, uint32_t seed)
{
	uint8_t *stream = malloc(length), *back = malloc(length);
	struct qcow2_error err;
	size_t used;

	REQUIRE(stream && back);
	REQUIRE(q2_codec_compress(codec, bytes, length, stream, length, &used, &err) == 0 && used <= length);
	if (used) {
		REQUIRE(q2_codec_expand(codec, stream, used, back, length, &err) == 0);
		REQUIRE(memcmp(bytes, back, length) == 0);
		memset(back, 0, length);
		REQUIRE(expand_by_stream(stream, used, back, length));
		REQUIRE(memcmp(bytes, back, length) == 0);
		for (uint32_t i = 0, at = seed * 2654435761u; i < 16; i++, at = at * 1664525 + 1013904223) {
			size_t bit = (at >> 8) % (used * 8);

			stream[bit / 8] ^= 1 << bit % 8;
			check_expand(codec, stream, used, length);
			if (i % 3)
				stream[bit / 8] ^= 1 << bit % 8;
		}
	}
	free(stream);
	free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct q2_codec *codec;
	struct qcow2_error err;

	if (size < 2)
		return 0;
	REQUIRE(q2_codec_new(Q2_COMPRESSION_ZSTD, &codec, &err) == 0);
	check_expand(codec, data + 1, size - 1, (size_t)512 << data[0] % 8);
	check_round_trip(codec, data + 1, size - 1, data[0] + (uint32_t)size * 256);
	/* The same again on contexts that have just been used for something else. */
	check_expand(codec, data + 1, size - 1, (size_t)512 << data[0] / 8 % 8);
	q2_codec_free(codec);
	return 0;
}

#else

/* Without libzstd there is one thing to hold: the codec says so. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct q2_codec *codec;

	(void)data;
	(void)size;
	if (q2_codec_new(Q2_COMPRESSION_ZSTD, &codec, NULL) != QCOW2_E_UNSUPPORTED)
		abort();
	return 0;
}

#endif
