/* SPDX-License-Identifier: MIT
 * Compression types: which ones there are, which ones this build has, and the way to them. */
#include "data/backend.h"

static const struct {
	const char *name;    /* as the specification and qemu-img spell it */
	const char *library; /* what a build without it lacks */
	const struct q2_backend *backend;
} types[] = {
	[Q2_COMPRESSION_DEFLATE] = {"zlib", "zlib", &q2_deflate_backend},
#ifdef Q2_HAVE_LIBZSTD
	[Q2_COMPRESSION_ZSTD] = {"zstd", "libzstd", &q2_zstd_backend},
#else
	[Q2_COMPRESSION_ZSTD] = {"zstd", "libzstd", NULL},
#endif
};

static bool known(int compression)
{
	return compression >= 0 && (size_t)compression < sizeof types / sizeof *types;
}

const char *q2_codec_name(int compression)
{
	return known(compression) ? types[compression].name : NULL;
}

const char *q2_codec_backend(int compression)
{
	return known(compression) && types[compression].backend ? types[compression].backend->library : NULL;
}

int q2_codec_new(int compression, struct q2_codec **out, struct qcow2_error *err)
{
	if (!known(compression))
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET,
				    "compression type %d is not known", compression);
	if (!types[compression].backend)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET,
				    "compression type %s is unsupported, built without %s",
				    types[compression].name, types[compression].library);
	return types[compression].backend->create(out, err);
}

void q2_codec_free(struct q2_codec *codec)
{
	if (codec)
		codec->backend->free(codec);
}

int q2_codec_expand(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_length,
		    struct qcow2_error *err)
{
	if (out_length == 0 || out_length > Q2_CODEC_MAX || in_length > Q2_CODEC_MAX)
		return q2_error_set(err, QCOW2_E_BUG, Q2_NO_OFFSET,
				    "expanding %zu bytes to %zu is outside the codec's limits", in_length,
				    out_length);
	if (in_length == 0)
		return q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET, "the compressed stream is empty");
	return codec->backend->expand(codec, in, in_length, out, out_length, err);
}

int q2_codec_compress(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_room,
		      size_t *used, struct qcow2_error *err)
{
	return q2_codec_compress_run(codec, in, in_length, out, out_room, NULL, used, err);
}

int q2_codec_compress_run(struct q2_codec *codec, const void *in, size_t in_length, void *out,
			  size_t out_room, int64_t *slack, size_t *used, struct qcow2_error *err)
{
	if (in_length == 0 || in_length > Q2_CODEC_MAX || out_room > Q2_CODEC_MAX)
		return q2_error_set(err, QCOW2_E_BUG, Q2_NO_OFFSET,
				    "compressing %zu bytes into %zu is outside the codec's limits", in_length,
				    out_room);
	if (out_room == 0) {
		*used = 0;
		return 0;
	}
	return codec->backend->compress(codec, in, in_length, out, out_room, slack, used, err);
}
