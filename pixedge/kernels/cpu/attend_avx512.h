/* Attention over one span: 8-bit keys and values by 16-bit dot products, 16-bit ones as floats.

   Bytes are never widened to floats. A query is rounded to 16 bits once, and so are the weights of a span
   (against the largest of them), so that products with bytes are exact in 32-bit integers:
   128 * 127 * 32767 < 2^31 for a key, 64 * 127 * 32767 < 2^31 for a span of values. */

#include "attend_plain.h"

#define HEAD 128 /* the width this is written for; others take the plain loops */

/* Sum each of 16 vectors; lane i holds the sum of v[i]. */
ALWAYS __m512i sums_of_16(__m512i v[16]) {
    for (int i = 0; i < 16; i += 2) { /* v[i], v[i + 1]: lanes 0 2 of both, side by side */
        v[i / 2] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[i], v[i + 1]), _mm512_unpackhi_epi32(v[i], v[i + 1]));
    }
    for (int i = 0; i < 8; i += 2) {
        v[i / 2] = _mm512_add_epi32(_mm512_unpacklo_epi64(v[i], v[i + 1]), _mm512_unpackhi_epi64(v[i], v[i + 1]));
    }
    for (int i = 0; i < 4; i += 2) {
        v[i / 2] = _mm512_add_epi32(_mm512_shuffle_i32x4(v[i], v[i + 1], 0x88), _mm512_shuffle_i32x4(v[i], v[i + 1], 0xdd));
    }
    return _mm512_add_epi32(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xdd));
}

ALWAYS __m512 sums_of_16_floats(__m512 v[16]) {
    for (int i = 0; i < 16; i += 2) {
        v[i / 2] = _mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 1]), _mm512_unpackhi_ps(v[i], v[i + 1]));
    }
    __m512d *d = (__m512d *)v;
    for (int i = 0; i < 8; i += 2) {
        __m512 low = _mm512_castpd_ps(_mm512_unpacklo_pd(d[i], d[i + 1]));
        v[i / 2] = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(d[i], d[i + 1])));
    }
    for (int i = 0; i < 4; i += 2) {
        v[i / 2] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 1], 0x88), _mm512_shuffle_f32x4(v[i], v[i + 1], 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x88), _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
}

ALWAYS __m512 halves(const uint16_t *scales) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
}

ALWAYS __m512 wide_floats(const uint16_t *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

/* exp(x) for x <= 0, as ``exponential``. */
ALWAYS __m512 exp16(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    const __m512 power = _mm512_scalef_ps(p, n);
    const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(power, tiny, _mm512_setzero_ps());
}

/* As ``weigh``, 16 scores at a time. */
ALWAYS void weigh16(const struct gathering *to, int64_t query, int seen, int pages, float *scores) {
    if (seen <= 0) {
        memset(scores, 0, SPAN * sizeof *scores);
        return;
    }
    const __m512 least = _mm512_set1_ps(-INFINITY);
    __m512 s[SPAN / PAGE], most = least, total = _mm512_setzero_ps();
    for (int page = 0; page < pages; page++) {
        int left = seen - page * PAGE;
        __mmask16 mask = left >= PAGE ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
        s[page] = _mm512_mask_loadu_ps(least, mask, scores + page * PAGE);
        most = _mm512_max_ps(s[page], most); /* of a NaN and a number the number */
    }
    float largest_now = _mm512_reduce_max_ps(most);
    if (largest_now > to->most[query]) {
        float factor = exponential(to->most[query] - largest_now);
        to->total[query] *= factor;
        float *sum = to->sum + query * HEAD;
        for (int i = 0; i < HEAD; i += 16) {
            _mm512_storeu_ps(sum + i, _mm512_mul_ps(_mm512_loadu_ps(sum + i), _mm512_set1_ps(factor)));
        }
        to->most[query] = largest_now;
    }
    for (int page = 0; page < pages; page++) {
        s[page] = exp16(_mm512_sub_ps(s[page], _mm512_set1_ps(to->most[query])));
        total = _mm512_add_ps(total, s[page]);
        _mm512_storeu_ps(scores + page * PAGE, s[page]);
    }
    to->total[query] += _mm512_reduce_add_ps(total);
}

ALWAYS void score_bytes(const struct gathering *to, const struct span *span, int page, float (*scores)[SPAN]) {
    int16_t wide[PAGE][HEAD] __attribute__((aligned(64)));
    const int8_t *keys = span->keys[page];
    const int8_t *next = page < span->next->pages ? span->next->keys[page] : keys;
    for (int i = 0; i < PAGE * HEAD; i += 32) {
        _mm_prefetch((const char *)next + i, _MM_HINT_T1);
        _mm512_store_si512((int16_t *)wide + i, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(keys + i))));
    }
    const __m512 scale = halves(span->key_scales[page]);
    for (int64_t query = 0; query < to->queries; query++) {
        __m512i q[4], sums[PAGE];
        for (int i = 0; i < 4; i++) {
            q[i] = _mm512_loadu_si512((const void *)(to->q16 + query * HEAD + 32 * i));
        }
        for (int t = 0; t < PAGE; t++) {
            sums[t] = _mm512_setzero_si512();
            for (int i = 0; i < 4; i++) {
                sums[t] = _mm512_dpwssd_epi32(sums[t], q[i], _mm512_load_si512((const void *)(wide[t] + 32 * i)));
            }
        }
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(to->q_scale[query]));
        _mm512_storeu_ps(scores[query] + page * PAGE, _mm512_mul_ps(_mm512_cvtepi32_ps(sums_of_16(sums)), both));
    }
}

ALWAYS void score_floats(const struct gathering *to, const struct span *span, int page, float (*scores)[SPAN]) {
    float wide[PAGE][HEAD] __attribute__((aligned(64)));
    const uint16_t *keys = span->keys[page];
    const uint16_t *next = page < span->next->pages ? span->next->keys[page] : keys;
    for (int i = 0; i < PAGE * HEAD; i += 16) {
        _mm_prefetch((const char *)(next + i), _MM_HINT_T1);
        _mm512_store_ps((float *)wide + i, wide_floats(keys + i));
    }
    for (int64_t query = 0; query < to->queries; query++) {
        __m512 q[8], sums[PAGE];
        for (int i = 0; i < 8; i++) {
            q[i] = _mm512_loadu_ps(to->q + query * HEAD + 16 * i);
        }
        for (int t = 0; t < PAGE; t++) {
            sums[t] = _mm512_mul_ps(q[0], _mm512_load_ps(wide[t]));
            for (int i = 1; i < 8; i++) {
                sums[t] = _mm512_fmadd_ps(q[i], _mm512_load_ps(wide[t] + 16 * i), sums[t]);
            }
        }
        _mm512_storeu_ps(scores[query] + page * PAGE, sums_of_16_floats(sums));
    }
}

/* A query's weights times the values' scales to 16 bits; return what one unit stands for. */
ALWAYS float weights_to_16_bits(const struct span *span, const float *weights, int16_t *rounded) {
    __m512 w[SPAN / PAGE], most = _mm512_setzero_ps();
    for (int page = 0; page < span->pages; page++) {
        __m512 weight = _mm512_loadu_ps(weights + page * PAGE);
        /* behind the last token scales are whatever lay in memory */
        __mmask16 counts = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        w[page] = _mm512_maskz_mul_ps(counts, weight, halves(span->value_scales[page]));
        most = _mm512_max_ps(w[page], most);
    }
    float largest_now = _mm512_reduce_max_ps(most);
    __m512 inverse = _mm512_set1_ps(largest_now > 1e-30f ? 32767.0f / largest_now : 0.0f);
    for (int page = 0; page < span->pages; page++) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(w[page], inverse));
        _mm256_storeu_si256((__m256i *)(rounded + page * PAGE), _mm512_cvtsepi32_epi16(whole));
    }
    return largest_now / 32767.0f;
}

ALWAYS void add_bytes(const struct gathering *to, const struct span *span, int64_t first, int count,
                      float (*weights)[SPAN]) {
    int16_t rounded[4][SPAN];
    float scale[4];
    for (int k = 0; k < 4; k++) { /* queries that are not there count nothing, and cost less than a branch */
        scale[k] = weights_to_16_bits(span, weights[first + (k < count ? k : 0)], rounded[k]);
    }
    for (int part = 0; part < HEAD; part += 64) {
        __m512i dot[4][4];
        for (int k = 0; k < 16; k++) {
            dot[k / 4][k % 4] = _mm512_setzero_si512();
        }
        for (int page = 0; page < span->pages; page++) {
            const int8_t *values = (const int8_t *)span->values[page] + part;
            const int8_t *next = page < span->next->pages ? span->next->values[page] : span->values[page];
            for (int t = 0; t < PAGE; t += 2, values += 2 * HEAD) {
                _mm_prefetch((const char *)next + part + t * HEAD, _MM_HINT_T1);
                _mm_prefetch((const char *)next + part + (t + 1) * HEAD, _MM_HINT_T1);
                __m512i word[4];
                for (int k = 0; k < 4; k++) {
                    int32_t both;
                    memcpy(&both, rounded[k] + page * PAGE + t, 4);
                    word[k] = _mm512_set1_epi32(both);
                }
                for (int i = 0; i < 2; i++) { /* 32 channels of tokens t and t + 1, in pairs */
                    __m512i a = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(values + 32 * i)));
                    __m512i b = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(values + HEAD + 32 * i)));
                    __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
                    for (int k = 0; k < 4; k++) {
                        dot[k][2 * i] = _mm512_dpwssd_epi32(dot[k][2 * i], low, word[k]);
                        dot[k][2 * i + 1] = _mm512_dpwssd_epi32(dot[k][2 * i + 1], high, word[k]);
                    }
                }
            }
        }
        /* low holds channels 0-3 8-11 16-19 24-27, high the ones between */
        const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for (int k = 0; k < count; k++) {
            float *sum = to->sum + (first + k) * HEAD + part;
            for (int i = 0; i < 2; i++, sum += 32) {
                __m512 a = _mm512_cvtepi32_ps(_mm512_permutex2var_epi32(dot[k][2 * i], front, dot[k][2 * i + 1]));
                __m512 b = _mm512_cvtepi32_ps(_mm512_permutex2var_epi32(dot[k][2 * i], back, dot[k][2 * i + 1]));
                _mm512_storeu_ps(sum, _mm512_fmadd_ps(a, _mm512_set1_ps(scale[k]), _mm512_loadu_ps(sum)));
                _mm512_storeu_ps(sum + 16, _mm512_fmadd_ps(b, _mm512_set1_ps(scale[k]), _mm512_loadu_ps(sum + 16)));
            }
        }
    }
}

ALWAYS void add_floats(const struct gathering *to, const struct span *span, int64_t query, int tokens,
                       const int first, const float *weights) {
    float *sum = to->sum + query * HEAD;
    __m512 s[8];
    for (int i = 0; i < 8; i++) {
        s[i] = _mm512_loadu_ps(sum + 16 * i);
    }
    for (int t = 0; t < tokens; t++) {
        const uint16_t *value = (const uint16_t *)span->values[t / PAGE] + t % PAGE * HEAD;
        if (first && t / PAGE < span->next->pages) {
            const char *next = (const char *)span->next->values[t / PAGE] + t % PAGE * HEAD * 2;
            for (int i = 0; i < 2 * HEAD; i += LINE) {
                _mm_prefetch(next + i, _MM_HINT_T1);
            }
        }
        __m512 weight = _mm512_set1_ps(weights[t]);
        for (int i = 0; i < 8; i++) {
            s[i] = _mm512_fmadd_ps(weight, wide_floats(value + 16 * i), s[i]);
        }
    }
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_ps(sum + 16 * i, s[i]);
    }
}

#define QUERIES 16 /* that share one reading of the keys */

TARGET static void attend128(const struct gathering *all, const struct span *whole) {
    float scores[QUERIES][SPAN];
    for (int64_t start = 0; start < all->queries; start += QUERIES) {
        struct gathering to = *all;
        to.queries = all->queries - start < QUERIES ? all->queries - start : QUERIES;
        to.q += start * HEAD, to.q16 += start * HEAD, to.q_scale += start;
        to.most += start, to.total += start, to.sum += start * HEAD;
        const int32_t *seen = whole->seen + start;
        int tokens = 0;
        for (int64_t query = 0; query < to.queries; query++) {
            tokens = seen[query] > tokens ? seen[query] : tokens;
        }
        struct span span = *whole;
        span.pages = (tokens + PAGE - 1) / PAGE;
        const int bytes = span.key_scales[0] != NULL;
        for (int page = 0; page < span.pages; page++) {
            if (bytes) {
                score_bytes(&to, &span, page, scores);
            } else {
                score_floats(&to, &span, page, scores);
            }
        }
        for (int64_t query = 0; query < to.queries; query++) {
            weigh16(&to, query, seen[query], span.pages, scores[query]);
        }
        for (int64_t query = 0; query < to.queries; query += bytes ? 4 : 1) {
            if (bytes) {
                add_bytes(&to, &span, query, to.queries - query < 4 ? (int)(to.queries - query) : 4, scores);
            } else {
                add_floats(&to, &span, query, seen[query], query == 0, scores[query]);
            }
        }
    }
}

TARGET static void attend512(const struct gathering *to, const struct span *span) {
    if (to->head_dim == HEAD) {
        attend128(to, span);
    } else {
        attend(to, span);
    }
}
