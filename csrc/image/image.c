/* SPDX-License-Identifier: MIT
 * The ground of this floor: an image in memory, references to it, and what its header says of it. */
#include "image/image.h"

#include "base/mem.h"
#include "data/codec.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct qcow2_image *q2_image_new(struct qcow2_store *store)
{
	struct qcow2_image *image = q2_new(1, sizeof *image);
	if (!image)
		return NULL;
	image->refs = 1;
	image->store = qcow2_store_ref(store);
	image->meta.store = store;
	image->expanded_host = UINT64_MAX;
	return image;
}

void q2_image_free(struct qcow2_image *image)
{
	q2_map_free(&image->map);
	q2_meta_free(&image->meta);
	q2_codec_free(image->codec);
	q2_vec_free(&image->extensions);
	q2_vec_free(&image->snapshots);
	q2_vec_free(&image->bitmaps);
	q2_vec_free(&image->bitmap_serials);
	free(image->snapshot_table);
	free(image->bitmap_directory);
	free(image->bitmap_table);
	free(image->expanded);
	free(image->stream);
	free(image->head);
	qcow2_store_unref(image->data);
	qcow2_store_unref(image->store);
	free(image);
}

struct qcow2_image *qcow2_image_ref(struct qcow2_image *image)
{
	image->refs++;
	return image;
}

int q2_image_blame(const struct qcow2_image *image, int code, struct qcow2_error *err)
{
	if (!code || !err)
		return code;
	char name[200], quoted[204];
	const char *path = qcow2_store_name(image->store);
	q2_error_escape(name, sizeof name, path, strlen(path));
	/* A store's own failure tells its name already. */
	snprintf(quoted, sizeof quoted, "'%s'", name);
	return strstr(err->text, quoted) ? code : q2_error_prefix(err, code, "%s", name);
}

const struct qcow2_header *qcow2_image_header(const struct qcow2_image *image)
{
	return image->raw ? NULL : &image->meta.header;
}

uint64_t qcow2_image_size(const struct qcow2_image *image)
{
	return image->size;
}

struct qcow2_store *qcow2_image_store(const struct qcow2_image *image)
{
	return image->store;
}

struct qcow2_store *qcow2_image_data_store(const struct qcow2_image *image)
{
	return image->raw || !image->meta.geo.external_data ? image->store : image->data;
}

struct qcow2_image *qcow2_image_backing(const struct qcow2_image *image)
{
	return image->backing;
}

int q2_image_data_store(struct qcow2_image *image, struct qcow2_store **store, struct qcow2_error *err)
{
	*store = qcow2_image_data_store(image);
	if (*store)
		return 0;
	char name[256];
	if (!image->data_name.data)
		return q2_error_set(err, QCOW2_E_MISSING, Q2_NO_OFFSET,
				    "The image does not name its external data file; it has to be given");
	q2_error_escape(name, sizeof name, image->data_name.data, image->data_name.length);
	return q2_error_set(err, QCOW2_E_MISSING, Q2_NO_OFFSET, "External data file '%s' is not attached",
			    name);
}

struct qcow2_bytes qcow2_image_backing_name(const struct qcow2_image *image)
{
	return image->backing_name;
}

struct qcow2_bytes qcow2_image_backing_format(const struct qcow2_image *image)
{
	return image->backing_format;
}

struct qcow2_bytes qcow2_image_data_name(const struct qcow2_image *image)
{
	return image->data_name;
}

int qcow2_image_extension(const struct qcow2_image *image, uint32_t index, struct qcow2_extension *out,
			  struct qcow2_error *err)
{
	if (index >= image->extensions.count)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "There is no header extension %" PRIu32,
				    index);
	const struct q2_extension *ext = (struct q2_extension *)image->extensions.items + index;
	*out = (struct qcow2_extension){
		.type = ext->type,
		.offset = ext->offset,
		.data = {image->head + ext->offset, ext->length},
		.word = q2_extension_word(ext->type),
	};
	return 0;
}

/* A feature name table is an array of {type, bit, name[46]}; names are padded with NULs. A table may end inside its last
 * name. */
static struct qcow2_bytes own_feature_name(const struct qcow2_image *image, unsigned type, unsigned bit)
{
	for (size_t i = 0; i < image->extensions.count; i++) {
		const struct q2_extension *ext = (struct q2_extension *)image->extensions.items + i;
		if (ext->type != (uint32_t)Q2_EXT_FEATURE_NAMES)
			continue;
		for (uint32_t at = 0; at + 2 < ext->length; at += 48) {
			const uint8_t *row = image->head + ext->offset + at;
			size_t room = q2_min(46, ext->length - at - 2);
			if (row[0] == type && row[1] == bit)
				return (struct qcow2_bytes){row + 2, strnlen((const char *)row + 2, room)};
		}
	}
	return (struct qcow2_bytes){0};
}

struct qcow2_bytes qcow2_image_feature_name(const struct qcow2_image *image, unsigned type, unsigned bit,
					    bool *known)
{
	const char *name = q2_header_feature_name(type, bit);
	*known = name != NULL;
	if (name)
		return (struct qcow2_bytes){(const uint8_t *)name, strlen(name)};
	return own_feature_name(image, type, bit);
}

const struct q2_extension *q2_image_extension(const struct qcow2_image *image, uint32_t type)
{
	const struct q2_extension *found = NULL;
	for (size_t i = 0; i < image->extensions.count; i++) {
		const struct q2_extension *e = (struct q2_extension *)image->extensions.items + i;
		found = e->type == type ? e : found;
	}
	return found;
}
