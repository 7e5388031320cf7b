/* SPDX-License-Identifier: MIT
 * The header cluster behind the header's fields: extensions and the backing file's name, replaced as one. */
#include "image/header_cluster.h"

#include "base/be.h"

#include <inttypes.h>

enum { SECTOR = 512 };

static int copy_bytes(uint8_t **to, const void *from, uint32_t length)
{
	uint8_t *copy = q2_new(length, 1);
	if (!copy)
		return QCOW2_E_NOMEM;
	if (length)
		memcpy(copy, from, length);
	free(*to);
	*to = copy;
	return 0;
}

void q2_header_cluster_free(struct q2_header_cluster *head)
{
	struct q2_header_cluster_item *items = head->items.items;
	for (size_t i = 0; i < head->items.count; i++)
		free(items[i].data);
	q2_vec_free(&head->items);
	free(head->backing_name);
	*head = (struct q2_header_cluster){0};
}

static int add_item(struct q2_header_cluster *head, uint32_t type, const void *data, uint32_t length,
		    struct qcow2_error *err)
{
	struct q2_header_cluster_item *item = q2_vec_push(&head->items, sizeof *item);
	if (!item)
		return q2_error_nomem(err);
	item->type = type;
	item->length = length;
	return copy_bytes(&item->data, data, length) ? q2_error_nomem(err) : 0;
}

int q2_header_cluster_load(const struct qcow2_image *image, struct q2_header_cluster *head,
			   struct qcow2_error *err)
{
	*head = (struct q2_header_cluster){0};
	int rc = 0;
	for (size_t i = 0; i < image->extensions.count && !rc; i++) {
		const struct q2_extension *ext = (struct q2_extension *)image->extensions.items + i;
		rc = add_item(head, ext->type, image->head + ext->offset, ext->length, err);
	}
	if (!rc && image->backing_name.data)
		rc = q2_header_cluster_set_backing(head, image->backing_name.data,
						   (uint32_t)image->backing_name.length, err);
	return rc;
}

int q2_header_cluster_set(struct q2_header_cluster *head, uint32_t type, const void *data, uint32_t length,
			  struct qcow2_error *err)
{
	struct q2_header_cluster_item *items = head->items.items;
	size_t kept = 0;
	bool there = false;
	for (size_t i = 0; i < head->items.count; i++)
		if (items[i].type == type && data && !there) {
			if (copy_bytes(&items[i].data, data, length))
				return q2_error_nomem(err);
			items[i].length = length;
			there = true;
		}
	/* An image may have several of a type, and programs differ about which one counts: one is left. */
	there = false;
	for (size_t i = 0; i < head->items.count; i++) {
		bool stays = items[i].type != type || (data && !there);
		there = there || items[i].type == type;
		if (stays)
			items[kept++] = items[i];
		else
			free(items[i].data);
	}
	head->items.count = kept;
	return data && !there ? add_item(head, type, data, length, err) : 0;
}

int q2_header_cluster_set_backing(struct q2_header_cluster *head, const void *name, uint32_t length,
				  struct qcow2_error *err)
{
	if (length > Q2_MAX_BACKING_NAME)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "Backing file name of %" PRIu32 " bytes is longer than %u", length,
				    Q2_MAX_BACKING_NAME);
	head->backing_length = length;
	if (name)
		return copy_bytes(&head->backing_name, name, length) ? q2_error_nomem(err) : 0;
	free(head->backing_name);
	head->backing_name = NULL;
	return 0;
}

/* Bytes of the list: extensions with their padding, the end mark, the name. */
static uint64_t list_length(const struct q2_header_cluster *head, uint64_t *name_at)
{
	const struct q2_header_cluster_item *items = head->items.items;
	uint64_t length = 0;
	for (size_t i = 0; i < head->items.count; i++)
		length += 8 + q2_round_up(items[i].length, 8);
	*name_at = length + 8;
	return length + 8 + (head->backing_name ? head->backing_length : 0);
}

/* Writes the list into zeroed `bytes`. */
static void put_list(const struct q2_header_cluster *head, uint8_t *bytes)
{
	const struct q2_header_cluster_item *items = head->items.items;
	for (size_t i = 0; i < head->items.count; i++) {
		q2_store32(bytes, items[i].type);
		q2_store32(bytes + 4, items[i].length);
		memcpy(bytes + 8, items[i].data, items[i].length);
		bytes += 8 + q2_round_up(items[i].length, 8);
	}
	if (head->backing_name)
		memcpy(bytes + 8, head->backing_name, head->backing_length);
}

/* Lets the header's fields say that the list begins at `base`. */
static void point_at(struct qcow2_header *h, const struct q2_header_cluster *head, uint64_t base,
		     uint64_t name_at)
{
	bool named = head->backing_name && head->backing_length;
	if (h->version >= 3)
		h->header_length = (uint32_t)base;
	h->backing_file_offset = named ? base + name_at : 0;
	h->backing_file_size = named ? head->backing_length : 0;
}

/* Writes the list at `base`, waits for it, then lets the header name it. */
static int place(struct qcow2_image *image, const struct q2_header_cluster *head, uint64_t base,
		 const uint8_t *list, uint64_t length, uint64_t name_at, struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	int rc = qcow2_store_write(meta->store, base, list, length, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	if (rc)
		return q2_writeback_fail(meta, rc, err);
	point_at(&meta->header, head, base, name_at);
	return q2_writeback_header(meta, err);
}

/* Where the list and the name that are in force now end. */
static int old_end(const struct qcow2_image *image, const struct qcow2_header *old, uint32_t old_base,
		   uint64_t *end, struct qcow2_error *err)
{
	struct q2_header_cluster list;
	uint64_t name_at;
	int rc = q2_header_cluster_load(image, &list, err);
	if (!rc) {
		*end = q2_max(old_base + list_length(&list, &name_at),
			      old->backing_file_offset + old->backing_file_size);
	}
	q2_header_cluster_free(&list);
	return rc;
}

/* What memory knows of the header is read anew. When that fails, memory and disk no longer say the same. */
static int reload(struct qcow2_image *image, struct qcow2_error *err)
{
	int rc = q2_image_reload_header(image, err);
	return rc ? q2_writeback_fail(&image->meta, rc, err) : 0;
}

/* The first sector, new from end to end: fields, then `length` bytes of list at `base`. */
static int write_sector(struct qcow2_image *image, uint64_t base, const uint8_t *list, uint64_t length,
			struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	uint8_t sector[SECTOR] = {0};
	q2_header_put(&meta->header, sector);
	memcpy(sector + base, list, length);
	int rc = q2_writeback_start(meta, sector, sizeof sector, err);
	return rc ? rc : reload(image, err);
}

int q2_header_cluster_store_version(struct qcow2_image *image, const struct q2_header_cluster *head,
				    struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	struct qcow2_header *h = &meta->header;
	uint64_t base = h->version >= 3 ? Q2_HEADER_FULL : Q2_HEADER_V2;
	uint32_t old_base = h->version >= 3 ? Q2_HEADER_V2 : h->header_length;
	uint64_t name_at, length = list_length(head, &name_at), end = 0;
	q2_auto uint8_t *list = q2_new(length, 1);
	int rc = list ? 0 : q2_error_nomem(err);
	if (!rc)
		rc = old_end(image, h, old_base, &end, err);
	if (rc)
		return rc;
	put_list(head, list);
	h->header_length = (uint32_t)base;
	point_at(h, head, base, name_at);
	if (base + length <= SECTOR)
		return write_sector(image, base, list, length, err);
	/* The old header ends where its list does; behind it and the sector there is room for the name. */
	end = q2_round_up(q2_max(end, SECTOR), 8);
	if (base + name_at > SECTOR || end + head->backing_length > meta->geo.cluster_size)
		return q2_error_set(err, QCOW2_E_NOSPACE, Q2_NO_OFFSET,
				    "The header cluster of %" PRIu32
				    " bytes has no room for its extensions and names in the other version",
				    meta->geo.cluster_size);
	rc = qcow2_store_write(meta->store, end, head->backing_name, head->backing_length, err);
	if (!rc)
		rc = q2_writeback_barrier(meta, err);
	if (rc)
		return q2_writeback_fail(meta, rc, err);
	h->backing_file_offset = end;
	return write_sector(image, base, list, name_at, err);
}

int q2_header_cluster_store(struct qcow2_image *image, const struct q2_header_cluster *head,
			    struct qcow2_error *err)
{
	struct q2_meta *meta = &image->meta;
	const struct qcow2_header saved = meta->header;
	uint64_t base = image->meta.header.version >= 3 ? q2_min(saved.header_length, meta->geo.cluster_size)
							: Q2_HEADER_V2;
	uint64_t name_at, length = list_length(head, &name_at), room = meta->geo.cluster_size;
	q2_auto uint8_t *list = q2_new(q2_round_up(length, SECTOR), 1);
	int rc = list ? q2_writeback_flush(meta, err) : q2_error_nomem(err);
	if (rc)
		return rc;
	put_list(head, list);
	if (base + length <= SECTOR) {
		uint8_t sector[SECTOR] = {0};
		memcpy(sector, image->head, base); /* fields that we do not know stay */
		point_at(&meta->header, head, base, name_at);
		q2_header_put(&meta->header, sector);
		memcpy(sector + base, list, length);
		rc = q2_writeback_start(meta, sector, sizeof sector, err);
	} else {
		/* Behind the list that is in force now, and so that the new one fits before it, too. */
		uint64_t end = base + length, old_name_at;
		struct q2_header_cluster old;
		rc = q2_header_cluster_load(image, &old, err);
		if (!rc)
			end = q2_max(end, base + list_length(&old, &old_name_at));
		q2_header_cluster_free(&old);
		end = q2_round_up(q2_max(end, saved.backing_file_offset + saved.backing_file_size), 8);
		if (!rc && (saved.version < 3 || end + length > room))
			rc = q2_error_set(err, QCOW2_E_NOSPACE, Q2_NO_OFFSET,
					  "The header cluster of %" PRIu64
					  " bytes has no room for its new extensions and names",
					  room);
		if (rc) {
			meta->header = saved;
			return rc;
		}
		rc = place(image, head, end, list, length, name_at, err);
		if (!rc)
			rc = place(image, head, base, list, length, name_at, err);
	}
	return rc ? rc : reload(image, err);
}

/* ---- the backing file that the header names --------------------------------------------------------- */

static int set_backing(struct qcow2_image *image, struct qcow2_bytes name, struct qcow2_bytes format,
		       struct qcow2_error *err)
{
	struct q2_header_cluster head;
	if (image->raw)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "A raw image has no backing file");
	if (name.data && !name.length)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "The backing file's name is empty");
	if (name.data && (image->meta.header.autoclear_features & Q2_AUTOCLEAR_DATA_FILE_RAW))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "An image whose raw data file is the disk has no backing file");
	int rc = q2_edit_begin(image, err);
	if (rc)
		return rc;
	if (!name.data)
		format = (struct qcow2_bytes){0};
	rc = q2_header_cluster_load(image, &head, err);
	if (!rc)
		rc = q2_header_cluster_set(&head, (uint32_t)Q2_EXT_BACKING_FORMAT, format.data,
					   (uint32_t)format.length, err);
	if (!rc)
		rc = q2_header_cluster_set_backing(&head, name.data,
						   (uint32_t)q2_min(name.length, UINT32_MAX), err);
	if (!rc)
		rc = q2_header_cluster_store(image, &head, err);
	q2_header_cluster_free(&head);
	return rc;
}

int qcow2_image_set_backing(struct qcow2_image *image, struct qcow2_bytes name, struct qcow2_bytes format,
			    struct qcow2_error *err)
{
	int rc = set_backing(image, name, format, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
