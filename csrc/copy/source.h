/* SPDX-License-Identifier: MIT
 * What a copy or a comparison reads: one disk, or several one behind the other, as a list of pieces.
 *
 * A *piece* is a run of the disk with all that a worker needs to know to read it: plain values and a store,
 * no image. Only the coordinator, who owns the images, makes pieces; any thread may read them. */
#ifndef Q2_COPY_SOURCE_H
#define Q2_COPY_SOURCE_H

#include "base/error.h"

/* How a piece is allocated, as strict comparisons tell apart. */
enum q2_allocation {
	Q2_ALLOCATION_PRESENT = 1 << 0, /* some layer has it */
	Q2_ALLOCATION_ZERO = 1 << 1,    /* known to read as zeros */
	Q2_ALLOCATION_DATA = 1 << 2,    /* the tables say data, even where the host has a hole */
	Q2_ALLOCATION_COMPRESSED = 1 << 3,
	Q2_ALLOCATION_PLACE = 1 << 4, /* it has a place in a file */
	Q2_ALLOCATION_TOP = 1 << 5,   /* the image itself has it, no layer below */
};

struct q2_piece {
	uint64_t offset, length; /* bytes of the whole, as the target sees it */
	enum qcow2_extent_kind kind;
	unsigned allocation;       /* bits of enum q2_allocation */
	uint32_t depth;            /* of the layer that says so; 0: the image itself */
	struct qcow2_store *store; /* DATA, COMPRESSED; borrowed from the source's images */
	uint64_t host;             /* where in it: the first byte, or the stream */
	uint32_t host_length;      /* COMPRESSED: bytes of the stream's sectors that the file has */
	uint32_t within;           /* COMPRESSED: the first byte inside the expanded cluster */
	uint32_t cluster_size;     /* COMPRESSED */
	uint8_t compression;       /* COMPRESSED: the type */
};

struct q2_source {
	struct qcow2_image **images; /* a reference each */
	uint64_t *starts; /* count + 1 of them: where each begins in the whole; the last: `length` */
	size_t count;
	uint64_t length;
	uint64_t begin,
		end; /* of the first image: the part that is meant; end UINT64_MAX: all from begin on */
	bool salvage;
	uint64_t lost; /* bytes that salvage gave up because the tables that map them are unreadable */
	bool strict;   /* data behind the end of an image file is a failure */
	/* Else it reads as zeros, and is told of: bytes in all, from the first of them to the last. */
	uint64_t missing, missing_from, missing_to;
	struct q2_piece current; /* the last run found; length 0: none */
};

/* Takes a reference of each image. Disks begin at the next multiple of 512 bytes. fails: `range`, `nomem`. */
int q2_source_init(struct q2_source *source, struct qcow2_image *const *images, size_t count, bool salvage,
		   struct qcow2_error *err);
void q2_source_free(struct q2_source *source);

/* Only [start, start + length) of the one image. fails: `range` when it is not inside. */
int q2_source_cut(struct q2_source *source, uint64_t start, uint64_t length, struct qcow2_error *err);

/*
 * The longest piece from `offset` on, at most `limit` bytes. needs: limit > 0. Past the end: zeros.
 * fails: what the map says; `missing`, `unsupported` where there is data that cannot be reached. With
 * `salvage`, unreadable or broken tables map zeros, and are counted in `lost`.
 */
int q2_source_find(struct q2_source *source, uint64_t offset, uint64_t limit, struct q2_piece *piece,
		   struct qcow2_error *err);

/* Reads as zeros without reading? */
static inline bool q2_piece_is_zero(const struct q2_piece *piece)
{
	return piece->kind == QCOW2_EXTENT_ZERO || piece->kind == QCOW2_EXTENT_UNALLOCATED;
}

/* The part of a piece from `offset` on, at most `limit` bytes. needs: it lies inside. */
struct q2_piece q2_piece_part(const struct q2_piece *piece, uint64_t offset, uint64_t limit);

/* Is any image of the source, in any layer, or its data file, this very file? */
bool q2_source_reads(const struct q2_source *source, struct qcow2_store *store);

#endif
