/* SPDX-License-Identifier: MIT
 * Filling the caller-owned error record. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const words[QCOW2_KIND_COUNT] = {
	[QCOW2_OK] = "none",
#define KIND(name, word) [QCOW2_KIND_##name] = word,
#include "base/kinds.def"
#undef KIND
};

const char *qcow2_version(void)
{
	return QCOW2_VERSION;
}

const char *qcow2_error_word(int code)
{
	return code <= 0 && code > -QCOW2_KIND_COUNT ? words[-code] : "bug";
}

int q2_error_set(struct qcow2_error *err, int code, uint64_t offset, const char *format, ...)
{
	if (err) {
		va_list args;
		*err = (struct qcow2_error){.code = code, .offset = offset};
		va_start(args, format);
		vsnprintf(err->text, sizeof err->text, format, args);
		va_end(args);
	}
	return code;
}

static int kind_of_errno(int os_errno)
{
	switch (os_errno) {
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return QCOW2_E_NOSPACE;
	case ENOENT:
	case ENOTDIR:
		return QCOW2_E_MISSING;
	case EACCES:
	case EPERM:
	case EROFS:
		return QCOW2_E_DENIED;
	case EEXIST:
		return QCOW2_E_EXISTS;
	case ENOMEM:
		return QCOW2_E_NOMEM;
	default:
		return QCOW2_E_IO;
	}
}

int q2_error_os(struct qcow2_error *err, int os_errno, uint64_t offset, const char *format, ...)
{
	int code = kind_of_errno(os_errno);
	if (err) {
		va_list args;
		*err = (struct qcow2_error){.code = code, .os_errno = os_errno, .offset = offset};
		va_start(args, format);
		int used = vsnprintf(err->text, sizeof err->text, format, args);
		va_end(args);
		if (used < 0)
			used = 0;
		if ((size_t)used < sizeof err->text) {
			char reason[128];
			/* The GNU strerror_r never fails and may return a constant. */
			const char *text = strerror_r(os_errno, reason, sizeof reason);
			snprintf(err->text + used, sizeof err->text - (size_t)used, ": %s", text);
		}
	}
	return code;
}

int q2_error_prefix(struct qcow2_error *err, int code, const char *format, ...)
{
	if (!err)
		return code;
	char old[sizeof err->text];
	memcpy(old, err->text, sizeof old);
	va_list args;
	va_start(args, format);
	int used = vsnprintf(err->text, sizeof err->text, format, args);
	va_end(args);
	/* The front that was just written matters most, so the old sentence is what gets cut. */
	for (const char *from[] = {": ", old}, **part = from; part < from + 2; part++)
		for (const char *c = *part; *c && used >= 0 && (size_t)used + 1 < sizeof err->text; c++)
			err->text[used++] = *c;
	if (used >= 0 && (size_t)used < sizeof err->text)
		err->text[used] = '\0';
	return err->code;
}

int q2_error_nomem(struct qcow2_error *err)
{
	if (err)
		*err = (struct qcow2_error){.code = QCOW2_E_NOMEM,
					    .os_errno = ENOMEM,
					    .offset = Q2_NO_OFFSET,
					    .text = "Out of memory"};
	return QCOW2_E_NOMEM;
}

/* Length of the UTF-8 sequence at s (1-4), 0 when it is none; overlong and surrogate forms are none. */
static size_t utf8_length(const unsigned char *s, size_t left)
{
	if (s[0] < 0x80)
		return 1;
	size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
	if (s[0] < 0xc2 || s[0] > 0xf4 || n > left)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
	    (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

char *q2_error_escape(char *out, size_t size, const void *bytes, size_t length)
{
	const unsigned char *s = bytes;
	size_t used = 0;

	for (size_t i = 0; i < length;) {
		size_t n = utf8_length(s + i, length - i);
		/* C1 controls (U+0080-U+009F) move a terminal's cursor as well as C0 ones do. */
		if (n == 1 && (s[i] < 0x20 || s[i] == 0x7f || s[i] == '\\'))
			n = 0;
		else if (n == 2 && s[i] == 0xc2 && s[i + 1] < 0xa0)
			n = 0;
		if (used + (n ? n : 4) >= size)
			break;
		if (n)
			memcpy(out + used, s + i, n);
		else
			snprintf(out + used, size - used, "\\x%02x", s[i]);
		used += n ? n : 4;
		i += n ? n : 1;
	}
	if (size)
		out[used] = '\0';
	return out;
}
