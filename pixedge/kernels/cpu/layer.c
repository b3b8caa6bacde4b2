/* A decoder layer for a few tokens in one task: its threads meet at barriers and never go back to the caller.

   The residual and everything between two products is float32; products read activations in 8 bits. */

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "layer.h"

struct run {
    const struct layer *layer;
    const struct step *step;
    const uint16_t *x;
    uint16_t *y;
    float *residual;          /* [rows, dim] */
    float *normed;            /* [rows, dim], each row its thread's */
    float *q, *k, *v;         /* [rows, heads or kv_heads, head_dim] */
    float *attended;          /* [rows, heads, head_dim] */
    float *gate;              /* [rows, ffn], silu(gate) * up */
    struct bytes_rows in, mixed, middle, hidden;
    struct attention attention;
    atomic_int rows[2], turned, mix_groups, hidden_groups;
    struct pixedge_runs qkv, out, ffn, down;
};

static int64_t rows_bytes(const struct int4_weight *w, int64_t rows) {
    return pixedge_rows_bytes(w->inputs, pixedge_rounding_group(w->group), (int)rows);
}

/* Take `bytes` of the scratch memory; `at` counts them. NULL only measures. */
static void *take(void *memory, int64_t *at, int64_t bytes) {
    void *place = memory ? (char *)memory + *at : NULL;
    *at += (bytes + 63) / 64 * 64;
    return place;
}

static struct bytes_rows take_rows(void *memory, int64_t *at, const struct int4_weight *w, int64_t rows) {
    void *place = take(memory, at, rows_bytes(w, rows));
    return memory ? pixedge_place_rows(place, w->inputs, pixedge_rounding_group(w->group), (int)rows)
                  : (struct bytes_rows){.q = NULL};
}

/* Lay the scratch memory out; return its bytes. */
static int64_t lay_out(struct run *run, void *memory) {
    const struct layer *l = run->layer;
    const struct step *s = run->step;
    const int64_t rows = s->rows, width = l->heads * l->head_dim, kv_width = l->kv_heads * l->head_dim;
    struct attention *a = &run->attention;
    a->step = s;
    a->heads = (struct heads){l->heads, l->kv_heads, l->head_dim};
    const int64_t gathered = pixedge_gathered(s, &a->heads);
    int64_t at = 0;
    run->residual = take(memory, &at, rows * l->dim * 4);
    run->normed = take(memory, &at, rows * l->dim * 4);
    run->q = take(memory, &at, rows * width * 4);
    run->k = take(memory, &at, rows * kv_width * 4);
    run->v = take(memory, &at, rows * kv_width * 4);
    run->attended = take(memory, &at, rows * width * 4);
    run->gate = take(memory, &at, rows * l->ffn * 4);
    run->in = take_rows(memory, &at, &l->q, rows);
    run->mixed = take_rows(memory, &at, &l->o, rows);
    run->middle = take_rows(memory, &at, &l->gate, rows);
    run->hidden = take_rows(memory, &at, &l->down, rows);
    a->q = take(memory, &at, rows * width * 4);
    a->q16 = take(memory, &at, rows * width * 2);
    a->q_scale = take(memory, &at, rows * l->heads * 4);
    a->most = take(memory, &at, gathered * 4);
    a->total = take(memory, &at, gathered * 4);
    a->sum = take(memory, &at, gathered * l->head_dim * 4);
    return at;
}

int64_t pixedge_step_bytes(const struct layer *layer, struct step *step) {
    struct run run = {.layer = layer, .step = step};
    step->chunk_pages = pixedge_chunk_pages(step, layer->kv_heads, pixedge_threads());
    return lay_out(&run, NULL);
}

/* Norm the residual's rows and round them. */
static void norm_rows(struct run *run, const float *weight, struct bytes_rows *to, atomic_int *next) {
    const int64_t dim = run->layer->dim;
    for (int64_t row; (row = pixedge_next(next)) < run->step->rows;) {
        float *residual = run->residual + row * dim, *normed = run->normed + row * dim;
        if (next == &run->rows[0]) {
            pixedge_kernels->widen(run->x + row * dim, dim, residual);
        }
        pixedge_kernels->rms_norm(residual, weight, (float)run->layer->eps, dim, normed);
        pixedge_kernels->round_row(normed, to, (int)row, 0, dim / to->group);
    }
}

/* Round x [rows, inputs], eight groups at a time. */
static void round_rows(const float *x, struct bytes_rows *to, atomic_int *next) {
    const int64_t groups = to->inputs / to->group;
    for (int64_t i; (i = 8 * pixedge_next(next)) < groups;) {
        const int64_t last = i + 8 < groups ? i + 8 : groups;
        for (int row = 0; row < to->rows; row++) {
            pixedge_kernels->round_row(x + row * to->inputs + i * to->group, to, row, i, last);
        }
    }
}

struct member {
    int thread, threads;
};

/* y [rows, outputs] of up to three weights over the same activations, their blocks in one count. */
static void multiply(const struct int4_weight *const *weights, float *const *outs, int count,
                     const struct bytes_rows *x, int add, uint16_t *narrowed, struct pixedge_runs *runs,
                     const struct member *team) {
    const int64_t step = pixedge_blocks_at_once(weights[0]->inputs * (BLOCK / 2));
    int64_t ends[3] = {0}, items = 0;
    for (int which = 0; which < count; which++) {
        items += (weights[which]->outputs / BLOCK + step - 1) / step;
        ends[which] = items;
    }
    float sum[MOST_ROWS * BLOCK];
    int tried = 0;
    for (int64_t item; (item = pixedge_next_in_run(runs, items, team->thread, team->threads, &tried)) >= 0;) {
        int which = 0;
        for (; item >= ends[which]; which++) {
        }
        const struct int4_weight *w = weights[which];
        const int64_t first = (which ? item - ends[which - 1] : item) * step, blocks = w->outputs / BLOCK;
        for (int64_t block = first; block < blocks && block < first + step; block++) {
            pixedge_kernels->int4_block(w, block, x, sum);
            for (int row = 0; row < x->rows; row++) {
                float *to = outs[which] + row * w->outputs + block * BLOCK;
                for (int r = 0; r < BLOCK; r++) {
                    to[r] = sum[row * BLOCK + r] + (add ? to[r] : 0.0f);
                }
                if (narrowed) {
                    pixedge_kernels->narrow(to, BLOCK, narrowed + row * w->outputs + block * BLOCK);
                }
            }
        }
    }
}

/* Gate and up block by block, so that their product is taken while both are at hand. */
static void feed(struct run *run, const struct member *team) {
    const struct layer *l = run->layer;
    const int64_t step = pixedge_blocks_at_once(2 * l->dim * (BLOCK / 2)), blocks = l->ffn / BLOCK;
    float gate[MOST_ROWS * BLOCK], up[MOST_ROWS * BLOCK];
    const int64_t items = (blocks + step - 1) / step;
    int tried = 0;
    for (int64_t item; (item = pixedge_next_in_run(&run->ffn, items, team->thread, team->threads, &tried)) >= 0;) {
        for (int64_t block = item * step; block < blocks && block < (item + 1) * step; block++) {
            pixedge_kernels->int4_block(&l->gate, block, &run->middle, gate);
            pixedge_kernels->int4_block(&l->up, block, &run->middle, up);
            for (int64_t row = 0; row < run->step->rows; row++) {
                pixedge_kernels->gated(gate + row * BLOCK, up + row * BLOCK, BLOCK,
                                       run->gate + row * l->ffn + block * BLOCK);
            }
        }
    }
}

/* The token and the sequence of a row. */
static int64_t sequence_of(const struct step *s, int64_t row, int64_t *token) {
    int64_t i = 0;
    for (; row >= s->counts[i]; i++) {
        row -= s->counts[i];
    }
    *token = s->starts[i] + row;
    return i;
}

static void store(const struct run *run, int64_t at, const float *x, void *to, uint16_t *scales) {
    const int64_t n = run->layer->head_dim;
    if (scales) {
        pixedge_kernels->round_head(x, n, (int8_t *)to + at * n, scales + at);
    } else {
        pixedge_kernels->narrow(x, n, (uint16_t *)to + at * n);
    }
}

/* Turn queries and keys by their positions, and write keys and values to the cache. */
static void turn(struct run *run) {
    const struct layer *l = run->layer;
    const struct step *s = run->step;
    struct attention *a = &run->attention;
    const int64_t n = l->head_dim, groups = l->heads / l->kv_heads;
    const float factor = 1.0f / sqrtf((float)n);
    float turned[512];
    for (int64_t item; (item = pixedge_next(&run->turned)) < s->rows * l->kv_heads;) {
        const int64_t row = item / l->kv_heads, kv_head = item % l->kv_heads;
        const float *cos = s->cos + row * (n / 2), *sin = s->sin + row * (n / 2);
        for (int64_t group = 0; group < groups; group++) {
            const float *from = run->q + (row * l->heads + kv_head * groups + group) * n;
            const int64_t query = (kv_head * s->rows + row) * groups + group;
            pixedge_kernels->rotate(from, cos, sin, n, factor, a->q + query * n);
            pixedge_kernels->round_query(a->q + query * n, n, a->q16 + query * n, a->q_scale + query);
        }
        int64_t token, sequence = sequence_of(s, row, &token);
        const int64_t at = pixedge_cache_row(s, &a->heads, a->layer, sequence, token, kv_head);
        pixedge_kernels->rotate(run->k + item * n, cos, sin, n, 1.0f, turned);
        store(run, at, turned, s->keys, s->key_scales);
        store(run, at, run->v + item * n, s->values, s->value_scales);
    }
}

static void run_layer(void *context, int thread, int threads) {
    struct run *run = context;
    const struct member team = {thread, threads};
    const struct layer *l = run->layer;
    norm_rows(run, l->input_norm, &run->in, &run->rows[0]);
    pixedge_barrier();
    const struct int4_weight *const qkv[] = {&l->q, &l->k, &l->v};
    float *const projected[] = {run->q, run->k, run->v};
    multiply(qkv, projected, 3, &run->in, 0, NULL, &run->qkv, &team);
    pixedge_barrier();
    turn(run);
    pixedge_barrier();
    pixedge_gather(&run->attention);
    pixedge_barrier();
    pixedge_put_together(&run->attention, run->attended);
    pixedge_barrier();
    round_rows(run->attended, &run->mixed, &run->mix_groups);
    pixedge_barrier();
    const struct int4_weight *const o[] = {&l->o}, *const down[] = {&l->down};
    float *const residual[] = {run->residual};
    multiply(o, residual, 1, &run->mixed, 1, NULL, &run->out, &team);
    pixedge_barrier();
    norm_rows(run, l->post_norm, &run->middle, &run->rows[1]);
    pixedge_barrier();
    feed(run, &team);
    pixedge_barrier();
    round_rows(run->gate, &run->hidden, &run->hidden_groups);
    pixedge_barrier();
    multiply(down, residual, 1, &run->hidden, 1, run->y, &run->down, &team);
}

void pixedge_layer(const struct layer *layer, const struct step *step, int64_t index, const uint16_t *x, uint16_t *y) {
    struct run run = {.layer = layer, .step = step, .x = x, .y = y};
    run.attention.layer = index;
    lay_out(&run, step->scratch);
    pixedge_parallel(run_layer, &run);
}
