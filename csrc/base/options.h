/* SPDX-License-Identifier: MIT
 * Structs of options from programs that know fewer members than this library, or more. */
#ifndef Q2_BASE_OPTIONS_H
#define Q2_BASE_OPTIONS_H

#include "base/error.h"

#include <string.h>

/*
 * Copies a caller's struct, which begins with its size, into one of `size` bytes; what the caller does not know is 0.
 * fails: `range` when the caller's size was not set, `unsupported` when it sets a member that this library does not know.
 */
static inline int q2_options_take(void *own, size_t size, const void *given, struct qcow2_error *err)
{
	size_t length;
	memcpy(&length, given, sizeof length);
	if (length < sizeof length)
		return q2_error_set(err, QCOW2_E_RANGE, Q2_NO_OFFSET,
				    "The size of a struct of options is not set (QCOW2_..._OPTIONS_INIT)");
	for (size_t i = size; i < length; i++)
		if (((const uint8_t *)given)[i])
			return q2_error_set(
				err, QCOW2_E_UNSUPPORTED, Q2_NO_OFFSET,
				"The program asks for an option that this version of the library lacks");
	memset(own, 0, size);
	memcpy(own, given, length < size ? length : size);
	return 0;
}

#endif
