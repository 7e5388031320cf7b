/* SPDX-License-Identifier: MIT
 * A store in a regular file or a block device of the host.
 *
 * Everything goes through pread and pwrite: the file's own position belongs to nobody, so that looking for
 * holes (which moves it) and several threads do not disturb one another. */
#include "store/kind.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "file offsets have 64 bits");

/* What one pread or pwrite is asked for; the kernel would cut longer calls a little below 2 GiB. */
#define CALL_MAX ((size_t)1 << 30)

/* Hosts punch devices in whole blocks; no logical block is longer than this. */
#define DEVICE_BLOCK ((uint64_t)4096)

struct file_store {
	struct qcow2_store store;
	int fd;
	bool trusts_holes;      /* nobody can fill a hole while we look: read-only, under locks */
	atomic_int flush_errno; /* of the first flush that failed; a later one would prove nothing */
	atomic_bool no_punch, no_zero_range; /* the host said that it has none */

	/*
	 * The last run that was found, [start, end). Data stays data unless we punch or cut it, and then
	 * the run is forgotten; holes are kept where nobody writes. A caller that walks a long run in small
	 * steps would otherwise make the host walk it again at every step.
	 */
	pthread_mutex_t run_lock;
	uint64_t run_start, run_end;
	bool run_is_data;
	uint64_t run_generation; /* counts the forgettings: a run found before one is not kept after it */
};

static struct file_store *file(struct qcow2_store *store)
{
	return (struct file_store *)store;
}

/* ---- the last run --------------------------------------------------------------------------- */

static void run_forget(struct file_store *f)
{
	pthread_mutex_lock(&f->run_lock);
	f->run_start = f->run_end = 0;
	f->run_generation++;
	pthread_mutex_unlock(&f->run_lock);
}

/* gives: true, and the answer, when the last run has `offset`; else the generation to keep a new one by. */
static bool run_recall(struct file_store *f, uint64_t offset, bool *is_data, uint64_t *end,
		       uint64_t *generation)
{
	bool found;

	pthread_mutex_lock(&f->run_lock);
	found = offset >= f->run_start && offset < f->run_end;
	if (found) {
		*is_data = f->run_is_data;
		*end = f->run_end;
	}
	*generation = f->run_generation;
	pthread_mutex_unlock(&f->run_lock);
	return found;
}

static void run_keep(struct file_store *f, uint64_t start, uint64_t end, bool is_data, uint64_t generation)
{
	if (!is_data && !f->trusts_holes)
		return;
	pthread_mutex_lock(&f->run_lock);
	if (generation == f->run_generation) {
		f->run_start = start;
		f->run_end = end;
		f->run_is_data = is_data;
	}
	pthread_mutex_unlock(&f->run_lock);
}

/* ---- slots ---------------------------------------------------------------------------------- */

static int file_read(struct qcow2_store *store, uint64_t offset, void *buf, size_t length,
		     struct qcow2_error *err)
{
	uint8_t *to = buf;

	while (length) {
		ssize_t n = pread(file(store)->fd, to, q2_min(length, CALL_MAX), (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return q2_store_fail(store, "read", offset, errno, err);
		if (n == 0) {
			memset(to, 0, length);
			break;
		}
		to += n;
		offset += (uint64_t)n;
		length -= (size_t)n;
	}
	return 0;
}

static int file_write(struct qcow2_store *store, uint64_t offset, const void *buf, size_t length,
		      struct qcow2_error *err)
{
	const uint8_t *from = buf;

	while (length) {
		ssize_t n = pwrite(file(store)->fd, from, q2_min(length, CALL_MAX), (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		/* A host that takes nothing and gives no reason has no room. */
		if (n <= 0)
			return q2_store_fail(store, "write", offset, n < 0 ? errno : ENOSPC, err);
		from += n;
		offset += (uint64_t)n;
		length -= (size_t)n;
	}
	return 0;
}

static int file_flush(struct qcow2_store *store, struct qcow2_error *err)
{
	struct file_store *f = file(store);
	int rc, none = 0;

	/* fdatasync covers the length too where it changed. */
	do
		rc = atomic_load(&f->flush_errno) ? 0 : fdatasync(f->fd);
	while (rc && errno == EINTR);
	if (rc)
		atomic_compare_exchange_strong(&f->flush_errno, &none, errno);
	rc = atomic_load(&f->flush_errno);
	return rc ? q2_store_fail(store, "flush", Q2_NO_OFFSET, rc, err) : 0;
}

static int file_length(struct qcow2_store *store, uint64_t *length, struct qcow2_error *err)
{
	struct stat st;

	if (store->is_device) {
		uint64_t bytes;

		if (ioctl(file(store)->fd, BLKGETSIZE64, &bytes))
			return q2_store_fail(store, "get the length of", Q2_NO_OFFSET, errno, err);
		*length = bytes;
		return 0;
	}
	if (fstat(file(store)->fd, &st))
		return q2_store_fail(store, "get the length of", Q2_NO_OFFSET, errno, err);
	*length = (uint64_t)st.st_size;
	return 0;
}

static int file_allocated(struct qcow2_store *store, uint64_t *bytes, struct qcow2_error *err)
{
	struct stat st;

	if (fstat(file(store)->fd, &st))
		return q2_store_fail(store, "get the allocation of", Q2_NO_OFFSET, errno, err);
	*bytes = (uint64_t)st.st_blocks * 512;
	return 0;
}

/* gives: 0 or the errno. */
static int fallocate_call(int fd, int mode, uint64_t offset, uint64_t length)
{
	while (fallocate(fd, mode, (off_t)offset, (off_t)length))
		if (errno != EINTR)
			return errno;
	return 0;
}

static bool means_unsupported(int os_errno)
{
	return os_errno == EOPNOTSUPP || os_errno == ENOSYS || os_errno == EINVAL || os_errno == ENODEV ||
	       os_errno == ENOTTY;
}

/* Asks the host in the ways that it may know. gives: 0, or an errno; EOPNOTSUPP: it knows none. */
static int punch_by_host(struct file_store *f, uint64_t offset, uint64_t length)
{
	static const int modes[] = {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
	atomic_bool *missing[] = {&f->no_punch, &f->no_zero_range};

	for (int i = 0; i < 2; i++) {
		int os_errno;

		if (atomic_load(missing[i]))
			continue;
		os_errno = fallocate_call(f->fd, modes[i] | FALLOC_FL_KEEP_SIZE, offset, length);
		if (!means_unsupported(os_errno))
			return os_errno;
		/* EINVAL may be about this range alone. */
		if (os_errno != EINVAL)
			atomic_store(missing[i], true);
	}
	return EOPNOTSUPP;
}

static int file_punch(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	uint64_t end, start, stop;
	int rc, os_errno = 0;

	rc = file_length(store, &end, err);
	if (rc || offset >= end)
		return rc;
	end = q2_min(end, offset + length);
	start = offset;
	stop = end;
	if (store->is_device) {
		start = q2_min(end, q2_round_up(offset, DEVICE_BLOCK));
		stop = q2_max(start, q2_round_down(end, DEVICE_BLOCK));
	}
	if (start < stop)
		os_errno = punch_by_host(file(store), start, stop - start);
	if (os_errno && os_errno != EOPNOTSUPP)
		return q2_store_fail(store, "discard", start, os_errno, err);
	/* After the punch: what another thread finds before it would be stale. */
	run_forget(file(store));
	if (os_errno)
		return q2_store_write_zeros(store, offset, end - offset, err);
	if (offset < start)
		rc = q2_store_write_zeros(store, offset, start - offset, err);
	if (!rc && stop < end)
		rc = q2_store_write_zeros(store, stop, end - stop, err);
	return rc;
}

static int file_allocate(struct qcow2_store *store, uint64_t offset, uint64_t length, struct qcow2_error *err)
{
	uint64_t end;
	int rc, os_errno;

	if (store->is_device) {
		rc = file_length(store, &end, err);
		if (!rc && !q2_fits(offset, length, end))
			rc = q2_store_fail(store, "allocate", offset, ENOSPC, err);
		return rc;
	}
	os_errno = fallocate_call(file(store)->fd, 0, offset, length);
	if (!os_errno)
		return 0;
	if (!means_unsupported(os_errno))
		return q2_store_fail(store, "allocate", offset, os_errno, err);
	return q2_store_fill_holes(store, offset, length, err);
}

static int file_resize(struct qcow2_store *store, uint64_t length, struct qcow2_error *err)
{
	char name[256];
	uint64_t end;
	int rc = file_length(store, &end, err);

	/* Nothing to do is more than saved time: ext4 writes out a file at its close when it was ever cut to
	 * nothing, were it empty before. */
	if (rc || length == end)
		return rc;
	if (store->is_device) {
		if (length < end)
			return 0;
		q2_error_escape(name, sizeof name, store->name, strlen(store->name));
		return q2_error_set(err, QCOW2_E_NOSPACE, Q2_NO_OFFSET,
				    "Could not resize '%s': the device has %llu bytes, %llu are asked for",
				    name, (unsigned long long)end, (unsigned long long)length);
	}
	while (ftruncate(file(store)->fd, (off_t)length))
		if (errno != EINTR)
			return q2_store_fail(store, "resize", Q2_NO_OFFSET, errno, err);
	run_forget(file(store));
	return 0;
}

/*
 * Asks the host for the run at `offset`. gives: *end, UINT64_MAX for a hole that nothing follows. A host
 * that knows no holes has data up to the length.
 */
static int find_run(struct qcow2_store *store, uint64_t offset, bool *is_data, uint64_t *end,
		    struct qcow2_error *err)
{
	int fd = file(store)->fd, rc;
	off_t at;

	/* Others may punch or fill between the two questions; what they leave is asked again. */
	for (int tries = 0; tries < 4; tries++) {
		at = lseek(fd, (off_t)offset, SEEK_DATA);
		if (at < 0 && errno == ENXIO) {
			*is_data = false;
			*end = UINT64_MAX;
			return 0;
		}
		if (at < 0 && !means_unsupported(errno))
			return q2_store_fail(store, "look for data in", offset, errno, err);
		if (at < (off_t)offset)
			break;
		if (at > (off_t)offset) {
			*is_data = false;
			*end = (uint64_t)at;
			return 0;
		}
		at = lseek(fd, (off_t)offset, SEEK_HOLE);
		if (at > (off_t)offset) {
			*is_data = true;
			*end = (uint64_t)at;
			return 0;
		}
		if (at < 0 && errno != ENXIO && !means_unsupported(errno))
			return q2_store_fail(store, "look for holes in", offset, errno, err);
		if (at < 0 && errno != ENXIO)
			break;
	}
	rc = file_length(store, end, err);
	if (rc)
		return rc;
	*is_data = offset < *end;
	if (!*is_data)
		*end = UINT64_MAX;
	return 0;
}

static int file_extent(struct qcow2_store *store, uint64_t offset, uint64_t limit, bool *is_data,
		       uint64_t *length, struct qcow2_error *err)
{
	struct file_store *f = file(store);
	uint64_t end = 0, generation;

	if (!run_recall(f, offset, is_data, &end, &generation)) {
		int rc = find_run(store, offset, is_data, &end, err);

		if (rc)
			return rc;
		run_keep(f, offset, end, *is_data, generation);
	}
	*length = q2_min(limit, end - offset);
	return 0;
}

static int file_descriptor(struct qcow2_store *store)
{
	return file(store)->fd;
}

static void file_close(struct qcow2_store *store)
{
	/* The last flush told what there was to tell; see qcow2_store_unref. */
	if (file(store)->fd >= 0)
		close(file(store)->fd);
	pthread_mutex_destroy(&file(store)->run_lock);
	q2_store_free(store);
}

static const struct q2_store_ops file_ops = {
	.kind = "file",
	.read = file_read,
	.write = file_write,
	.flush = file_flush,
	.punch = file_punch,
	.allocate = file_allocate,
	.resize = file_resize,
	.length = file_length,
	.allocated = file_allocated,
	.extent = file_extent,
	.descriptor = file_descriptor,
	.close = file_close,
};

/* ---- opening -------------------------------------------------------------------------------- */

static const char *what_it_is(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a FIFO";
	case S_IFSOCK:
		return "a socket";
	case S_IFCHR:
		return "a character device";
	case S_IFBLK:
		return "a block device";
	default:
		return "no regular file";
	}
}

static int check_mode(const struct stat *st, const char *name, unsigned flags, struct qcow2_error *err)
{
	if (S_ISREG(st->st_mode) || (S_ISBLK(st->st_mode) && !(flags & QCOW2_STORE_NO_DEVICE)))
		return 0;
	return q2_error_set(err, QCOW2_E_REFUSED, Q2_NO_OFFSET,
			    "Could not open '%s': It is %s, but only %s are opened here", name,
			    what_it_is(st->st_mode),
			    flags & QCOW2_STORE_NO_DEVICE ? "regular files"
							  : "regular files and block devices");
}

/* A device can be set read-only without its node knowing; every write would fail later. */
static int check_device_writable(int fd, const char *name, struct qcow2_error *err)
{
	int read_only = 0;

	if (ioctl(fd, BLKROGET, &read_only))
		return q2_error_os(err, errno, Q2_NO_OFFSET, "Could not open '%s'", name);
	if (read_only)
		return q2_error_os(err, EACCES, Q2_NO_OFFSET, "Could not open '%s': The device is read-only",
				   name);
	return 0;
}

/* Opens, looks at what was opened, locks, truncates. gives: f->fd, which the caller closes also after a
 * failure. */
static int open_file(struct file_store *f, unsigned flags, struct qcow2_error *err)
{
	struct qcow2_store *store = &f->store;
	int mode = (store->writable ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, rc;
	char name[256];
	struct stat st;

	q2_error_escape(name, sizeof name, store->name, strlen(store->name));
	/* Looking first: to open some devices is to act on them. */
	if (!stat(store->name, &st)) {
		if (flags & QCOW2_STORE_EXCLUSIVE)
			return q2_error_os(err, EEXIST, Q2_NO_OFFSET, "Could not create '%s'", name);
		rc = check_mode(&st, name, flags, err);
		if (rc)
			return rc;
	}
	if (flags & QCOW2_STORE_CREATE)
		mode |= O_CREAT;
	if (flags & QCOW2_STORE_EXCLUSIVE)
		mode |= O_EXCL;
	do
		f->fd = open(store->name, mode, 0644);
	while (f->fd < 0 && errno == EINTR);
	if (f->fd < 0)
		return q2_error_os(err, errno, Q2_NO_OFFSET, "Could not %s '%s'",
				   flags & QCOW2_STORE_CREATE ? "create" : "open", name);

	/* It may have been exchanged meanwhile: only this look counts. */
	if (fstat(f->fd, &st))
		return q2_error_os(err, errno, Q2_NO_OFFSET, "Could not open '%s'", name);
	rc = check_mode(&st, name, flags, err);
	if (rc)
		return rc;
	store->is_device = S_ISBLK(st.st_mode);
	store->has_identity = true;
	store->identity[0] = st.st_dev;
	store->identity[1] = st.st_ino;
	/* Two nodes of one device are one device. */
	if (store->is_device) {
		store->identity[0] = UINT64_MAX;
		store->identity[1] = st.st_rdev;
	}
	if (store->is_device && store->writable) {
		rc = check_device_writable(f->fd, name, err);
		if (rc)
			return rc;
	}
	mode = fcntl(f->fd, F_GETFL);
	if (mode < 0 || fcntl(f->fd, F_SETFL, mode & ~O_NONBLOCK))
		return q2_error_os(err, errno, Q2_NO_OFFSET, "Could not open '%s'", name);

	if (!(flags & (QCOW2_STORE_FORCE_SHARE | QCOW2_STORE_UNLOCKED))) {
		rc = q2_lock_take(f->fd, store->name, store->writable, err);
		if (rc)
			return rc;
		f->trusts_holes = !store->writable;
	}
	if (flags & QCOW2_STORE_TRUNCATE && !store->is_device)
		return file_resize(store, 0, err);
	return 0;
}

int qcow2_store_file(const char *path, unsigned flags, struct qcow2_store **out, struct qcow2_error *err)
{
	struct file_store *f;
	int rc;

	if (flags & QCOW2_STORE_CREATE)
		flags |= QCOW2_STORE_WRITE;
	if ((flags & QCOW2_STORE_EXCLUSIVE && !(flags & QCOW2_STORE_CREATE)) ||
	    (flags & QCOW2_STORE_TRUNCATE && !(flags & QCOW2_STORE_WRITE)) ||
	    (flags & QCOW2_STORE_FORCE_SHARE && flags & QCOW2_STORE_WRITE))
		return q2_error_set(err, QCOW2_E_CONFLICT, Q2_NO_OFFSET,
				    "Could not open a file: exclusive needs create, truncate needs write, "
				    "and force-share reads only");
	f = q2_store_new(sizeof *f, &file_ops, path, err);
	if (!f)
		return QCOW2_E_NOMEM;
	f->fd = -1;
	f->store.writable = flags & QCOW2_STORE_WRITE;
	rc = pthread_mutex_init(&f->run_lock, NULL);
	if (rc) {
		q2_store_free(&f->store);
		return q2_error_os(err, rc, Q2_NO_OFFSET, "Could not open a file");
	}
	rc = open_file(f, flags, err);
	if (rc) {
		file_close(&f->store);
		return rc;
	}
	*out = &f->store;
	return 0;
}
