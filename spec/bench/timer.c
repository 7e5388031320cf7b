/* SPDX-License-Identifier: MIT
 * timer OUT PROGRAM [ARGUMENT ...]: runs a program with its output in OUT and prints one line:
 * wall, user and system seconds, peak resident KiB, exit status.
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

	if (count < 3) {
		fprintf(stderr, "usage: timer OUT PROGRAM [ARGUMENT ...]\n");
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
