/* SPDX-License-Identifier: MIT
 * Chains: how layers are put together, and the map of them all, where the first layer that says something about an
 * address answers. */
#include "image/image.h"

#include <inttypes.h>
#include <string.h>

static bool same_file(struct qcow2_store *a, struct qcow2_store *b)
{
	uint64_t x[2], y[2];
	return a == b ||
	       (qcow2_store_identity(a, x) && qcow2_store_identity(b, y) && x[0] == y[0] && x[1] == y[1]);
}

/* Is the file the image file or the data file of a layer from `image` down? */
static bool in_chain(const struct qcow2_image *image, struct qcow2_store *store)
{
	for (; image; image = image->backing)
		if (same_file(image->store, store) || (image->data && same_file(image->data, store)))
			return true;
	return false;
}

int qcow2_image_attach_data(struct qcow2_image *image, struct qcow2_store *store, struct qcow2_error *err)
{
	if (image->raw || !image->meta.geo.external_data)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The image has no external data file");
	if (same_file(image->store, store))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The external data file is the image file itself");
	if (in_chain(image->backing, store))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The external data file belongs to the image's backing chain");
	qcow2_store_ref(store);
	qcow2_store_unref(image->data);
	image->data = store;
	return 0;
}

int qcow2_image_attach_backing(struct qcow2_image *image, struct qcow2_image *backing,
			       struct qcow2_error *err)
{
	if (image->raw)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET, "A raw image has no backing file");
	uint32_t depth = 1;
	if (in_chain(backing, image->store))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The backing chain comes back to the image itself");
	if (image->data && in_chain(backing, image->data))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "The backing chain contains the image's external data file");
	for (struct qcow2_image *layer = backing; layer; layer = layer->backing, depth++) {
		if (depth >= Q2_MAX_CHAIN)
			return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
					    "The backing chain is longer than %u images", Q2_MAX_CHAIN);
	}
	qcow2_image_ref(backing);
	qcow2_image_unref(image->backing);
	image->backing = backing;
	return 0;
}

/* A raw layer: its bytes, or a hole of the host's. */
static int raw_run(struct qcow2_image *layer, uint64_t offset, uint64_t limit, bool holes,
		   struct qcow2_extent *out, struct qcow2_error *err)
{
	bool is_data = true;
	out->present = true;
	out->store = layer->store;
	out->host_offset = offset;
	out->length = limit;
	if (holes) {
		int rc = qcow2_store_extent(layer->store, offset, limit, &is_data, &out->length, err);
		if (rc)
			return rc;
	}
	out->kind = is_data ? QCOW2_EXTENT_DATA : QCOW2_EXTENT_ZERO;
	return 0;
}

/* Data that the host has no bytes for reads as zeros, as does data past the file's end. */
static int punch_out_holes(struct qcow2_extent *out, struct qcow2_error *err)
{
	bool is_data;
	uint64_t length;
	int rc = qcow2_store_extent(out->store, out->host_offset, out->length, &is_data, &length, err);
	if (rc)
		return rc;
	out->length = length;
	if (!is_data) {
		out->kind = QCOW2_EXTENT_ZERO;
		out->hole = true;
	}
	return 0;
}

/* A qcow2 layer. *deeper: it has nothing here, out->length says how far. */
static int table_run(struct qcow2_image *layer, uint64_t offset, uint64_t limit, bool holes,
		     struct qcow2_extent *out, bool *deeper, struct qcow2_error *err)
{
	struct q2_run run;
	int rc = q2_map_find(&layer->map, q2_guest_at(offset), limit, &run, err);
	if (rc)
		return rc;
	out->length = run.length;
	*deeper = run.kind == Q2_SUB_UNALLOCATED;
	if (*deeper)
		return 0;
	out->present = true;
	out->copied = run.copied;
	if (run.has_host) {
		out->host_offset = run.host.v;
		out->store = qcow2_image_data_store(layer);
	}
	if (run.kind == Q2_SUB_COMPRESSED) {
		out->kind = QCOW2_EXTENT_COMPRESSED;
		out->host_length = run.host_length;
		out->within = run.within;
	} else if (run.kind == Q2_SUB_ZERO) {
		out->kind = QCOW2_EXTENT_ZERO;
	} else {
		out->kind = QCOW2_EXTENT_DATA;
		/* Ciphertext of zeros is not zeros: a hole under encryption is not a run of zeros. */
		if (holes && out->store && !layer->meta.header.crypt_method)
			return punch_out_holes(out, err);
	}
	return 0;
}

int q2_chain_find(struct qcow2_image *image, uint64_t offset, uint64_t limit, unsigned flags, bool holes,
		  struct qcow2_extent *out, struct qcow2_error *err)
{
	struct qcow2_image *layer = image;
	uint32_t depth = 0;
	for (;;) {
		bool deeper = false;
		int rc = 0;
		*out = (struct qcow2_extent){.offset = offset,
					     .length = limit,
					     .depth = depth,
					     .image = layer,
					     .host_offset = UINT64_MAX};
		if (offset >= layer->size) {
			/* Past the end of a layer that is shorter than the one above: zeros, and its own. */
			out->kind = QCOW2_EXTENT_ZERO;
			out->present = true;
			return 0;
		}
		limit = q2_min(limit, layer->size - offset);
		/* Who does not even ask for holes only wants to read: then a hole is read like data. */
		bool ask = holes &&
			   (layer->raw || layer->meta.geo.external_data || (flags & QCOW2_EXTENT_HOLES));
		if (layer->raw)
			rc = raw_run(layer, offset, limit, ask, out, err);
		else
			rc = table_run(layer, offset, limit, ask, out, &deeper, err);
		if (rc)
			return layer == image ? rc : q2_image_blame(layer, rc, err);
		if (!deeper)
			return 0;
		limit = out->length;
		out->kind = QCOW2_EXTENT_UNALLOCATED;
		if ((flags & QCOW2_EXTENT_LAYER) || (!layer->backing && !layer->backing_name.data))
			return 0;
		if (!layer->backing) {
			char name[256];
			q2_error_escape(name, sizeof name, layer->backing_name.data,
					layer->backing_name.length);
			return q2_error_set(err, QCOW2_E_MISSING, offset, "Backing file '%s' is not attached",
					    name);
		}
		layer = layer->backing;
		depth++;
	}
}

int qcow2_image_extent(struct qcow2_image *image, uint64_t offset, uint64_t limit, unsigned flags,
		       struct qcow2_extent *out, struct qcow2_error *err)
{
	int rc = 0;
	if (!limit || !q2_fits(offset, limit, image->size))
		rc = q2_error_set(err, QCOW2_E_RANGE, offset,
				  "Range at %" PRIu64 " of %" PRIu64
				  " bytes lies outside the disk of %" PRIu64 " bytes",
				  offset, limit, image->size);
	if (!rc)
		rc = q2_chain_find(image, offset, limit, flags, true, out, err);
	return rc ? q2_image_blame(image, rc, err) : 0;
}
