/* A layer of the vision encoder over one picture: norm, attention with rotary positions, norm, gated feed-forward,
   both added to a float32 residual stream. And a linear, for what comes before and after the layers.

   Products are bfloat16 with float32 sums; norms, rotary, softmax, SiLU and the residual stream are float32. */

#ifndef PIXEDGE_ENCODER_LAYER_H
#define PIXEDGE_ENCODER_LAYER_H

#include "attention.h"

enum pixedge_encoder_layer_weight { /* float16, as stored: norms [dim], matrices [out, in] */
    PIXEDGE_ATTENTION_NORM,
    PIXEDGE_QUERY,
    PIXEDGE_KEY,
    PIXEDGE_VALUE,
    PIXEDGE_OUT,
    PIXEDGE_FFN_NORM,
    PIXEDGE_GATE,
    PIXEDGE_UP,
    PIXEDGE_DOWN,
    PIXEDGE_LAYER_WEIGHTS
};

struct pixedge_encoder_layer;

/* Pack a layer's weights. NULL where memory ran out. heads divides dim; dim / heads is even and at most 128. */
PIXEDGE_API struct pixedge_encoder_layer *pixedge_encoder_layer_new(long dim, long heads, long ffn_dim, float eps,
                                                    const uint16_t *const weights[PIXEDGE_LAYER_WEIGHTS]);
PIXEDGE_API void pixedge_encoder_layer_free(struct pixedge_encoder_layer *layer);

/* x, out float32 [patches, dim], which may be the same; cos, sin float32 [patches, dim / heads / 2].
   0, or -1 where memory ran out. */
PIXEDGE_API int pixedge_encoder_layer_run(const struct pixedge_encoder_layer *layer, const float *x, const float *cos,
                                  const float *sin, long patches, float *out);

struct pixedge_encoder_linear;

/* weight float16 [out, in], bias float16 [out] or NULL; with `gelu`, x * Phi(x) of the result is given. */
PIXEDGE_API struct pixedge_encoder_linear *pixedge_encoder_linear_new(long in, long out, int gelu,
                                                                    const uint16_t *weight, const uint16_t *bias);
PIXEDGE_API void pixedge_encoder_linear_free(struct pixedge_encoder_linear *linear);

/* x float32 [rows, in], out float32 [rows, out]. 0, or -1 where memory ran out. */
PIXEDGE_API int pixedge_encoder_linear_run(const struct pixedge_encoder_linear *linear, const float *x, long rows,
                                          float *out);

#endif
