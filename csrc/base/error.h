/* SPDX-License-Identifier: MIT
 * Filling the caller-owned error record. No allocation, no thread-local state. */
#ifndef Q2_BASE_ERROR_H
#define Q2_BASE_ERROR_H

#include "qcow2.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#define Q2_NO_OFFSET UINT64_MAX

/*
 * needs: code < 0. gives: `code`, so that callers write `return q2_error_set(...)`.
 * err may be NULL. The text is cut, never overrun.
 */
int q2_error_set(struct qcow2_error *err, int code, uint64_t offset, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* The same for a failed system call: the kind follows from `os_errno`, the sentence ends in
 * ": <strerror>". gives: the code. */
int q2_error_os(struct qcow2_error *err, int os_errno, uint64_t offset, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* Puts "<format>: " in front of the text that is there already. gives: err->code (or `code` when
 * err is NULL). */
int q2_error_prefix(struct qcow2_error *err, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* No memory: needs no formatting, never fails. gives: QCOW2_E_NOMEM. */
int q2_error_nomem(struct qcow2_error *err);

/* qcow2_error_word is in the public header. */

/* Copies `length` bytes that came from a file into `out` (size bytes, always NUL-ended) with
 * control characters, quotes' backslash and bytes that are no valid UTF-8 written as \xNN. gives: out. */
char *q2_error_escape(char *out, size_t size, const void *bytes, size_t length);

#endif
