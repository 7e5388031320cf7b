/* SPDX-License-Identifier: MIT
 * Variable-length records: entries of the snapshot table and of the bitmap directory. */
#include "format/record.h"

#include "base/addr.h"
#include "base/be.h"

int q2_record_snapshot(const uint8_t *b, uint64_t room, struct q2_snapshot_record *r)
{
	*r = (struct q2_snapshot_record){.length = Q2_SNAPSHOT_FIXED};
	if (room < Q2_SNAPSHOT_FIXED)
		return 1;
	r->l1_table_offset = q2_load64(b);
	r->l1_size = q2_load32(b + 8);
	r->id_length = q2_load16(b + 12);
	r->name_length = q2_load16(b + 14);
	r->date_sec = q2_load32(b + 16);
	r->date_nsec = q2_load32(b + 20);
	r->vm_clock_nsec = q2_load64(b + 24);
	r->vm_state_size_32 = q2_load32(b + 32);
	r->extra_length = q2_load32(b + 36);
	r->vm_state_size = r->vm_state_size_32;
	r->disk_size = r->icount = UINT64_MAX;

	r->extra_at = Q2_SNAPSHOT_FIXED;
	uint64_t id_at = (uint64_t)r->extra_at + r->extra_length;
	uint64_t length = q2_round_up(id_at + r->id_length + r->name_length, 8);
	if (length > UINT32_MAX) { /* too long for any limit: the caller refuses it by its length */
		r->length = UINT32_MAX;
		return 1;
	}
	r->id_at = (uint32_t)id_at;
	r->name_at = r->id_at + r->id_length;
	r->length = (uint32_t)length;
	if (length > room)
		return 1;
	if (r->extra_length >= 8)
		r->vm_state_size = q2_load64(b + r->extra_at);
	if (r->extra_length >= 16)
		r->disk_size = q2_load64(b + r->extra_at + 8);
	if (r->extra_length >= 24)
		r->icount = q2_load64(b + r->extra_at + 16);
	return 0;
}

int q2_record_bitmap(const uint8_t *b, uint64_t room, struct q2_bitmap_record *r)
{
	*r = (struct q2_bitmap_record){.length = Q2_BITMAP_FIXED};
	if (room < Q2_BITMAP_FIXED)
		return 1;
	r->table_offset = q2_load64(b);
	r->table_entries = q2_load32(b + 8);
	r->flags = q2_load32(b + 12);
	r->type = b[16];
	r->granularity_bits = b[17];
	r->name_length = q2_load16(b + 18);
	r->extra_length = q2_load32(b + 20);

	r->extra_at = Q2_BITMAP_FIXED;
	uint64_t name_at = (uint64_t)r->extra_at + r->extra_length;
	uint64_t length = q2_round_up(name_at + r->name_length, 8);
	if (length > UINT32_MAX) {
		r->length = UINT32_MAX;
		return 1;
	}
	r->name_at = (uint32_t)name_at;
	r->length = (uint32_t)length;
	return length > room;
}
