/* SPDX-License-Identifier: MIT
 * A new image on its way into a store: the layout that create.c computes and create_tables.c writes.
 *
 *   header | refcount table | refcount blocks | L1 table | L2 tables | data
 *
 * each from the next cluster; the last two only with preallocation. All clusters have count 1, and every
 * table is one unbroken array from its first to its last entry, so that it can be written in a stream. */
#ifndef Q2_IMAGE_CREATE_H
#define Q2_IMAGE_CREATE_H

#include "format/entry.h"
#include "format/header.h"

struct q2_create {
	const struct qcow2_create_options *options;
	struct qcow2_store *store;
	struct qcow2_store *data; /* external data file, NULL: none */
	bool hidden;              /* it stays unfinished, and nothing is flushed */
	struct qcow2_header header;
	struct q2_geometry geo;
	uint64_t guest_clusters; /* that get an L2 entry; 0: no L2 tables */
	uint64_t refblocks, l2_tables;
	uint64_t refblocks_at, l2_at; /* bytes */
	q2_host data_at;              /* guest cluster 0, in the store that holds data */
	uint64_t clusters;            /* of the image file */
	uint64_t length;              /* of the image file: up to the end of the last table or cluster */
};

/* Other implementations leave the feature name table out of smaller clusters too. */
#define Q2_FEATURE_NAMES_FROM 8192u

/* Makes the image (create.c). */
int q2_create_image(struct qcow2_store *store, struct qcow2_store *data,
		    const struct qcow2_create_options *options, bool hidden, struct qcow2_error *err);

/* Writes the feature name table, an entry for each FEATURE(...) of format/features.def, into zeroed `out`; NULL only
 * measures. gives: its bytes. */
uint32_t q2_create_feature_names(uint8_t *out);

/* Writes every table. needs: the store reads as zeros; zeros are not written. gives: nothing is flushed. */
int q2_create_tables_write(const struct q2_create *c, struct qcow2_error *err);

#endif
