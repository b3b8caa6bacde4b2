/* For x86 CPUs with AVX2.

   Products of bytes come in pairs as 16 bits. A nibble times a byte is at most 15 * 127, so eight pairs, four
   lines of low and high nibbles, stay below 2^15. A byte of the 8-bit weight times a byte is taken as
   |w| * (x with w's sign): 2 * 127 * 127 < 2^15, where the stored w + 128 would overflow. */

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define ALWAYS TARGET __attribute__((always_inline)) static inline
#include "inner_loops.h"
#include "attend_plain.h"
#include "table.h"

#define AHEAD 1024
#define ROWS_AT_ONCE 2 /* that 16 registers hold */

ALWAYS __m256i four_inputs(const int8_t *q) {
    int32_t word;
    memcpy(&word, q, 4);
    return _mm256_set1_epi32(word);
}

ALWAYS __m256i half_line(const uint8_t *line, int half) {
    return _mm256_load_si256((const __m256i *)(line + 32 * half));
}

/* Add one group's products of up to two rows, from q on, to dot[row][half]. */
ALWAYS void int4_group(const uint8_t *line, int64_t lines, const int8_t *q, int64_t stride, const int rows,
                       __m256i dot[ROWS_AT_ONCE][2]) {
    const __m256i low_nibbles = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int64_t first = 0; first < lines; first += 4) {
        int64_t last = first + 4 < lines ? first + 4 : lines;
        __m256i pairs[ROWS_AT_ONCE][2];
        for (int r = 0; r < rows; r++) {
            pairs[r][0] = pairs[r][1] = _mm256_setzero_si256();
        }
        for (int64_t i = first; i < last; i++, line += LINE, q += stride) {
            _mm_prefetch((const char *)line + AHEAD, _MM_HINT_T0);
            for (int half = 0; half < 2; half++) {
                const __m256i both = half_line(line, half);
                const __m256i low = _mm256_and_si256(both, low_nibbles);
                const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_nibbles);
                for (int r = 0; r < rows; r++) {
                    __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(low, four_inputs(q + 8 * r)),
                                                   _mm256_maddubs_epi16(high, four_inputs(q + 8 * r + 4)));
                    pairs[r][half] = _mm256_add_epi16(pairs[r][half], sum);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            for (int half = 0; half < 2; half++) {
                dot[r][half] = _mm256_add_epi32(dot[r][half], _mm256_madd_epi16(pairs[r][half], ones));
            }
        }
    }
}

ALWAYS void int8_group(const uint8_t *line, int64_t pairs, const int8_t *q, int64_t stride, const int rows,
                       __m256i dot[ROWS_AT_ONCE][2]) {
    const __m256i offset = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
    for (int64_t i = 0; i < 2 * pairs; i++, line += LINE, q += i % 2 ? 4 : stride - 4) {
        _mm_prefetch((const char *)line + AHEAD, _MM_HINT_T0);
        for (int half = 0; half < 2; half++) {
            const __m256i w = _mm256_xor_si256(half_line(line, half), offset), size = _mm256_abs_epi8(w);
            for (int r = 0; r < rows; r++) {
                __m256i product = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four_inputs(q + 8 * r), w));
                dot[r][half] = _mm256_add_epi32(dot[r][half], _mm256_madd_epi16(product, ones));
            }
        }
    }
}

ALWAYS void add_scaled(float *sum, __m256i dot, __m256 scale, float x_scale) {
    __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x_scale));
    _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, _mm256_loadu_ps(sum)));
}

TARGET static void int4_block(const struct int4_weight *w, int64_t block, const struct bytes_rows *x, float *sum) {
    const uint8_t *line = w->lines + block * (w->inputs / 8) * LINE;
    const int64_t lines = x->group / 8, scale_groups = w->inputs / w->group, stride = 8 * x->rows;
    memset(sum, 0, sizeof(float) * BLOCK * (size_t)x->rows);
    for (int64_t g = 0; g < x->inputs / x->group; g++, line += lines * LINE) {
        const int64_t at = (block * scale_groups + g * x->group / w->group) * BLOCK;
        for (int row = 0; row < x->rows; row += ROWS_AT_ONCE) {
            const int8_t *q = x->q + g * lines * stride + 8 * row;
            __m256i dot[ROWS_AT_ONCE][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                                            {_mm256_setzero_si256(), _mm256_setzero_si256()}};
            const int rows = row + 1 < x->rows ? 2 : 1;
            if (rows == 2) {
                int4_group(line, lines, q, stride, 2, dot);
            } else {
                int4_group(line, lines, q, stride, 1, dot);
            }
            for (int half = 0; half < 2; half++) {
                const int64_t here = at + 8 * half;
                const __m256i zero = w->zeros ? _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(w->zeros + here)))
                                              : _mm256_set1_epi32(8);
                const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(w->scales + here)));
                for (int r = 0; r < rows; r++) {
                    const int64_t which = g * x->rows + row + r;
                    __m256i off = _mm256_mullo_epi32(zero, _mm256_set1_epi32(x->sums[which]));
                    add_scaled(sum + (row + r) * BLOCK + 8 * half, _mm256_sub_epi32(dot[r][half], off), scale,
                               x->scales[which]);
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
        for (int row = 0; row < x->rows; row += ROWS_AT_ONCE) {
            const int8_t *q = x->q + g * pairs * stride + 8 * row;
            __m256i dot[ROWS_AT_ONCE][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                                            {_mm256_setzero_si256(), _mm256_setzero_si256()}};
            const int rows = row + 1 < x->rows ? 2 : 1;
            if (rows == 2) {
                int8_group(line, pairs, q, stride, 2, dot);
            } else {
                int8_group(line, pairs, q, stride, 1, dot);
            }
            for (int r = 0; r < rows; r++) {
                for (int half = 0; half < 2; half++) {
                    add_scaled(sum + (row + r) * BLOCK + 8 * half, dot[r][half],
                               _mm256_loadu_ps(w->scales + block * BLOCK + 8 * half),
                               x->scales[g * x->rows + row + r]);
                }
            }
        }
    }
}

TABLE(pixedge_avx2, "avx2", round_row, attend);
#else
typedef int pixedge_no_avx2; /* a file must not be empty */
#endif
