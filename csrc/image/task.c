/* SPDX-License-Identifier: MIT
 * Long changes of one image, done in steps on the caller's thread. */
#include "image/task.h"

#include "base/host.h"

uint64_t q2_task_deadline(void)
{
	return q2_host_now() + Q2_STEP_NSEC;
}

bool q2_task_late(uint64_t deadline)
{
	return q2_host_now() >= deadline;
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
