/* SPDX-License-Identifier: MIT
 * The header: its bytes, its limits and the geometry that follows from it. Pure: no I/O.
 *
 * `struct qcow2_header` (qcow2.h) is the decoded form. Everything below refuses a field before any other
 * code uses it, so a header that passed q2_header_check and q2_header_check_places needs no further bounds. */
#ifndef Q2_FORMAT_HEADER_H
#define Q2_FORMAT_HEADER_H

#include "base/error.h"

#define Q2_MAGIC 0x514649fbu /* "QFI\xfb" */
/* In place of the magic while an image is being made, so that what a kill leaves is known for what it is: "QFI?". */
#define Q2_MAGIC_UNFINISHED 0x5146493fu
#define Q2_HEADER_V2 72u
#define Q2_HEADER_V3 104u
#define Q2_HEADER_FULL 112u /* what is written: up to compression_type, padded to 8 */

/* Limits: the same as QEMU's, so that neither refuses what the other made. */
#define Q2_MIN_CLUSTER_BITS 9u
#define Q2_MAX_CLUSTER_BITS 21u
#define Q2_MAX_L1_BYTES (32u << 20)
#define Q2_MAX_REFTABLE_BYTES (8u << 20)
#define Q2_MAX_SNAPSHOTS 65536u
#define Q2_MAX_SNAPSHOT_TABLE (64u << 20) /* bytes, all extra data included */
#define Q2_MAX_BACKING_NAME 1023u
#define Q2_SUBCLUSTERS 32u
#define Q2_MIN_EXTENDED_CLUSTER_BITS 14u /* 32 subclusters of at least one 512-byte sector */

enum q2_crypt_method { Q2_CRYPT_NONE = 0, Q2_CRYPT_AES = 1, Q2_CRYPT_LUKS = 2 };

/* Feature masks: Q2_INCOMPATIBLE_DIRTY, Q2_AUTOCLEAR_BITMAPS, ... */
enum q2_feature_mask {
#define FEATURE(type, bit, NAME, text) Q2_##type##_##NAME = 1 << (bit),
#include "format/features.def"
#undef FEATURE
};

/* Every bit of the type that the specification names. */
#define Q2_INCOMPATIBLE_KNOWN 0x1full
#define Q2_COMPATIBLE_KNOWN 0x1ull
#define Q2_AUTOCLEAR_KNOWN 0x3ull

/* Sizes that follow from the header. */
struct q2_geometry {
	uint32_t cluster_bits, cluster_size;
	uint32_t subcluster_bits; /* == cluster_bits without extended L2 */
	uint32_t subclusters;     /* per cluster: 32 or 1 */
	uint32_t l2_entry_size;   /* bytes: 16 or 8 */
	uint32_t l2_bits;         /* an L2 table has 1 << l2_bits entries */
	uint32_t refcount_order;  /* a count has 1 << order bits */
	uint32_t refblock_bits;   /* a refcount block has 1 << refblock_bits counts */
	uint64_t l1_needed;       /* L1 entries that the disk's size needs */
	bool extended_l2, external_data, version2;
};

/*
 * needs: `length` bytes of the file's start (112 or as many as there are). gives: the fields, version 2
 * with its defaults. fails: `format` when it is no qcow2 at all, `corrupt` when cut short, `unsupported`
 * for a version other than 2 and 3.
 */
int q2_header_parse(const uint8_t *bytes, size_t length, struct qcow2_header *header,
		    struct qcow2_error *err);

/* Writes the fields in their places; gives the bytes used (72 for version 2, else header_length, at most
 * 112). needs: room for 112. Bytes of a longer header are the caller's to keep. */
size_t q2_header_put(const struct qcow2_header *header, uint8_t *bytes);

/*
 * Refuses everything outside the specification or the limits (SAFETY rule 1). Unknown incompatible
 * bits are the caller's to refuse: it has the names. needs: file_length in bytes.
 */
int q2_header_check(const struct qcow2_header *header, uint64_t file_length, struct qcow2_error *err);

/* Refuses tables that lie on the header, between clusters or outside the file; an image with such tables can
 * still be checked. needs: a header that passed q2_header_check. */
int q2_header_check_places(const struct qcow2_header *header, uint64_t file_length, struct qcow2_error *err);

/* needs: cluster_bits, refcount_order and features within limits; size any. */
void q2_header_geometry(const struct qcow2_header *header, struct q2_geometry *geometry);

/* L1 entries for a disk of `size` bytes. */
uint64_t q2_header_l1_entries(const struct q2_geometry *geometry, uint64_t size);

/* Specification's name of a feature bit, NULL when it has none. type: 0 incompatible, 1 compatible, 2 autoclear. */
const char *q2_header_feature_name(unsigned type, unsigned bit);

/* ---- header extensions -------------------------------------------------------------------- */

enum q2_extension_type {
	Q2_EXT_END = 0,
#define EXTENSION(type, NAME, word) Q2_EXT_##NAME = (int)(type),
#include "format/extensions.def"
#undef EXTENSION
};

/* One extension as it lies in the header cluster. */
struct q2_extension {
	uint32_t type, length; /* length in bytes, without padding */
	uint32_t offset;       /* of the data in the file */
};

/*
 * The extension at *pos (bytes from the file's start), which moves behind it (8-byte padding included).
 * needs: `bytes` holds [0, end), *pos <= end. gives: 1 and the extension, 0 at the end mark or at `end`.
 * fails: `corrupt` when it does not fit before `end`.
 */
int q2_extension_next(const uint8_t *bytes, uint32_t end, uint32_t *pos, struct q2_extension *ext,
		      struct qcow2_error *err);

/* "backing_format", ...; "unknown". */
const char *q2_extension_word(uint32_t type);

/* The bitmaps extension's fields (24 bytes). */
struct q2_bitmaps_ext {
	uint32_t count, reserved;
	uint64_t directory_size, directory_offset; /* bytes */
};
int q2_extension_bitmaps(const uint8_t *data, uint32_t length, struct q2_bitmaps_ext *out,
			 struct qcow2_error *err);

#endif
