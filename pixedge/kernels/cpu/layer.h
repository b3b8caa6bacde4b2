/* A decoder layer for a few tokens as one task. */

#ifndef PIXEDGE_LAYER_H
#define PIXEDGE_LAYER_H

#include "attention.h"
#include "products.h"

/* The structures here and in attention.h and kernels.h are mirrored by compiled.py. */
struct layer {
    struct int4_weight q, k, v, o, gate, up, down;
    const float *input_norm, *post_norm; /* [dim] */
    int64_t dim, heads, kv_heads, head_dim, ffn;
    double eps;
};

/* Decide how the step's attention is cut, and return the bytes of scratch memory that its layers need. */
PIXEDGE_API int64_t pixedge_step_bytes(const struct layer *layer, struct step *step);

/* y [rows, dim] = layer number `index` over x [rows, dim], bfloat16; the cache gets the step's keys and values.
   step->scratch has pixedge_step_bytes bytes. x and y may be the same. */
PIXEDGE_API void pixedge_layer(const struct layer *layer, const struct step *step, int64_t index, const uint16_t *x,
                               uint16_t *y);

#endif
