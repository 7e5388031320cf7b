/* SPDX-License-Identifier: MIT
 * Long changes of one image, done in steps on the caller's thread. */
#ifndef Q2_IMAGE_TASK_H
#define Q2_IMAGE_TASK_H

#include "image/image.h"

struct q2_task_ops {
	/* Works for a while; counts task->done up. gives: 1 when there is more, 0 when all is done. */
	int (*step)(struct qcow2_task *task, struct qcow2_error *err);
	/* Frees what the kind added and the struct itself. */
	void (*free)(struct qcow2_task *task);
};

/* Every kind of task begins with this. */
struct qcow2_task {
	const struct q2_task_ops *ops;
	struct qcow2_image *image; /* a reference */
	uint64_t done, total;      /* units of the kind's choice */
	bool over;                 /* the last step answered 0 */
	struct qcow2_error failure;
};

/* A step ends soon after `deadline` has passed. */
uint64_t q2_task_deadline(void);
bool q2_task_late(uint64_t deadline);

#endif
