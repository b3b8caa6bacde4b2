#include "encoder_layer.h"

#ifdef PIXEDGE_VISION

#include "rows.h"

#include <stdlib.h>
#include <string.h>

/* Blocks of 32 rows that pass over the weights together: more reuse of what L2 holds, but fewer pieces to share. */
enum { MOST_BLOCKS = 4 };

struct pixedge_encoder_layer {
    long dim, heads, ffn_dim;
    float eps;
    float *norms; /* [2, dim] */
    struct pixedge_matrix q, k, v, out, gate, up, down;
};

struct pixedge_encoder_linear {
    long in, out;
    int gelu;
    float *bias; /* [out] */
    struct pixedge_matrix matrix;
};

struct pixedge_encoder_layer *pixedge_encoder_layer_new(long dim, long heads, long ffn_dim, float eps,
                                        const uint16_t *const weights[PIXEDGE_LAYER_WEIGHTS]) {
    struct pixedge_encoder_layer *layer = calloc(1, sizeof *layer);
    if (!layer) {
        return NULL;
    }
    layer->dim = dim;
    layer->heads = heads;
    layer->ffn_dim = ffn_dim;
    layer->eps = eps;
    layer->norms = pixedge_aligned((size_t)(2 * dim) * sizeof(float));
    const long head = dim / heads;
    if (!layer->norms || pixedge_matrix_pack(&layer->q, weights[PIXEDGE_QUERY], dim, dim, head, dim) ||
        pixedge_matrix_pack(&layer->k, weights[PIXEDGE_KEY], dim, dim, head, dim) ||
        pixedge_matrix_pack(&layer->v, weights[PIXEDGE_VALUE], dim, dim, head, dim) ||
        pixedge_matrix_pack(&layer->out, weights[PIXEDGE_OUT], dim, dim, dim, head) ||
        pixedge_matrix_pack(&layer->gate, weights[PIXEDGE_GATE], ffn_dim, dim, ffn_dim, dim) ||
        pixedge_matrix_pack(&layer->up, weights[PIXEDGE_UP], ffn_dim, dim, ffn_dim, dim) ||
        pixedge_matrix_pack(&layer->down, weights[PIXEDGE_DOWN], dim, ffn_dim, dim, ffn_dim)) {
        pixedge_encoder_layer_free(layer);
        return NULL;
    }
    pixedge_widen(weights[PIXEDGE_ATTENTION_NORM], dim, layer->norms);
    pixedge_widen(weights[PIXEDGE_FFN_NORM], dim, layer->norms + dim);
    return layer;
}

void pixedge_encoder_layer_free(struct pixedge_encoder_layer *layer) {
    struct pixedge_matrix *all[] = {&layer->q,    &layer->k,  &layer->v,   &layer->out,
                                    &layer->gate, &layer->up, &layer->down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        pixedge_matrix_free(all[i]);
    }
    free(layer->norms);
    free(layer);
}

struct layer_call {
    const struct pixedge_encoder_layer *layer;
    struct pixedge_heads heads;
    const float *x, *cos, *sin;
    float *out;
    char *attended; /* A blocks [blocks, heads * width] */
    char *own;      /* each thread's normed rows and hidden ones, as A blocks */
    size_t own_bytes;
    int threads;   /* that have an own part: the pool may have grown since it was asked */
    long together; /* blocks of rows that are one piece of work */
    atomic_int project, attend, feed;
};

static long rows_of(long patches, long block) {
    return patches - 32 * block < 32 ? patches - 32 * block : 32;
}

/* Queries, keys and values of `count` blocks of rows from `first` on. */
static void project(const struct layer_call *call, long first, long count, char *normed) {
    const struct pixedge_encoder_layer *l = call->layer;
    const struct pixedge_heads *h = &call->heads;
    const long block_bytes = l->q.in_blocks * 2048;
    for (long i = 0; i < count; i++) {
        const float *x = call->x + 32 * (first + i) * l->dim;
        pixedge_pack_rows(x, rows_of(h->patches, first + i), l->dim, l->norms, l->eps, normed + i * block_bytes);
    }
    float c[1024] __attribute__((aligned(64))), x[32 * PIXEDGE_WIDEST_HEAD] __attribute__((aligned(64)));
    const struct pixedge_matrix *matrices[] = {&l->q, &l->k, &l->v};
    void (*const store[])(const struct pixedge_heads *, long, long, const float *) = {
        pixedge_store_queries, pixedge_store_keys, pixedge_store_values};
    for (int which = 0; which < 3; which++) {
        for (long head = 0; head < l->heads; head++) {
            for (long i = 0; i < count; i++) {
                const long block = first + i, rows = rows_of(h->patches, block);
                const long at = 32 * block * (h->head_dim / 2);
                const char *a = normed + i * block_bytes;
                for (long part = 0; part < h->width; part++) {
                    pixedge_block(a, matrices[which], head * h->width + part, rows > 16 ? 2 : 1, c);
                    pixedge_spread(c, x + 32 * part, 32 * h->width);
                }
                if (which < 2) {
                    pixedge_rotate(h, x, rows, call->cos + at, call->sin + at);
                }
                store[which](h, head, block, x);
            }
        }
    }
}

/* Multiply `count` A blocks by the matrix and add the result to rows of `from`. */
static void add_product(const struct layer_call *call, const char *a, const struct pixedge_matrix *matrix, long first,
                        long count, const float *from) {
    const long dim = call->layer->dim, patches = call->heads.patches;
    float c[1024] __attribute__((aligned(64)));
    for (long o = 0; o < matrix->out_blocks; o++) {
        for (long i = 0; i < count; i++) {
            const long at = 32 * (first + i) * dim + 32 * o, rows = rows_of(patches, first + i);
            pixedge_block(a + i * matrix->in_blocks * 2048, matrix, o, rows > 16 ? 2 : 1, c);
            pixedge_add_block(c, rows, dim - 32 * o, from + at, call->out + at, dim);
        }
    }
}

/* What follows attention, for `count` blocks of rows from `first` on. */
static void feed_forward(const struct layer_call *call, long first, long count, char *normed, char *hidden) {
    const struct pixedge_encoder_layer *l = call->layer;
    const long patches = call->heads.patches;
    const char *attended = call->attended + first * l->out.in_blocks * 2048;
    add_product(call, attended, &l->out, first, count, call->x);

    const long block_bytes = l->gate.in_blocks * 2048;
    for (long i = 0; i < count; i++) {
        const float *x = call->out + 32 * (first + i) * l->dim;
        pixedge_pack_rows(x, rows_of(patches, first + i), l->dim, l->norms + l->dim, l->eps, normed + i * block_bytes);
    }
    float gate[1024] __attribute__((aligned(64))), up[1024] __attribute__((aligned(64)));
    for (long o = 0; o < l->gate.out_blocks; o++) {
        for (long i = 0; i < count; i++) {
            const int row_tiles = rows_of(patches, first + i) > 16 ? 2 : 1;
            pixedge_block(normed + i * block_bytes, &l->gate, o, row_tiles, gate);
            pixedge_block(normed + i * block_bytes, &l->up, o, row_tiles, up);
            pixedge_gate_block(gate, up, hidden + (i * l->down.in_blocks + o) * 2048);
        }
    }
    add_product(call, hidden, &l->down, first, count, call->out);
}

/* The blocks of one piece of work; 0 behind the last. */
static long take(const struct layer_call *call, atomic_int *counter, long *first) {
    const long left = call->heads.blocks - (*first = pixedge_next(counter) * call->together);
    return left > call->together ? call->together : left > 0 ? left : 0;
}

static void layer_task(void *context, int thread, int threads) {
    struct layer_call *call = context;
    const struct pixedge_heads *h = &call->heads;
    char *normed = call->own + (size_t)thread * call->own_bytes;
    char *hidden = normed + call->together * call->layer->q.in_blocks * 2048;
    long first, count;
    const int idle = thread >= call->threads;
    (void)threads;
    pixedge_products_begin();
    while (!idle && (count = take(call, &call->project, &first))) {
        project(call, first, count, normed);
    }
    pixedge_barrier();
    /* Head by head, so that one head's keys and values stay in L2 while all queries pass. */
    for (long item; (item = pixedge_next(&call->attend)) < h->heads * h->blocks;) {
        pixedge_attend(h, item / h->blocks, item % h->blocks, call->attended);
    }
    pixedge_barrier();
    while (!idle && (count = take(call, &call->feed, &first))) {
        feed_forward(call, first, count, normed, hidden);
    }
    pixedge_products_end();
}

/* As many blocks together as leaves each thread at least two pieces. */
static long blocks_together(long blocks, int threads) {
    const long share = blocks / (2 * threads);
    return share < 1 ? 1 : share > MOST_BLOCKS ? MOST_BLOCKS : share;
}

int pixedge_encoder_layer_run(const struct pixedge_encoder_layer *layer, const float *x, const float *cos,
                              const float *sin, long patches, float *out) {
    struct layer_call call = {.layer = layer, .x = x, .cos = cos, .sin = sin, .out = out};
    const int threads = pixedge_threads();
    call.threads = threads;
    call.heads = pixedge_heads_of(layer->heads, layer->dim / layer->heads, patches);
    call.together = blocks_together(call.heads.blocks, threads);
    call.own_bytes = (size_t)(call.together * (layer->q.in_blocks + layer->down.in_blocks) * 2048);
    const size_t bytes = pixedge_heads_bytes(&call.heads);
    char *scratch = pixedge_scratch_take(4 * bytes + (size_t)threads * call.own_bytes);
    if (!scratch) {
        return -1;
    }
    call.heads.q = scratch;
    call.heads.k = scratch + bytes;
    call.heads.v = scratch + 2 * bytes;
    call.attended = scratch + 3 * bytes;
    call.own = scratch + 4 * bytes;
    pixedge_parallel(layer_task, &call);
    pixedge_scratch_give(scratch);
    return 0;
}

struct pixedge_encoder_linear *pixedge_encoder_linear_new(long in, long out, int gelu, const uint16_t *weight,
                                                        const uint16_t *bias) {
    struct pixedge_encoder_linear *linear = calloc(1, sizeof *linear);
    if (!linear) {
        return NULL;
    }
    linear->in = in;
    linear->out = out;
    linear->gelu = gelu;
    linear->bias = calloc((size_t)out, sizeof(float));
    if (!linear->bias || pixedge_matrix_pack(&linear->matrix, weight, out, in, out, in)) {
        pixedge_encoder_linear_free(linear);
        return NULL;
    }
    if (bias) {
        pixedge_widen(bias, out, linear->bias);
    }
    return linear;
}

void pixedge_encoder_linear_free(struct pixedge_encoder_linear *linear) {
    pixedge_matrix_free(&linear->matrix);
    free(linear->bias);
    free(linear);
}

struct linear_call {
    const struct pixedge_encoder_linear *linear;
    const float *x;
    float *out;
    long rows, blocks, together;
    int threads;
    char *own;
    atomic_int next;
};

static void linear_task(void *context, int thread, int threads) {
    struct linear_call *call = context;
    const struct pixedge_encoder_linear *l = call->linear;
    const long block_bytes = l->matrix.in_blocks * 2048;
    char *a = call->own + thread * call->together * block_bytes;
    float c[1024] __attribute__((aligned(64)));
    (void)threads;
    if (thread >= call->threads) {
        return;
    }
    pixedge_products_begin();
    for (long first; (first = pixedge_next(&call->next) * call->together) < call->blocks;) {
        const long count = call->blocks - first < call->together ? call->blocks - first : call->together;
        for (long i = 0; i < count; i++) {
            const float *x = call->x + 32 * (first + i) * l->in;
            pixedge_pack_rows(x, rows_of(call->rows, first + i), l->in, NULL, 0, a + i * block_bytes);
        }
        for (long o = 0; o < l->matrix.out_blocks; o++) {
            for (long i = 0; i < count; i++) {
                const long rows = rows_of(call->rows, first + i);
                pixedge_block(a + i * block_bytes, &l->matrix, o, rows > 16 ? 2 : 1, c);
                pixedge_bias_block(c, rows, l->out - 32 * o, l->bias + 32 * o, l->gelu,
                                   call->out + 32 * (first + i) * l->out + 32 * o, l->out);
            }
        }
    }
    pixedge_products_end();
}

int pixedge_encoder_linear_run(const struct pixedge_encoder_linear *linear, const float *x, long rows, float *out) {
    struct linear_call call = {.linear = linear, .x = x, .out = out, .rows = rows, .blocks = (rows + 31) / 32};
    const int threads = pixedge_threads();
    call.threads = threads;
    call.together = blocks_together(call.blocks, threads);
    call.own = pixedge_scratch_take((size_t)(threads * call.together * linear->matrix.in_blocks * 2048));
    if (!call.own) {
        return -1;
    }
    pixedge_parallel(linear_task, &call);
    pixedge_scratch_give(call.own);
    return 0;
}

#endif
