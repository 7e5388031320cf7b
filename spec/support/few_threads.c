/* SPDX-License-Identifier: MIT
 * A shared object to load before a program: the system gives it Q2_FEW_THREADS threads and no more, as with a limit of
 * processes on a user or a container. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef int create_thread(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
		   void *argument)
{
	static atomic_int given;
	const char *most = getenv("Q2_FEW_THREADS");
	union {
		void *symbol;
		create_thread *function;
	} real = {.symbol = dlsym(RTLD_NEXT, "pthread_create")};
	if (atomic_fetch_add(&given, 1) >= (most ? atoi(most) : 0))
		return EAGAIN;
	return real.function(thread, attributes, start, argument);
}
