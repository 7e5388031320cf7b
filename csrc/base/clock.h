/* SPDX-License-Identifier: MIT
 * What work in steps asks of the host: the time, and how many processors there are. */
#ifndef Q2_BASE_CLOCK_H
#define Q2_BASE_CLOCK_H

#include <stdint.h>

/* How long a step of long work takes, about: often enough for a progress display. */
#define Q2_STEP_NSEC 2000000u

/* Nanoseconds of a clock that only goes forward. */
uint64_t q2_clock_now(void);

/* Processors that this process may use, at least 1. */
unsigned q2_clock_processors(void);

#endif
