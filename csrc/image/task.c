/* SPDX-License-Identifier: MIT
 * Long changes of one image, done in steps on the caller's thread. */
#include "image/task.h"

#include "base/clock.h"

uint64_t q2_task_deadline(void)
{
	return q2_clock_now() + Q2_STEP_NSEC;
}

bool q2_task_late(uint64_t deadline)
{
	return q2_clock_now() >= deadline;
}

int q2_task_ready(struct qcow2_task *task, int rc, struct qcow2_task **out, struct qcow2_error *err)
{
	if (!rc)
		rc = q2_hold_take(&task->hold, task->image, err);
	if (rc)
		qcow2_task_free(task);
	else
		*out = task;
	return rc;
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
		if (rc <= 0)
			q2_hold_end(&task->hold);
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
	struct q2_hold hold = task->hold;
	task->ops->free(task);
	q2_hold_end(&hold);
	qcow2_image_unref(image);
}
