/* SPDX-License-Identifier: MIT
 * What a compression type provides to codec.c; seen only inside data/. */
#ifndef Q2_DATA_BACKEND_H
#define Q2_DATA_BACKEND_H

#include "data/codec.h"

/* The contracts of expand and compress are those of q2_codec_expand and q2_codec_compress_run (`slack` NULL: a
 * cluster by itself); codec.c has already refused lengths of zero and above Q2_CODEC_MAX. */
struct q2_backend {
	const char *library; /* with its version */
	int (*create)(struct q2_codec **out, struct qcow2_error *err);
	void (*free)(struct q2_codec *codec);
	int (*expand)(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_length,
		      struct qcow2_error *err);
	int (*compress)(struct q2_codec *codec, const void *in, size_t in_length, void *out, size_t out_room,
			int64_t *slack, size_t *used, struct qcow2_error *err);
};

/* The first member of every backend's context. */
struct q2_codec {
	const struct q2_backend *backend;
};

/* Far above any cluster (2 MiB), and what zlib's unsigned counters hold with room to spare. */
#define Q2_CODEC_MAX ((size_t)1 << 30)

extern const struct q2_backend q2_deflate_backend;
#ifdef Q2_HAVE_LIBZSTD
extern const struct q2_backend q2_zstd_backend;
#endif

#endif
