/* Products of few rows with a whole weight, and what packs and unpacks weights. */

#ifndef PIXEDGE_PRODUCTS_H
#define PIXEDGE_PRODUCTS_H

#include "kernels.h"
#include "pool.h"

/* Blocks of outputs that a thread takes at a time: enough to read memory in long runs, few enough that threads
   end together. */
int64_t pixedge_blocks_at_once(int64_t block_bytes);

/* Bytes that `rows` rows of `inputs` activations in groups of `group` take, and their places in `memory`,
   which is aligned to 64 bytes. */
int64_t pixedge_rows_bytes(int64_t inputs, int64_t group, int rows);
struct bytes_rows pixedge_place_rows(void *memory, int64_t inputs, int64_t group, int rows);

/* y [rows, outputs] = x [rows, inputs] times the weight, bfloat16; any number of rows, MOST_ROWS at a time.
   Return 0, or 1 where there was no memory. */
PIXEDGE_API int pixedge_int4_few_rows(const struct int4_weight *weight, const uint16_t *x, int64_t rows, uint16_t *y);
PIXEDGE_API int pixedge_int8_few_rows(const struct int8_weight *weight, const uint16_t *x, int64_t rows, uint16_t *y);

/* The weight as bfloat16 [outputs, inputs], rounded once to the nearest. */
PIXEDGE_API void pixedge_int4_unpack(const struct int4_weight *weight, uint16_t *dense);

/* GPTQ's words int32 [inputs / 8, outputs] to lines. */
PIXEDGE_API void pixedge_int4_repack(const uint32_t *words, int64_t inputs, int64_t outputs, uint8_t *lines);

/* Rows of a weight, bfloat16 or float16 (half), to bytes plus 128 in lines, with one scale each: the largest
   over 127, rounded to bfloat16 before it divides. */
PIXEDGE_API void pixedge_int8_round(const void *rows, int half, int64_t inputs, int64_t outputs, uint8_t *lines,
                                    float *scales);

/* Give back the memory of a mapped file that has been read; reading again maps it again. */
PIXEDGE_API void pixedge_release(void *memory, int64_t bytes);

/* Ask for large pages where a weight lies: a table of few entries then finds all of it. */
PIXEDGE_API void pixedge_large_pages(void *memory, int64_t bytes);

/* Read memory once with all threads, in whole pieces of 256 KiB, and return a sum of it: for measuring. */
PIXEDGE_API int64_t pixedge_read(const void *memory, int64_t bytes);

#endif
