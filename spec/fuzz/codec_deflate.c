/* SPDX-License-Identifier: MIT
 * Fuzz target: deflate streams, judged by zlib asked as QEMU asks it, and round trips.
 *
 * Input: one byte for the cluster size, then the stream, which is taken as a cluster's contents too:
 * compressed, expanded, and expanded again with single bits turned over, which reaches deep into a stream. */
#include "data/codec.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)        \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

/* QEMU's rule: one call, and the whole cluster came out. On refusal *message says why. */
static bool expand_as_qemu(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length,
			   const char **message)
{
	z_stream s = {.next_in = (z_const Bytef *)in,
		      .avail_in = (uInt)in_length,
		      .next_out = out,
		      .avail_out = (uInt)out_length};

	REQUIRE(inflateInit2(&s, -12) == Z_OK);
	int status = inflate(&s, Z_FINISH);
	*message = s.msg ? s.msg : "";
	inflateEnd(&s);
	return (status == Z_STREAM_END || status == Z_BUF_ERROR) && s.avail_out == 0;
}

/* The faults in a block's code that libdeflate lets pass (see csrc/data/deflate.c); nothing else differs. */
static bool is_tolerated(const char *message)
{
	static const char *const known[] = {
		"too many length or distance symbols",
		"invalid literal/length code",
		"invalid distance code",
		"invalid code lengths set",
		"invalid bit length repeat",
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (strcmp(message, known[i]) == 0)
			return true;
	return false;
}

static void check_expand(struct q2_codec *codec, const uint8_t *in, size_t in_length, size_t cluster)
{
	uint8_t *ours = malloc(cluster), *theirs = malloc(cluster);
	struct qcow2_error err;
	const char *message;

	REQUIRE(ours && theirs);
	bool accepted = expand_as_qemu(in, in_length, theirs, cluster, &message);
	int rc = q2_codec_expand(codec, in, in_length, ours, cluster, &err);
	if (accepted)
		REQUIRE(rc == 0 && memcmp(ours, theirs, cluster) == 0);
	else
		REQUIRE(rc == QCOW2_E_CORRUPT || (rc == 0 && is_tolerated(message)));
	free(ours);
	free(theirs);
}

static void check_round_trip(struct q2_codec *codec, const uint8_t *bytes, size_t length, uint32_t seed)
{
	uint8_t *stream = malloc(length), *back = malloc(length);
	struct qcow2_error err;
	const char *message;
	size_t used;

	REQUIRE(stream && back);
	REQUIRE(q2_codec_compress(codec, bytes, length, stream, length, &used, &err) == 0 && used <= length);
	if (used) {
		REQUIRE(q2_codec_expand(codec, stream, used, back, length, &err) == 0);
		REQUIRE(memcmp(bytes, back, length) == 0);
		memset(back, 0, length);
		REQUIRE(expand_as_qemu(stream, used, back, length, &message));
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
	REQUIRE(q2_codec_new(Q2_COMPRESSION_DEFLATE, &codec, &err) == 0);
	check_expand(codec, data + 1, size - 1, (size_t)512 << data[0] % 8);
	check_round_trip(codec, data + 1, size - 1, data[0] + (uint32_t)size * 256);
	/* The same again on contexts that have just been used for something else. */
	check_expand(codec, data + 1, size - 1, (size_t)512 << data[0] / 8 % 8);
	q2_codec_free(codec);
	return 0;
}
