/* SPDX-License-Identifier: MIT
 * The open image as the files of this floor see it.
 *
 * A raw file is an image too (`raw` is set): its map is the identity, so reading, listing, copying and
 * comparing know only images. A chain is a list of images linked by `backing`. */
#ifndef Q2_IMAGE_IMAGE_H
#define Q2_IMAGE_IMAGE_H

#include "base/mem.h"
#include "format/header.h"
#include "meta/map_edit.h"

#define Q2_MAX_CHAIN 200u

struct q2_codec;

struct qcow2_image {
	unsigned refs;
	bool raw;
	bool is_snapshot;                      /* a view of an internal snapshot */
	struct qcow2_image *views, *next_view; /* of this image's snapshots; a list (view.c) */
	struct qcow2_image *view_of; /* the image that this view was opened from, while that is open */
	uint64_t size;               /* bytes of the disk */
	struct qcow2_store *store;
	struct qcow2_store *data; /* external data file, NULL when not attached or none */
	struct qcow2_image *backing;
	struct q2_meta meta;
	struct q2_map map;

	struct q2_vec tracks; /* bitmaps that follow writes (bitmap_track.c) */
	bool lost_l1;         /* the L1 table lay behind a device's end; it says nothing (open.c) */
	bool held;            /* by a job (hold.c) */
	bool begun;           /* qcow2_image_begin succeeded */
	uint64_t changes;     /* of the store, when it began: did anything change since? */
	bool prepared;        /* what has to be on disk before any change is */
	bool edited;          /* the same before guest data changes */

	uint8_t *head; /* the header cluster, head_length bytes: names and extensions point into it */
	uint32_t head_length;
	struct q2_vec extensions; /* struct q2_extension */
	struct qcow2_bytes backing_name, backing_format, data_name;

	uint8_t *snapshot_table; /* the snapshot table's bytes, NULL until the first use */
	struct q2_vec snapshots; /* uint32_t: where each entry begins in it */
	bool snapshots_loaded;
	uint8_t *bitmap_directory;
	struct q2_vec bitmaps; /* uint32_t */
	uint64_t bitmaps_at;   /* where the directory lies */
	bool bitmaps_loaded;
	struct q2_vec
		bitmap_serials; /* uint64_t: see qcow2_bitmap.serial; as many as `bitmaps`, or not told yet */
	uint64_t last_serial;
	uint64_t *bitmap_table; /* the table of bitmap `bitmap_table_of`, NULL: none loaded */
	uint32_t bitmap_table_of;

	/* The compressed cluster that was expanded last: reads of parts of it come one after the other. */
	struct q2_codec *codec;
	uint8_t *expanded, *stream;
	uint64_t expanded_host; /* UINT64_MAX: none */
};

/* A new image over a store, which it takes a reference to; NULL: no memory. (image.c) */
struct qcow2_image *q2_image_new(struct qcow2_store *store);

/* An image that was just made and is unfinished (open.c). */
int q2_image_open_hidden(struct qcow2_store *store, struct qcow2_image **out, struct qcow2_error *err);

/* Frees an image that nobody refers to any more, as it is: nothing is written. */
void q2_image_free(struct qcow2_image *image);

/* Where guest clusters lie. fails: `missing` when the external data file is not attached. */
int q2_image_data_store(struct qcow2_image *image, struct qcow2_store **store, struct qcow2_error *err);

/*
 * The run at `offset` through the chain (chain.c): as qcow2_image_extent, but `holes` false takes every
 * data run at its word, without asking the host.
 */
int q2_chain_find(struct qcow2_image *image, uint64_t offset, uint64_t limit, unsigned flags, bool holes,
		  struct qcow2_extent *out, struct qcow2_error *err);

/* Expands the compressed cluster of an extent (read.c). gives: cluster_size bytes, valid until the next
 * call on the same image. */
int q2_read_compressed(const struct qcow2_extent *extent, const uint8_t **bytes, struct qcow2_error *err);

/* "image 'NAME'" is put in front of every message that crosses the public header. gives: code. */
int q2_image_blame(const struct qcow2_image *image, int code, struct qcow2_error *err);

/* Reads the header cluster's names and extensions anew (open.c). */
int q2_image_reload_header(struct qcow2_image *image, struct qcow2_error *err);

/* ---- writing ------------------------------------------------------------------------------ */

/*
 * Begins one change of tables alone: refuses what cannot be written, commits when the cache is full, and before the
 * very first one clears unknown autoclear bits and sets the dirty bit of lazy refcounts.
 */
int q2_edit_tables(struct qcow2_image *image, struct qcow2_error *err);

/* The same for a change of guest data: its store has to be there (`missing`), and bitmaps that follow writes are
 * marked in use. */
int q2_edit_begin(struct qcow2_image *image, struct qcow2_error *err);

/* The store that guest data goes to. */
struct qcow2_store *q2_edit_data(struct qcow2_image *image);

/* Does the range [offset, offset + length) read as zeros by what the tables say? Bytes past the disk's end do. */
int q2_edit_reads_zero(struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero,
		       struct qcow2_error *err);

/* Reads guest bytes; those past the disk's end are zeros. */
int q2_edit_read(struct qcow2_image *image, uint64_t offset, void *buf, uint64_t length,
		 struct qcow2_error *err);

/* Makes the clusters of [start, end) unallocated; what they held is freed. needs: whole clusters, below what
 * the L1 table covers. */
int q2_unmap_clusters(struct qcow2_image *image, uint64_t start, uint64_t end, struct qcow2_error *err);

/* The same, and L2 tables of which nothing else is left go too. */
int q2_unmap_tables(struct qcow2_image *image, uint64_t start, uint64_t end, struct qcow2_error *err);

/* The disk has nothing of its own any more: its backing file, or zeros, show everywhere (empty.c). Flushed. At
 * every instant what the backing file shows must be what the disk showed. */
int q2_image_empty(struct qcow2_image *image, struct qcow2_error *err);

/* ---- writes whose bytes a copy's workers write (place.c, compress.c) ---------------------------- */

/* Where bytes of the disk go. */
struct q2_write_place {
	uint64_t length; /* bytes of the range, from its start on, that this is about */
	bool direct; /* to `host` of q2_edit_data's store; else by qcow2_image_write, and nothing was taken */
	bool linked; /* the entries name it already */
	uint64_t host; /* bytes */
	struct q2_map_place at;
};

/* A place for the beginning of [offset, offset + length), which bitmaps have as changed from now on. needs: inside the disk.
 * After q2_write_prepare and the writing comes q2_write_finish; `rc`: how the writing ended. gives: rc, or its own failure. */
int q2_write_prepare(struct qcow2_image *image, uint64_t offset, uint64_t length,
		     struct q2_write_place *place, struct qcow2_error *err);
int q2_write_finish(struct qcow2_image *image, const struct q2_write_place *place, int rc,
		    struct qcow2_error *err);

/*
 * For a copy into a new image: places are taken and linked in memory, the caller has the bytes written there before the
 * tables are (invariant 3).
 *
 * q2_compress_place: a place for a compressed stream as the cluster at guest `offset`.
 * q2_write_link: places for `count` whole clusters that hold nothing yet, from guest `offset` on, with these
 * subcluster bitmaps of extended L2 (NULL: all of each is there); as many as lie
 * in one piece. gives: *host of the first byte in q2_edit_data's store, *got clusters.
 */
int q2_compress_place(struct qcow2_image *image, uint64_t offset, uint32_t length, uint64_t *host,
		      struct qcow2_error *err);
int q2_write_link(struct qcow2_image *image, uint64_t offset, uint64_t count, const uint64_t *bitmaps,
		  uint64_t *host, uint64_t *got, struct qcow2_error *err);

/* Has more than 1/part of the table cache changed? Then it is time for q2_write_tables, as soon as every place that the
 * entries name is written. */
bool q2_write_is_full(const struct qcow2_image *image, unsigned part);
int q2_write_tables(struct qcow2_image *image, struct qcow2_error *err);

/*
 * A new image in the making is hidden: on disk it is marked unfinished in place of its magic, so that what is left of
 * it after a kill is known for that, and barriers are left out, since nobody reads it before it is whole. Showing it writes the magic.
 */
int q2_image_hide(struct qcow2_image *image, struct qcow2_error *err);
int q2_image_show(struct qcow2_image *image, bool flush, struct qcow2_error *err);

/* ---- the external data file's length (data_file.c) --------------------------------------------- */

bool q2_data_file_is_raw(const struct qcow2_image *image);

/* The disk will have `size` bytes: a shorter data file is lengthened, a raw one also shortened. */
int q2_data_file_resize(struct qcow2_image *image, uint64_t size, struct qcow2_error *err);

/* A data file that is to be raw loses what lies behind the disk's end: padding of its last cluster, zeros left of a
 * larger disk. fails: `conflict` when somebody's bytes lie there. */
int q2_data_file_cut(struct qcow2_store *data, uint64_t size, uint32_t cluster_size, struct qcow2_error *err);

/*
 * Gives the host the space back that nobody refers to: refcount blocks that count nothing but themselves, free clusters
 * in the file, and the end of the file behind the last cluster in use (trim.c). Flushed.
 */
int q2_image_trim(struct qcow2_image *image, struct qcow2_error *err);

/* ---- views of snapshots (view.c) -------------------------------------------------------------- */

/* The snapshot whose L1 table lies at `l1_offset` is no more: its views answer `missing`. */
#define Q2_EVERY_VIEW UINT64_MAX
void q2_view_end(struct qcow2_image *image, uint64_t l1_offset);

/* Does a job hold such a view? Then the snapshot has to stay. */
bool q2_view_is_held(const struct qcow2_image *image, uint64_t l1_offset);

/* Before an image is freed: no view and no image points at it any more. */
void q2_view_part(struct qcow2_image *image);

/* ---- bitmaps and the disk's size (bitmap_edit.c) --------------------------------------------- */

/* Can all bitmaps become those of a disk of `size` bytes? fails: `conflict` for one that is inconsistent, `range`. */
int q2_bitmaps_check_size(struct qcow2_image *image, uint64_t size, struct qcow2_error *err);
/* The size in the header, and with the same write the bitmaps: bits behind the smaller disk's end are clear in the
 * new ones. needs: q2_bitmaps_check_size; nothing is tracked (q2_track_end). */
int q2_bitmaps_resize(struct qcow2_image *image, uint64_t size, struct qcow2_error *err);

/* ---- bitmaps that follow writes (bitmap_track.c) -------------------------------------------- */

/* Before the first write: every enabled bitmap is marked in use on disk. */
int q2_track_begin(struct qcow2_image *image, struct qcow2_error *err);
/* The guest bytes of the range are about to change. */
int q2_track_mark(struct qcow2_image *image, uint64_t offset, uint64_t length, struct qcow2_error *err);
/* After the last write: the bits are stored and the marks taken off. */
int q2_track_end(struct qcow2_image *image, struct qcow2_error *err);
void q2_track_free(struct qcow2_image *image);

/* The header extension of a type; of several the last one, as QEMU reads them. NULL: none. */
const struct q2_extension *q2_image_extension(const struct qcow2_image *image, uint32_t type);

/* The bitmaps extension, all zeros when there is none that is to be believed: without the autoclear bit the directory
 * that it names may be anybody's (specification, "Bitmaps extension"). */
int q2_image_bitmaps_extension(struct qcow2_image *image, struct q2_bitmaps_ext *ext,
			       struct qcow2_error *err);

/* The directory lost the bitmap at `index`, or has one more at its end: the others keep their serial numbers. */
void q2_image_drop_serial(struct qcow2_image *image, uint32_t index);
void q2_image_add_serial(struct qcow2_image *image);

/* The bitmap directory on disk is another now: it is read anew when it is needed (record_tables.c). */
void q2_image_forget_bitmaps(struct qcow2_image *image);

#endif
