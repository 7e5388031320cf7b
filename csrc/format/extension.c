/* SPDX-License-Identifier: MIT
 * Header extensions: type, length, data, padding to 8. */
#include "base/addr.h"
#include "base/be.h"
#include "format/header.h"

#include <inttypes.h>

int q2_extension_next(const uint8_t *bytes, uint32_t end, uint32_t *pos, struct q2_extension *ext,
		      struct qcow2_error *err)
{
	if (*pos >= end || end - *pos < 8)
		return 0;
	uint32_t at = *pos;
	*ext = (struct q2_extension){.type = q2_load32(bytes + at),
				     .length = q2_load32(bytes + at + 4),
				     .offset = at + 8};
	if (ext->type == Q2_EXT_END)
		return 0;
	if (ext->length > end - ext->offset)
		return q2_error_set(err, QCOW2_E_CORRUPT, at,
				    "Header extension %#" PRIx32 " at offset %#" PRIx32 " of %" PRIu32
				    " bytes runs past the header's end",
				    ext->type, at, ext->length);
	/* The padding of the last one may be cut off by the end. */
	*pos = (uint32_t)q2_min(end, ext->offset + q2_round_up(ext->length, 8));
	return 1;
}

const char *q2_extension_word(uint32_t type)
{
	switch (type) {
#define EXTENSION(number, NAME, word) \
	case (number):                \
		return word;
#include "format/extensions.def"
#undef EXTENSION
	}
	return "unknown";
}

int q2_extension_bitmaps(const uint8_t *data, uint32_t length, struct q2_bitmaps_ext *out,
			 struct qcow2_error *err)
{
	if (length != 24)
		return q2_error_set(err, QCOW2_E_CORRUPT, Q2_NO_OFFSET,
				    "Bitmaps extension has %" PRIu32 " bytes instead of 24", length);
	*out = (struct q2_bitmaps_ext){.count = q2_load32(data),
				       .reserved = q2_load32(data + 4),
				       .directory_size = q2_load64(data + 8),
				       .directory_offset = q2_load64(data + 16)};
	return 0;
}
