/* SPDX-License-Identifier: MIT
 * A job's hold on its images: until it ends nobody else looks at them, since its threads may (SAFETY rule 17). */
#ifndef Q2_IMAGE_HOLD_H
#define Q2_IMAGE_HOLD_H

#include "image/image.h"

struct q2_hold {
	struct q2_vec images; /* struct qcow2_image *, a reference each */
};

/* Holds the image and every layer below it. What this hold has already it has once. fails: `conflict` when another
 * job holds one of them; then those taken before stay held. */
int q2_hold_take(struct q2_hold *hold, struct qcow2_image *image, struct qcow2_error *err);

/* Lets go of all. A hold that has nothing is fine. */
void q2_hold_end(struct q2_hold *hold);

#endif
