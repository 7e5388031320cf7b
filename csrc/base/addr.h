/* SPDX-License-Identifier: MIT
 * Guest and host addresses as distinct types: mixing them does not compile and costs nothing.
 *
 * A guest address counts bytes of the virtual disk, a host address bytes of the store that the
 * metadata speaks of (the image file, or the external data file for guest clusters there). */
#ifndef Q2_BASE_ADDR_H
#define Q2_BASE_ADDR_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
	uint64_t v;
} q2_guest;

typedef struct {
	uint64_t v;
} q2_host;

static inline q2_guest q2_guest_at(uint64_t v)
{
	return (q2_guest){v};
}

static inline q2_host q2_host_at(uint64_t v)
{
	return (q2_host){v};
}

static inline q2_guest q2_guest_add(q2_guest a, uint64_t bytes)
{
	return (q2_guest){a.v + bytes};
}

static inline q2_host q2_host_add(q2_host a, uint64_t bytes)
{
	return (q2_host){a.v + bytes};
}

/* Rounding to a power of two; `unit` is bytes. The sum form must not overflow: callers bound first. */
static inline uint64_t q2_round_down(uint64_t v, uint64_t unit)
{
	return v & ~(unit - 1);
}

static inline uint64_t q2_round_up(uint64_t v, uint64_t unit)
{
	return (v + unit - 1) & ~(unit - 1);
}

static inline bool q2_is_aligned(uint64_t v, uint64_t unit)
{
	return (v & (unit - 1)) == 0;
}

/* How many units cover v bytes, without overflow for any v. */
static inline uint64_t q2_div_up(uint64_t v, uint64_t unit)
{
	return v / unit + (v % unit != 0);
}

static inline uint64_t q2_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t q2_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Is [start, start + length) inside [0, end)? Never overflows. */
static inline bool q2_fits(uint64_t start, uint64_t length, uint64_t end)
{
	return start <= end && length <= end - start;
}

/* Do the two ranges share a byte? The sums must not overflow: callers bound first. */
static inline bool q2_overlaps(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
	return a < b + b_length && b < a + a_length && a_length && b_length;
}

#endif
