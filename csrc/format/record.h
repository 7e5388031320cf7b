/* SPDX-License-Identifier: MIT
 * Variable-length records: entries of the snapshot table and of the bitmap directory. Pure. */
#ifndef Q2_FORMAT_RECORD_H
#define Q2_FORMAT_RECORD_H

#include "base/error.h"

/* Snapshot table entry, fixed part (specification, "Snapshots"): 40 bytes, then extra data, id, name,
 * padding to 8. */
#define Q2_SNAPSHOT_FIXED 40u
#define Q2_SNAPSHOT_MAX_EXTRA 1024u /* QEMU refuses more, so none is written; what is there is read */

struct q2_snapshot_record {
	uint64_t l1_table_offset;
	uint32_t l1_size; /* entries */
	uint16_t id_length, name_length;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec;
	uint32_t vm_state_size_32;
	uint32_t extra_length;
	uint64_t vm_state_size; /* from the extra data when it is there, else the 32-bit field */
	uint64_t disk_size;     /* from the extra data; UINT64_MAX when absent: the active disk's size */
	uint64_t icount;        /* from the extra data; UINT64_MAX when absent */
	/* Where the parts begin, bytes from the entry's start. */
	uint32_t extra_at, id_at, name_at, length; /* length: whole entry with padding */
};

/* needs: `bytes` with `room` bytes from the entry's start. gives: 0; or 1 when the entry is longer than
 * `room` (then only `length` is set if the fixed part was there, else it is Q2_SNAPSHOT_FIXED). The extra
 * fields are read only when the entry is whole. */
int q2_record_snapshot(const uint8_t *bytes, uint64_t room, struct q2_snapshot_record *out);

/* Bitmap directory entry (specification, "Bitmap directory"): 24 bytes, extra data, name, padding to 8. */
#define Q2_BITMAP_FIXED 24u
#define Q2_MAX_BITMAPS 65535u
#define Q2_MAX_BITMAP_DIRECTORY (64u << 20) /* bytes */
#define Q2_MAX_BITMAP_TABLE 0x8000000u      /* entries */
#define Q2_MAX_BITMAP_BYTES (512u << 20)    /* of bits; QEMU opens no image with a larger one */
#define Q2_MAX_BITMAP_NAME 1023u
#define Q2_BITMAP_IN_USE 1u
#define Q2_BITMAP_AUTO 2u
#define Q2_BITMAP_EXTRA_COMPATIBLE 4u

struct q2_bitmap_record {
	uint64_t table_offset;
	uint32_t table_entries;
	uint32_t flags;
	uint8_t type, granularity_bits;
	uint16_t name_length;
	uint32_t extra_length;
	uint32_t extra_at, name_at, length;
};

/* The same contract as q2_record_snapshot. */
int q2_record_bitmap(const uint8_t *bytes, uint64_t room, struct q2_bitmap_record *out);

#endif
