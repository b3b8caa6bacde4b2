/* For x86 CPUs with AVX-512 and its 8-bit dot products (VNNI). */

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET                                                                                               \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")))
#define ALWAYS TARGET __attribute__((always_inline)) static inline
#include "inner_loops.h"
#include "attend_avx512.h"
#include "table.h"

/* How far ahead of the product weights are called for, into the second cache: the first one's few requests at
   a time would bound a core to less than memory gives it. */
#define AHEAD 8192

ALWAYS __m512i four_inputs(const int8_t *q) {
    int32_t word;
    memcpy(&word, q, 4);
    return _mm512_set1_epi32(word); /* becomes the product's broadcast operand */
}

/* The integer sums of one group stay in registers, one for each row; float sums of many rows lie in L1. */
ALWAYS void int4_rows(const struct int4_weight *w, int64_t block, const struct bytes_rows *x, float *out,
                      const int rows) {
    const uint8_t *line = w->lines + block * (w->inputs / 8) * LINE;
    const int8_t *q = x->q;
    const int64_t groups = x->inputs / x->group, lines = x->group / 8, scale_groups = w->inputs / w->group;
    const __m512i low_nibbles = _mm512_set1_epi8(15);
    __m512 sum[MOST_ROWS];
    for (int r = 0; r < rows; r++) {
        sum[r] = _mm512_setzero_ps();
    }
    for (int64_t g = 0; g < groups; g++) {
        const int64_t at = (block * scale_groups + g * x->group / w->group) * BLOCK;
        const __m512i zero =
            w->zeros ? _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(w->zeros + at))) : _mm512_set1_epi32(8);
        __m512i dot[MOST_ROWS];
        for (int r = 0; r < rows; r++) {
            __m512i total = _mm512_set1_epi32(-x->sums[g * rows + r]);
            dot[r] = w->zeros ? _mm512_mullo_epi32(zero, total) : _mm512_slli_epi32(total, 3);
        }
        for (int64_t i = 0; i < lines; i++, line += LINE, q += 8 * rows) {
            _mm_prefetch((const char *)line + AHEAD, _MM_HINT_T1);
            const __m512i both = _mm512_load_si512((const void *)line);
            const __m512i low = _mm512_and_si512(both, low_nibbles);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_nibbles);
            for (int r = 0; r < rows; r++) {
                dot[r] = _mm512_dpbusd_epi32(dot[r], low, four_inputs(q + 8 * r));
            }
            for (int r = 0; r < rows; r++) {
                dot[r] = _mm512_dpbusd_epi32(dot[r], high, four_inputs(q + 8 * r + 4));
            }
        }
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w->scales + at)));
        for (int r = 0; r < rows; r++) {
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x->scales[g * rows + r]));
            sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), both, sum[r]);
        }
    }
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(out + r * BLOCK, sum[r]);
    }
}

ALWAYS void int8_rows(const struct int8_weight *w, int64_t block, const struct bytes_rows *x, float *out,
                      const int rows) {
    const uint8_t *line = w->lines + block * (w->inputs / 4) * LINE;
    const int8_t *q = x->q;
    const int64_t groups = x->inputs / x->group, pairs = x->group / 8;
    __m512 sum[MOST_ROWS];
    for (int r = 0; r < rows; r++) {
        sum[r] = _mm512_setzero_ps();
    }
    for (int64_t g = 0; g < groups; g++) {
        __m512i dot[MOST_ROWS];
        for (int r = 0; r < rows; r++) {
            dot[r] = _mm512_set1_epi32(-128 * x->sums[g * rows + r]);
        }
        for (int64_t i = 0; i < pairs; i++, line += 2 * LINE, q += 8 * rows) {
            _mm_prefetch((const char *)line + AHEAD, _MM_HINT_T1);
            _mm_prefetch((const char *)line + AHEAD + LINE, _MM_HINT_T1);
            const __m512i first = _mm512_load_si512((const void *)line);
            const __m512i second = _mm512_load_si512((const void *)(line + LINE));
            for (int r = 0; r < rows; r++) {
                dot[r] = _mm512_dpbusd_epi32(dot[r], first, four_inputs(q + 8 * r));
            }
            for (int r = 0; r < rows; r++) {
                dot[r] = _mm512_dpbusd_epi32(dot[r], second, four_inputs(q + 8 * r + 4));
            }
        }
        for (int r = 0; r < rows; r++) {
            sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), _mm512_set1_ps(x->scales[g * rows + r]), sum[r]);
        }
    }
    const __m512 scale = _mm512_loadu_ps(w->scales + block * BLOCK);
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(out + r * BLOCK, _mm512_mul_ps(sum[r], scale));
    }
}

/* One function for each number of rows, so that the sums are registers. */
#define CASE(rows)                                                                                           \
    case rows:                                                                                               \
        ROWS(w, block, x, out, rows);                                                                        \
        break;
#define EVERY_CASE                                                                                           \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)       \
    CASE(13) CASE(14) CASE(15) CASE(16)

TARGET static void int4_block(const struct int4_weight *w, int64_t block, const struct bytes_rows *x, float *out) {
    switch (x->rows) {
#define ROWS int4_rows
        EVERY_CASE
#undef ROWS
    }
}

TARGET static void int8_block(const struct int8_weight *w, int64_t block, const struct bytes_rows *x, float *out) {
    switch (x->rows) {
#define ROWS int8_rows
        EVERY_CASE
#undef ROWS
    }
}

/* As ``round_row``, for groups of whole vectors. */
TARGET static void round_row512(const float *x, struct bytes_rows *to, int row, int64_t first, int64_t last) {
    if (to->group % 16) {
        round_row(x, to, row, first, last);
        return;
    }
    const int64_t stride = 8 * to->rows;
    for (int64_t g = first; g < last; g++, x += to->group) {
        __m512 most = _mm512_setzero_ps();
        __mmask16 strange = 0; /* NaN, infinite */
        for (int64_t i = 0; i < to->group; i += 16) {
            const __m512 value = _mm512_loadu_ps(x + i);
            most = _mm512_max_ps(_mm512_abs_ps(value), most);
            strange |= _mm512_fpclass_ps_mask(value, 0x99);
        }
        const float size = _mm512_reduce_max_ps(most);
        float inverse = size > 0 ? 127.0f / size : 0.0f;
        inverse = inverse <= 3e38f ? inverse : 0.0f;
        int8_t *q = to->q + g * to->group / 8 * stride + 8 * row;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < to->group; i += 16, q += 2 * stride) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
            const __m128i bytes = _mm512_cvtsepi32_epi8(whole);
            sum = _mm512_add_epi32(sum, whole);
            _mm_storel_epi64((__m128i *)q, bytes);
            _mm_storeh_pd((double *)(q + stride), _mm_castsi128_pd(bytes));
        }
        to->scales[g * to->rows + row] = strange ? NAN : inverse > 0 ? size / 127.0f : 0.0f;
        to->sums[g * to->rows + row] = _mm512_reduce_add_epi32(sum);
    }
}

TABLE(pixedge_avx512, "avx512", round_row512, attend512);
#else
typedef int pixedge_no_avx512; /* a file must not be empty */
#endif
