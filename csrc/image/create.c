/* SPDX-License-Identifier: MIT
 * Making images: which options go together, the layout that follows from them, and the order of writes.
 *
 * The magic is written last, in the first 512 bytes, after everything else is on stable storage; what the
 * store held before loses its own first, and a mark of its own names what is unfinished. So at no instant is a
 * half-made image taken for one, or for a raw disk. */
#include "image/create.h"
#include "base/options.h"

#include "base/be.h"
#include "base/mem.h"
#include "data/codec.h"
#include "store/store.h"

#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

#define SECTOR 512u
#define FEATURE_NAME 48u /* bytes of an entry: type, bit, name */
#define MAX_BACKING_FORMAT 15u

/* ---- which options go together ----------------------------------------------------------------- */

static bool is_power_of_2(uint64_t v)
{
	return v && !(v & (v - 1));
}

static int refuse(struct qcow2_error *err, int code, const char *text)
{
	return q2_error_set(err, code, Q2_NO_OFFSET, "%s", text);
}

static int check_version(const struct qcow2_create_options *o, struct qcow2_error *err)
{
	if (o->version != 2 && o->version != 3)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "There is no version %" PRIu32
				    " of the format that could be made, only 2 and 3",
				    o->version);
	if (o->version == 3)
		return 0;
	const char *feature = o->extended_l2      ? "Extended L2 entries are only"
			      : o->lazy_refcounts ? "Lazy refcounts only"
			      : o->data_name.data ? "External data files are only"
			      : o->compression    ? "Non-zlib compression type is only"
						  : NULL;
	if (feature)
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "%s supported with compatibility level 1.1 and above (use version=v3 or "
				    "greater)",
				    feature);
	if (o->refcount_bits != 16)
		return refuse(err, QCOW2_E_CONFLICT,
			      "Different refcount widths than 16 bits require compatibility level 1.1 or "
			      "above (use version=v3 or greater)");
	return 0;
}

static int check_limits(const struct qcow2_create_options *o, struct qcow2_error *err)
{
	uint32_t cluster_size = o->cluster_size;
	if (!is_power_of_2(cluster_size) || cluster_size < 1u << Q2_MIN_CLUSTER_BITS ||
	    cluster_size > 1u << Q2_MAX_CLUSTER_BITS)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "Cluster size must be a power of two between %u and %uk",
				    1u << Q2_MIN_CLUSTER_BITS, 1u << (Q2_MAX_CLUSTER_BITS - 10));
	if (o->extended_l2 && cluster_size < 1u << Q2_MIN_EXTENDED_CLUSTER_BITS)
		return q2_error_set(
			err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
			"Extended L2 entries are only supported with cluster sizes of at least %u "
			"bytes",
			1u << Q2_MIN_EXTENDED_CLUSTER_BITS);
	if (!is_power_of_2(o->refcount_bits) || o->refcount_bits > 64)
		return refuse(err, QCOW2_E_RANGE,
			      "Refcount width must be a power of two and may not exceed 64 bits");
	if (o->compression > 1)
		return q2_error_set(err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET,
				    "There is no compression type %" PRIu32, o->compression);
	if (!qcow2_codec_backend((int)o->compression))
		return refuse(err, QCOW2_E_UNSUPPORTED,
			      "Compression type zstd is unsupported: built without libzstd");
	return 0;
}

static int check_name(const char *what, struct qcow2_bytes name, struct qcow2_error *err)
{
	if (!name.data)
		return 0;
	if (name.length == 0 || memchr(name.data, 0, name.length))
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "%s name is empty or has a NUL", what);
	if (name.length > Q2_MAX_BACKING_NAME)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "%s name has %zu bytes, %u are the most", what, name.length,
				    Q2_MAX_BACKING_NAME);
	return 0;
}

static int check_references(const struct qcow2_create_options *o, struct qcow2_error *err)
{
	bool backing = o->backing_name.data != NULL, data = o->data_name.data != NULL;
	if (backing && o->preallocation != QCOW2_PREALLOCATION_OFF && !o->extended_l2)
		return refuse(err, QCOW2_E_CONFLICT,
			      "Backing file and preallocation can only be used at the same time if "
			      "extended_l2 is on");
	if (o->data_raw && !data)
		return refuse(err, QCOW2_E_CONFLICT, "data-file-raw requires data-file");
	if (o->data_raw && backing)
		return refuse(err, QCOW2_E_CONFLICT,
			      "Backing file and data-file-raw cannot be used at the same time");
	if (o->keep_data && !data)
		return refuse(err, QCOW2_E_CONFLICT, "keep_data_file requires data_file");
	if (o->keep_data && backing)
		return refuse(err, QCOW2_E_CONFLICT,
			      "Backing file and keep_data_file cannot be used at the same time: what the "
			      "data file holds hides all of the backing file");
	if (o->keep_data && o->preallocation > QCOW2_PREALLOCATION_METADATA)
		return refuse(err, QCOW2_E_CONFLICT,
			      "keep_data_file and preallocation cannot be used at the same time: the data "
			      "file is not written to");
	if (o->backing_format.data && !backing)
		return refuse(err, QCOW2_E_CONFLICT, "Backing format cannot be used without backing file");
	if (o->backing_format.data && o->backing_format.length > MAX_BACKING_FORMAT)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "Backing format has %zu bytes, %u are the most", o->backing_format.length,
				    MAX_BACKING_FORMAT);
	int rc = check_name("Backing file", o->backing_name, err);
	return rc ? rc : check_name("Data file", o->data_name, err);
}

/* ---- the header cluster -------------------------------------------------------------------------- */

static uint32_t padded(size_t length)
{
	return (uint32_t)q2_round_up(length, 8);
}

static bool has_feature_names(const struct q2_create *c)
{
	return c->header.version == 3 && c->geo.cluster_size >= Q2_FEATURE_NAMES_FROM;
}

uint32_t q2_create_feature_names(uint8_t *out)
{
	enum { INCOMPATIBLE, COMPATIBLE, AUTOCLEAR };
	uint32_t used = 0;
#define FEATURE(type, bit, NAME, text)                                     \
	if (out) {                                                         \
		out[used] = type;                                          \
		out[used + 1] = bit;                                       \
		memcpy(out + used + 2, text, sizeof(text) - 1);            \
	}                                                                  \
	_Static_assert(sizeof(text) - 1 <= FEATURE_NAME - 2, "name fits"); \
	used += FEATURE_NAME;
#include "format/features.def"
#undef FEATURE
	return used;
}

/* Bytes of the header with extensions, their end mark and the backing file's name. */
static uint64_t header_bytes(const struct q2_create *c)
{
	const struct qcow2_create_options *o = c->options;
	uint64_t bytes = c->header.header_length + 8; /* the end mark */
	if (o->backing_format.data)
		bytes += 8 + padded(o->backing_format.length);
	if (o->data_name.data)
		bytes += 8 + padded(o->data_name.length);
	if (has_feature_names(c))
		bytes += 8 + q2_create_feature_names(NULL);
	return bytes + (o->backing_name.data ? o->backing_name.length : 0);
}

static uint8_t *put_extension(uint8_t *at, uint32_t type, struct qcow2_bytes data)
{
	if (!data.data)
		return at;
	q2_store32(at, type);
	q2_store32(at + 4, (uint32_t)data.length);
	memcpy(at + 8, data.data, data.length);
	return at + 8 + padded(data.length);
}

/* needs: `out` is zeroed and has header_bytes. */
static void put_header(struct q2_create *c, uint8_t *out)
{
	const struct qcow2_create_options *o = c->options;
	uint8_t *at = out + c->header.header_length;
	at = put_extension(at, Q2_EXT_BACKING_FORMAT, o->backing_format);
	at = put_extension(at, Q2_EXT_DATA_FILE, o->data_name);
	if (has_feature_names(c)) {
		uint32_t length = q2_create_feature_names(at + 8);
		q2_store32(at, Q2_EXT_FEATURE_NAMES);
		q2_store32(at + 4, length);
		at += 8 + length;
	}
	at += 8; /* the end mark is zeros */
	if (o->backing_name.data) {
		c->header.backing_file_offset = (uint64_t)(at - out);
		c->header.backing_file_size = (uint32_t)o->backing_name.length;
		memcpy(at, o->backing_name.data, o->backing_name.length);
	}
	q2_header_put(&c->header, out);
}

/* ---- layout -------------------------------------------------------------------------------------- */

static int log_2(uint64_t v)
{
	return __builtin_ctzll(v);
}

static void plan_header(struct q2_create *c)
{
	const struct qcow2_create_options *o = c->options;
	c->header = (struct qcow2_header){
		.magic = Q2_MAGIC,
		.version = o->version,
		.cluster_bits = (uint32_t)log_2(o->cluster_size),
		.size = q2_round_up(o->size, SECTOR),
		.refcount_order = (uint32_t)log_2(o->refcount_bits),
		.header_length = o->version == 2 ? Q2_HEADER_V2 : Q2_HEADER_FULL,
		.compression_type = (uint8_t)o->compression,
	};
	if (o->data_name.data)
		c->header.incompatible_features |= Q2_INCOMPATIBLE_DATA_FILE;
	if (o->compression)
		c->header.incompatible_features |= Q2_INCOMPATIBLE_COMPRESSION;
	if (o->extended_l2)
		c->header.incompatible_features |= Q2_INCOMPATIBLE_EXTENDED_L2;
	if (o->lazy_refcounts)
		c->header.compatible_features |= Q2_COMPATIBLE_LAZY_REFCOUNTS;
	if (o->data_raw)
		c->header.autoclear_features |= Q2_AUTOCLEAR_DATA_FILE_RAW;
	q2_header_geometry(&c->header, &c->geo);
}

/* Refcount blocks and table count themselves too: grows both until they are enough for all. */
static uint64_t plan_refcounts(struct q2_create *c, uint64_t others, uint64_t *table)
{
	uint64_t last;
	c->refblocks = *table = 1;
	do {
		last = c->refblocks + *table;
		c->refblocks = q2_div_up(others + last, 1ull << c->geo.refblock_bits);
		*table = q2_div_up(c->refblocks * 8, c->geo.cluster_size);
	} while (c->refblocks + *table != last);
	return others + last;
}

static int plan_tables(struct q2_create *c, struct qcow2_error *err)
{
	const struct qcow2_create_options *o = c->options;
	uint64_t cluster = c->geo.cluster_size, table;
	bool map = o->preallocation != QCOW2_PREALLOCATION_OFF || o->data_raw || o->keep_data;
	uint64_t l1_bytes = c->geo.l1_needed * 8, l1_clusters = q2_div_up(l1_bytes, cluster);
	if (l1_bytes > Q2_MAX_L1_BYTES)
		goto too_large;
	c->header.l1_size = (uint32_t)c->geo.l1_needed;
	c->guest_clusters = map ? q2_div_up(c->header.size, cluster) : 0;
	c->l2_tables = map ? c->geo.l1_needed : 0;
	uint64_t inside = o->data_name.data ? 0 : c->guest_clusters;
	c->clusters = plan_refcounts(c, 1 + l1_clusters + c->l2_tables + inside, &table);
	if (table * cluster > Q2_MAX_REFTABLE_BYTES || c->clusters > (uint64_t)INT64_MAX / cluster)
		goto too_large;
	c->header.refcount_table_clusters = (uint32_t)table;
	c->header.refcount_table_offset = cluster;
	c->refblocks_at = cluster * (1 + table);
	uint64_t l1_at = c->refblocks_at + c->refblocks * cluster;
	c->header.l1_table_offset = l1_bytes ? l1_at : 0;
	c->l2_at = l1_at + l1_clusters * cluster;
	if (!o->data_name.data)
		c->data_at = q2_host_at(c->l2_at + c->l2_tables * cluster);
	/* Without tables behind it the L1 table's last cluster need not be whole. */
	c->length = map ? c->clusters * cluster : q2_round_up(l1_at + l1_bytes, SECTOR);
	return 0;
too_large:
	return refuse(
		err, QCOW2_E_RANGE,
		"The image size is too large for file format 'qcow2' (try using a larger cluster size)");
}

static int plan(struct q2_create *c, const struct qcow2_create_options *o, struct qcow2_error *err)
{
	*c = (struct q2_create){.options = o};
	if (o->size > (uint64_t)INT64_MAX - SECTOR)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET, "Disk size %" PRIu64 " is too large",
				    o->size);
	int rc = check_limits(o, err);
	if (!rc)
		rc = check_version(o, err);
	if (!rc)
		rc = check_references(o, err);
	if (rc)
		return rc;
	plan_header(c);
	if (header_bytes(c) > c->geo.cluster_size)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "Header and names take %" PRIu64 " bytes, a cluster has %" PRIu32
				    " (use shorter names or larger clusters)",
				    header_bytes(c), c->geo.cluster_size);
	return plan_tables(c, err);
}

int qcow2_create_check(const struct qcow2_create_options *given, struct qcow2_error *err)
{
	struct qcow2_create_options own;
	const struct qcow2_create_options *options = &own;
	int taken = q2_options_take(&own, sizeof own, given, err);
	if (taken)
		return taken;
	struct q2_create c;
	return plan(&c, options, err);
}

/* ---- making -------------------------------------------------------------------------------------- */

bool qcow2_create_has_nocow(struct qcow2_store *store)
{
	int fd = q2_store_descriptor(store), flags = 0;
	return fd >= 0 && !ioctl(fd, FS_IOC_GETFLAGS, &flags) && (flags & FS_NOCOW_FL);
}

/* Hosts without copy-on-write answer that they know no such flag, which is as good. */
static void ask_nocow(struct qcow2_store *store)
{
	int fd = q2_store_descriptor(store), flags = 0;
	if (fd < 0 || ioctl(fd, FS_IOC_GETFLAGS, &flags))
		return;
	flags |= FS_NOCOW_FL;
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags))
		return;
}

/*
 * Takes from the store what it held, durably: a file becomes empty; a device loses its first sectors, then
 * the `length` bytes that are to be used. gives: zeros for reads in [0, length).
 */
static int empty(struct qcow2_store *store, uint64_t length, bool nocow, struct qcow2_error *err)
{
	static const uint8_t zeros[4096];
	uint64_t had;
	int rc = qcow2_store_length(store, &had, err);
	if (rc)
		return rc;
	if (!qcow2_store_is_device(store)) {
		if (had)
			rc = qcow2_store_resize(store, 0, err);
		if (!rc && had)
			rc = qcow2_store_flush(store, err);
		if (!rc && nocow)
			ask_nocow(store);
		return rc;
	}
	if (had < length)
		return q2_error_set(err, QCOW2_E_NOSPACE, Q2_NO_OFFSET,
				    "The device has %" PRIu64 " bytes, %" PRIu64 " are needed", had, length);
	rc = qcow2_store_write(store, 0, zeros, (size_t)q2_min(sizeof zeros, had), err);
	if (!rc)
		rc = qcow2_store_flush(store, err);
	return rc ? rc : qcow2_store_punch(store, 0, length, err);
}

static int write_zeros(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	const size_t piece = (size_t)4 << 20;
	q2_auto uint8_t *zeros = q2_new(1, (size_t)q2_min(piece, length));
	if (!zeros)
		return q2_error_nomem(err);
	for (uint64_t at = 0; at < length; at += piece) {
		int rc = qcow2_store_write(store, at, zeros, (size_t)q2_min(piece, length - at), err);
		if (rc)
			return rc;
	}
	return 0;
}

/* Gives an empty store its length, and the host's space as far as it is wanted. */
static int extend(struct qcow2_store *store, uint64_t length, enum qcow2_preallocation mode,
		  struct qcow2_error *err)
{
	int rc = qcow2_store_resize(store, length, err);
	if (!rc && length && mode == QCOW2_PREALLOCATION_FALLOC)
		rc = q2_store_allocate(store, 0, length, err);
	if (!rc && mode == QCOW2_PREALLOCATION_FULL)
		rc = write_zeros(store, length, err);
	return rc;
}

int qcow2_create_raw(struct qcow2_store *store, uint64_t size, enum qcow2_preallocation preallocation,
		     bool nocow, struct qcow2_error *err)
{
	if (preallocation == QCOW2_PREALLOCATION_METADATA)
		return refuse(err, QCOW2_E_CONFLICT, "Unsupported preallocation mode: metadata");
	int rc = empty(store, size, nocow, err);
	if (!rc)
		rc = extend(store, size, preallocation, err);
	return rc ? rc : qcow2_store_flush(store, err);
}

/* A data file whose contents are the disk's: does it fit? */
static int check_kept(const struct q2_create *c, struct qcow2_error *err)
{
	uint64_t length, size = c->header.size;
	int rc = qcow2_store_length(c->data, &length, err);
	if (rc)
		return rc;
	const char *why = NULL;
	if (c->options->size != size)
		why = "a disk is a whole number of 512-byte sectors";
	else if (length < size && (c->options->data_raw || qcow2_store_is_device(c->data)))
		why = "it is too short";
	else if (length > size && !qcow2_store_is_device(c->data))
		why = "its end would be out of reach";
	if (!why)
		return 0;
	return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
			    "The data file has %" PRIu64 " bytes and does not fit a disk of %" PRIu64
			    " bytes: %s",
			    length, c->options->size, why);
}

static int check_data(const struct q2_create *c, struct qcow2_error *err)
{
	uint64_t a[2], b[2];
	if (!c->options->data_name.data != !c->data)
		return refuse(err, QCOW2_E_CONFLICT,
			      c->data ? "A data file is given but not named"
				      : "A data file is named but not given");
	if (!c->data)
		return 0;
	if (c->data == c->store || (qcow2_store_identity(c->store, a) && qcow2_store_identity(c->data, b) &&
				    a[0] == b[0] && a[1] == b[1]))
		return refuse(err, QCOW2_E_CONFLICT, "The image cannot be its own data file");
	return c->options->keep_data ? check_kept(c, err) : 0;
}

/* The data file first, so that its errors come before the image costs anything. */
static int make_data(const struct q2_create *c, struct qcow2_error *err)
{
	const struct qcow2_create_options *o = c->options;
	enum qcow2_preallocation mode = o->preallocation;
	if (!c->data || o->keep_data)
		return 0;
	if (mode == QCOW2_PREALLOCATION_METADATA)
		mode = QCOW2_PREALLOCATION_OFF;
	return qcow2_create_raw(c->data, c->header.size, mode, o->nocow, err);
}

static int make_image(const struct q2_create *c, uint8_t *head, size_t head_length, struct qcow2_error *err)
{
	const struct qcow2_create_options *o = c->options;
	/* Only the data's space is the user's to ask for; with a data file it is not here. */
	enum qcow2_preallocation mode = c->data ? QCOW2_PREALLOCATION_OFF : o->preallocation;
	/* First the mark that says what is in the making, last the magic. */
	uint8_t mark[4];
	q2_store32(mark, Q2_MAGIC_UNFINISHED);
	int rc = extend(c->store, c->length, mode, err);
	if (!rc)
		rc = qcow2_store_write(c->store, 0, mark, sizeof mark, err);
	if (!rc)
		rc = q2_create_tables_write(c, err);
	if (!rc && head_length > SECTOR)
		rc = qcow2_store_write(c->store, SECTOR, head + SECTOR, head_length - SECTOR, err);
	if (!rc && !c->hidden)
		rc = qcow2_store_flush(c->store, err);
	if (rc)
		return rc;
	if (c->hidden) {
		memcpy(head, mark, sizeof mark);
		return qcow2_store_write(c->store, 0, head, q2_min(head_length, SECTOR), err);
	}
	rc = qcow2_store_write(c->store, 0, head, q2_min(head_length, SECTOR), err);
	if (!rc)
		rc = qcow2_store_flush(c->store, err);
	if (rc) {
		/* Nobody shall take for an image what was answered with a failure; more cannot be done. */
		int ignored = qcow2_store_write(c->store, 0, mark, sizeof mark, NULL);
		(void)ignored;
	}
	return rc;
}

int q2_create_image(struct qcow2_store *store, struct qcow2_store *data,
		    const struct qcow2_create_options *given, bool hidden, struct qcow2_error *err)
{
	struct qcow2_create_options own;
	const struct qcow2_create_options *options = &own;
	int taken = q2_options_take(&own, sizeof own, given, err);
	if (taken)
		return taken;
	struct q2_create c;
	int rc = plan(&c, options, err);
	if (rc)
		return rc;
	c.store = store;
	c.data = data;
	c.hidden = hidden;
	rc = check_data(&c, err);
	if (rc)
		return rc;
	size_t head_length = header_bytes(&c);
	q2_auto uint8_t *head = q2_new(1, head_length);
	if (!head)
		return q2_error_nomem(err);
	put_header(&c, head);
	rc = empty(store, c.length, options->nocow, err);
	if (!rc)
		rc = make_data(&c, err);
	return rc ? rc : make_image(&c, head, head_length, err);
}

int qcow2_create(struct qcow2_store *store, struct qcow2_store *data,
		 const struct qcow2_create_options *options, struct qcow2_error *err)
{
	return q2_create_image(store, data, options, false, err);
}
