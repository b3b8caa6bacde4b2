/* Attention of a step's few tokens over the paged cache, as parts of a task.

   The pages of each sequence and key-value head are cut into chunks, so that a long context keeps all threads
   busy; what the chunks gathered is put together in the end. The queries that share a key are served by one
   reading of it. */

#ifndef PIXEDGE_ATTENTION_H
#define PIXEDGE_ATTENTION_H

#include "kernels.h"
#include "pool.h"

/* One step: the tokens of all sequences, side by side. */
struct step {
    int64_t rows, sequences, max_pages;
    const int32_t *tables;              /* [sequences, max_pages] ids of pages */
    const int32_t *starts, *counts;     /* [sequences] tokens held before, tokens of this step */
    const float *cos, *sin;             /* [rows, head_dim / 2] */
    void *keys, *values;                /* [layers, pages, kv_heads, 16, head_dim], bfloat16 or int8 */
    uint16_t *key_scales, *value_scales; /* float16 [layers, pages, kv_heads, 16], NULL for bfloat16 */
    int64_t pages;
    void *scratch;       /* aligned to 64 bytes */
    int64_t chunk_pages; /* set by pixedge_step_bytes */
};

/* The heads of a layer. */
struct heads {
    int64_t heads, kv_heads, head_dim;
};

/* One layer's attention in one step. Queries lie as [kv_heads, rows, heads / kv_heads, head_dim]. */
struct attention {
    const struct step *step;
    struct heads heads;
    int64_t layer;
    float *q, *q_scale;
    int16_t *q16;
    float *most, *total, *sum; /* what each chunk's queries gathered */
    atomic_int next_item, next_sum;
};

/* The size of a chunk that gives `threads` threads enough of them. */
int64_t pixedge_chunk_pages(const struct step *step, int64_t kv_heads, int threads);

/* Queries times chunks: how many numbers `most` and `total` have; `sum` has head_dim times as many. */
int64_t pixedge_gathered(const struct step *step, const struct heads *heads);

/* Where a token of a layer lies in the cache: the number of its row, of head_dim numbers or one scale. */
int64_t pixedge_cache_row(const struct step *, const struct heads *, int64_t layer, int64_t sequence, int64_t token,
                          int64_t kv_head);

/* Gather: taken part in by every thread. Then, behind a barrier, put together: out [rows, heads * head_dim]. */
void pixedge_gather(struct attention *);
void pixedge_put_together(struct attention *, float *out);

#endif
