/* SPDX-License-Identifier: MIT
 * pread FILE BYTES COUNT [LENGTH]: reads COUNT times LENGTH (4096) bytes at random multiples of LENGTH below
 * BYTES and prints how many reads a second that was: what the host gives at most.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec value;

	clock_gettime(CLOCK_MONOTONIC, &value);
	return (double)value.tv_sec + (double)value.tv_nsec / 1e9;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

int main(int count, char **words)
{
	uint64_t state = 88172645463325252ull, places, reads, i;
	size_t length = 4096;
	double begin;
	char *buf;
	int descriptor;

	if (count < 4) {
		fprintf(stderr, "usage: pread FILE BYTES COUNT [LENGTH]\n");
		return 2;
	}
	if (count > 4)
		length = strtoul(words[4], NULL, 10);
	places = length ? strtoull(words[2], NULL, 10) / length : 0;
	reads = strtoull(words[3], NULL, 10);
	descriptor = open(words[1], O_RDONLY);
	buf = malloc(length ? length : 1);
	if (descriptor < 0 || !buf || !places) {
		fprintf(stderr, "pread: %s: %s\n", words[1], strerror(errno));
		return 1;
	}
	begin = now();
	for (i = 0; i < reads; i++) {
		uint64_t place = next_random(&state) % places;

		if (pread(descriptor, buf, length, (off_t)(place * length)) != (ssize_t)length) {
			fprintf(stderr, "pread: %s: %s\n", words[1], strerror(errno));
			return 1;
		}
	}
	printf("%.0f\n", (double)reads / (now() - begin));
	free(buf);
	close(descriptor);
	return 0;
}
