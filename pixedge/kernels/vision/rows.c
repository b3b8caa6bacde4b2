#include "rows.h"

#ifdef PIXEDGE_VISION

#include <immintrin.h>
#include <math.h>

VECTOR static inline __mmask16 mask_of(long left) {
    return left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

VECTOR void pixedge_widen(const uint16_t *from, long count, float *to) {
    for (long at = 0; at < count; at += 16) {
        const __mmask16 mask = mask_of(count - at);
        _mm512_mask_storeu_ps(to + at, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from + at)));
    }
}

VECTOR static float norm_factor(const float *x, long width, float eps) {
    __m512 sum = _mm512_setzero_ps(), other = sum;
    for (long at = 0; at < width; at += 32) {
        const __m512 low = _mm512_maskz_loadu_ps(mask_of(width - at), x + at);
        const __m512 high = _mm512_maskz_loadu_ps(mask_of(width - at - 16), x + at + 16);
        sum = _mm512_fmadd_ps(low, low, sum);
        other = _mm512_fmadd_ps(high, high, other);
    }
    return 1.0f / sqrtf(_mm512_reduce_add_ps(_mm512_add_ps(sum, other)) / (float)width + eps);
}

VECTOR void pixedge_pack_rows(const float *x, long rows, long width, const float *weight, float eps, char *to) {
    for (long row = 0; row < 32; row++) {
        char *line = to + row * 64;
        if (row >= rows) {
            for (long at = 0; at < width; at += 32, line += 2048) {
                _mm512_store_si512(line, _mm512_setzero_si512());
            }
            continue;
        }
        const float *from = x + row * width;
        const __m512 factor = _mm512_set1_ps(weight ? norm_factor(from, width, eps) : 1.0f);
        for (long at = 0; at < width; at += 32, line += 2048) {
            const __mmask16 first = mask_of(width - at), second = mask_of(width - at - 16);
            __m512 low = _mm512_maskz_loadu_ps(first, from + at);
            __m512 high = _mm512_maskz_loadu_ps(second, from + at + 16);
            if (weight) {
                low = _mm512_mul_ps(_mm512_mul_ps(low, factor), _mm512_maskz_loadu_ps(first, weight + at));
                high = _mm512_mul_ps(_mm512_mul_ps(high, factor), _mm512_maskz_loadu_ps(second, weight + at + 16));
            }
            _mm512_store_si512(line, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    }
}

VECTOR void pixedge_spread(const float *c, float *to, long stride) {
    for (long row = 0; row < 32; row++) {
        const float *from = c + row / 16 * 512 + row % 16 * 16;
        _mm512_store_ps(to + row * stride, _mm512_load_ps(from));
        _mm512_store_ps(to + row * stride + 16, _mm512_load_ps(from + 256));
    }
}

VECTOR void pixedge_add_block(const float *c, long rows, long columns, const float *from, float *to, long stride) {
    const __mmask16 first = mask_of(columns), second = mask_of(columns - 16);
    for (long row = 0; row < rows; row++, c += row % 16 ? 16 : 272, from += stride, to += stride) {
        const __m512 low = _mm512_add_ps(_mm512_maskz_loadu_ps(first, from), _mm512_load_ps(c));
        const __m512 high = _mm512_add_ps(_mm512_maskz_loadu_ps(second, from + 16), _mm512_load_ps(c + 256));
        _mm512_mask_storeu_ps(to, first, low);
        _mm512_mask_storeu_ps(to + 16, second, high);
    }
}

/* exp(x), to 3e-6 of its size. */
VECTOR static inline __m512 exp_of(__m512 x) {
    const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 f = _mm512_reduce_ps(scaled, 1);
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.01353417f), f, _mm512_set1_ps(0.05201146f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.24144276f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.69300383f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.00000259f));
    return _mm512_scalef_ps(y, scaled);
}

/* x * sigmoid(x); minus infinity gives the limit 0 through a finite denominator. */
VECTOR static inline __m512 silu(__m512 x) {
    const __m512 far = _mm512_max_ps(_mm512_set1_ps(-80.0f), x);
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exp_of(_mm512_sub_ps(_mm512_setzero_ps(), far))));
}

VECTOR void pixedge_gate_block(const float *gate, const float *up, char *to) {
    for (long row = 0; row < 32; row++) {
        const long at = row / 16 * 512 + row % 16 * 16;
        const __m512 low = _mm512_mul_ps(silu(_mm512_load_ps(gate + at)), _mm512_load_ps(up + at));
        const __m512 high = _mm512_mul_ps(silu(_mm512_load_ps(gate + at + 256)), _mm512_load_ps(up + at + 256));
        _mm512_store_si512(to + row * 64, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* Phi by Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7). */
VECTOR static inline __m512 gelu_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), z, one));
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(1.061405429f), t, _mm512_set1_ps(-1.453152027f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(1.421413741f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.284496736f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.254829592f));
    const __m512 square = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(y, t), exp_of(square));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 half = _mm512_mul_ps(tail, _mm512_set1_ps(0.5f)); /* Phi(-|x|) */
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(half, (__mmask16)~negative, one, half));
}

VECTOR void pixedge_bias_block(const float *c, long rows, long columns, const float *bias, int gelu, float *to,
                               long stride) {
    const __mmask16 first = mask_of(columns), second = mask_of(columns - 16);
    const __m512 low_bias = _mm512_maskz_loadu_ps(first, bias), high_bias = _mm512_maskz_loadu_ps(second, bias + 16);
    for (long row = 0; row < rows; row++, c += row % 16 ? 16 : 272, to += stride) {
        __m512 low = _mm512_add_ps(_mm512_load_ps(c), low_bias);
        __m512 high = _mm512_add_ps(_mm512_load_ps(c + 256), high_bias);
        if (gelu) {
            low = gelu_of(low);
            high = gelu_of(high);
        }
        _mm512_mask_storeu_ps(to, first, low);
        _mm512_mask_storeu_ps(to + 16, second, high);
    }
}

#endif
