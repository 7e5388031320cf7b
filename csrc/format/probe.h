/* SPDX-License-Identifier: MIT
 * What format a file is in, by its first bytes, and its last ones for formats that end with their mark. Pure.
 *
 * A file in a format that is not ours must not pass for a raw disk: the bytes of its tables would be the disk. */
#ifndef Q2_FORMAT_PROBE_H
#define Q2_FORMAT_PROBE_H

#include <stddef.h>
#include <stdint.h>

enum {
	Q2_PROBE_HEAD = 512, /* bytes that are looked at in front */
	Q2_PROBE_TAIL = 512, /* and at the end */
};

/*
 * needs: `head` has the file's first bytes, at most Q2_PROBE_HEAD, all of them when the file is as long.
 * gives: "qcow2", "unfinished" (see Q2_MAGIC_UNFINISHED), the name of another format as QEMU calls it, or NULL.
 */
const char *q2_probe_head(const uint8_t *head, size_t length);

/* needs: the file's last Q2_PROBE_TAIL bytes. gives: the name of a format whose mark is there, or NULL. */
const char *q2_probe_tail(const uint8_t *tail);

#endif
