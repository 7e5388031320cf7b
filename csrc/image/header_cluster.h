/* SPDX-License-Identifier: MIT
 * The header cluster behind the header's fields: extensions and the backing file's name, replaced as one.
 *
 * A crash shows the old list or the new one, never a mixture (invariant 5):
 *   - a list that ends within the first 512 bytes is written together with the fields, in one sector;
 *   - a longer one is written behind the old one, then header_length (which says where the list begins)
 *     switches to it, then it is written in its usual place and header_length switches back. In between the
 *     bytes before it stand as unknown header fields, which every reader ignores.
 * Unknown extensions are kept, in their order. */
#ifndef Q2_IMAGE_HEADER_CLUSTER_H
#define Q2_IMAGE_HEADER_CLUSTER_H

#include "image/image.h"

/* One extension of the list; owns its data. */
struct q2_header_cluster_item {
	uint32_t type, length;
	uint8_t *data;
};

struct q2_header_cluster {
	struct q2_vec items;   /* struct q2_header_cluster_item */
	uint8_t *backing_name; /* owned; NULL: none */
	uint32_t backing_length;
};

/* The list as the image has it now. Free it with q2_header_cluster_free, also after a failure. */
int q2_header_cluster_load(const struct qcow2_image *image, struct q2_header_cluster *head,
			   struct qcow2_error *err);
void q2_header_cluster_free(struct q2_header_cluster *head);

/* Sets the extension of a type: replaces it in its place, or adds it at the end; data NULL takes it out. */
int q2_header_cluster_set(struct q2_header_cluster *head, uint32_t type, const void *data, uint32_t length,
			  struct qcow2_error *err);

/* Sets the backing file's name; NULL: none. */
int q2_header_cluster_set_backing(struct q2_header_cluster *head, const void *name, uint32_t length,
				  struct qcow2_error *err);

/*
 * Writes list and name, and with the same switch the fields that the caller changed in meta.header
 * (backing_file_offset, backing_file_size and header_length are set here). needs: what they point at is on
 * stable storage. fails: `nospace` when the header cluster has no room; then nothing changed.
 */
int q2_header_cluster_store(struct qcow2_image *image, const struct q2_header_cluster *head,
			    struct qcow2_error *err);

/*
 * The same when meta.header changes the version, and with it where the list begins: one write of the first sector. A
 * name that is too long for the sector is put behind the old list first.
 * fails: `nospace`; then nothing changed.
 */
int q2_header_cluster_store_version(struct qcow2_image *image, const struct q2_header_cluster *head,
				    struct qcow2_error *err);

#endif
