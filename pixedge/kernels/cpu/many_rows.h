/* Products of many rows of activations with a 4-bit weight: what prompts run on. */
#ifndef PIXEDGE_MANY_ROWS_H
#define PIXEDGE_MANY_ROWS_H

#include <stdint.h>

#include "pool.h"

/* y [rows, out] = x [rows, in] W^T, x and y bfloat16, in contiguous rows, on all threads of the pool.
 *
 * W[o, i] = scales[o, i / group] * (q[o, i] - zeros[o, i / group]), rounded to bfloat16; sums are float32.
 * weight uint8 [out / 16, in / 8, 64]: the byte 4 r + j of a line of 64 holds, for output r of its block, the line's
 * input j in the low nibble and its input 4 + j in the high one. scales float16 [out / 16, in / group, 16]. zeros uint8
 * in the same shape, or null for 8 everywhere. weight is 64-byte aligned; out is a multiple of 16, group of 8, in of
 * group. Returns 0, or non-zero with y untouched where this CPU has no fast path or memory is short: the caller falls
 * back then. */
PIXEDGE_API int pixedge_int4_many_rows(const uint16_t *x, long rows, long in, const uint8_t *weight,
                                       const uint16_t *scales, const uint8_t *zeros, long out, long group,
                                       uint16_t *y);

/* The same, added to residual [rows, out] before rounding; y may be the residual itself. */
PIXEDGE_API int pixedge_int4_many_rows_onto(const uint16_t *x, long rows, long in, const uint8_t *weight,
                                            const uint16_t *scales, const uint8_t *zeros, long out, long group,
                                            const uint16_t *residual, uint16_t *y);

#endif
