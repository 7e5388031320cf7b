/* SPDX-License-Identifier: MIT
 * Errors: codes, words, and the record of one failure. */
#ifndef QCOW2_ERROR_H
#define QCOW2_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * QCOW2_API is what a program may call: all else stays inside the library. QCOW2_CHECK: the answer has to be looked at.
 * QCOW2_NONNULL: the object, which is the first argument, is there.
 */
#ifdef __GNUC__
#define QCOW2_API __attribute__((visibility("default")))
#define QCOW2_CHECK __attribute__((warn_unused_result))
#define QCOW2_NONNULL __attribute__((nonnull(1)))
#else
#define QCOW2_API
#define QCOW2_CHECK
#define QCOW2_NONNULL
#endif

/* What went wrong, in numbers; the words are in kinds.def. 0 is "no error". */
enum qcow2_kind {
	QCOW2_OK = 0,
#define KIND(name, word) QCOW2_KIND_##name,
#include "base/kinds.def"
#undef KIND
	QCOW2_KIND_COUNT
};

/* Return codes: 0 or one of these negatives. */
enum qcow2_code {
#define KIND(name, word) QCOW2_E_##name = -QCOW2_KIND_##name,
#include "base/kinds.def"
#undef KIND
	QCOW2_E_NONE = 0
};

/*
 * The record of one failure. The caller owns it (usually on the stack) and may pass NULL when only
 * the code matters. `text` is a whole sentence for people, without a trailing newline or period;
 * bytes that came from a file are escaped in it. `offset` is the byte in the file or disk that the
 * sentence speaks of, UINT64_MAX when there is none.
 */
struct qcow2_error {
	int code;     /* enum qcow2_code */
	int os_errno; /* the host's errno, 0 when the host was not the cause */
	uint64_t offset;
	char text[488];
};

/* The version of the library that runs, as QCOW2_VERSION is that of the header: "0.1.0". */
QCOW2_API const char *qcow2_version(void);

/* The word for a code ("io", "corrupt", ...), "none" for 0, never NULL. */
QCOW2_API const char *qcow2_error_word(int code);

/* What decodes and encodes a compression type in this build (0 deflate, 1 zstd): "libdeflate 1.14",
 * "zlib 1.2.13", ...; NULL when it was built without. */
QCOW2_API const char *qcow2_codec_backend(int compression);

#endif
