#include "attention.h"

#ifdef PIXEDGE_VISION

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK = 8,         /* blocks of 32 keys that are scored at a time */
    PIECES = 2 * CHUNK /* their scores of one query, in vectors of 16: half the registers */
};
static const float FAR_BELOW = -1e30f; /* a score that no softmax sees */
/* How far (in powers of two) scores may rise above the reference before sums are brought to a new one. */
static const float SLACK = 8.0f;

struct pixedge_heads pixedge_heads_of(long heads, long head_dim, long patches) {
    return (struct pixedge_heads){heads, head_dim, patches, (head_dim + 31) / 32, (patches + 31) / 32, 0, 0, 0};
}

size_t pixedge_heads_bytes(const struct pixedge_heads *h) {
    return (size_t)(h->heads * h->blocks * h->width * 2048);
}

VECTOR void pixedge_rotate(const struct pixedge_heads *h, float *x, long rows, const float *cos, const float *sin) {
    const long half = h->head_dim / 2;
    for (long row = 0; row < rows; row++, x += 32 * h->width, cos += half, sin += half) {
        for (long at = 0; at < half; at += 16) {
            const __mmask16 mask = half - at < 16 ? (__mmask16)((1u << (half - at)) - 1) : 0xffff;
            const __m512 c = _mm512_maskz_loadu_ps(mask, cos + at), s = _mm512_maskz_loadu_ps(mask, sin + at);
            const __m512 a = _mm512_maskz_loadu_ps(mask, x + at), b = _mm512_maskz_loadu_ps(mask, x + half + at);
            _mm512_mask_storeu_ps(x + at, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            _mm512_mask_storeu_ps(x + half + at, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        }
    }
}

VECTOR static __m512i narrow(const float *from, __m512 factor) {
    const __m512 low = _mm512_mul_ps(_mm512_load_ps(from), factor);
    const __m512 high = _mm512_mul_ps(_mm512_load_ps(from + 16), factor);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

VECTOR void pixedge_store_queries(const struct pixedge_heads *h, long head, long block, const float *x) {
    /* Scores come out as powers of two: exp(s / sqrt(d)) = 2^(s log2(e) / sqrt(d)). */
    const __m512 scale = _mm512_set1_ps((float)(1.4426950408889634 / sqrt((double)h->head_dim)));
    char *to = h->q + (head * h->blocks + block) * h->width * 2048;
    for (long row = 0; row < 32; row++) {
        for (long step = 0; step < h->width; step++) {
            const __m512i line = narrow(x + (row * h->width + step) * 32, scale);
            _mm512_store_si512(to + step * 2048 + row * 64, line);
        }
    }
}

VECTOR void pixedge_store_keys(const struct pixedge_heads *h, long head, long block, const float *x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    char *to = h->k + (head * h->blocks + block) * h->width * 2048;
    for (long key = 0; key < 32; key++) {
        for (long step = 0; step < h->width; step++) {
            uint32_t line[16] __attribute__((aligned(64)));
            _mm512_store_si512(line, narrow(x + (key * h->width + step) * 32, one));
            char *at = to + step * 2048 + key / 16 * 1024 + key % 16 * 4;
            for (int pair = 0; pair < 16; pair++) {
                memcpy(at + 64 * pair, line + pair, 4);
            }
        }
    }
}

VECTOR void pixedge_store_values(const struct pixedge_heads *h, long head, long block, const float *x) {
    /* Two keys' values side by side: 0, 16, 1, 17, ... of the joined vector. */
    const __m512i counted = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i twice = _mm512_mullo_epi32(_mm512_set1_epi32(0x10001), counted);
    const __m512i pairs = _mm512_add_epi32(_mm512_set1_epi32(16 << 16), twice);
    for (long part = 0; part < 2 * h->width; part++) { /* 16 outputs */
        char *to = h->v + ((head * h->width + part / 2) * h->blocks + block) * 2048 + part % 2 * 1024;
        for (long key = 0; key < 32; key += 2) {
            const float *from = x + key * h->width * 32 + part * 16;
            const __m512 first = _mm512_load_ps(from), second = _mm512_load_ps(from + h->width * 32);
            const __m512i line = (__m512i)_mm512_cvtne2ps_pbh(second, first);
            _mm512_store_si512(to + key / 2 * 64, _mm512_permutexvar_epi16(pairs, line));
        }
    }
}

/* 2^x for x of any size: the fraction by a cubic (relative error 1e-4, a twentieth of bfloat16's rounding). */
VECTOR static inline __m512 exp2_of(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, 1); /* x - floor(x) */
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.07802452f), f, _mm512_set1_ps(0.22606716f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.69583354f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.99992522f));
    return _mm512_scalef_ps(y, x);
}

/* What a block of queries carries from one chunk of keys to the next. */
struct state {
    float scores[CHUNK * 1024] __attribute__((aligned(64))); /* [keys / 32, 2 (queries), 2 (keys), 16, 16] */
    char shares[CHUNK * 2048] __attribute__((aligned(64)));  /* their powers, as A blocks */
    float sums[32 * 16] __attribute__((aligned(64)));        /* [queries, 16], to be added up at the end */
    float reference[32];                                     /* what a query's scores are compared with */
};

/* Turn a chunk's scores into shares; bring sums and output to a new reference where scores rise far. */
VECTOR static void soften(struct state *s, long rows, int first, float *out, long width) {
    for (long row = 0; row < rows; row++) {
        const float *from = s->scores + row / 16 * 512 + row % 16 * 16;
        __m512 x[PIECES];
#pragma GCC unroll 16
        for (int i = 0; i < PIECES; i++) {
            x[i] = _mm512_load_ps(from + i / 2 * 1024 + i % 2 * 256);
        }
        __m512 top[4] = {x[0], x[1], x[2], x[3]};
#pragma GCC unroll 16
        for (int i = 4; i < PIECES; i++) {
            top[i % 4] = _mm512_max_ps(top[i % 4], x[i]);
        }
        const float highest =
            _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3])));
        if (first) {
            s->reference[row] = highest;
        } else if (highest > s->reference[row] + SLACK) {
            const __m512 shrink = _mm512_set1_ps(exp2f(s->reference[row] - highest));
            s->reference[row] = highest;
            _mm512_store_ps(s->sums + 16 * row, _mm512_mul_ps(shrink, _mm512_load_ps(s->sums + 16 * row)));
            for (long part = 0; part < 2 * width; part++) {
                float *at = out + part / 2 * 1024 + row / 16 * 512 + part % 2 * 256 + row % 16 * 16;
                _mm512_store_ps(at, _mm512_mul_ps(shrink, _mm512_load_ps(at)));
            }
        }
        const __m512 reference = _mm512_set1_ps(s->reference[row]);
        __m512 sum = first ? _mm512_setzero_ps() : _mm512_load_ps(s->sums + 16 * row);
        __m512 other = _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int i = 0; i < PIECES; i += 2) {
            const __m512 low = exp2_of(_mm512_sub_ps(x[i], reference));
            const __m512 high = exp2_of(_mm512_sub_ps(x[i + 1], reference));
            sum = _mm512_add_ps(sum, low);
            other = _mm512_add_ps(other, high);
            _mm512_store_si512(s->shares + i / 2 * 2048 + row * 64, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
        _mm512_store_ps(s->sums + 16 * row, _mm512_add_ps(sum, other));
    }
}

/* Let no share fall to the keys behind the picture's last, which lie in the chunk that starts at key `start`. */
VECTOR static void hide_missing(struct state *s, long rows, long start, long patches) {
    const __m512 far = _mm512_set1_ps(FAR_BELOW);
    for (int i = 0; i < PIECES; i++) {
        const long left = patches - start - 16 * i;
        if (left < 16) {
            const __mmask16 mask = left > 0 ? (__mmask16)(0xffffu << left) : 0xffff;
            for (long row = 0; row < rows; row++) {
                float *at = s->scores + i / 2 * 1024 + i % 2 * 256 + row / 16 * 512 + row % 16 * 16;
                _mm512_mask_store_ps(at, mask, far);
            }
        }
    }
}

VECTOR void pixedge_attend(const struct pixedge_heads *h, long head, long block, char *attended) {
    struct state s;
    /* [width, 2 (queries), 2 (outputs), 16, 16] */
    float out[PIXEDGE_WIDEST_HEAD / 32 * 1024] __attribute__((aligned(64)));
    const long rows = h->patches - 32 * block > 16 ? 32 : 16;
    const char *q = h->q + (head * h->blocks + block) * h->width * 2048;
    const char *k = h->k + head * h->blocks * h->width * 2048;
    const char *v = h->v + head * h->blocks * h->width * 2048;
    for (long start = 0; start < h->blocks; start += CHUNK) {
        const long count = h->blocks - start < CHUNK ? h->blocks - start : CHUNK;
        for (long i = 0; i < count; i++) {
            pixedge_block_steps(q, k + (start + i) * h->width * 2048, h->width, (int)rows / 16, 0, s.scores + i * 1024);
        }
        if (32 * (start + CHUNK) > h->patches) {
            hide_missing(&s, rows, 32 * start, h->patches);
        }
        soften(&s, rows, start == 0, out, h->width);
        for (long part = 0; part < h->width; part++) {
            const char *values = v + (part * h->blocks + start) * 2048;
            pixedge_block_steps(s.shares, values, count, (int)rows / 16, start > 0, out + part * 1024);
        }
    }
    char *to = attended + (block * h->heads + head) * h->width * 2048;
    for (long row = 0; row < 32; row++) {
        for (long part = 0; part < h->width; part++) {
            __m512i line = _mm512_setzero_si512();
            if (row < rows) {
                const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(s.sums + 16 * row)));
                const float *from = out + part * 1024 + row / 16 * 512 + row % 16 * 16;
                const __m512 low = _mm512_mul_ps(share, _mm512_load_ps(from));
                line = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(share, _mm512_load_ps(from + 256)), low);
            }
            _mm512_store_si512(to + part * 2048 + row * 64, line);
        }
    }
}

struct whole {
    struct pixedge_heads h;
    const float *q, *k, *v, *cos, *sin;
    float *out;
    char *attended;
    atomic_int store, attend;
};

/* Copy a block of 32 patches of one head to float32 [32, 32 width]. */
static void gather(const struct pixedge_heads *h, const float *x, long head, long block, float *to) {
    memset(to, 0, (size_t)(32 * 32 * h->width) * sizeof *to);
    for (long row = 0; row < 32 && 32 * block + row < h->patches; row++) {
        const float *from = x + ((32 * block + row) * h->heads + head) * h->head_dim;
        memcpy(to + row * 32 * h->width, from, (size_t)h->head_dim * sizeof *to);
    }
}

static void scatter(const struct whole *w, long head, long block) {
    const struct pixedge_heads *h = &w->h;
    for (long row = 0; row < 32 && 32 * block + row < h->patches; row++) {
        for (long i = 0; i < h->head_dim; i++) {
            uint16_t half;
            const char *from = w->attended + ((block * h->heads + head) * h->width + i / 32) * 2048;
            memcpy(&half, from + row * 64 + i % 32 * 2, sizeof half);
            const uint32_t bits = (uint32_t)half << 16;
            memcpy(w->out + ((32 * block + row) * h->heads + head) * h->head_dim + i, &bits, 4);
        }
    }
}

static void whole_task(void *context, int thread, int threads) {
    struct whole *w = context;
    const struct pixedge_heads *h = &w->h;
    (void)thread, (void)threads;
    float x[32 * PIXEDGE_WIDEST_HEAD] __attribute__((aligned(64)));
    for (long item; (item = pixedge_next(&w->store)) < h->heads * h->blocks;) {
        const long head = item / h->blocks, block = item % h->blocks;
        const long left = h->patches - 32 * block, rows = left < 32 ? left : 32, at = 32 * block * (h->head_dim / 2);
        gather(h, w->q, head, block, x);
        pixedge_rotate(h, x, rows, w->cos + at, w->sin + at);
        pixedge_store_queries(h, head, block, x);
        gather(h, w->k, head, block, x);
        pixedge_rotate(h, x, rows, w->cos + at, w->sin + at);
        pixedge_store_keys(h, head, block, x);
        gather(h, w->v, head, block, x);
        pixedge_store_values(h, head, block, x);
    }
    pixedge_barrier();
    pixedge_products_begin();
    for (long item; (item = pixedge_next(&w->attend)) < h->heads * h->blocks;) {
        pixedge_attend(h, item / h->blocks, item % h->blocks, w->attended);
        scatter(w, item / h->blocks, item % h->blocks);
    }
    pixedge_products_end();
}

int pixedge_encoder_attention(const float *q, const float *k, const float *v, const float *cos, const float *sin,
                              long heads, long head_dim, long patches, float *out) {
    struct whole w = {pixedge_heads_of(heads, head_dim, patches), q, k, v, cos, sin, out, 0, 0, 0};
    const size_t bytes = pixedge_heads_bytes(&w.h);
    char *scratch = pixedge_scratch_take(4 * bytes);
    if (!scratch) {
        return -1;
    }
    w.h.q = scratch;
    w.h.k = scratch + bytes;
    w.h.v = scratch + 2 * bytes;
    w.attended = scratch + 3 * bytes;
    pixedge_parallel(whole_task, &w);
    pixedge_scratch_give(scratch);
    return 0;
}

#endif
