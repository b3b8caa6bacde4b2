/* Products of a few rows of bfloat16 with a packed weight; packing and unpacking of weights. */

#include "products.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

int64_t pixedge_rounding_group(int64_t group) {
    for (int64_t size = MOST_GROUP; size > 0; size -= 8) {
        if (group % size == 0) {
            return size;
        }
    }
    return 0;
}

int64_t pixedge_blocks_at_once(int64_t block_bytes) {
    return block_bytes >= 80000 ? 1 : 80000 / (block_bytes + 1) + 1;
}

static int64_t rounded_up(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

int64_t pixedge_rows_bytes(int64_t inputs, int64_t group, int rows) {
    return rounded_up(inputs * rows) + 2 * rounded_up(inputs / group * rows * 4);
}

struct bytes_rows pixedge_place_rows(void *memory, int64_t inputs, int64_t group, int rows) {
    struct bytes_rows x = {.q = memory, .inputs = inputs, .group = group, .rows = rows};
    x.scales = (float *)((char *)memory + rounded_up(inputs * rows));
    x.sums = (int32_t *)((char *)x.scales + rounded_up(inputs / group * rows * 4));
    return x;
}

struct product {
    const struct int4_weight *four;  /* one of the two */
    const struct int8_weight *eight;
    const uint16_t *x; /* [rows, inputs] */
    uint16_t *y;       /* [rows, outputs] */
    struct bytes_rows rounded;
    int64_t outputs;
    atomic_int next_row;
    struct pixedge_runs runs;
};

static void multiply(void *context, int thread, int threads) {
    struct product *p = context;
    const struct kernels *k = pixedge_kernels;
    const int64_t inputs = p->rounded.inputs, group = p->rounded.group;
    float wide[MOST_GROUP];
    /* Rounding is shared by groups: there may be one row only. */
    const int64_t groups = inputs / group;
    for (int64_t i; (i = pixedge_next(&p->next_row)) < (groups + 7) / 8;) {
        for (int64_t g = 8 * i; g < groups && g < 8 * i + 8; g++) {
            for (int row = 0; row < p->rounded.rows; row++) {
                k->widen(p->x + row * inputs + g * group, group, wide);
                k->round_row(wide, &p->rounded, row, g, g + 1);
            }
        }
    }
    pixedge_barrier();
    const int64_t blocks = (p->outputs + BLOCK - 1) / BLOCK;
    const int64_t step = pixedge_blocks_at_once(inputs * (p->four ? BLOCK / 2 : BLOCK));
    float sum[MOST_ROWS * BLOCK];
    int tried = 0;
    for (int64_t i; (i = pixedge_next_in_run(&p->runs, (blocks + step - 1) / step, thread, threads, &tried)) >= 0;) {
        for (int64_t block = i * step; block < blocks && block < (i + 1) * step; block++) {
            if (p->four) {
                k->int4_block(p->four, block, &p->rounded, sum);
            } else {
                k->int8_block(p->eight, block, &p->rounded, sum);
            }
            const int64_t first = block * BLOCK;
            const int64_t count = p->outputs - first < BLOCK ? p->outputs - first : BLOCK;
            for (int row = 0; row < p->rounded.rows; row++) {
                k->narrow(sum + row * BLOCK, count, p->y + row * p->outputs + first);
            }
        }
    }
}

static int product(const struct int4_weight *four, const struct int8_weight *eight, const uint16_t *x, int64_t rows,
                   uint16_t *y) {
    const int64_t inputs = four ? four->inputs : eight->inputs, outputs = four ? four->outputs : eight->outputs;
    const int64_t group = pixedge_rounding_group(four ? four->group : inputs);
    const int most = rows < MOST_ROWS ? (int)rows : MOST_ROWS;
    if (rows == 0 || outputs == 0) {
        return 0;
    }
    char *memory = malloc((size_t)pixedge_rows_bytes(inputs, group, most) + 64);
    if (!memory) {
        return 1;
    }
    char *aligned = memory + (64 - (uintptr_t)memory % 64) % 64;
    for (int64_t first = 0; first < rows; first += MOST_ROWS) {
        const int count = rows - first < MOST_ROWS ? (int)(rows - first) : MOST_ROWS;
        struct product p = {.four = four, .eight = eight, .outputs = outputs};
        p.x = x + first * inputs;
        p.y = y + first * outputs;
        p.rounded = pixedge_place_rows(aligned, inputs, group, count);
        pixedge_parallel(multiply, &p);
    }
    free(memory);
    return 0;
}

int pixedge_int4_few_rows(const struct int4_weight *weight, const uint16_t *x, int64_t rows, uint16_t *y) {
    return product(weight, NULL, x, rows, y);
}

int pixedge_int8_few_rows(const struct int8_weight *weight, const uint16_t *x, int64_t rows, uint16_t *y) {
    return product(NULL, weight, x, rows, y);
}

struct conversion {
    const struct int4_weight *four;
    uint16_t *dense;
    const uint32_t *words; /* [inputs / 8, outputs] */
    const void *rows;      /* [outputs, inputs], bfloat16 or float16 */
    int half;
    uint8_t *lines;
    float *scales;
    int64_t outputs, inputs;
    atomic_int next;
};

static void unpack_blocks(void *context, int thread, int threads) {
    (void)thread, (void)threads;
    struct conversion *c = context;
    for (int64_t block; (block = pixedge_next(&c->next)) < c->four->outputs / BLOCK;) {
        pixedge_kernels->unpack(c->four, block, c->dense + block * BLOCK * c->four->inputs);
    }
}

void pixedge_int4_unpack(const struct int4_weight *weight, uint16_t *dense) {
    struct conversion c = {.four = weight, .dense = dense};
    pixedge_parallel(unpack_blocks, &c);
}

/* Tiles of 64 lines of 32 blocks: 2 KB in a row are read, and 4 KB in a row written. */
#define TILE_LINES 64
#define TILE_BLOCKS 32

static void repack_tiles(void *context, int thread, int threads) {
    (void)thread, (void)threads;
    struct conversion *c = context;
    const int64_t lines = c->inputs / 8, blocks = c->outputs / BLOCK;
    const int64_t across = (blocks + TILE_BLOCKS - 1) / TILE_BLOCKS, down = (lines + TILE_LINES - 1) / TILE_LINES;
    for (int64_t i; (i = pixedge_next(&c->next)) < across * down;) {
        const int64_t line = i / across * TILE_LINES, first = i % across * TILE_BLOCKS;
        const int64_t count = lines - line < TILE_LINES ? lines - line : TILE_LINES;
        for (int64_t block = first; block < blocks && block < first + TILE_BLOCKS; block++) {
            pixedge_kernels->repack(c->words + line * c->outputs + block * BLOCK, c->outputs, count,
                                    c->lines + (block * lines + line) * LINE);
        }
    }
}

void pixedge_int4_repack(const uint32_t *words, int64_t inputs, int64_t outputs, uint8_t *lines) {
    struct conversion c = {.words = words, .inputs = inputs, .outputs = outputs, .lines = lines};
    pixedge_parallel(repack_tiles, &c);
}

static void round_blocks(void *context, int thread, int threads) {
    (void)thread, (void)threads;
    struct conversion *c = context;
    for (int64_t block; (block = pixedge_next(&c->next)) < (c->outputs + BLOCK - 1) / BLOCK;) {
        uint8_t *to = c->lines + block * BLOCK * c->inputs;
        for (int64_t r = 0; r < BLOCK; r++) {
            const int64_t row = block * BLOCK + r;
            const uint16_t *from = (const uint16_t *)c->rows + row * c->inputs;
            pixedge_kernels->round_weights(row < c->outputs ? from : NULL, c->half, c->inputs, to + 4 * r, c->scales + row);
        }
    }
}

void pixedge_int8_round(const void *rows, int half, int64_t inputs, int64_t outputs, uint8_t *lines,
                                    float *scales) {
    struct conversion c = {
        .rows = rows, .half = half, .inputs = inputs, .outputs = outputs, .lines = lines, .scales = scales};
    pixedge_parallel(round_blocks, &c);
}

void pixedge_release(void *memory, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t page = 4096, begin = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)memory + (uintptr_t)bytes) / page * page;
    if (begin < end) {
        madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
#else
    (void)memory, (void)bytes;
#endif
}

void pixedge_large_pages(void *memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(memory, (size_t)bytes, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

struct reading {
    const uint64_t *memory;
    int64_t bytes;
    atomic_int next;
    atomic_llong sum;
};

/* As plain as reading can be: what it reaches is the machine's limit for every kernel above. */
static void read_pieces(void *context, int thread, int threads) {
    (void)thread, (void)threads;
    struct reading *r = context;
    const int64_t piece = 1 << 18;
    uint64_t sum = 0;
    for (int64_t i; (i = pixedge_next(&r->next)) < r->bytes / piece;) {
        sum += pixedge_kernels->read(r->memory + i * (piece / 8), piece / 8);
    }
    atomic_fetch_add(&r->sum, (long long)sum);
}

int64_t pixedge_read(const void *memory, int64_t bytes) {
    struct reading r = {.memory = memory, .bytes = bytes};
    pixedge_parallel(read_pieces, &r);
    return r.sum;
}
