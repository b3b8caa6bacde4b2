/* What lies between the products of a prompt, row by row, on all threads of the pool; bfloat16 in and out, float32
 * inside. Each returns 0, or non-zero with nothing written where this CPU has no AVX-512 with bfloat16. */
#ifndef PIXEDGE_PROMPT_ROWS_H
#define PIXEDGE_PROMPT_ROWS_H

#include <stdint.h>

#include "pool.h"

/* y [rows, dim] = x / sqrt(mean(x^2) + eps) * weight; weight float32 [dim]. */
PIXEDGE_API int pixedge_norm_rows(const uint16_t *x, const float *weight, float eps, long rows, long dim, uint16_t *y);

/* Turn x [tokens, heads, head_dim] in place: channels j and j + head_dim / 2 by cos and sin float32
 * [tokens, head_dim / 2]. */
PIXEDGE_API int pixedge_turn_rows(uint16_t *x, long tokens, long heads, long head_dim, const float *cos,
                                  const float *sin);

/* gate [rows, width] becomes gate / (1 + exp(-gate)) * up. */
PIXEDGE_API int pixedge_gate_rows(uint16_t *gate, const uint16_t *up, long rows, long width);

#endif
