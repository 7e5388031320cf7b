/* SPDX-License-Identifier: MIT
 * The library's one public header: qcow2 disk images as C objects.
 *
 * The parts stand below in the order one meets them; include this file, not the parts.
 *
 * Rules for every function here
 *   - 0 or a negative QCOW2_E_*; the last parameter receives the record of the failure and may be
 *     NULL. Out parameters are untouched on failure unless said otherwise.
 *   - Offsets and lengths are bytes in uint64_t unless a name says clusters, sectors or entries.
 *   - Structs of options begin with their own size: begin with QCOW2_..._OPTIONS_INIT, then set members. So programs that
 *     know fewer members than the library go on working; `range` when the size was not set.
 *   - No globals, no printing, no callbacks. One image belongs to one thread at a time; stores
 *     may be read and written from several.
 *   - The library never opens a file that an image names: it reports the name, the caller opens
 *     and attaches.
 */
#ifndef QCOW2_H
#define QCOW2_H

#define QCOW2_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

#include "qcow2/error.h"
#include "qcow2/store.h"
#include "qcow2/image.h"
#include "qcow2/table.h"
#include "qcow2/create.h"
#include "qcow2/write.h"
#include "qcow2/job.h"
#include "qcow2/check.h"
#include "qcow2/amend.h"

#ifdef __cplusplus
}
#endif

#endif
