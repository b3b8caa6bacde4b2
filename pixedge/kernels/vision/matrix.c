#define _GNU_SOURCE
#include "matrix.h"

#ifdef PIXEDGE_VISION

#include <immintrin.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_int variant = -1;

int pixedge_vision_best(void) {
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")) {
        return PIXEDGE_VISION_NONE;
    }
    return pixedge_tiles_usable() ? PIXEDGE_VISION_AMX : PIXEDGE_VISION_AVX512;
}

void pixedge_vision_use(int wanted) {
    atomic_store(&variant, wanted);
}

static int chosen(void) {
    int now = atomic_load_explicit(&variant, memory_order_relaxed);
    if (now < 0) {
        now = pixedge_vision_best();
        atomic_store(&variant, now);
    }
    return now;
}

void pixedge_products_begin(void) {
    if (chosen() == PIXEDGE_VISION_AMX) {
        pixedge_tiles_begin();
    }
}

void pixedge_products_end(void) {
    if (chosen() == PIXEDGE_VISION_AMX) {
        pixedge_tiles_end();
    }
}

/* Eight rows by 32 outputs: sixteen sums in registers, a pair of inputs at a time. */
VECTOR static void eight_rows(const char *a, const char *b, long steps, int add, float *c) {
    __m512 low[8], high[8];
    for (int row = 0; row < 8; row++) {
        low[row] = add ? _mm512_load_ps(c + 16 * row) : _mm512_setzero_ps();
        high[row] = add ? _mm512_load_ps(c + 256 + 16 * row) : _mm512_setzero_ps();
    }
    for (long step = 0; step < steps; step++, a += 2048, b += 2048) {
        for (int pair = 0; pair < 16; pair++) {
            const __m512bh first = (__m512bh)_mm512_load_si512(b + 64 * pair);
            const __m512bh second = (__m512bh)_mm512_load_si512(b + 1024 + 64 * pair);
#pragma GCC unroll 8
            for (int row = 0; row < 8; row++) {
                int two;
                memcpy(&two, a + 64 * row + 4 * pair, sizeof two);
                const __m512bh inputs = (__m512bh)_mm512_set1_epi32(two);
                low[row] = _mm512_dpbf16_ps(low[row], inputs, first);
                high[row] = _mm512_dpbf16_ps(high[row], inputs, second);
            }
        }
    }
    for (int row = 0; row < 8; row++) {
        _mm512_store_ps(c + 16 * row, low[row]);
        _mm512_store_ps(c + 256 + 16 * row, high[row]);
    }
}

void pixedge_block_steps(const void *a, const void *b, long steps, int row_tiles, int add, float *c) {
    if (chosen() == PIXEDGE_VISION_AMX) {
        pixedge_tiles_bf16(a, b, steps, row_tiles, add, c);
        return;
    }
    if (row_tiles == 1 && !add) { /* as the tiles have it: who reads all of c finds nothing that lay there before */
        memset(c + 512, 0, 512 * sizeof *c);
    }
    for (int rows = 0; rows < 16 * row_tiles; rows += 8) {
        eight_rows((const char *)a + 64 * rows, b, steps, add, c + rows / 16 * 512 + rows % 16 * 16);
    }
}

void pixedge_block(const char *a, const struct pixedge_matrix *matrix, long out_block, int row_tiles, float *c) {
    const char *b = matrix->packed + out_block * matrix->in_blocks * 2048;
    pixedge_block_steps(a, b, matrix->in_blocks, row_tiles, 0, c);
}

struct packing {
    const struct pixedge_matrix *matrix;
    const uint16_t *weight;
    long out, in, out_group, in_group;
    atomic_int next;
};

/* Widen up to 16 float16 and round them to bfloat16. */
VECTOR static __m256i narrow(const uint16_t *from, __mmask16 mask) {
    return (__m256i)_mm512_cvtneps_pbh(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from)));
}

VECTOR static void pack_block(const struct packing *p, long out_block) {
    const long in_blocks = p->matrix->in_blocks;
    const long blocks_per_out = (p->out_group + 31) / 32, blocks_per_in = (p->in_group + 31) / 32;
    const long group = out_block / blocks_per_out, first = out_block % blocks_per_out * 32;
    char *to = p->matrix->packed + out_block * in_blocks * 2048;
    for (long step = 0; step < in_blocks; step++, to += 2048) {
        const long column = step / blocks_per_in * p->in_group + step % blocks_per_in * 32;
        const long left = p->in_group - step % blocks_per_in * 32;
        const __mmask32 mask = left < 32 ? (1u << left) - 1 : ~0u;
        for (long o = 0; o < 32; o++) {
            uint32_t line[16] = {0}; /* the step's 32 inputs of one output, in pairs */
            if (first + o < p->out_group) {
                const uint16_t *from = p->weight + (group * p->out_group + first + o) * p->in + column;
                _mm256_storeu_si256((__m256i *)line, narrow(from, (__mmask16)mask));
                if (mask >> 16) {
                    _mm256_storeu_si256((__m256i *)(line + 8), narrow(from + 16, (__mmask16)(mask >> 16)));
                }
            }
            char *at = to + o / 16 * 1024 + o % 16 * 4;
            for (int pair = 0; pair < 16; pair++) {
                memcpy(at + 64 * pair, line + pair, 4);
            }
        }
    }
}

static void pack_task(void *context, int thread, int threads) {
    struct packing *p = context;
    (void)thread, (void)threads;
    for (long block; (block = pixedge_next(&p->next)) < p->matrix->out_blocks;) {
        pack_block(p, block);
    }
}

int pixedge_matrix_pack(struct pixedge_matrix *matrix, const uint16_t *weight, long out, long in, long out_group,
                        long in_group) {
    matrix->out_blocks = pixedge_blocks(out, out_group);
    matrix->in_blocks = pixedge_blocks(in, in_group);
    matrix->packed = pixedge_aligned((size_t)(matrix->out_blocks * matrix->in_blocks * 2048));
    if (!matrix->packed) {
        return -1;
    }
    struct packing p = {matrix, weight, out, in, out_group, in_group, 0};
    pixedge_parallel(pack_task, &p);
    return 0;
}

void pixedge_matrix_free(struct pixedge_matrix *matrix) {
    free(matrix->packed);
    matrix->packed = NULL;
}

void *pixedge_aligned(size_t bytes) {
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

/* A line ahead of a buffer holds its size. */
static _Atomic(char *) kept;

void *pixedge_scratch_take(size_t bytes) {
    char *scratch = atomic_exchange(&kept, NULL);
    if (scratch && *(size_t *)scratch < bytes) {
        free(scratch);
        scratch = NULL;
    }
    if (!scratch) {
        scratch = pixedge_aligned(bytes + 64);
        if (!scratch) {
            return NULL;
        }
        *(size_t *)scratch = bytes;
    }
    return scratch + 64;
}

void pixedge_scratch_give(void *scratch) {
    free(atomic_exchange(&kept, (char *)scratch - 64));
}

#else

int pixedge_vision_best(void) { return PIXEDGE_VISION_NONE; }
void pixedge_vision_use(int variant) { (void)variant; }

#endif
