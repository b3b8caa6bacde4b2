/* Runs the vision encoder's kernels on odd sizes, for a build under sanitizers: every operand is allocated to the
   byte, every variant of this CPU runs, on one thread and on four. Prints the variants' numbers. */

#include "encoder_layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint16_t *halves(long count) { /* float16 of 2^-7 to 0.5 in size */
    uint16_t *made = malloc((size_t)count * sizeof *made);
    for (long i = 0; i < count; i++) {
        made[i] = (uint16_t)(0x2000 + rand() % 0x1800 + (rand() % 2) * 0x8000);
    }
    return made;
}

static float *floats(long count) {
    float *made = malloc((size_t)count * sizeof *made);
    for (long i = 0; i < count; i++) {
        made[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    }
    return made;
}

static void check(const float *x, long count, const char *what) {
    for (long i = 0; i < count; i++) {
        if (!isfinite(x[i])) {
            fprintf(stderr, "%s is not finite at %ld of %ld\n", what, i, count);
            exit(1);
        }
    }
}

static void run(long patches, long dim, long heads, long ffn_dim) {
    const long angles = patches * (dim / heads / 2);
    uint16_t *weights[PIXEDGE_LAYER_WEIGHTS];
    for (int i = 0; i < PIXEDGE_LAYER_WEIGHTS; i++) {
        const int norm = i == PIXEDGE_ATTENTION_NORM || i == PIXEDGE_FFN_NORM;
        weights[i] = halves(norm ? dim : i >= PIXEDGE_GATE ? dim * ffn_dim : dim * dim);
    }
    float *x = floats(patches * dim), *cos = floats(angles), *sin = floats(angles), *out = floats(patches * dim);
    struct pixedge_encoder_layer *layer =
        pixedge_encoder_layer_new(dim, heads, ffn_dim, 1e-5f, (const uint16_t *const *)weights);
    pixedge_encoder_layer_run(layer, x, cos, sin, patches, out);
    check(out, patches * dim, "a layer");
    pixedge_encoder_layer_run(layer, x, cos, sin, patches, x);
    check(x, patches * dim, "a layer over its input");
    pixedge_encoder_layer_free(layer);

    float *q = floats(patches * dim), *k = floats(patches * dim), *v = floats(patches * dim);
    pixedge_encoder_attention(q, k, v, cos, sin, heads, dim / heads, patches, out);
    check(out, patches * dim, "attention");

    uint16_t *bias = halves(ffn_dim);
    float *y = floats(patches * ffn_dim);
    for (int gelu = 0; gelu < 2; gelu++) {
        struct pixedge_encoder_linear *linear =
            pixedge_encoder_linear_new(dim, ffn_dim, gelu, weights[PIXEDGE_GATE], gelu ? bias : NULL);
        pixedge_encoder_linear_run(linear, x, patches, y);
        check(y, patches * ffn_dim, "a linear");
        pixedge_encoder_linear_free(linear);
    }
    for (int i = 0; i < PIXEDGE_LAYER_WEIGHTS; i++) {
        free(weights[i]);
    }
    float *all[] = {x, cos, sin, out, q, k, v, y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
    free(bias);
}

int main(void) {
    static const long shapes[][4] = {/* patches, dim, heads, ffn_dim */
                                     {1, 32, 2, 48},   {33, 64, 4, 96}, {17, 40, 2, 70},  {300, 132, 3, 33},
                                     {1, 2, 1, 1},     {64, 256, 2, 31}, {257, 128, 1, 65}};
    for (int variant = pixedge_vision_best(); variant > PIXEDGE_VISION_NONE; variant--) {
        pixedge_vision_use(variant);
        for (int threads = 1; threads <= 4; threads += 3) {
            pixedge_set_threads(threads);
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
                run(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3]);
            }
        }
        printf("%d\n", variant);
    }
    return 0;
}
