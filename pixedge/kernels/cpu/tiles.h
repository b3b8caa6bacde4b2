/* Products of matrix tiles on Intel AMX: the core that prompts, the vision encoder and attention share.
 *
 * A step is 32 inputs of bfloat16, or 64 inputs of int8: one tile row of 64 bytes. A block of C is 32 x 32, held in
 * four tiles; each step loads two tiles of A and two of B for four products, which keeps the unit busy from L2.
 * Operands lie packed, so that every tile is 1 KiB in one piece:
 *
 *     A   [rows / 32, steps, 2, 16, 64 bytes]      tile t of a block holds its rows 16 t ... 16 t + 15
 *     B   [out / 32, steps, 2, 16, 64 bytes]       tile t holds outputs 16 t ... 16 t + 15; row p of a tile holds, for
 *                                                  each output in turn, the inputs 2 p, 2 p + 1 of the step (int8:
 *                                                  4 p ... 4 p + 3)
 *     C   [2 (rows), 2 (outputs), 16, 16]          float32 or int32, the 32 x 32 block of one A and one B block
 *
 * What is missing from the last step, rows or outputs is zero. Buffers are 64-byte aligned. A thread calls
 * pixedge_tiles_begin before its first product and pixedge_tiles_end after its last.
 */
#ifndef PIXEDGE_TILES_H
#define PIXEDGE_TILES_H

#include <stdint.h>

enum {
    PIXEDGE_TILE_BYTES = 1024,
    PIXEDGE_BLOCK = 32,      /* rows of an A block, outputs of a B block */
    PIXEDGE_STEP_BYTES = 64, /* 32 inputs of bfloat16, 64 of int8 */
};

/* 1 where this CPU and kernel let the process use AMX with bfloat16 and int8; asks for the permission once. */
int pixedge_tiles_usable(void);

/* Set this thread's eight tiles to 16 rows of 64 bytes; give them up again. */
void pixedge_tiles_begin(void);
void pixedge_tiles_end(void);

/* Pack `rows` rows of x, `bytes` wide (bfloat16 or int8 alike) and `stride` bytes apart, as A blocks. */
void pixedge_tiles_pack_a(const void *x, long rows, long bytes, long stride, void *packed);

/* Pack weight [out, in], rows of `bytes` bytes `stride` bytes apart, as B blocks; width is 2 (bfloat16) or 1 (int8). */
void pixedge_tiles_pack_b(const void *weight, long out, long bytes, long stride, int width, void *packed);

/* c = a b over `steps` steps for one block, plus what c holds where `add` is set. row_tiles 1 leaves out rows 16 to 31.
 */
void pixedge_tiles_bf16(const void *a, const void *b, long steps, int row_tiles, int add, float *c);
void pixedge_tiles_int8(const void *a, const void *b, long steps, int row_tiles, int add, int32_t *c);

/* y [rows, out] = (bias +) x W^T for part `part` of `parts` of the outputs, from packed A and B of bfloat16.
 *
 * y is float32 or, with to_bf16, bfloat16, its rows y_stride elements apart. bias float32 [out] or null. */
void pixedge_tiles_bf16_product(const void *a, const void *b, long rows, long in, long out, const float *bias, void *y,
                                long y_stride, int to_bf16, int part, int parts);

/* The same from int8: y = row_scales[row] * scales[output] * (sum of products) (+ bias). row_scales float32 [rows]. */
void pixedge_tiles_int8_product(const void *a, const void *b, long rows, long in, long out, const float *row_scales,
                                const float *scales, const float *bias, void *y, long y_stride, int to_bf16, int part,
                                int parts);

#endif
