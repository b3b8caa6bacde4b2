/* For Arm CPUs with 8-bit dot products (Armv8.2 and later). */

#if defined(__aarch64__)
#include <arm_neon.h>

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define ALWAYS TARGET __attribute__((always_inline)) static inline
#include "inner_loops.h"
#include "attend_plain.h"
#include "table.h"

#define AHEAD 1024
#define QUARTERS 4 /* of a line: 16 bytes, four outputs */

ALWAYS int8x16_t four_inputs(const int8_t *q) {
    int32_t word;
    memcpy(&word, q, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

/* Two rows at a time: 16 registers of sums would leave none for more. */
ALWAYS void int4_group(const uint8_t *line, int64_t lines, const int8_t *q, int64_t stride, const int rows,
                       int32x4_t dot[2][QUARTERS]) {
    const uint8x16_t low_nibbles = vdupq_n_u8(15);
    for (int64_t i = 0; i < lines; i++, line += LINE, q += stride) {
        __builtin_prefetch(line + AHEAD);
        for (int part = 0; part < QUARTERS; part++) {
            const uint8x16_t both = vld1q_u8(line + 16 * part);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, low_nibbles));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            for (int r = 0; r < rows; r++) {
                dot[r][part] = vdotq_s32(dot[r][part], low, four_inputs(q + 8 * r));
                dot[r][part] = vdotq_s32(dot[r][part], high, four_inputs(q + 8 * r + 4));
            }
        }
    }
}

ALWAYS void int8_group(const uint8_t *line, int64_t pairs, const int8_t *q, int64_t stride, const int rows,
                       int32x4_t dot[2][QUARTERS]) {
    const uint8x16_t offset = vdupq_n_u8(0x80);
    for (int64_t i = 0; i < 2 * pairs; i++, line += LINE, q += i % 2 ? 4 : stride - 4) {
        __builtin_prefetch(line + AHEAD);
        for (int part = 0; part < QUARTERS; part++) {
            const int8x16_t w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(line + 16 * part), offset));
            for (int r = 0; r < rows; r++) {
                dot[r][part] = vdotq_s32(dot[r][part], w, four_inputs(q + 8 * r));
            }
        }
    }
}

TARGET static void int4_block(const struct int4_weight *w, int64_t block, const struct bytes_rows *x, float *sum) {
    const uint8_t *line = w->lines + block * (w->inputs / 8) * LINE;
    const int64_t lines = x->group / 8, scale_groups = w->inputs / w->group, stride = 8 * x->rows;
    memset(sum, 0, sizeof(float) * BLOCK * (size_t)x->rows);
    for (int64_t g = 0; g < x->inputs / x->group; g++, line += lines * LINE) {
        const int64_t at = (block * scale_groups + g * x->group / w->group) * BLOCK;
        for (int row = 0; row < x->rows; row += 2) {
            const int8_t *q = x->q + g * lines * stride + 8 * row;
            const int rows = row + 1 < x->rows ? 2 : 1;
            int32x4_t dot[2][QUARTERS];
            for (int part = 0; part < QUARTERS; part++) {
                dot[0][part] = dot[1][part] = vdupq_n_s32(0);
            }
            if (rows == 2) {
                int4_group(line, lines, q, stride, 2, dot);
            } else {
                int4_group(line, lines, q, stride, 1, dot);
            }
            for (int r = 0; r < rows; r++) {
                const float x_scale = x->scales[g * x->rows + row + r];
                const int32_t total = x->sums[g * x->rows + row + r];
                int32_t whole[BLOCK];
                for (int part = 0; part < QUARTERS; part++) {
                    vst1q_s32(whole + 4 * part, dot[r][part]);
                }
                float *to = sum + (row + r) * BLOCK;
                for (int o = 0; o < BLOCK; o++) {
                    int32_t zero = w->zeros ? w->zeros[at + o] : 8;
                    to[o] += (float)(whole[o] - zero * total) * (half_to_float(w->scales[at + o]) * x_scale);
                }
            }
        }
    }
}

TARGET static void int8_block(const struct int8_weight *w, int64_t block, const struct bytes_rows *x, float *sum) {
    const uint8_t *line = w->lines + block * (w->inputs / 4) * LINE;
    const int64_t pairs = x->group / 8, stride = 8 * x->rows;
    memset(sum, 0, sizeof(float) * BLOCK * (size_t)x->rows);
    for (int64_t g = 0; g < x->inputs / x->group; g++, line += 2 * pairs * LINE) {
        for (int row = 0; row < x->rows; row += 2) {
            const int8_t *q = x->q + g * pairs * stride + 8 * row;
            const int rows = row + 1 < x->rows ? 2 : 1;
            int32x4_t dot[2][QUARTERS];
            for (int part = 0; part < QUARTERS; part++) {
                dot[0][part] = dot[1][part] = vdupq_n_s32(0);
            }
            if (rows == 2) {
                int8_group(line, pairs, q, stride, 2, dot);
            } else {
                int8_group(line, pairs, q, stride, 1, dot);
            }
            for (int r = 0; r < rows; r++) {
                const float32x4_t x_scale = vdupq_n_f32(x->scales[g * x->rows + row + r]);
                for (int part = 0; part < QUARTERS; part++) {
                    float *to = sum + (row + r) * BLOCK + 4 * part;
                    float32x4_t scale = vmulq_f32(vld1q_f32(w->scales + block * BLOCK + 4 * part), x_scale);
                    vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(dot[r][part]), scale));
                }
            }
        }
    }
}

TABLE(pixedge_neon, "neon", round_row, attend);
#else
typedef int pixedge_no_neon; /* a file must not be empty */
#endif
