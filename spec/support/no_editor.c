/* SPDX-License-Identifier: MIT
 * A shared object to load before the program: no library for editing lines can be loaded. */
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

typedef void *open_library(const char *, int);

void *dlopen(const char *name, int flags)
{
	union {
		void *symbol;
		open_library *function;
	} real = {.symbol = dlsym(RTLD_NEXT, "dlopen")};
	if (name && (strstr(name, "readline") || strstr(name, "libedit")))
		return NULL;
	return real.function(name, flags);
}
