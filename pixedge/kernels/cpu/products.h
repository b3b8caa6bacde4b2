/* Products of few rows with a whole weight, as parts of a task. */

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

#endif
