/* Steps on a block of 32 rows around a product: packing them, and putting a product's result where it belongs. */

#ifndef PIXEDGE_ROWS_H
#define PIXEDGE_ROWS_H

#include "matrix.h"

/* Widen float16 weights [count] to float32. */
void pixedge_widen(const uint16_t *from, long count, float *to);

/* Round `rows` rows x float32 [rows, width] to bfloat16 as one A block; missing rows and columns are zero. With
   `weight` float32 [width], rows are RMS-normalised first: x / sqrt(mean(x^2) + eps) * weight. */
void pixedge_pack_rows(const float *x, long rows, long width, const float *weight, float eps, char *to);

/* Copy a product's block c to rows of 32 floats, `stride` floats apart. */
void pixedge_spread(const float *c, float *to, long stride);

/* to = from + c for rows x columns of a block; to and from float32, rows `stride` apart, may be the same. */
void pixedge_add_block(const float *c, long rows, long columns, const float *from, float *to, long stride);

/* silu(gate) * up, rounded to bfloat16, as one step of an A block. */
void pixedge_gate_block(const float *gate, const float *up, char *to);

/* to = c + bias for rows x columns of a block; bias float32 [columns]; with `gelu` x * Phi(x) of that. */
void pixedge_bias_block(const float *c, long rows, long columns, const float *bias, int gelu, float *to, long stride);

#endif
