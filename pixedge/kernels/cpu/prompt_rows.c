#include "prompt_rows.h"

#include "tiles.h"

#if defined(__x86_64__) && defined(__linux__)

#include "exp2.h"

#include <immintrin.h>
#include <math.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INLINE static inline __attribute__((always_inline))

struct rows {
    const uint16_t *x;
    uint16_t *y;
    const float *weight, *cos, *sin;
    float eps;
    long rows, heads, width; /* width: of a row, or of a head */
    atomic_int taken;
};

/* Sixteen numbers from `at` on, or what is left of `width`; the rest is 0. */
#define LEFT (__mmask16)(width - at >= 16 ? 0xffff : (1 << (width - at)) - 1)

AVX512 INLINE __m512 load(const uint16_t *from, __mmask16 mask)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

AVX512 INLINE void store(uint16_t *to, __mmask16 mask, __m512 x)
{
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

AVX512 static void norm_row(const struct rows *r, long row)
{
    const long width = r->width;
    const uint16_t *x = r->x + row * width;
    __m512 squares = _mm512_setzero_ps();
    for (long at = 0; at < width; at += 16) {
        const __m512 part = load(x + at, LEFT);
        squares = _mm512_fmadd_ps(part, part, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + r->eps));
    for (long at = 0; at < width; at += 16) {
        const __m512 weight = _mm512_maskz_loadu_ps(LEFT, r->weight + at);
        store(r->y + row * width + at, LEFT, _mm512_mul_ps(_mm512_mul_ps(load(x + at, LEFT), factor), weight));
    }
}

AVX512 static void turn_row(const struct rows *r, long row)
{
    const long width = r->width / 2;
    const float *cos = r->cos + row * width, *sin = r->sin + row * width;
    for (long head = 0; head < r->heads; head++) {
        uint16_t *x = r->y + (row * r->heads + head) * r->width;
        for (long at = 0; at < width; at += 16) {
            const __m512 c = _mm512_maskz_loadu_ps(LEFT, cos + at), s = _mm512_maskz_loadu_ps(LEFT, sin + at);
            const __m512 first = load(x + at, LEFT), second = load(x + width + at, LEFT);
            store(x + at, LEFT, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
            store(x + width + at, LEFT, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
        }
    }
}

AVX512 static void gate_row(const struct rows *r, long row)
{
    const long width = r->width;
    uint16_t *gate = r->y + row * width;
    const uint16_t *up = r->x + row * width;
    const __m512 one = _mm512_set1_ps(1.0f);
    for (long at = 0; at < width; at += 16) {
        const __m512 x = load(gate + at, LEFT);
        const __m512 falls = exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f))); /* exp(-x) */
        const __m512 silu = _mm512_div_ps(x, _mm512_add_ps(one, falls));
        store(gate + at, LEFT, _mm512_mul_ps(silu, load(up + at, LEFT)));
    }
}

enum { AT_ONCE = 8 };

#define ROWS_TASK(name, row_function)                                                                                  \
    static void name(void *context, int thread, int threads)                                                           \
    {                                                                                                                  \
        struct rows *r = context;                                                                                      \
        (void)thread, (void)threads;                                                                                   \
        for (long row; (row = (long)pixedge_next(&r->taken) * AT_ONCE) < r->rows;)                                     \
            for (long end = row + AT_ONCE < r->rows ? row + AT_ONCE : r->rows; row < end; row++)                       \
                row_function(r, row);                                                                                  \
    }

ROWS_TASK(norm_task, norm_row)
ROWS_TASK(turn_task, turn_row)
ROWS_TASK(gate_task, gate_row)

static int run(pixedge_task task, struct rows r)
{
    if (!pixedge_tiles_usable())
        return 1;
    if (r.rows > 0)
        pixedge_parallel(task, &r);
    return 0;
}

#else

struct rows {
    const uint16_t *x;
    uint16_t *y;
    const float *weight, *cos, *sin;
    float eps;
    long rows, heads, width;
};

#define norm_task 0
#define turn_task 0
#define gate_task 0

static int run(pixedge_task task, struct rows r)
{
    (void)task, (void)r;
    return 1;
}

#endif

int pixedge_norm_rows(const uint16_t *x, const float *weight, float eps, long rows, long dim, uint16_t *y)
{
    return run(norm_task, (struct rows){.x = x, .y = y, .weight = weight, .eps = eps, .rows = rows, .width = dim});
}

int pixedge_turn_rows(uint16_t *x, long tokens, long heads, long head_dim, const float *cos, const float *sin)
{
    return run(turn_task,
               (struct rows){.y = x, .cos = cos, .sin = sin, .rows = tokens, .heads = heads, .width = head_dim});
}

int pixedge_gate_rows(uint16_t *gate, const uint16_t *up, long rows, long width)
{
    return run(gate_task, (struct rows){.x = up, .y = gate, .rows = rows, .width = width});
}
