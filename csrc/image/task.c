/* SPDX-License-Identifier: MIT
 * Long changes of one image, done in steps on the caller's thread. */
#include "image/task.h"

#include <time.h>

/* How long a step takes, about: often enough for a progress display. */
#define STEP_NSEC 100000000u

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t q2_task_deadline(void)
{
	return now() + STEP_NSEC;
}

bool q2_task_late(uint64_t deadline)
{
	return now() >= deadline;
}

int qcow2_task_step(struct qcow2_task *task, uint64_t *done, uint64_t *total, struct qcow2_error *err)
{
	if (!task->over && !task->failure.code) {
		struct qcow2_error own = {0};
		int rc = task->ops->step(task, &own);
		if (rc < 0) {
			q2_image_blame(task->image, rc, &own);
			task->failure = own;
		}
		task->over = !rc;
	}
	if (task->failure.code) {
		if (err)
			*err = task->failure;
		return task->failure.code;
	}
	*done = task->over ? task->total : task->done;
	*total = task->total;
	return !task->over;
}

void qcow2_task_free(struct qcow2_task *task)
{
	if (!task)
		return;
	struct qcow2_image *image = task->image;
	task->ops->free(task);
	qcow2_image_unref(image);
}
