/* SPDX-License-Identifier: MIT
 * The header: its bytes, its limits and the geometry that follows from it. */
#include "format/header.h"

#include "base/addr.h"
#include "base/be.h"

#include <inttypes.h>

/* The specification's offsets, proved field by field against a packed mirror of the header. */
struct __attribute__((packed)) mirror {
#define HEADER_FIELD(bits, name, offset) uint##bits##_t name;
#include "format/header.def"
#undef HEADER_FIELD
};
#define HEADER_FIELD(bits, name, offset) \
	_Static_assert(offsetof(struct mirror, name) == (offset), "header field " #name " is misplaced");
#include "format/header.def"
#undef HEADER_FIELD

#define load8(p) (*(p))
#define store8(p, v) (*(p) = (uint8_t)(v))
#define load32(p) q2_load32(p)
#define load64(p) q2_load64(p)
#define store32(p, v) q2_store32(p, v)
#define store64(p, v) q2_store64(p, v)

int q2_header_parse(const uint8_t *bytes, size_t length, struct qcow2_header *header, struct qcow2_error *err)
{
	if (length >= 8 && q2_load32(bytes) == Q2_MAGIC_UNFINISHED)
		return q2_error_set(err, QCOW2_E_FORMAT, 0,
				    "Image is unfinished: what wrote it ended before all was in it");
	if (length < 8 || q2_load32(bytes) != Q2_MAGIC)
		return q2_error_set(err, QCOW2_E_FORMAT, 0, "Image is not in qcow2 format");
	uint32_t version = q2_load32(bytes + 4);
	if (version != 2 && version != 3)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, 4, "Unsupported qcow2 version %" PRIu32,
				    version);
	if (length < (version == 2 ? Q2_HEADER_V2 : Q2_HEADER_V3))
		return q2_error_set(err, QCOW2_E_CORRUPT, length, "The file ends inside the qcow2 header");

	/* Fields beyond what this header has read as zero. */
	uint8_t full[Q2_HEADER_FULL] = {0};
	size_t have = version == 2 ? Q2_HEADER_V2 : Q2_HEADER_FULL;
	if (version == 3 && q2_load32(bytes + 100) < have)
		have = q2_max(q2_load32(bytes + 100), Q2_HEADER_V3);
	memcpy(full, bytes, q2_min(have, length));
#define HEADER_FIELD(bits, name, offset) header->name = load##bits(full + (offset));
#include "format/header.def"
#undef HEADER_FIELD
	if (version == 2) {
		header->refcount_order = 4;
		header->header_length = Q2_HEADER_V2;
	}
	return 0;
}

size_t q2_header_put(const struct qcow2_header *header, uint8_t *bytes)
{
	uint8_t full[Q2_HEADER_FULL] = {0};
#define HEADER_FIELD(bits, name, offset) store##bits(full + (offset), header->name);
#include "format/header.def"
#undef HEADER_FIELD
	size_t used = header->version == 2 ? Q2_HEADER_V2 : q2_min(header->header_length, Q2_HEADER_FULL);
	memcpy(bytes, full, used);
	return used;
}

void q2_header_geometry(const struct qcow2_header *header, struct q2_geometry *g)
{
	bool extended = header->incompatible_features & Q2_INCOMPATIBLE_EXTENDED_L2;
	*g = (struct q2_geometry){
		.cluster_bits = header->cluster_bits,
		.cluster_size = 1u << header->cluster_bits,
		.subcluster_bits = header->cluster_bits - (extended ? 5 : 0),
		.subclusters = extended ? Q2_SUBCLUSTERS : 1,
		.l2_entry_size = extended ? 16 : 8,
		.l2_bits = header->cluster_bits - (extended ? 4 : 3),
		.refcount_order = header->refcount_order,
		.refblock_bits = header->cluster_bits + 3 - header->refcount_order,
		.extended_l2 = extended,
		.external_data = header->incompatible_features & Q2_INCOMPATIBLE_DATA_FILE,
		.version2 = header->version == 2,
	};
	g->l1_needed = q2_header_l1_entries(g, header->size);
}

uint64_t q2_header_l1_entries(const struct q2_geometry *g, uint64_t size)
{
	return q2_div_up(size, 1ull << (g->cluster_bits + g->l2_bits));
}

const char *q2_header_feature_name(unsigned type, unsigned bit)
{
	enum { INCOMPATIBLE, COMPATIBLE, AUTOCLEAR };
#define FEATURE(kind, number, NAME, text)    \
	if (type == kind && bit == (number)) \
		return text;
#include "format/features.def"
#undef FEATURE
	return NULL;
}

/* A table of `bytes` at `offset`: aligned, behind the header cluster and wholly inside the file. */
static int check_table(const struct qcow2_header *h, const char *what, uint64_t offset, uint64_t bytes,
		       uint64_t file_length, struct qcow2_error *err)
{
	uint64_t cluster_size = 1ull << h->cluster_bits;
	if (!q2_is_aligned(offset, cluster_size))
		return q2_error_set(err, QCOW2_E_CORRUPT, offset,
				    "%s at offset %#" PRIx64 " is not aligned to a cluster", what, offset);
	if (bytes && offset < cluster_size)
		return q2_error_set(err, QCOW2_E_CORRUPT, offset, "%s overlaps the header", what);
	if (bytes && !q2_fits(offset, bytes, file_length))
		return q2_error_set(err, QCOW2_E_CORRUPT, offset,
				    "%s at offset %#" PRIx64 " (%" PRIu64
				    " bytes) lies outside the file of %" PRIu64 " bytes",
				    what, offset, bytes, file_length);
	return 0;
}

/* Features that contradict one another or the fields beside them. */
static int check_features(const struct qcow2_header *h, struct qcow2_error *err)
{
	bool typed = h->incompatible_features & Q2_INCOMPATIBLE_COMPRESSION;
	if (typed != (h->compression_type != 0))
		return q2_error_set(
			err, QCOW2_E_CORRUPT, 104,
			"Compression type %u contradicts the compression type feature bit, which is %s",
			h->compression_type, typed ? "set" : "clear");
	if (h->compression_type > 1)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, 104, "Unknown compression type %u",
				    h->compression_type);
	if ((h->incompatible_features & Q2_INCOMPATIBLE_EXTENDED_L2) &&
	    h->cluster_bits < Q2_MIN_EXTENDED_CLUSTER_BITS)
		return q2_error_set(
			err, QCOW2_E_CORRUPT, 20,
			"Extended L2 entries need clusters of 16 KiB or more, the header says %u bytes",
			1u << h->cluster_bits);
	if (h->crypt_method > Q2_CRYPT_LUKS)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, 32, "Unsupported encryption method %" PRIu32,
				    h->crypt_method);
	return 0;
}

/* No two of the tables that the header names lie on one another. needs: each lies inside the file. */
static int check_overlaps(const struct qcow2_header *h, uint64_t reftable_bytes, struct qcow2_error *err)
{
	const struct {
		const char *what;
		uint64_t at, bytes;
	} tables[] = {
		{"Reference count table", h->refcount_table_offset, reftable_bytes},
		{"Active L1 table", h->l1_table_offset, (uint64_t)h->l1_size * 8},
		{"Snapshot table", h->nb_snapshots ? h->snapshots_offset : 0, (uint64_t)h->nb_snapshots * 40},
	};
	for (unsigned i = 0; i < 3; i++)
		for (unsigned j = i + 1; j < 3; j++)
			if (q2_overlaps(tables[i].at, tables[i].bytes, tables[j].at, tables[j].bytes))
				return q2_error_set(err, QCOW2_E_CORRUPT, tables[j].at, "%s overlaps the %s",
						    tables[j].what, tables[i].what);
	return 0;
}

int q2_header_check(const struct qcow2_header *h, uint64_t file_length, struct qcow2_error *err)
{
	if (h->cluster_bits < Q2_MIN_CLUSTER_BITS || h->cluster_bits > Q2_MAX_CLUSTER_BITS)
		return q2_error_set(err, QCOW2_E_CORRUPT, 20, "Unsupported cluster size: 2^%" PRIu32,
				    h->cluster_bits);
	uint32_t cluster_size = 1u << h->cluster_bits;
	if (h->version >= 3) {
		if (h->header_length < Q2_HEADER_V3)
			return q2_error_set(err, QCOW2_E_CORRUPT, 100,
					    "qcow2 header too short: %" PRIu32 " bytes", h->header_length);
		if (h->header_length > cluster_size)
			return q2_error_set(err, QCOW2_E_CORRUPT, 100,
					    "qcow2 header of %" PRIu32 " bytes exceeds the cluster size",
					    h->header_length);
		if (!q2_is_aligned(h->header_length, 8))
			return q2_error_set(err, QCOW2_E_CORRUPT, 100,
					    "qcow2 header length %" PRIu32 " is not a multiple of 8",
					    h->header_length);
	}
	if (h->refcount_order > 6)
		return q2_error_set(err, QCOW2_E_CORRUPT, 96,
				    "Reference count entry width too large: 2^%" PRIu32
				    " bits; may not exceed 64 bits",
				    h->refcount_order);
	int rc = check_features(h, err);
	if (rc)
		return rc;

	if (h->backing_file_offset) {
		if (h->backing_file_offset < h->header_length || h->backing_file_offset > cluster_size)
			return q2_error_set(err, QCOW2_E_CORRUPT, 8, "Invalid backing file offset %#" PRIx64,
					    h->backing_file_offset);
		if (h->backing_file_size > Q2_MAX_BACKING_NAME ||
		    h->backing_file_size > cluster_size - h->backing_file_offset)
			return q2_error_set(err, QCOW2_E_CORRUPT, 16,
					    "Backing file name too long: %" PRIu32 " bytes",
					    h->backing_file_size);
		if (h->backing_file_offset + h->backing_file_size > file_length)
			return q2_error_set(err, QCOW2_E_CORRUPT, 8,
					    "The file ends inside the backing file name");
	}

	if (h->refcount_table_clusters > Q2_MAX_REFTABLE_BYTES >> h->cluster_bits)
		return q2_error_set(err, QCOW2_E_CORRUPT, 56,
				    "Reference count table too large: %" PRIu32 " clusters",
				    h->refcount_table_clusters);
	if (h->l1_size > Q2_MAX_L1_BYTES / 8)
		return q2_error_set(err, QCOW2_E_CORRUPT, 36,
				    "Active L1 table too large: %" PRIu32 " entries", h->l1_size);
	if (h->size > INT64_MAX)
		return q2_error_set(err, QCOW2_E_CORRUPT, 24, "Disk size %" PRIu64 " is too large", h->size);
	struct q2_geometry g;
	q2_header_geometry(h, &g);
	if (h->l1_size < g.l1_needed)
		return q2_error_set(err, QCOW2_E_CORRUPT, 36,
				    "L1 table is too small: %" PRIu32 " entries, the disk needs %" PRIu64,
				    h->l1_size, g.l1_needed);
	return 0;
}

int q2_header_check_places(const struct qcow2_header *h, uint64_t file_length, struct qcow2_error *err)
{
	uint64_t reftable_bytes = (uint64_t)h->refcount_table_clusters << h->cluster_bits;
	if (reftable_bytes == 0)
		return q2_error_set(err, QCOW2_E_CORRUPT, 56,
				    "Image does not contain a reference count table");
	if (h->nb_snapshots > Q2_MAX_SNAPSHOTS)
		return q2_error_set(err, QCOW2_E_CORRUPT, 60, "Snapshot table too large: %" PRIu32 " entries",
				    h->nb_snapshots);
	int rc = check_table(h, "Reference count table", h->refcount_table_offset, reftable_bytes,
			     file_length, err);
	if (!rc)
		rc = check_table(h, "Active L1 table", h->l1_table_offset, (uint64_t)h->l1_size * 8,
				 file_length, err);
	if (!rc && h->nb_snapshots) /* 40 bytes is the smallest entry */
		rc = check_table(h, "Snapshot table", h->snapshots_offset, (uint64_t)h->nb_snapshots * 40,
				 file_length, err);
	return rc ? rc : check_overlaps(h, reftable_bytes, err);
}
