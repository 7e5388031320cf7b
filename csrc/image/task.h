/* SPDX-License-Identifier: MIT
 * Long changes of one image, done in steps on the caller's thread. */
#ifndef Q2_IMAGE_TASK_H
#define Q2_IMAGE_TASK_H

#include "image/hold.h"

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
	struct q2_hold hold;       /* of the image, until the last step */
	bool over;                 /* the last step answered 0 */
	struct qcow2_error failure;
};

/* The end of a kind's _new. `rc`: how it went so far. gives: *out with its hold on the image, or the task is freed. */
int q2_task_ready(struct qcow2_task *task, int rc, struct qcow2_task **out, struct qcow2_error *err);

/* A step ends soon after `deadline` has passed. */
uint64_t q2_task_deadline(void);
bool q2_task_late(uint64_t deadline);

#endif
