/* SPDX-License-Identifier: MIT
 * Lists a disk, or several one behind the other, as pieces. */
#include "copy/source.h"

#include "image/image.h"

#include <inttypes.h>

#define SECTOR 512u

int q2_source_init(struct q2_source *source, struct qcow2_image *const *images, size_t count, bool salvage,
		   struct qcow2_error *err)
{
	*source = (struct q2_source){.salvage = salvage, .end = UINT64_MAX};
	source->images = q2_new(count, sizeof *source->images);
	source->starts = q2_new(count + 1, sizeof *source->starts);
	if (!source->images || !source->starts) {
		q2_source_free(source);
		return q2_error_nomem(err);
	}
	for (size_t i = 0; i < count; i++) {
		uint64_t size = images[i]->size;
		if (size > INT64_MAX - SECTOR - source->length) {
			q2_source_free(source);
			return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
					    "The sources are too large together");
		}
		source->images[i] = qcow2_image_ref(images[i]);
		source->count = i + 1;
		source->starts[i] = source->length;
		source->length += q2_round_up(size, SECTOR);
	}
	source->starts[count] = source->length;
	return 0;
}

void q2_source_free(struct q2_source *source)
{
	for (size_t i = 0; i < source->count; i++)
		qcow2_image_unref(source->images[i]);
	free(source->images);
	free(source->starts);
	*source = (struct q2_source){0};
}

struct q2_piece q2_piece_part(const struct q2_piece *piece, uint64_t offset, uint64_t limit)
{
	struct q2_piece part = *piece;
	uint64_t skip = offset - piece->offset;
	part.offset = offset;
	part.length = q2_min(limit, piece->length - skip);
	if (piece->kind == QCOW2_EXTENT_COMPRESSED)
		part.within += (uint32_t)skip;
	else if (piece->kind == QCOW2_EXTENT_DATA)
		part.host += skip;
	return part;
}

static unsigned allocation_of(const struct qcow2_extent *extent)
{
	bool is_zero = extent->kind == QCOW2_EXTENT_ZERO || extent->kind == QCOW2_EXTENT_UNALLOCATED;
	bool is_data = extent->kind == QCOW2_EXTENT_DATA || extent->hole;
	unsigned top = extent->present && extent->depth == 0 ? Q2_ALLOCATION_TOP : 0;
	if (extent->kind == QCOW2_EXTENT_COMPRESSED)
		return Q2_ALLOCATION_PRESENT | Q2_ALLOCATION_COMPRESSED | top;
	return top | (extent->present ? Q2_ALLOCATION_PRESENT : 0) | (is_zero ? Q2_ALLOCATION_ZERO : 0) |
	       (is_data ? Q2_ALLOCATION_DATA : 0) |
	       (extent->host_offset != UINT64_MAX ? Q2_ALLOCATION_PLACE : 0);
}

/* The values of an extent that workers need. */
static int fill_piece(const struct qcow2_extent *extent, struct q2_piece *piece, struct qcow2_error *err)
{
	struct qcow2_image *layer = extent->image;
	int rc = 0;
	piece->length = extent->length;
	piece->kind = extent->kind;
	piece->depth = extent->depth;
	piece->allocation = allocation_of(extent);
	if (q2_piece_is_zero(piece))
		return 0;
	if (!layer->raw && layer->meta.header.crypt_method)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, extent->offset,
				    "The image is encrypted; reading encrypted data is not supported");
	piece->host = extent->host_offset;
	if (extent->kind == QCOW2_EXTENT_COMPRESSED) {
		/* The last sector may be cut off by the file's end: what is missing belongs to no stream. */
		uint64_t left = layer->meta.file_length - extent->host_offset;
		piece->store = layer->store;
		piece->host_length = (uint32_t)q2_min(extent->host_length, left);
		piece->within = extent->within;
		piece->cluster_size = layer->meta.geo.cluster_size;
		piece->compression = layer->meta.header.compression_type;
	} else {
		rc = q2_image_data_store(layer, &piece->store, err);
	}
	return rc;
}

/*
 * Does an image file end before the data that its tables tell of? One that ends inside a cluster may have been written so:
 * what its maker left out there are zeros. But where whole clusters are behind the end something was cut off.
 */
static int note_missing(struct q2_source *source, const struct qcow2_extent *extent, uint64_t offset,
			struct qcow2_error *err)
{
	const struct qcow2_image *layer = extent->image;
	bool is_data = extent->kind == QCOW2_EXTENT_DATA || extent->hole;
	if (!extent->present || !is_data || layer->raw || layer->meta.geo.external_data)
		return 0;
	uint64_t end = q2_round_up(layer->meta.file_length, layer->meta.geo.cluster_size);
	if (extent->host_offset + extent->length <= end)
		return 0;
	uint64_t skip = end > extent->host_offset ? end - extent->host_offset : 0;
	if (source->strict)
		return q2_error_set(err, QCOW2_E_CORRUPT, offset + skip,
				    "The image file ends before its data: %" PRIu64 " bytes at %" PRIu64
				    " of the disk lie behind the end",
				    extent->length - skip, offset + skip);
	if (!source->missing)
		source->missing_from = offset + skip;
	source->missing += extent->length - skip;
	source->missing_to = offset + extent->length;
	return 0;
}

int q2_source_cut(struct q2_source *source, uint64_t start, uint64_t length, struct qcow2_error *err)
{
	if (source->count != 1 || !q2_fits(start, length, source->images[0]->size))
		return q2_error_set(err, QCOW2_E_RANGE, start,
				    "The part of %llu bytes at %llu is not inside one disk",
				    (unsigned long long)length, (unsigned long long)start);
	source->begin = start;
	source->end = start + length;
	source->length = source->starts[1] = q2_round_up(length, SECTOR);
	return 0;
}

/* How far a failed look at the map says nothing: to the end of the cluster in the disk's own grid. */
static uint64_t unknown_length(const struct qcow2_image *image, uint64_t offset, uint64_t limit)
{
	uint64_t grain = image->raw ? SECTOR : image->meta.geo.cluster_size;
	return q2_min(limit, grain - offset % grain);
}

static int look_up(struct q2_source *source, uint64_t offset, struct q2_piece *piece, struct qcow2_error *err)
{
	size_t i = 0;
	while (offset >= source->starts[i + 1])
		i++;
	struct qcow2_image *image = source->images[i];
	uint64_t local = offset - source->starts[i] + (i ? 0 : source->begin);
	uint64_t end = i ? image->size : q2_min(image->size, source->end);
	*piece = (struct q2_piece){.offset = offset, .kind = QCOW2_EXTENT_ZERO};
	if (local >= end) {
		/* The rest of a sector that the disk ends in. */
		piece->length = source->starts[i + 1] - offset;
		return 0;
	}
	struct qcow2_extent extent;
	int rc = q2_chain_find(image, local, end - local, QCOW2_EXTENT_HOLES, true, &extent, err);
	if (!rc)
		rc = note_missing(source, &extent, offset, err);
	if (!rc)
		rc = fill_piece(&extent, piece, err);
	if (source->salvage && (rc == QCOW2_E_IO || rc == QCOW2_E_CORRUPT)) {
		*piece = (struct q2_piece){.offset = offset, .kind = QCOW2_EXTENT_ZERO};
		piece->length = unknown_length(image, local, end - local);
		source->lost += piece->length;
		return 0;
	}
	return rc ? q2_image_blame(image, rc, err) : 0;
}

int q2_source_find(struct q2_source *source, uint64_t offset, uint64_t limit, struct q2_piece *piece,
		   struct qcow2_error *err)
{
	struct q2_piece *current = &source->current;
	if (offset >= source->length) {
		*piece = (struct q2_piece){.offset = offset,
					   .length = limit,
					   .kind = QCOW2_EXTENT_UNALLOCATED};
		return 0;
	}
	if (offset < current->offset || offset - current->offset >= current->length) {
		struct q2_piece found;
		int rc = look_up(source, offset, &found, err);
		if (rc)
			return rc;
		*current = found;
	}
	*piece = q2_piece_part(current, offset, limit);
	return 0;
}

static bool same_file(struct qcow2_store *a, struct qcow2_store *b)
{
	uint64_t id_a[2], id_b[2];
	if (a == b)
		return true;
	return qcow2_store_identity(a, id_a) && qcow2_store_identity(b, id_b) && id_a[0] == id_b[0] &&
	       id_a[1] == id_b[1];
}

bool q2_source_reads(const struct q2_source *source, struct qcow2_store *store)
{
	for (size_t i = 0; i < source->count; i++)
		for (struct qcow2_image *layer = source->images[i]; layer; layer = layer->backing)
			if (same_file(layer->store, store) || (layer->data && same_file(layer->data, store)))
				return true;
	return false;
}
