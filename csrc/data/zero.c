/* SPDX-License-Identifier: MIT
 * Finding zeros at the speed of memory. */
#include "data/zero.h"

#include <stdint.h>
#include <string.h>

/* Bytes looked at between two decisions: few branches, and eight vector loads on a plain x86-64. */
#define STRIDE 128

static inline uint64_t load(const unsigned char *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof v);
	return v;
}

/* With 16-byte vectors, which every x86-64 and arm64 has, loads are the limit already: 32-byte ones chosen at
 * run time would gain nothing on clusters outside the nearest cache, and their dispatch (ifunc) does not go
 * well with sanitized and static programs. Elsewhere the compiler makes plain words of them. */
static inline bool stride_is_zero(const unsigned char *p)
{
	uint64_t __attribute__((vector_size(16))) all = {0}, part;

	for (int i = 0; i < STRIDE; i += (int)sizeof part) {
		memcpy(&part, p + i, sizeof part);
		all |= part;
	}
	return (all[0] | all[1]) == 0;
}

bool q2_zero_test(const void *bytes, size_t length)
{
	const unsigned char *p = bytes, *end = p + length;

	if (length < 8) {
		unsigned char all = 0;

		while (p < end)
			all |= *p++;
		return all == 0;
	}
	/* Most data shows itself at its ends or in the middle. */
	if (load(p) | load(end - 8) | load(p + (length - 8) / 2))
		return false;
	for (; (size_t)(end - p) >= STRIDE; p += STRIDE)
		if (!stride_is_zero(p))
			return false;
	for (; (size_t)(end - p) >= 8; p += 8)
		if (load(p))
			return false;
	return true; /* the last 8 bytes were looked at first */
}

size_t q2_zero_run(const void *bytes, size_t length, size_t unit, bool *is_zero)
{
	const unsigned char *p = bytes;
	size_t run = 0;

	do {
		size_t step = length - run < unit ? length - run : unit;
		bool zero = q2_zero_test(p + run, step);

		if (run == 0)
			*is_zero = zero;
		else if (zero != *is_zero)
			break;
		run += step;
	} while (run < length);
	return run;
}
