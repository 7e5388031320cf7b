/* SPDX-License-Identifier: MIT
 * Locks on image files that other programs for these images understand.
 *
 * A holder says two things with shared locks on single bytes of the file: byte 100 + p, "I use permission
 * p", and byte 200 + p, "I do not let others use permission p". Nobody's shared lock hinders another's, so
 * taking them never fails because of others; the conflict shows afterwards, by asking whether an exclusive
 * lock on the opposite byte would be possible. Both sides announce first and ask second: of two that come
 * at once at least one sees the other.
 *
 * The permissions are those of QEMU's block layer: reading consistent bytes, writing, writing what does not
 * change what is read, resizing. An image's reader uses the first and forbids writing and resizing;
 * its writer uses writing and resizing as well. */
#include "store/kind.h"

#include <fcntl.h>
#include <string.h>

#define USES 100
#define FORBIDS 200

enum permission { CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE, PERMISSIONS };

static const char *const permission_names[PERMISSIONS] = {
	[CONSISTENT_READ] = "consistent read",
	[WRITE] = "write",
	[WRITE_UNCHANGED] = "write unchanged",
	[RESIZE] = "resize",
};

#define FORBIDDEN (1u << WRITE | 1u << RESIZE)
#define READER (1u << CONSISTENT_READ)
#define WRITER (READER | 1u << WRITE | 1u << RESIZE)

/* gives: 0 or the errno. */
static int lock_call(int fd, int command, struct flock *lock, int byte)
{
	lock->l_whence = SEEK_SET;
	lock->l_start = byte;
	lock->l_len = 1;
	lock->l_pid = 0;
	while (fcntl(fd, command, lock))
		if (errno != EINTR)
			return errno;
	return 0;
}

/* Locks of the open file, where the host has them: the older kind belongs to the process, and closing any
 * other descriptor of the same file would silently drop it. */
static bool has_open_file_locks(int fd)
{
	struct flock lock = {.l_type = F_WRLCK};

	return lock_call(fd, F_OFD_GETLK, &lock, USES) != EINVAL;
}

static int announce(int fd, int set, int base, unsigned permissions, const char *name,
		    struct qcow2_error *err)
{
	for (int p = 0; p < PERMISSIONS; p++) {
		struct flock lock = {.l_type = F_RDLCK};
		int os_errno = permissions & 1u << p ? lock_call(fd, set, &lock, base + p) : 0;

		if (os_errno == EAGAIN || os_errno == EACCES)
			return q2_error_set(err, QCOW2_E_LOCKED, Q2_NO_OFFSET,
					    "Could not open '%s': Failed to lock byte %d. "
					    "Is another process using the image [%s]?",
					    name, base + p, name);
		if (os_errno)
			return q2_error_os(err, os_errno, Q2_NO_OFFSET,
					   "Could not open '%s': Failed to lock byte %d", name, base + p);
	}
	return 0;
}

static int ask(int fd, int get, int base, unsigned permissions, const char *shared, const char *name,
	       struct qcow2_error *err)
{
	for (int p = 0; p < PERMISSIONS; p++) {
		struct flock lock = {.l_type = F_WRLCK};
		int os_errno = permissions & 1u << p ? lock_call(fd, get, &lock, base + p) : 0;

		if (os_errno)
			return q2_error_os(err, os_errno, Q2_NO_OFFSET,
					   "Could not open '%s': Failed to get %s\"%s\" lock", name, shared,
					   permission_names[p]);
		if (permissions & 1u << p && lock.l_type != F_UNLCK)
			return q2_error_set(err, QCOW2_E_LOCKED, Q2_NO_OFFSET,
					    "Could not open '%s': Failed to get %s\"%s\" lock. "
					    "Is another process using the image [%s]?",
					    name, shared, permission_names[p], name);
	}
	return 0;
}

int q2_lock_take(int fd, const char *path, bool write, struct qcow2_error *err)
{
	bool open_file = has_open_file_locks(fd);
	int set = open_file ? F_OFD_SETLK : F_SETLK, get = open_file ? F_OFD_GETLK : F_GETLK;
	unsigned uses = write ? WRITER : READER;
	char name[180]; /* twice in a sentence */
	int rc;

	q2_error_escape(name, sizeof name, path, strlen(path));
	rc = announce(fd, set, USES, uses, name, err);
	if (!rc)
		rc = announce(fd, set, FORBIDS, FORBIDDEN, name, err);
	if (!rc)
		rc = ask(fd, get, FORBIDS, uses, "", name, err);
	if (!rc)
		rc = ask(fd, get, USES, FORBIDDEN, "shared ", name, err);
	return rc;
}
