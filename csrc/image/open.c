/* SPDX-License-Identifier: MIT
 * Opens an image: what kind of file it is, its header, the names that the header cluster holds. */
#include "base/be.h"
#include "base/mem.h"
#include "data/codec.h"
#include "format/probe.h"
#include "image/image.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int qcow2_image_probe(struct qcow2_store *store, const char **format, struct qcow2_error *err)
{
	uint8_t bytes[Q2_PROBE_HEAD];
	_Static_assert(Q2_PROBE_TAIL <= Q2_PROBE_HEAD, "one buffer serves both");
	uint64_t length;
	const char *found = NULL;
	int rc = qcow2_store_length(store, &length, err);
	if (!rc) /* also where the length says 0: that a file cannot be read is found out now */
		rc = qcow2_store_read(store, 0, bytes, sizeof bytes, err);
	if (!rc)
		found = q2_probe_head(bytes, (size_t)q2_min(length, sizeof bytes));
	if (!rc && !found && length >= Q2_PROBE_TAIL) {
		rc = qcow2_store_read(store, length - Q2_PROBE_TAIL, bytes, Q2_PROBE_TAIL, err);
		found = rc ? NULL : q2_probe_tail(bytes);
	}
	if (!rc)
		*format = found ? found : "raw";
	return rc;
}

/* Unknown incompatible bits are refused by their names in the image's own table, those without one in hexadecimal. */
static int refuse_unknown(const struct qcow2_image *image, struct qcow2_error *err)
{
	uint64_t unknown = image->meta.header.incompatible_features & ~Q2_INCOMPATIBLE_KNOWN;
	if (!unknown)
		return 0;
	char list[320];
	size_t used = 0;
	uint64_t nameless = 0;
	for (unsigned bit = 0; bit <= 64; bit++) {
		bool known;
		char text[200];
		struct qcow2_bytes name = {0};
		if (bit < 64 && !(unknown >> bit & 1))
			continue;
		if (bit < 64)
			name = qcow2_image_feature_name(image, 0, bit, &known);
		if (bit < 64 && !name.length) {
			nameless |= 1ull << bit;
			continue;
		}
		/* Those without a name come last, as one number. */
		if (bit < 64)
			q2_error_escape(text, sizeof text, name.data, name.length);
		else if (nameless)
			snprintf(text, sizeof text, "Unknown incompatible feature: %" PRIx64, nameless);
		else
			break;
		size_t need = strlen(text) + 2;
		if (used + need >= sizeof list - 5) {
			memcpy(list + used, ", ...", 6);
			break;
		}
		used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", text);
	}
	return q2_error_set(err, QCOW2_E_UNSUPPORTED, 72, "Unsupported qcow2 feature(s): %s", list);
}

/* The names that the header and its extensions hold, as pointers into `head`. */
static int read_names(struct qcow2_image *image, struct qcow2_error *err)
{
	const struct qcow2_header *h = &image->meta.header;
	/* Extensions end where the backing file's name begins, at the latest with the header cluster. */
	uint32_t end = image->head_length;
	if (h->backing_file_offset)
		end = (uint32_t)q2_min(end, h->backing_file_offset);
	uint32_t pos = h->header_length;
	struct q2_extension ext;
	int more;
	while ((more = q2_extension_next(image->head, end, &pos, &ext, err)) > 0) {
		struct q2_extension *item = q2_vec_push(&image->extensions, sizeof *item);
		if (!item)
			return q2_error_nomem(err);
		*item = ext;
		struct qcow2_bytes data = {image->head + ext.offset, ext.length};
		if (ext.type == (uint32_t)Q2_EXT_BACKING_FORMAT)
			image->backing_format = data;
		else if (ext.type == (uint32_t)Q2_EXT_DATA_FILE && image->meta.geo.external_data)
			image->data_name = data;
	}
	if (more < 0)
		return more;
	if (h->backing_file_offset && h->backing_file_size)
		image->backing_name =
			(struct qcow2_bytes){image->head + h->backing_file_offset, h->backing_file_size};
	return 0;
}

int q2_image_reload_header(struct qcow2_image *image, struct qcow2_error *err)
{
	image->head_length = (uint32_t)q2_min(image->meta.geo.cluster_size, image->meta.file_length);
	q2_vec_free(&image->extensions);
	image->backing_name = image->backing_format = image->data_name = (struct qcow2_bytes){0};
	int rc = qcow2_store_read(image->store, 0, image->head, image->head_length, err);
	return rc ? rc : read_names(image, err);
}

enum { SECTOR = 512 };

/* How an image may be. */
enum condition { SOUND, DAMAGED, HIDDEN };

/*
 * Devices end with a sector, and lose what an image has behind it: with files that end with their L1 table, its few
 * entries. Where nothing but the header and reference counts is in the file, the table says nothing.
 */
static int find_lost_l1(struct qcow2_image *image, bool *lost, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct qcow2_header *h = &meta->header;
	uint64_t clusters = meta->file_length >> h->cluster_bits, known = 1ull + h->refcount_table_clusters;
	uint64_t bytes = (uint64_t)h->refcount_table_clusters << h->cluster_bits;
	*lost = false;
	if (!h->l1_size || h->nb_snapshots || h->l1_table_offset != meta->file_length ||
	    h->l1_size * 8ull >= SECTOR || !clusters || known > clusters ||
	    !q2_fits(h->refcount_table_offset, bytes, meta->file_length))
		return 0;
	q2_auto uint8_t *table = q2_new(bytes, 1);
	int rc = table ? qcow2_store_read(image->store, h->refcount_table_offset, table, bytes, err)
		       : q2_error_nomem(err);
	for (uint64_t at = 0; !rc && at < bytes; at += 8)
		known += q2_load64(table + at) != 0;
	*lost = !rc && known == clusters;
	return rc;
}

static int open_header(struct qcow2_image *image, enum condition state, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint8_t start[Q2_HEADER_FULL];
	int rc = qcow2_store_length(image->store, &meta->file_length, err);
	if (!rc)
		rc = qcow2_store_read(image->store, 0, start, sizeof start, err);
	if (!rc && state == HIDDEN && q2_load32(start) == Q2_MAGIC_UNFINISHED) {
		q2_store32(start, Q2_MAGIC);
		meta->hidden = true;
	}
	if (!rc)
		rc = q2_header_parse(start, q2_min(sizeof start, meta->file_length), &meta->header, err);
	if (!rc)
		rc = q2_header_check(&meta->header, meta->file_length, err);
	if (!rc)
		rc = find_lost_l1(image, &image->lost_l1, err);
	if (image->lost_l1) /* behind the end of a file is zeros */
		meta->file_length += meta->header.l1_size * 8ull;
	if (!rc && state != DAMAGED)
		rc = q2_header_check_places(&meta->header, meta->file_length, err);
	if (rc)
		return rc;
	q2_header_geometry(&meta->header, &meta->geo);

	image->head = q2_new(meta->geo.cluster_size, 1);
	if (!image->head)
		return q2_error_nomem(err);
	rc = q2_image_reload_header(image, err);
	if (!rc)
		rc = refuse_unknown(image, err);
	if (rc)
		return rc;
	if (meta->geo.external_data && meta->header.crypt_method != Q2_CRYPT_NONE &&
	    (meta->header.autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW))
		return q2_error_set(err, QCOW2_E_CONFLICT, 88,
				    "A raw external data file cannot be the disk of an encrypted image");
	q2_cache_init(&meta->cache, image->store, meta->geo.cluster_size, Q2_CACHE_BOUND);
	image->size = meta->header.size;
	image->map = (struct q2_map){.meta = meta,
				     .l1_offset = meta->header.l1_table_offset,
				     .l1_entries = meta->header.l1_size,
				     .size = meta->header.size};
	return 0;
}

static int image_open(struct qcow2_store *store, enum condition state, struct qcow2_image **out,
		      struct qcow2_error *err)
{
	struct qcow2_image *image = q2_image_new(store);
	if (!image)
		return q2_error_nomem(err);
	int rc = open_header(image, state, err);
	if (rc)
		goto undo;
	*out = image;
	return 0;
undo:
	q2_image_free(image);
	return rc;
}

int qcow2_image_open(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err)
{
	return image_open(store, SOUND, out, err);
}

int qcow2_image_open_damaged(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err)
{
	return image_open(store, DAMAGED, out, err);
}

int q2_image_open_hidden(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err)
{
	return image_open(store, HIDDEN, out, err);
}

int qcow2_image_open_raw(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err)
{
	uint64_t length;
	int rc = qcow2_store_length(store, &length, err);
	if (rc)
		return rc;
	if (length > INT64_MAX - 511)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "File of %" PRIu64 " bytes is too long",
				    length);
	struct qcow2_image *image = q2_image_new(store);
	if (!image)
		return q2_error_nomem(err);
	image->raw = true;
	image->size = q2_round_up(length, 512);
	*out = image;
	return 0;
}
