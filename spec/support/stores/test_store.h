/* SPDX-License-Identifier: MIT
 * Stores for specs alone, wrapped around others: no part of the installed header nor of the shared library. */
#ifndef QCOW2_TEST_STORE_H
#define QCOW2_TEST_STORE_H

#include "qcow2/store.h"

/*
 * For crash specs. A power store records the writes, resizes, punches and flushes that pass through
 * it into `inner`'s copy. `qcow2_store_power_replay` rebuilds, into a new memory store, what a disk
 * could hold after a power cut: operations [0, count) of the record, of which those not covered by a
 * flush within the prefix survive only if their bit in `keep` (one byte per operation, NULL = all
 * kept) is non-zero; with `torn` != SIZE_MAX the write number `torn` stops after `torn_bytes`.
 */
int qcow2_store_power(struct qcow2_store *inner, struct qcow2_store **out, struct qcow2_error *err);
/* Numbers the operations of both stores in one sequence. needs: both are power stores, `power` with no record
 * yet. fails: `conflict`. */
int qcow2_store_power_join(struct qcow2_store *power, struct qcow2_store *other, struct qcow2_error *err);
size_t qcow2_store_power_count(struct qcow2_store *power);
/* One operation of the record. */
struct qcow2_power_op {
	char kind; /* 'w' write, 'p' punch, 'r' resize, 'f' flush */
	uint64_t offset, length;
	uint64_t sequence; /* grows with every operation, in joined stores over all of them */
};
int qcow2_store_power_op(struct qcow2_store *power, size_t index, struct qcow2_power_op *op,
			 struct qcow2_error *err);
int qcow2_store_power_replay(struct qcow2_store *power, size_t count, const uint8_t *keep, size_t torn,
			     size_t torn_bytes, struct qcow2_store **out, struct qcow2_error *err);

/*
 * For fault specs. The call number `nth` (from 1, counted over the kinds in `kinds`, a string of
 * 'r' read 'w' write 'f' flush 'p' punch 's' resize) fails with `os_errno`; later ones too when
 * `sticky`. nth 0 only counts.
 */
int qcow2_store_fault(struct qcow2_store *inner, const char *kinds, uint64_t nth, int os_errno, bool sticky,
		      struct qcow2_store **out, struct qcow2_error *err);
uint64_t qcow2_store_fault_calls(struct qcow2_store *fault);

#endif
