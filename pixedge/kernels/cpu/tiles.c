#define _GNU_SOURCE
#include "tiles.h"

#include <string.h>

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,amx-int8")))

/* Some compilers' tile loads do not say that they read memory: what was written must not be held back for later. */
#define WRITTEN __asm__ volatile("" ::: "memory")

static int asked(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    const unsigned amx = 1u << 22 | 1u << 24 | 1u << 25; /* bf16, tile, int8 */
    if ((d & amx) != amx || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512bf16") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

int pixedge_tiles_usable(void)
{
    static atomic_int known; /* 0 not asked yet, 1 no, 2 yes; asking twice does no harm */
    int answer = atomic_load(&known);
    if (answer == 0) {
        answer = 1 + asked();
        atomic_store(&known, answer);
    }
    return answer == 2;
}

AMX void pixedge_tiles_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        shape.row_bytes[tile] = 64;
        shape.rows[tile] = 16;
    }
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
}

AMX void pixedge_tiles_end(void) { _tile_release(); }

AMX void pixedge_tiles_pack_a(const void *x, long rows, long bytes, long stride, void *packed)
{
    const long steps = (bytes + 63) / 64;
    const __mmask64 tail = bytes % 64 ? (1ull << bytes % 64) - 1 : ~0ull;
    for (long row = 0; row < (rows + 31) / 32 * 32; row++) {
        char *to = (char *)packed + row / 32 * steps * 2048 + row % 32 * 64;
        const char *from = (const char *)x + row * stride;
        for (long step = 0; step < steps; step++) {
            __m512i line = _mm512_setzero_si512();
            if (row < rows)
                line = _mm512_maskz_loadu_epi8(step + 1 < steps ? ~0ull : tail, from + step * 64);
            _mm512_store_si512(to + step * 2048, line);
        }
    }
}

void pixedge_tiles_pack_b(const void *weight, long out, long bytes, long stride, int width, void *packed)
{
    const long steps = (bytes + 63) / 64;
    (void)width; /* four bytes of one output lie together in either width */
    memset(packed, 0, (size_t)((out + 31) / 32 * steps * 2048));
    for (long o = 0; o < out; o++) {
        char *to = (char *)packed + o / 32 * steps * 2048 + o % 32 / 16 * 1024 + o % 16 * 4;
        const char *from = (const char *)weight + o * stride;
        for (long at = 0; at < bytes; at += 4)
            memcpy(to + at / 64 * 2048 + at % 64 / 4 * 64, from + at, bytes - at < 4 ? (size_t)(bytes - at) : 4);
    }
}

/* Tiles 0 to 3 hold C, 4 and 5 A, 6 and 7 B. Loads come just ahead of the product that needs them. */
#define STEPS(product, a, b, steps, row_tiles)                                                                         \
    for (long step = 0; step < (steps); step++) {                                                                      \
        const char *at = (const char *)(a) + step * 2048, *bt = (const char *)(b) + step * 2048;                       \
        _tile_loadd(4, at, 64);                                                                                        \
        _tile_loadd(6, bt, 64);                                                                                        \
        product(0, 4, 6);                                                                                              \
        _tile_loadd(7, bt + 1024, 64);                                                                                 \
        product(1, 4, 7);                                                                                              \
        if ((row_tiles) == 2) {                                                                                        \
            _tile_loadd(5, at + 1024, 64);                                                                             \
            product(2, 5, 6);                                                                                          \
            product(3, 5, 7);                                                                                          \
        }                                                                                                              \
    }

#define BLOCK_PRODUCT(product, a, b, steps, row_tiles, add, c)                                                         \
    WRITTEN;                                                                                                           \
    if (add) {                                                                                                         \
        _tile_loadd(0, c, 64);                                                                                         \
        _tile_loadd(1, c + 256, 64);                                                                                   \
        _tile_loadd(2, c + 512, 64);                                                                                   \
        _tile_loadd(3, c + 768, 64);                                                                                   \
    } else {                                                                                                           \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
    }                                                                                                                  \
    if (row_tiles == 2) {                                                                                              \
        STEPS(product, a, b, steps, 2)                                                                                 \
    } else {                                                                                                           \
        STEPS(product, a, b, steps, 1)                                                                                 \
    }                                                                                                                  \
    _tile_stored(0, c, 64);                                                                                            \
    _tile_stored(1, c + 256, 64);                                                                                      \
    _tile_stored(2, c + 512, 64);                                                                                      \
    _tile_stored(3, c + 768, 64);                                                                                      \
    WRITTEN

AMX void pixedge_tiles_bf16(const void *a, const void *b, long steps, int row_tiles, int add, float *c)
{
    BLOCK_PRODUCT(_tile_dpbf16ps, a, b, steps, row_tiles, add, c);
}

AMX void pixedge_tiles_int8(const void *a, const void *b, long steps, int row_tiles, int add, int32_t *c)
{
    BLOCK_PRODUCT(_tile_dpbssd, a, b, steps, row_tiles, add, c);
}

/* Write `rows` x `columns` of a block of float32 C to y, which points at the block's first element. */
AMX static void store(const float *c, long rows, long columns, const float *bias, char *y, long y_stride, int to_bf16)
{
    const __mmask32 mask = columns < 32 ? (1u << columns) - 1 : ~0u;
    __m512 low_bias = _mm512_setzero_ps(), high_bias = low_bias;
    if (bias) {
        low_bias = _mm512_maskz_loadu_ps((__mmask16)mask, bias);
        high_bias = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), bias + 16);
    }
    for (long row = 0; row < rows; row++) {
        const float *from = c + row / 16 * 512 + row % 16 * 16;
        const __m512 low = _mm512_add_ps(_mm512_load_ps(from), low_bias);
        const __m512 high = _mm512_add_ps(_mm512_load_ps(from + 256), high_bias);
        if (to_bf16) {
            _mm512_mask_storeu_epi16(y + row * y_stride * 2, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        } else {
            _mm512_mask_storeu_ps(y + row * y_stride * 4, (__mmask16)mask, low);
            _mm512_mask_storeu_ps(y + row * y_stride * 4 + 64, (__mmask16)(mask >> 16), high);
        }
    }
}

/* Turn a block of int32 C into float32 in place. */
AMX static void scale_block(int32_t *c, long rows, long columns, const float *row_scales, const float *scales)
{
    const __mmask32 mask = columns < 32 ? (1u << columns) - 1 : ~0u;
    const __m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, scales);
    const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), scales + 16);
    for (long row = 0; row < rows; row++) {
        int32_t *at = c + row / 16 * 512 + row % 16 * 16;
        const __m512 scale = _mm512_set1_ps(row_scales[row]);
        const __m512 first = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(at)), low);
        const __m512 second = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(at + 256)), high);
        _mm512_store_ps(at, _mm512_mul_ps(first, scale));
        _mm512_store_ps(at + 256, _mm512_mul_ps(second, scale));
    }
}

struct product {
    const char *a, *b;
    long rows, steps, out;
    const float *row_scales, *scales, *bias; /* row_scales null: the operands are bfloat16 */
    char *y;
    long y_stride;
    int to_bf16;
};

/* One part's B blocks: A passes by in slices that stay in L2 while all of the part's B blocks pass by each. */
static void product_part(const struct product *p, int part, int parts)
{
    const long block_bytes = p->steps * 2048, out_blocks = (p->out + 31) / 32, row_blocks = (p->rows + 31) / 32;
    const long first = out_blocks * part / parts, last = out_blocks * (part + 1) / parts;
    const long slice = block_bytes > 768 << 10 ? 1 : (768 << 10) / block_bytes; /* half of L2, in A blocks */
    float c[1024] __attribute__((aligned(64)));
    pixedge_tiles_begin();
    for (long start = 0; start < row_blocks; start += slice)
        for (long o = first; o < last; o++)
            for (long r = start; r < row_blocks && r < start + slice; r++) {
                const long rows = p->rows - 32 * r < 32 ? p->rows - 32 * r : 32;
                const long columns = p->out - 32 * o < 32 ? p->out - 32 * o : 32;
                const char *a = p->a + r * block_bytes, *b = p->b + o * block_bytes;
                if (p->row_scales) {
                    pixedge_tiles_int8(a, b, p->steps, rows > 16 ? 2 : 1, 0, (int32_t *)c);
                    scale_block((int32_t *)c, rows, columns, p->row_scales + 32 * r, p->scales + 32 * o);
                } else {
                    pixedge_tiles_bf16(a, b, p->steps, rows > 16 ? 2 : 1, 0, c);
                }
                store(c, rows, columns, p->bias ? p->bias + 32 * o : 0,
                      p->y + (32 * r * p->y_stride + 32 * o) * (p->to_bf16 ? 2 : 4), p->y_stride, p->to_bf16);
            }
    pixedge_tiles_end();
}

void pixedge_tiles_bf16_product(const void *a, const void *b, long rows, long in, long out, const float *bias, void *y,
                                long y_stride, int to_bf16, int part, int parts)
{
    const struct product p = {a, b, rows, (in + 31) / 32, out, 0, 0, bias, y, y_stride, to_bf16};
    product_part(&p, part, parts);
}

void pixedge_tiles_int8_product(const void *a, const void *b, long rows, long in, long out, const float *row_scales,
                                const float *scales, const float *bias, void *y, long y_stride, int to_bf16, int part,
                                int parts)
{
    const struct product p = {a, b, rows, (in + 63) / 64, out, row_scales, scales, bias, y, y_stride, to_bf16};
    product_part(&p, part, parts);
}

#else /* no AMX: callers ask pixedge_tiles_usable first, and the rest is never called */

int pixedge_tiles_usable(void) { return 0; }

void pixedge_tiles_begin(void) {}

void pixedge_tiles_end(void) {}

void pixedge_tiles_pack_a(const void *x, long rows, long bytes, long stride, void *packed)
{
    (void)x, (void)rows, (void)bytes, (void)stride, (void)packed;
}

void pixedge_tiles_pack_b(const void *weight, long out, long bytes, long stride, int width, void *packed)
{
    (void)weight, (void)out, (void)bytes, (void)stride, (void)width, (void)packed;
}

void pixedge_tiles_bf16(const void *a, const void *b, long steps, int row_tiles, int add, float *c)
{
    (void)a, (void)b, (void)steps, (void)row_tiles, (void)add, (void)c;
}

void pixedge_tiles_int8(const void *a, const void *b, long steps, int row_tiles, int add, int32_t *c)
{
    (void)a, (void)b, (void)steps, (void)row_tiles, (void)add, (void)c;
}

void pixedge_tiles_bf16_product(const void *a, const void *b, long rows, long in, long out, const float *bias, void *y,
                                long y_stride, int to_bf16, int part, int parts)
{
    (void)a, (void)b, (void)rows, (void)in, (void)out, (void)bias, (void)y, (void)y_stride, (void)to_bf16;
    (void)part, (void)parts;
}

void pixedge_tiles_int8_product(const void *a, const void *b, long rows, long in, long out, const float *row_scales,
                                const float *scales, const float *bias, void *y, long y_stride, int to_bf16, int part,
                                int parts)
{
    (void)a, (void)b, (void)rows, (void)in, (void)out, (void)row_scales, (void)scales, (void)bias, (void)y;
    (void)y_stride, (void)to_bf16, (void)part, (void)parts;
}

#endif
