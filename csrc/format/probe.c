/* SPDX-License-Identifier: MIT
 * The marks of image formats, as QEMU's drivers look for them. */
#include "format/probe.h"

#include "base/be.h"
#include "format/header.h"

#include <stdbool.h>
#include <string.h>

static uint32_t load32_le(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Does `text` stand at byte `at`? */
static bool has(const uint8_t *head, size_t length, size_t at, const char *text)
{
	size_t n = strlen(text);
	return at + n <= length && !memcmp(head + at, text, n);
}

/* The text of a VMware disk whose data lies in other files: comments and empty lines, then its version. */
static bool is_vmdk_descriptor(const uint8_t *head, size_t length)
{
	static const char *const versions[] = {"version=1", "version=2", "version=3"};
	size_t at = 0;
	while (at < length && (head[at] == '#' || head[at] == ' ' || head[at] == '\r' || head[at] == '\n')) {
		bool comment = head[at] == '#';
		while (comment && at < length && head[at] != '\n')
			at++;
		at += at < length;
	}
	for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
		size_t end = at + strlen(versions[i]);
		if (has(head, length, at, versions[i]) && end < length &&
		    (head[end] == '\n' || head[end] == '\r'))
			return true;
	}
	return false;
}

const char *q2_probe_head(const uint8_t *head, size_t length)
{
	uint32_t magic = length >= 8 ? q2_load32(head) : 0, version = length >= 8 ? q2_load32(head + 4) : 0;
	if (magic == Q2_MAGIC)
		return version == 1 ? "qcow" : "qcow2";
	if (magic == Q2_MAGIC_UNFINISHED)
		return "unfinished";
	if (has(head, length, 0, "KDMV") || has(head, length, 0, "COWD") || is_vmdk_descriptor(head, length))
		return "vmdk";
	if (length >= 68 && load32_le(head + 64) == 0xbeda107f)
		return "vdi";
	if (has(head, length, 0, "vhdxfile"))
		return "vhdx";
	if (has(head, length, 0, "conectix"))
		return "vpc";
	if (length >= 4 && !memcmp(head, "QED", 4))
		return "qed";
	if (length >= 20 && load32_le(head + 16) == 2 &&
	    (has(head, length, 0, "WithoutFreeSpace") || has(head, length, 0, "WithouFreSpacExt")))
		return "parallels";
	if (length >= 8 && !memcmp(head, "LUKS\xba\xbe\0\1", 8))
		return "luks";
	if (has(head, length, 0, "Bochs Virtual HD Image"))
		return "bochs";
	if (has(head, length, 0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop"))
		return "cloop";
	return NULL;
}

const char *q2_probe_tail(const uint8_t *tail)
{
	if (!memcmp(tail, "conectix", 8))
		return "vpc";
	return memcmp(tail, "koly", 4) ? NULL : "dmg";
}
