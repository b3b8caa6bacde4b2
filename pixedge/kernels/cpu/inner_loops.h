/* Inner loops in plain C, compiled once for each kind of CPU: TARGET names the instructions that the compiler
   may use. Sums run in 16 lanes, so that it can use vectors without changing their order. */

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels.h"

#ifndef TARGET
#define TARGET
#endif
#define LANES 16

/* Adding and taking away 1.5 * 2^23 rounds to the nearest even integer, which then lies in the low bits. */
#define ROUNDER 12582912.0f
#define ROUNDER_BITS 0x4b400000

TARGET static inline int32_t nearest(float x) {
    union { float value; int32_t bits; } out = {x + ROUNDER};
    return out.bits - ROUNDER_BITS;
}

/* exp(x) for x <= 88, and 0 below -87: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], within 2 units. */
TARGET static inline float exponential(float x) {
    float inside = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = inside * 1.44269504f + ROUNDER;
    float n = shifted - ROUNDER;
    float r = inside - n * 0.693145752f - n * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union { int32_t bits; float value; } power;
    union { float value; int32_t bits; } number = {shifted};
    power.bits = (int32_t)((uint32_t)(number.bits - ROUNDER_BITS + 127) << 23);
    return x < -87.0f ? 0.0f : p * power.value + (x - x); /* x - x: NaN stays NaN */
}

TARGET static float largest(const float *x, int64_t n) {
    float most[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            float size = fabsf(x[i + j]);
            most[j] = size > most[j] ? size : most[j];
        }
    }
    for (int j = 0; i < n; i++, j++) {
        most[j] = fabsf(x[i]) > most[j] ? fabsf(x[i]) : most[j];
    }
    for (int j = 1; j < LANES; j++) {
        most[0] = most[j] > most[0] ? most[j] : most[0];
    }
    return most[0];
}

/* 0, or NaN where a number is infinite or none: rounding to integers would hide it. */
TARGET static float poison(const float *x, int64_t n) {
    float found[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            found[j] += x[i + j] * 0.0f;
        }
    }
    for (; i < n; i++) {
        found[0] += x[i] * 0.0f;
    }
    for (int j = 1; j < LANES; j++) {
        found[0] += found[j];
    }
    return found[0];
}

TARGET static void round_row(const float *x, struct bytes_rows *to, int row, int64_t first, int64_t last) {
    for (int64_t g = first; g < last; g++) {
        const float *group = x + (g - first) * to->group;
        float most = largest(group, to->group);
        float inverse = most > 0 ? 127.0f / most : 0.0f;
        inverse = inverse <= 3e38f ? inverse : 0.0f; /* a group that is nearly 0 becomes 0 */
        int8_t whole[MOST_GROUP], *q = to->q + (g * to->group / 8 * to->rows + row) * 8;
        for (int64_t i = 0; i < to->group; i++) {
            whole[i] = (int8_t)nearest(group[i] * inverse);
        }
        int32_t sum = 0;
        for (int64_t i = 0; i < to->group; i++) {
            sum += whole[i];
        }
        for (int64_t i = 0; i < to->group; i += 8, q += 8 * to->rows) {
            memcpy(q, whole + i, 8);
        }
        to->scales[g * to->rows + row] = (inverse > 0 ? most / 127.0f : 0.0f) + poison(group, to->group);
        to->sums[g * to->rows + row] = sum;
    }
}

TARGET static void rms_norm(const float *x, const float *weight, float eps, int64_t n, float *y) {
    float sums[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            sums[j] += x[i + j] * x[i + j];
        }
    }
    double sum = 0;
    for (; i < n; i++) {
        sum += x[i] * x[i];
    }
    for (int j = 0; j < LANES; j++) {
        sum += sums[j];
    }
    float factor = (float)(1.0 / sqrt(sum / (double)n + eps));
    for (i = 0; i < n; i++) {
        y[i] = x[i] * factor * weight[i];
    }
}

TARGET static void gated(const float *gate, const float *up, int64_t n, float *y) {
    for (int64_t i = 0; i < n; i++) {
        y[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    }
}

TARGET static void rotate(const float *x, const float *cos, const float *sin, int64_t head_dim, float factor, float *y) {
    int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i] * factor, second = x[half + i] * factor;
        y[i] = first * cos[i] - second * sin[i];
        y[half + i] = second * cos[i] + first * sin[i];
    }
}

TARGET static void widen(const uint16_t *x, int64_t n, float *y) {
    for (int64_t i = 0; i < n; i++) {
        y[i] = bfloat_to_float(x[i]);
    }
}

TARGET static void narrow(const float *x, int64_t n, uint16_t *y) {
    for (int64_t i = 0; i < n; i++) {
        union { float value; uint32_t bits; } in = {x[i]};
        uint32_t rounded = (in.bits + 0x7fff + (in.bits >> 16 & 1)) >> 16;
        y[i] = (uint16_t)((in.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
    }
}

/* To the nearest even float16, for numbers that are not negative; too large ones become infinite. */
TARGET static inline uint16_t float_to_half(float x) {
    union { float value; uint32_t bits; } in = {x};
    if (!(x < 65520.0f)) {
        return x == x ? 0x7c00 : 0x7e00;
    }
    if (x < 0x1p-14f) { /* subnormal: units of 2^-24 */
        return (uint16_t)nearest(x * 0x1p24f);
    }
    uint32_t rounded = in.bits + 0xfff + (in.bits >> 13 & 1);
    return (uint16_t)((rounded - 0x38000000) >> 13);
}

TARGET static void round_head(const float *x, int64_t head_dim, int8_t *q, uint16_t *scale) {
    uint16_t half = float_to_half(largest(x, head_dim) / 127.0f + poison(x, head_dim));
    float rounded = half_to_float(half);
    float inverse = rounded > 0 && rounded <= 65504.0f ? 1.0f / rounded : 0.0f;
    for (int64_t i = 0; i < head_dim; i++) {
        float value = x[i] * inverse;
        value = value > 127.0f ? 127.0f : value < -127.0f ? -127.0f : value;
        q[i] = (int8_t)nearest(value);
    }
    *scale = half;
}

TARGET static void round_query(const float *x, int64_t head_dim, int16_t *q, float *scale) {
    float most = largest(x, head_dim);
    float inverse = most > 1e-30f ? 32767.0f / most : 0.0f;
    for (int64_t i = 0; i < head_dim; i++) {
        q[i] = (int16_t)nearest(x[i] * inverse);
    }
    *scale = most / 32767.0f + poison(x, head_dim);
}

/* Word k of an input octet holds nibbles 0 to 7 of one output; low four and high four are interleaved. */
TARGET static void repack(const uint32_t *words, int64_t stride, int64_t lines, uint8_t *to) {
    for (int64_t line = 0; line < lines; line++, words += stride, to += LINE) {
        uint32_t out[BLOCK];
        for (int r = 0; r < BLOCK; r++) {
            uint32_t low = words[r] & 0xffff, high = words[r] >> 16;
            low = (low | low << 8) & 0x00ff00ff;
            low = (low | low << 4) & 0x0f0f0f0f;
            high = (high | high << 8) & 0x00ff00ff;
            high = (high | high << 4) & 0x0f0f0f0f;
            out[r] = low | high << 4;
        }
        memcpy(to, out, LINE);
    }
}

TARGET static void round_weights(const uint16_t *row, int half, int64_t n, uint8_t *to, float *scale) {
    float most = 0, wide[4];
    uint16_t narrowed;
    for (int64_t i = 0; row && i < n; i += 4) {
        for (int j = 0; j < 4; j++) {
            wide[j] = fabsf(half ? half_to_float(row[i + j]) : bfloat_to_float(row[i + j]));
            most = wide[j] > most || wide[j] != wide[j] ? wide[j] : most;
        }
    }
    most = most / 127.0f;
    most = most < 0x1p-126f ? 0x1p-126f : most; /* a row of zeros must not divide by 0 */
    narrow(&most, 1, &narrowed);
    *scale = bfloat_to_float(narrowed);
    for (int64_t i = 0; i < n; i += 4, to += LINE) {
        for (int j = 0; j < 4; j++) {
            float value = !row ? 0.0f : half ? half_to_float(row[i + j]) : bfloat_to_float(row[i + j]);
            value /= *scale;
            value = value > 127.0f ? 127.0f : value < -127.0f ? -127.0f : value;
            to[j] = (uint8_t)(nearest(value) + 128);
        }
    }
}

TARGET static void unpack(const struct int4_weight *w, int64_t block, uint16_t *to) {
    const uint8_t *line = w->lines + block * (w->inputs / 8) * LINE;
    int64_t groups = w->inputs / w->group;
    for (int64_t i = 0; i < w->inputs; i += 8, line += LINE) {
        int64_t at = (block * groups + i / w->group) * BLOCK;
        for (int r = 0; r < BLOCK; r++) {
            float scale = half_to_float(w->scales[at + r]);
            int zero = w->zeros ? w->zeros[at + r] : 8;
            float eight[8];
            for (int j = 0; j < 4; j++) {
                eight[j] = (float)((line[4 * r + j] & 15) - zero) * scale;
                eight[4 + j] = (float)((line[4 * r + j] >> 4) - zero) * scale;
            }
            narrow(eight, 8, to + r * w->inputs + i);
        }
    }
}

TARGET static uint64_t read_words(const uint64_t *memory, int64_t n) {
    uint64_t sums[4 * LANES] = {0};
    for (int64_t i = 0; i + 4 * LANES <= n; i += 4 * LANES) {
        for (int j = 0; j < 4 * LANES; j += 8) { /* as far ahead as the products ask for weights */
            __builtin_prefetch(memory + i + 1024 + j, 0, 2);
        }
        for (int j = 0; j < 4 * LANES; j++) {
            sums[j] += memory[i + j];
        }
    }
    for (int j = 1; j < 4 * LANES; j++) {
        sums[0] += sums[j];
    }
    return sums[0];
}
