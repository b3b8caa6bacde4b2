/* Shapes in memory, and the table of inner loops that each kind of CPU fills in its own way. */

#ifndef PIXEDGE_KERNELS_H
#define PIXEDGE_KERNELS_H

#include <stdint.h>

#include "pool.h"

#define MOST_ROWS 16 /* rows that one pass over the weights serves */
#define BLOCK 16     /* outputs that lie side by side in a line */
#define MOST_GROUP 128 /* activations that share a scale */
#define LINE 64      /* bytes */
#define PAGE 16      /* tokens of a page of the KV cache */
#define SPAN 64      /* tokens whose scores are turned into weights together */

/* A weight [outputs, inputs] in 4 bits: (nibble - zero) * scale. A line holds 8 inputs of 16 outputs: byte
   4 r + j has of output r input j in its low nibble and input 4 + j in its high one. */
struct int4_weight {
    const uint8_t *lines;   /* [outputs / 16, inputs / 8, 64] */
    const uint16_t *scales; /* float16 [outputs / 16, inputs / group, 16] */
    const uint8_t *zeros;   /* [outputs / 16, inputs / group, 16]; NULL: 8 everywhere */
    int64_t outputs, inputs, group;
};

/* A weight [outputs, inputs] in signed bytes, stored plus 128: (byte - 128) * scale. A line holds 4 inputs of
   16 outputs, byte 4 r + j input j of output r. Outputs that fill the last block up are zeros. */
struct int8_weight {
    const uint8_t *lines; /* [ceil(outputs / 16), inputs / 4, 64] */
    const float *scales;  /* [16 * ceil(outputs / 16)] */
    int64_t outputs, inputs;
};

/* Rows of activations in signed bytes: x = q * scale, one scale a row and group. The rows lie interleaved. */
struct bytes_rows {
    int8_t *q;      /* [inputs / 8, rows, 8] */
    float *scales;  /* [inputs / group, rows] */
    int32_t *sums;  /* of q, like scales */
    int64_t inputs, group;
    int rows;       /* 1 to MOST_ROWS */
};

/* The queries of one sequence that share a key-value head, and what they have gathered so far. */
struct gathering {
    const float *q;    /* [queries, head_dim], scaled by 1 / sqrt(head_dim) */
    const int16_t *q16; /* the same over its q_scale, for bytes as keys */
    const float *q_scale; /* [queries] */
    float *most;       /* [queries] the largest score */
    float *total;      /* [queries] the sum of exp(score - most) */
    float *sum;        /* [queries, head_dim] the values, weighted so */
    int64_t queries, head_dim;
};

/* Up to SPAN tokens of one key-value head, by pages. */
struct span {
    const void *keys[SPAN / PAGE], *values[SPAN / PAGE];           /* bfloat16 or int8 [16, head_dim] each */
    const uint16_t *key_scales[SPAN / PAGE], *value_scales[SPAN / PAGE]; /* float16 [16]; NULL: bfloat16 */
    int pages;
    const int32_t *seen;     /* [queries] how many of the tokens each query sees */
    const struct span *next; /* what will be read next, to be called for meanwhile; it may have no pages */
};

struct kernels {
    const char *name;
    /* sum[r][o] of output o of a block, for all rows: float [rows, 16] */
    void (*int4_block)(const struct int4_weight *, int64_t block, const struct bytes_rows *, float *sum);
    void (*int8_block)(const struct int8_weight *, int64_t block, const struct bytes_rows *, float *sum);
    /* round groups [first, last) of row `row` to bytes; x begins with the first of them */
    void (*round_row)(const float *x, struct bytes_rows *, int row, int64_t first, int64_t last);
    /* y = x / rms(x) * weight, n numbers */
    void (*rms_norm)(const float *x, const float *weight, float eps, int64_t n, float *y);
    /* y = silu(gate) * up, n numbers */
    void (*gated)(const float *gate, const float *up, int64_t n, float *y);
    /* y = half-split pairs of x [head_dim] turned by cos and sin [head_dim / 2], times `factor` */
    void (*rotate)(const float *x, const float *cos, const float *sin, int64_t head_dim, float factor, float *y);
    void (*widen)(const uint16_t *x, int64_t n, float *y);      /* bfloat16 to float32 */
    void (*narrow)(const float *x, int64_t n, uint16_t *y);     /* and back, to the nearest even */
    /* x [head_dim] to bytes and a float16 scale, largest over 127 */
    void (*round_head)(const float *x, int64_t head_dim, int8_t *q, uint16_t *scale);
    void (*round_query)(const float *x, int64_t head_dim, int16_t *q, float *scale);
    void (*attend)(const struct gathering *, const struct span *);
    /* the GPTQ words of 16 outputs, `stride` words apart by input, to `lines` lines */
    void (*repack)(const uint32_t *words, int64_t stride, int64_t lines, uint8_t *to);
    /* a row of n numbers, bfloat16 or float16 (half) or zeros (NULL), to bytes plus 128, four every LINE bytes */
    void (*round_weights)(const uint16_t *row, int half, int64_t n, uint8_t *to, float *scale);
    /* outputs of a block as bfloat16 [16, inputs] */
    void (*unpack)(const struct int4_weight *, int64_t block, uint16_t *to);
    /* the sum of n numbers: reads them, and does as little else as it can */
    uint64_t (*read)(const uint64_t *memory, int64_t n);
};

extern const struct kernels pixedge_plain;
#if defined(__x86_64__)
extern const struct kernels pixedge_avx2, pixedge_avx512;
#elif defined(__aarch64__)
extern const struct kernels pixedge_neon;
#endif

/* The table in use. */
extern const struct kernels *pixedge_kernels;

/* Use the variant of this name, or the best one for NULL. Return 0, or 1 where this CPU lacks it. */
PIXEDGE_API int pixedge_choose(const char *name);

/* The name of the variant in use. */
PIXEDGE_API const char *pixedge_chosen(void);

/* Inputs that share a scale of the activations, for a weight in groups of `group`: at most 128, a divisor of
   the group, a multiple of 8; 0 where there is none. */
int64_t pixedge_rounding_group(int64_t group);

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    union { uint32_t bits; float value; } out;
    if (rest >= 0x7c00) { /* infinite, NaN */
        out.bits = rest << 13 | 0x7f800000;
    } else { /* exact for subnormal numbers too: the product rescales the exponent */
        out.bits = rest << 13;
        out.value *= 0x1p112f;
    }
    out.bits |= sign;
    return out.value;
}

static inline float bfloat_to_float(uint16_t x) {
    union { uint32_t bits; float value; } out = {(uint32_t)x << 16};
    return out.value;
}

#endif
