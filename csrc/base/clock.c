/* SPDX-License-Identifier: MIT
 * What work in steps asks of the host. */
#include "base/clock.h"

#include <sched.h>
#include <time.h>

uint64_t q2_clock_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

unsigned q2_clock_processors(void)
{
	cpu_set_t set;
	/* Fails on hosts with more processors than the set holds: then a few threads are no mistake. */
	if (sched_getaffinity(0, sizeof set, &set))
		return 4;
	int count = CPU_COUNT(&set);
	return count > 0 ? (unsigned)count : 1;
}
