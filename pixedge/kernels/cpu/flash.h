/* Attention of a prompt's tokens over a paged cache, on matrix tiles. */
#ifndef PIXEDGE_FLASH_H
#define PIXEDGE_FLASH_H

#include <stdint.h>

#include "pool.h"

/* out = softmax(q k^T / sqrt(head_dim)) v for one sequence, on all threads of the pool.
 *
 * q, out bfloat16 [tokens, heads, head_dim]. keys, values: one layer's pages [pages, kv_heads, 16, head_dim], bfloat16
 * where key_scales and value_scales are null, else int8 with float16 scales [pages, kv_heads, 16]. table: the sequence's
 * pages in order. The tokens' own keys and values are stored already: token t sees the first start + t + 1. Query head
 * h reads key head h / (heads / kv_heads). Returns 0, or non-zero with out untouched where this CPU or this head_dim
 * (a multiple of 32, at most 256) has no fast path, or memory is short. */
PIXEDGE_API int pixedge_flash(const uint16_t *q, long tokens, long heads, const void *keys, const void *values,
                              const uint16_t *key_scales, const uint16_t *value_scales, long kv_heads, long head_dim,
                              const int32_t *table, long start, uint16_t *out);

#endif
