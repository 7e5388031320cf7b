/* SPDX-License-Identifier: MIT
 * Finding zeros fast. */
#ifndef Q2_DATA_ZERO_H
#define Q2_DATA_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* All `length` bytes zero? Any alignment, any length; stops at the first that is not. */
bool q2_zero_test(const void *bytes, size_t length);

/*
 * Cuts [0, length) into units (the last may be shorter) and gives the length in bytes of the leading run
 * of units that are all-zero, or of units that are all not-all-zero; *is_zero says which. length > 0.
 */
size_t q2_zero_run(const void *bytes, size_t length, size_t unit, bool *is_zero);

#endif
