/* SPDX-License-Identifier: MIT
 * The deflate backend: raw RFC 1951 streams through libdeflate where the build has it, and zlib always.
 *
 * Expanding. QEMU opens zlib with a window of 4 KiB (windowBits -12), but inflates a whole cluster in one
 * call into one buffer, and zlib checks a distance against what that call has put out so far, not against
 * the window. So any distance to 32 KiB back to the cluster's start is readable there and must be here; and
 * what libdeflate writes, with distances to 32 KiB, is readable by every QEMU. We give zlib the largest
 * window (-15), which says so without leaning on that detail.
 *
 * libdeflate wants the stream's end mark within the output. A stream that fills the cluster and goes on, or
 * has no end mark, is legal here: whatever libdeflate refuses is given to zlib, whose answer is final. So
 * every stream that zlib takes is taken, with the same bytes. The reverse is not quite so: libdeflate lets
 * some faults in a block's code pass (reserved length and distance symbols, unused words of an incomplete
 * code, a run of code lengths that is too long), which no compressor produces; they decode to something,
 * within bounds. The fuzz target codec_deflate holds both statements. */
#include "base/mem.h"
#include "data/backend.h"

#include <zlib.h>

#ifdef Q2_HAVE_LIBDEFLATE
#include <libdeflate.h>
#define LEVELS 7
#endif

/* Every library context is made at first use and kept: a reader never pays for a compressor. */
struct deflate_codec {
	struct q2_codec codec;
	z_stream inflate;
	bool inflate_ready;
#ifdef Q2_HAVE_LIBDEFLATE
	struct libdeflate_decompressor *decompressor;
	struct libdeflate_compressor *compressors[LEVELS]; /* by level */
#else
	z_stream deflate;
	bool deflate_ready;
#endif
};

static void deflate_free(struct q2_codec *codec)
{
	struct deflate_codec *d = (struct deflate_codec *)codec;

	if (d->inflate_ready)
		inflateEnd(&d->inflate);
#ifdef Q2_HAVE_LIBDEFLATE
	libdeflate_free_decompressor(d->decompressor);
	for (int i = 0; i < LEVELS; i++)
		libdeflate_free_compressor(d->compressors[i]);
#else
	if (d->deflate_ready)
		deflateEnd(&d->deflate);
#endif
	free(d);
}

static int deflate_new(struct q2_codec **out, struct qcow2_error *err)
{
	struct deflate_codec *d = q2_new(1, sizeof *d);

	if (!d)
		return q2_error_nomem(err);
	d->codec.backend = &q2_deflate_backend;
	*out = &d->codec;
	return 0;
}

static int zlib_error(struct qcow2_error *err, const char *verb, int status)
{
	if (status == Z_MEM_ERROR)
		return q2_error_nomem(err);
	return q2_error_set(err, QCOW2_E_BUG, Q2_NO_OFFSET, "zlib cannot %s: %s", verb, zError(status));
}

static int expand_zlib(struct deflate_codec *d, const void *in, size_t in_length, void *out,
		       size_t out_length, struct qcow2_error *err)
{
	z_stream *s = &d->inflate;
	int status = d->inflate_ready ? inflateReset(s) : inflateInit2(s, -15);

	if (status != Z_OK)
		return zlib_error(err, "inflate", status);
	d->inflate_ready = true;

	s->next_in = (z_const Bytef *)in;
	s->avail_in = (uInt)in_length;
	s->next_out = out;
	s->avail_out = (uInt)out_length;
	status = inflate(s, Z_FINISH);

	switch (status) {
	case Z_STREAM_END:
	case Z_BUF_ERROR: /* input or output is used up */
		if (s->avail_out == 0)
			return 0;
		return q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET,
				    "the deflate stream ends after %zu of %zu bytes",
				    out_length - s->avail_out, out_length);
	case Z_DATA_ERROR:
	case Z_NEED_DICT:
		return q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET,
				    "the deflate stream is damaged after %zu of %zu bytes: %s",
				    out_length - s->avail_out, out_length, s->msg ? s->msg : zError(status));
	default:
		return zlib_error(err, "inflate", status);
	}
}

#ifdef Q2_HAVE_LIBDEFLATE

static int deflate_expand(struct q2_codec *codec, const void *in, size_t in_length, void *out,
			  size_t out_length, struct qcow2_error *err)
{
	struct deflate_codec *d = (struct deflate_codec *)codec;

	if (!d->decompressor)
		d->decompressor = libdeflate_alloc_decompressor();
	if (!d->decompressor)
		return q2_error_nomem(err);
	/* Without a place for the real length, fewer bytes than out_length are an error too. */
	if (libdeflate_deflate_decompress(d->decompressor, in, in_length, out, out_length, NULL) ==
	    LIBDEFLATE_SUCCESS)
		return 0;
	return expand_zlib(d, in, in_length, out, out_length, err);
}

/*
 * The fastest level whose files are no larger than QEMU's (zlib level 6, 4 KiB window). Measured with
 * libdeflate 1.14 and zlib 1.2.13 over file systems, programs, libraries, sources, prose and .gz files; size
 * relative to zlib's, and how many times its speed:
 *
 *	cluster  level 1          level 2          level 4          level 5          level 6
 *	4 KiB    1.00-1.05  4.0x  1.00-1.03  2.7x  1.00-1.02  2.6x  0.98-1.00  2.2x  0.97-1.00  2.1x
 *	16 KiB   0.97-1.06  5.2x  0.96-1.03  3.6x  0.95-1.01  3.4x  0.94-0.98  2.7x  0.92-0.98  2.4x
 *	64 KiB   0.92-1.05  5.5x  0.90-1.01  3.6x  0.84-0.99  3.2x  0.82-0.98  2.5x  0.81-0.97  2.1x
 *	2 MiB    0.92-1.02  5.3x  0.90-0.97  3.5x  0.88-0.97  2.9x  0.85-0.97  2.1x  0.84-0.97  1.8x
 *
 * Large clusters live off libdeflate's 32 KiB window, so a weak search is enough; below 64 KiB the window
 * gains little and only lazy matching keeps up. At 64 KiB level 2 makes whole file systems 2 to 4 % smaller;
 * only a disk full of static libraries comes out 0.6 % larger. Under 2 KiB no level of reasonable speed
 * quite reaches zlib on every kind of data (level 6: within 1.5 %).
 */
static int level_of(size_t in_length)
{
	return in_length < 8192 ? 6 : in_length < 32768 ? 5 : in_length < 65536 ? 4 : 2;
}

/*
 * In runs of clusters of 64 KiB and more, what level 2 gains over zlib is spent on level 1. How large zlib's
 * stream would be is only guessed, by the kind of bytes; the guesses were made from clusters of programs,
 * libraries, sources, prose and a file system. Sizes relative to zlib's, programs - libraries:
 *
 *				level 1		level 2		level 4		level 5
 *	text			0.93-0.99	0.89-0.96
 *	few zeros, code		1.01-1.01	0.98-0.98
 *	some zeros		1.05-1.05	1.00-1.00	0.98-0.97
 *	many zeros		1.04-1.08	0.99-1.03	0.97-1.01	0.96-0.97
 *	more zeros, tables	1.03-1.13	1.00-1.09	0.99-1.05	0.97-1.00
 *
 * All programs of a system, or all libraries, come out 0.1 % smaller than QEMU's, file systems 3 %; a single program
 * may be 1 % larger.
 */
struct guess {
	int level; /* while there is no slack */
	int64_t fast,
		safe; /* thousandths of zlib's size that level 1 and `level` give; fast 0: never level 1 */
	bool always;  /* level 1 needs no slack */
};

static struct guess guess(const uint8_t *in, size_t length)
{
	/* 32 bytes out of every 512 tell enough. */
	size_t text = 0, zeros = 0, seen = 0;
	for (size_t at = 0; at + 32 <= length; at += 512, seen += 32) {
		for (size_t i = at; i < at + 32; i++) {
			text += (uint8_t)(in[i] - 32) < 95 || in[i] == '\n' || in[i] == '\t';
			zeros += !in[i];
		}
	}
	if (text * 10 >= seen * 6)
		return (struct guess){.fast = 985, .always = true};
	if (zeros * 10 < seen * 2)
		return (struct guess){.level = 2, .fast = 1012, .safe = 977};
	if (zeros * 10 < seen * 5)
		return (struct guess){.level = 2, .safe = 997};
	return (struct guess){.level = zeros * 10 < seen * 6 ? 4 : 5, .safe = 1000};
}

static int deflate_compress(struct q2_codec *codec, const void *in, size_t in_length, void *out,
			    size_t out_room, int64_t *slack, size_t *used, struct qcow2_error *err)
{
	struct deflate_codec *d = (struct deflate_codec *)codec;
	int level = level_of(in_length);
	int64_t share = 1000;

	if (slack && in_length >= 65536) {
		struct guess g = guess(in, in_length);
		bool fast = g.always || (g.fast && *slack >= 0);
		level = fast ? 1 : g.level;
		share = fast ? g.fast : g.safe;
	}
	if (!d->compressors[level])
		d->compressors[level] = libdeflate_alloc_compressor(level);
	if (!d->compressors[level])
		return q2_error_nomem(err);
	*used = libdeflate_deflate_compress(d->compressors[level], in, in_length, out, out_room);
	if (slack && *used)
		*slack += (int64_t)*used * 1000 / share - (int64_t)*used;
	return 0;
}

#else

static int deflate_expand(struct q2_codec *codec, const void *in, size_t in_length, void *out,
			  size_t out_length, struct qcow2_error *err)
{
	return expand_zlib((struct deflate_codec *)codec, in, in_length, out, out_length, err);
}

/* As QEMU does it, so that files are of QEMU's size: the default level, 4 KiB window, most memory. */
static int deflate_compress(struct q2_codec *codec, const void *in, size_t in_length, void *out,
			    size_t out_room, int64_t *slack, size_t *used, struct qcow2_error *err)
{
	(void)slack; /* QEMU's own library at QEMU's level: there is none */
	struct deflate_codec *d = (struct deflate_codec *)codec;
	z_stream *s = &d->deflate;
	int status = d->deflate_ready
			     ? deflateReset(s)
			     : deflateInit2(s, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY);

	if (status != Z_OK)
		return zlib_error(err, "deflate", status);
	d->deflate_ready = true;

	s->next_in = (z_const Bytef *)in;
	s->avail_in = (uInt)in_length;
	s->next_out = out;
	s->avail_out = (uInt)out_room;
	status = deflate(s, Z_FINISH);
	if (status != Z_STREAM_END && status != Z_OK && status != Z_BUF_ERROR)
		return zlib_error(err, "deflate", status);
	*used = status == Z_STREAM_END ? out_room - s->avail_out : 0;
	return 0;
}

#endif

const struct q2_backend q2_deflate_backend = {
#ifdef Q2_HAVE_LIBDEFLATE
	.library = "libdeflate " LIBDEFLATE_VERSION_STRING,
#else
	.library = "zlib " ZLIB_VERSION,
#endif
	.create = deflate_new,
	.free = deflate_free,
	.expand = deflate_expand,
	.compress = deflate_compress,
};
