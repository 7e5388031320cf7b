/* SPDX-License-Identifier: MIT
 * timer [-w FILE]... OUT PROGRAM [ARGUMENT ...]: runs a program with its output in OUT and prints one line:
 * wall, user and system seconds, peak resident KiB, exit status. Each FILE's data is read before, so that the
 * page cache has it: some hosts take back within seconds what nobody looks at.
 *
 * A program of its own because only the parent that waits can tell one child's peak, and a small one because
 * a child's peak begins with what it was forked from.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval value)
{
	return (double)value.tv_sec + (double)value.tv_usec / 1e6;
}

static double now(void)
{
	struct timespec value;

	clock_gettime(CLOCK_MONOTONIC, &value);
	return (double)value.tv_sec + (double)value.tv_nsec / 1e9;
}

static int warm(const char *path)
{
	static char buf[1 << 16];
	int descriptor = open(path, O_RDONLY);
	off_t start = 0, end;
	ssize_t got = 0;

	if (descriptor < 0)
		return -1;
	/* Data alone: a hole of terabytes is no work. */
	while (got >= 0 && (start = lseek(descriptor, start, SEEK_DATA)) >= 0) {
		end = lseek(descriptor, start, SEEK_HOLE);
		while (start < end && (got = pread(descriptor, buf, sizeof buf, start)) > 0)
			start += got;
	}
	/* Past the last data lseek says ENXIO. */
	if (got >= 0 && errno == ENXIO)
		got = 0;
	close(descriptor);
	return got < 0 ? -1 : 0;
}

static void become(const char *out, char **words)
{
	int descriptor = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666);

	if (descriptor < 0 || dup2(descriptor, STDOUT_FILENO) < 0)
		fprintf(stderr, "timer: %s: %s\n", out, strerror(errno));
	else if (execvp(words[0], words) < 0)
		fprintf(stderr, "timer: %s: %s\n", words[0], strerror(errno));
	_exit(127);
}

int main(int count, char **words)
{
	struct rusage usage;
	double begin, wall;
	int status;
	pid_t child;

	for (; count > 2 && strcmp(words[1], "-w") == 0; words += 2, count -= 2)
		if (warm(words[2])) {
			fprintf(stderr, "timer: %s: %s\n", words[2], strerror(errno));
			return 2;
		}
	if (count < 3) {
		fprintf(stderr, "usage: timer [-w FILE]... OUT PROGRAM [ARGUMENT ...]\n");
		return 2;
	}
	begin = now();
	child = fork();
	if (child == 0)
		become(words[1], words + 2);
	if (child < 0 || wait4(child, &status, 0, &usage) != child) {
		fprintf(stderr, "timer: %s\n", strerror(errno));
		return 2;
	}
	wall = now() - begin;
	printf("%.6f %.6f %.6f %ld %d\n", wall, seconds(usage.ru_utime), seconds(usage.ru_stime),
	       usage.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	return 0;
}
