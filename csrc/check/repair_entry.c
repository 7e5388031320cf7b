/* SPDX-License-Identifier: MIT
 * What a repair makes of one L1 or L2 entry, and the list of what gets another place. */
#include "check/repair.h"

/* Moves are sorted and made unique when their list has grown by so many, and to twice its size. */
#define MOVES_SLACK ((size_t)1 << 16)

/* The subclusters of `subs` read as zeros from now on, the entry has no place any more. */
static void make_zeros(const struct q2_repair *repair, uint32_t subs, struct q2_mended *out)
{
	const struct q2_geometry *g = repair->geo;
	*out = (struct q2_mended){0};
	if (g->extended_l2) {
		out->bitmap = (uint64_t)subs << 32;
	} else if (!g->version2) {
		out->word = Q2_ZERO;
	} else if (repair->image->backing_name.data) {
		/* Version 2 cannot say "zeros" over a backing file: all such entries share one cluster of them. */
		out->key = Q2_MOVE_ZEROS;
		out->length = g->cluster_size;
	}
}

static void mend_compressed(const struct q2_repair *repair, struct q2_mended *out)
{
	const struct q2_geometry *g = repair->geo;
	struct q2_entry e = q2_entry_decode(g, out->word & ~Q2_COPIED, 0);
	if (g->external_data) {
		if (q2_repair_asked(repair, QCOW2_PROBLEM_COMPRESSED_DATA_FILE))
			make_zeros(repair, UINT32_MAX, out);
		return;
	}
	if (e.host.v >= repair->check->file_length &&
	    q2_repair_asked(repair, QCOW2_PROBLEM_COMPRESSED_OUTSIDE)) {
		make_zeros(repair, UINT32_MAX, out);
		return;
	}
	if (q2_repair_wants(repair, QCOW2_PROBLEM_COPIED_COMPRESSED))
		out->word &= ~Q2_COPIED;
	if (q2_repair_wants(repair, QCOW2_PROBLEM_COMPRESSED_BITMAP))
		out->bitmap = 0;
	out->compressed = true;
	out->at = e.host.v;
	out->length = e.host_length;
	if (repair->apart && q2_repair_overlaps(repair, out->at, out->length))
		out->key = out->word & ~Q2_COPIED;
}

/* Bits that must not be set, and subclusters that contradict themselves. */
static void mend_bits(const struct q2_repair *repair, uint64_t guest, bool first, struct q2_mended *out)
{
	const struct q2_geometry *g = repair->geo;
	if (q2_repair_wants(repair, QCOW2_PROBLEM_L2_RESERVED))
		out->word &= ~Q2_L2_RESERVED;
	if (g->version2 && q2_repair_wants(repair, QCOW2_PROBLEM_ZERO_VERSION_2))
		out->word &= ~Q2_ZERO;
	if (g->extended_l2 && q2_repair_wants(repair, QCOW2_PROBLEM_ZERO_EXTENDED))
		out->word &= ~Q2_ZERO;
	if (first && !out->word && !out->bitmap) {
		out->word = Q2_COPIED;
		out->bitmap = g->extended_l2 ? UINT32_MAX : 0;
	}
	uint32_t alloc = (uint32_t)out->bitmap, zeros = (uint32_t)(out->bitmap >> 32);
	bool has_host = (out->word & Q2_OFFSET_MASK) || (g->external_data && (out->word & Q2_COPIED));
	if (alloc && !has_host) {
		if (!q2_repair_wants(repair, QCOW2_PROBLEM_SUBCLUSTER_HOMELESS))
			return;
		/* In a data file a cluster has one place only; offset 0 without COPIED is how it gets lost. */
		if (g->external_data)
			out->word |= guest | Q2_COPIED;
		else
			out->bitmap &= ~(uint64_t)UINT32_MAX;
	}
	if ((alloc & zeros) && q2_repair_wants(repair, QCOW2_PROBLEM_SUBCLUSTER_BOTH))
		out->bitmap &= ~(uint64_t)zeros;
}

static void mend_data_file(const struct q2_repair *repair, uint64_t guest, struct q2_mended *out)
{
	uint64_t host = out->word & Q2_OFFSET_MASK;
	if (q2_repair_wants(repair, QCOW2_PROBLEM_COPIED_DATA))
		out->word |= Q2_COPIED;
	if (host != guest && q2_is_aligned(host, repair->geo->cluster_size) &&
	    q2_repair_asked(repair, QCOW2_PROBLEM_DATA_FILE_OFFSET))
		out->word = (out->word & ~Q2_OFFSET_MASK) | guest;
}

void q2_repair_entry(const struct q2_repair *repair, uint64_t guest, bool first, uint64_t word,
		     uint64_t bitmap, struct q2_mended *out)
{
	const struct q2_geometry *g = repair->geo;
	*out = (struct q2_mended){.word = word, .bitmap = bitmap};
	if (word & Q2_COMPRESSED) {
		mend_compressed(repair, out);
		return;
	}
	mend_bits(repair, guest, first, out);
	uint64_t host = out->word & Q2_OFFSET_MASK;
	uint32_t alloc = (uint32_t)out->bitmap, zeros = (uint32_t)(out->bitmap >> 32);
	bool zero = (out->word & Q2_ZERO) && !g->extended_l2;
	if (!host && !(g->external_data && (out->word & Q2_COPIED) && !zero))
		return;
	if (!q2_is_aligned(host, g->cluster_size)) {
		if (q2_repair_wants(repair, QCOW2_PROBLEM_DATA_UNALIGNED) &&
		    (zero || (g->extended_l2 && !alloc))) {
			/* Nothing is read from that place: it can be let go of. */
			out->word &= ~(Q2_OFFSET_MASK | Q2_COPIED);
			return;
		}
		if (q2_repair_asked(repair, QCOW2_PROBLEM_DATA_UNALIGNED)) {
			make_zeros(repair, alloc | zeros, out);
			return;
		}
	} else if (!g->external_data && host >= repair->check->file_length &&
		   q2_repair_wants(repair, QCOW2_PROBLEM_DATA_OUTSIDE)) {
		make_zeros(repair, alloc | zeros, out);
		return;
	}
	if (g->external_data) {
		mend_data_file(repair, guest, out);
		return;
	}
	out->at = host;
	out->length = g->cluster_size;
	/* LUKS encrypts by the place in the file: what moves could not be read any more. */
	if (repair->apart && repair->check->header->crypt_method != Q2_CRYPT_LUKS &&
	    q2_is_aligned(host, g->cluster_size) && q2_repair_overlaps(repair, host, 1))
		out->key = host;
}

uint64_t q2_repair_l1_entry(const struct q2_repair *repair, uint64_t entry)
{
	uint64_t host = entry & Q2_OFFSET_MASK;
	uint32_t cluster_size = repair->geo->cluster_size;
	if (!host)
		return q2_repair_wants(repair, QCOW2_PROBLEM_L1_EMPTY) ? 0 : entry;
	if (!q2_is_aligned(host, cluster_size)) {
		if (q2_repair_asked(repair, QCOW2_PROBLEM_L2_UNALIGNED))
			return 0;
	} else if (host >= repair->check->file_length) {
		if (q2_repair_asked(repair, QCOW2_PROBLEM_L2_OUTSIDE))
			return 0;
	}
	return q2_repair_wants(repair, QCOW2_PROBLEM_L1_RESERVED) ? entry & ~Q2_L1_RESERVED : entry;
}

/* ---- moves ------------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b)
{
	const struct q2_move *x = a, *y = b;
	return x->key < y->key ? -1 : x->key > y->key;
}

void q2_repair_sort_moves(struct q2_repair *repair)
{
	struct q2_move *list = repair->moves.items;
	size_t count = repair->moves.count, kept = 0;
	if (count)
		qsort(list, count, sizeof *list, by_key);
	for (size_t i = 0; i < count; i++) {
		if (kept && list[kept - 1].key == list[i].key)
			list[kept - 1].refs += list[i].refs;
		else
			list[kept++] = list[i];
	}
	repair->moves.count = repair->moves_compact = kept;
}

int q2_repair_move(struct q2_repair *repair, uint64_t key, uint64_t times, struct qcow2_error *err)
{
	struct q2_move *move = q2_vec_push(&repair->moves, sizeof *move);
	if (!move)
		return q2_error_nomem(err);
	*move = (struct q2_move){.key = key, .refs = times};
	if (repair->moves.count > 2 * repair->moves_compact + MOVES_SLACK)
		q2_repair_sort_moves(repair);
	if (repair->moves.count > repair->file_clusters + 2 * MOVES_SLACK)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "Too many entries claim clusters that are not theirs to be copied apart");
	return 0;
}

const struct q2_move *q2_repair_find_move(const struct q2_repair *repair, uint64_t key)
{
	if (!repair->moves.count)
		return NULL;
	return bsearch(&(struct q2_move){.key = key}, repair->moves.items, repair->moves.count,
		       sizeof(struct q2_move), by_key);
}
