/* SPDX-License-Identifier: MIT
 * L1 and L2 entries (specification, "Cluster mapping"): bit layouts and what they mean. Pure.
 *
 *   L1, L2 standard   63 COPIED | 62 compressed | 61-56 reserved | 55-9 host offset | 8-1 reserved | 0 zero
 *   L2 compressed     62 set | sectors-1 | host offset in bytes (x = 62 - (cluster_bits - 8) low bits)
 *   extended L2       the word above (bit 0 reserved) and a bitmap: 63-32 reads as zero, 31-0 allocated
 *
 * A *subcluster* is the unit of mapping: the whole cluster without extended L2. */
#ifndef Q2_FORMAT_ENTRY_H
#define Q2_FORMAT_ENTRY_H

#include "base/addr.h"
#include "base/be.h"
#include "format/header.h"

#define Q2_COPIED (1ull << 63)
#define Q2_COMPRESSED (1ull << 62)
#define Q2_ZERO 1ull
#define Q2_OFFSET_MASK 0x00fffffffffffe00ull
#define Q2_L1_RESERVED 0x7f000000000001ffull
#define Q2_L2_RESERVED 0x3f000000000001feull /* standard clusters */

/* What backs a subcluster. */
enum q2_sub {
	Q2_SUB_UNALLOCATED, /* nothing here: the backing file, or zeros without one */
	Q2_SUB_ZERO,        /* reads as zeros */
	Q2_SUB_DATA,
	Q2_SUB_COMPRESSED,
	Q2_SUB_INVALID, /* the specification forbids this combination */
};

/* One L2 entry, decoded. */
struct q2_entry {
	uint64_t raw;
	uint32_t alloc, zero; /* subcluster bits; without extended L2 bit 0 stands for the cluster */
	bool compressed;
	bool has_host;        /* `host` is a place in the store (also under zero subclusters) */
	bool invalid;         /* every subcluster of it is Q2_SUB_INVALID */
	q2_host host;         /* standard: the cluster; compressed: first byte of the stream */
	uint32_t host_length; /* compressed: bytes up to the end of the last sector */
};

/*
 * needs: `word` and `bitmap` in host order (bitmap 0 without extended L2). gives: the meaning, without
 * judging offsets against file or guest address; that is the map's. Version 2 entries with bit 0 set are
 * `invalid`: zero clusters came with version 3.
 */
static inline struct q2_entry q2_entry_decode(const struct q2_geometry *g, uint64_t word, uint64_t bitmap)
{
	struct q2_entry e = {.raw = word};
	if (word & Q2_COMPRESSED) {
		unsigned shift = 62 - (g->cluster_bits - 8);
		e.compressed = e.has_host = true;
		e.host = q2_host_at(word & ((1ull << shift) - 1));
		uint64_t sectors = ((word & (Q2_COMPRESSED - 1)) >> shift) + 1;
		e.host_length = (uint32_t)(sectors * 512 - (e.host.v & 511));
		/* QEMU writes no bitmap for them; subclusters of a compressed cluster have no meaning. */
		e.invalid = g->external_data;
		return e;
	}
	e.host = q2_host_at(word & Q2_OFFSET_MASK);
	/* Offset 0 is a place only in an external data file, and there only with COPIED. */
	e.has_host = e.host.v != 0 || (g->external_data && (word & Q2_COPIED));
	if (g->extended_l2) {
		e.alloc = (uint32_t)bitmap;
		e.zero = (uint32_t)(bitmap >> 32);
		e.invalid = (e.alloc & e.zero) || (e.alloc && !e.has_host);
	} else if (word & Q2_ZERO) {
		e.zero = 1;
		e.invalid = g->version2;
	} else {
		e.alloc = e.has_host;
	}
	return e;
}

/* The kind of subcluster number `index` (0 without extended L2). */
static inline enum q2_sub q2_entry_sub(const struct q2_entry *e, unsigned index)
{
	if (e->invalid)
		return Q2_SUB_INVALID;
	if (e->compressed)
		return Q2_SUB_COMPRESSED;
	if (e->zero >> index & 1)
		return Q2_SUB_ZERO;
	return e->alloc >> index & 1 ? Q2_SUB_DATA : Q2_SUB_UNALLOCATED;
}

/* Reads and decodes an entry as it lies on disk. */
static inline struct q2_entry q2_entry_load(const struct q2_geometry *g, const uint8_t *bytes)
{
	return q2_entry_decode(g, q2_load64(bytes), g->extended_l2 ? q2_load64(bytes + 8) : 0);
}

/* Writes an entry's words as they lie on disk. */
static inline void q2_entry_store(const struct q2_geometry *g, uint8_t *bytes, uint64_t word, uint64_t bitmap)
{
	q2_store64(bytes, word);
	if (g->extended_l2)
		q2_store64(bytes + 8, bitmap);
}

/* The host clusters that a decoded entry refers to: *first and their number; 0 when it refers to none or when nobody counts
 * them, as those of an external data file. */
static inline uint64_t q2_entry_clusters(const struct q2_geometry *g, const struct q2_entry *e,
					 uint64_t *first)
{
	*first = e->host.v >> g->cluster_bits;
	if (!e->has_host || g->external_data)
		return 0;
	return e->compressed ? ((e->host.v + e->host_length - 1) >> g->cluster_bits) - *first + 1 : 1;
}

/* The bitmap of extended L2 that the decoded entry has. */
static inline uint64_t q2_entry_bitmap(const struct q2_entry *e)
{
	return (uint64_t)e->zero << 32 | e->alloc;
}

/* The word of a compressed cluster whose stream has `length` bytes at `host`. */
static inline uint64_t q2_entry_compressed(const struct q2_geometry *g, q2_host host, uint32_t length)
{
	unsigned shift = 62 - (g->cluster_bits - 8);
	uint64_t sectors = (host.v + length - 1) / 512 - host.v / 512;
	return Q2_COMPRESSED | sectors << shift | host.v;
}

/* ---- reference counts: 1 << order bits each, sub-byte ones from the low bits up ------------------ */

static inline uint64_t q2_refcount_get(const uint8_t *block, uint64_t index, unsigned order)
{
	switch (order) {
	case 0:
	case 1:
	case 2: {
		unsigned bits = 1u << order, per_byte = 8 / bits;
		return block[index / per_byte] >> (index % per_byte * bits) & ((1u << bits) - 1);
	}
	case 3:
		return block[index];
	case 4:
		return (uint64_t)block[2 * index] << 8 | block[2 * index + 1];
	case 5:
		return (uint64_t)block[4 * index] << 24 | (uint64_t)block[4 * index + 1] << 16 |
		       (uint64_t)block[4 * index + 2] << 8 | block[4 * index + 3];
	default: {
		uint64_t v = 0;
		for (unsigned i = 0; i < 8; i++)
			v = v << 8 | block[8 * index + i];
		return v;
	}
	}
}

/* Largest count of the width. */
static inline uint64_t q2_refcount_max(unsigned order)
{
	return order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1;
}

/* needs: value <= q2_refcount_max(order). */
static inline void q2_refcount_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value)
{
	if (order < 3) {
		unsigned bits = 1u << order, per_byte = 8 / bits, shift = (unsigned)(index % per_byte) * bits;
		uint8_t mask = (uint8_t)(((1u << bits) - 1) << shift);
		uint8_t *byte = block + index / per_byte;
		*byte = (uint8_t)((*byte & ~mask) | (value << shift & mask));
		return;
	}
	unsigned bytes = 1u << (order - 3);
	for (unsigned i = 0; i < bytes; i++)
		block[index * bytes + i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

/* Offset of a refcount block from a refcount table entry: bits 9-63; 0 is "not allocated". */
#define Q2_REFTABLE_MASK 0xfffffffffffffe00ull

#endif
