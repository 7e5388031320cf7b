/* SPDX-License-Identifier: MIT
 * Feeds files to a fuzz target without a fuzzer: `target FILE...`; the specs replay the corpora with it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A file in memory of just its size, so that a sanitizer sees every byte read past it. */
static int feed(const char *path)
{
	FILE *file = fopen(path, "rb");
	long length = -1;
	int rc = -1;

	if (file && fseek(file, 0, SEEK_END) == 0)
		length = ftell(file);
	uint8_t *bytes = length >= 0 ? malloc(length ? (size_t)length : 1) : NULL;
	if (bytes) {
		rewind(file);
		if (fread(bytes, 1, (size_t)length, file) == (size_t)length)
			rc = 0;
	}
	if (file)
		fclose(file);
	if (rc == 0)
		LLVMFuzzerTestOneInput(bytes, (size_t)length);
	else
		perror(path);
	free(bytes);
	return rc;
}

int main(int argc, char **argv)
{
	int failed = 0;

	for (int i = 1; i < argc; i++)
		failed |= feed(argv[i]);
	printf("%d replayed\n", argc - 1);
	return failed ? 1 : 0;
}
