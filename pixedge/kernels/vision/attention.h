/* Attention of every patch over every patch, many heads, in bfloat16 with float32 softmax.

   Scores never lie in memory as a whole: 32 queries pass over 256 keys at a time with a running maximum
   (Milakov and Gimelshein 2018; Dao et al. 2022). */

#ifndef PIXEDGE_ATTENTION_H
#define PIXEDGE_ATTENTION_H

#include "matrix.h"

enum { PIXEDGE_WIDEST_HEAD = 128 };

/* The operands of one picture, as blocks of tiles.h; a head is padded to `width` blocks of 32. */
struct pixedge_heads {
    long heads, head_dim, patches;
    long width;  /* blocks of 32 that a head takes */
    long blocks; /* blocks of 32 patches */
    char *q;     /* A blocks [heads, blocks, width] */
    char *k;     /* B blocks [heads, blocks (outputs), width (steps)] */
    char *v;     /* B blocks [heads, width (outputs), blocks (steps)] */
};

/* The sizes of one picture; the pointers are the caller's to set, each to pixedge_heads_bytes bytes. */
struct pixedge_heads pixedge_heads_of(long heads, long head_dim, long patches);
size_t pixedge_heads_bytes(const struct pixedge_heads *h);

/* Turn the first `rows` rows of x float32 [32, 32 width] by cos, sin float32 [rows, head_dim / 2], the halves of a
   head being the pairs' two parts. */
void pixedge_rotate(const struct pixedge_heads *h, float *x, long rows, const float *cos, const float *sin);

/* Put a block of 32 patches of one head in its place, from float32 [32, 32 width]; missing ones are zero.
   Queries are scaled for the softmax here. */
void pixedge_store_queries(const struct pixedge_heads *h, long head, long block, const float *x);
void pixedge_store_keys(const struct pixedge_heads *h, long head, long block, const float *x);
void pixedge_store_values(const struct pixedge_heads *h, long head, long block, const float *x);

/* Attend from a block of 32 queries of one head; write its place among the A blocks [blocks, heads * width]. */
void pixedge_attend(const struct pixedge_heads *h, long head, long block, char *attended);

/* For tests and timing: q, k, v, out float32 [patches, heads * head_dim], cos, sin float32 [patches, head_dim / 2].
   0, or -1 where memory ran out. */
PIXEDGE_API int pixedge_encoder_attention(const float *q, const float *k, const float *v, const float *cos,
                                          const float *sin, long heads, long head_dim, long patches, float *out);

#endif
