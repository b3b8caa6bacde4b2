/* A linear's weight for many rows in bfloat16: packed once, multiplied by blocks of 32 rows.

   Rows are packed as the A blocks of tiles.h, weights as its B blocks; the AVX-512 variant multiplies the same
   blocks with dot-product instructions. Sums are float32. */

#ifndef PIXEDGE_MATRIX_H
#define PIXEDGE_MATRIX_H

#include "../cpu/pool.h"
#include "../cpu/tiles.h"

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__)
#define PIXEDGE_VISION 1
#define VECTOR __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")))
#endif

/* Which instructions multiply blocks; the vectors around them are AVX-512 in both. */
enum pixedge_vision_variant {
    PIXEDGE_VISION_NONE, /* this CPU has neither */
    PIXEDGE_VISION_AVX512,
    PIXEDGE_VISION_AMX,
};

/* The fastest variant of this CPU. */
PIXEDGE_API int pixedge_vision_best(void);

/* Use this variant from the next product on; the CPU must have it. Not while one is running. */
PIXEDGE_API void pixedge_vision_use(int variant);

/* Around a thread's products. */
void pixedge_products_begin(void);
void pixedge_products_end(void);

/* How a weight's outputs or inputs fall into groups (heads) that are each padded to whole blocks of 32. */
static inline long pixedge_blocks(long count, long group) {
    return count / group * ((group + 31) / 32);
}

struct pixedge_matrix {
    long in_blocks;  /* of 32 inputs, padded */
    long out_blocks; /* of 32 outputs, padded */
    char *packed;    /* [out_blocks, in_blocks, 2048 bytes] */
};

/* Pack a float16 weight [out, in]. in_group, out_group: the width of one head where the padding must keep heads
   apart, else in and out themselves. Runs on all threads. 0, or -1 where memory ran out. */
int pixedge_matrix_pack(struct pixedge_matrix *matrix, const uint16_t *weight, long out, long in, long out_group,
                        long in_group);
void pixedge_matrix_free(struct pixedge_matrix *matrix);

/* c [2 (rows), 2 (outputs), 16, 16] = one A block of 32 rows, all inputs, times one block of 32 outputs. */
void pixedge_block(const char *a, const struct pixedge_matrix *matrix, long out_block, int row_tiles, float *c);

/* The same for `steps` blocks of inputs from any B blocks, plus what c holds where `add` is set. */
void pixedge_block_steps(const void *a, const void *b, long steps, int row_tiles, int add, float *c);

/* Zeroed where asked, aligned to a cache line; NULL where memory ran out. */
void *pixedge_aligned(size_t bytes);

/* Buffers of a call, kept for the next one: a fresh one of tens of megabytes costs its page faults each time.
   One is kept at a time, so two calls at once are two buffers. */
void *pixedge_scratch_take(size_t bytes);
void pixedge_scratch_give(void *scratch);

#endif
