/* Runs the CPU kernels on odd sizes, in memory that ends where it must, for the sanitizers to watch, and holds
   what each variant computes against plain C. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

static uint32_t state = 1;

static uint32_t draw(void) {
    return state = state * 1664525u + 1013904223u;
}

/* What a variant computed: rows of numbers, their lengths, and how many there are. */
static struct results {
    float *numbers;
    int64_t *lengths;
    size_t held, rows;
} computed, expected;

static void keep(const uint16_t *row, int64_t length) {
    computed.numbers = realloc(computed.numbers, sizeof(float) * (computed.held + (size_t)length));
    computed.lengths = realloc(computed.lengths, sizeof(int64_t) * (computed.rows + 1));
    if (!computed.numbers || !computed.lengths) {
        abort();
    }
    for (int64_t i = 0; i < length; i++) {
        computed.numbers[computed.held++] = bfloat_to_float(row[i]);
    }
    computed.lengths[computed.rows++] = length;
}

/* The largest difference of a row from plain C's, as a share of the row's root mean square. */
static double difference(void) {
    double largest = 0;
    const float *a = computed.numbers, *b = expected.numbers;
    if (computed.held != expected.held || computed.rows != expected.rows) {
        abort();
    }
    for (size_t row = 0; row < expected.rows; a += expected.lengths[row], b += expected.lengths[row], row++) {
        double squares = 0, most = 0;
        for (int64_t i = 0; i < expected.lengths[row]; i++) {
            squares += (double)b[i] * b[i];
            most = fmax(most, fabs((double)a[i] - b[i]));
        }
        largest = fmax(largest, most / sqrt(squares / (double)expected.lengths[row] + 1e-30));
    }
    return largest;
}

/* Exactly `bytes` bytes on a line, filled with bytes below `limit`. */
static void *filled(size_t bytes, uint32_t limit) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) {
        abort();
    }
    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)memory)[i] = (uint8_t)((draw() >> 16) % limit);
    }
    return memory;
}

/* Numbers of bfloat16 between 1 and 2, of both signs. */
static uint16_t *numbers(size_t count) {
    uint16_t *memory = filled(2 * count, 256);
    for (size_t i = 0; i < count; i++) {
        memory[i] = (uint16_t)(0x3f80 | (memory[i] & 0x807f));
    }
    return memory;
}

static uint16_t *halves(size_t count) {
    uint16_t *memory = filled(2 * count, 256);
    for (size_t i = 0; i < count; i++) {
        memory[i] = (uint16_t)(0x1400 | (memory[i] & 0x3ff)); /* about 2^-10 */
    }
    return memory;
}

static struct int4_weight weight(int64_t outputs, int64_t inputs, int64_t group, int foreign) {
    struct int4_weight w = {.outputs = outputs, .inputs = inputs, .group = group};
    uint32_t *words = filled((size_t)(outputs * inputs / 2), 256);
    uint8_t *lines = filled((size_t)(outputs * inputs / 2), 256);
    pixedge_int4_repack(words, inputs, outputs, lines);
    free(words);
    w.lines = lines;
    w.scales = halves((size_t)(outputs * (inputs / group)));
    w.zeros = foreign ? filled((size_t)(outputs * (inputs / group)), 16) : NULL;
    return w;
}

static void drop(struct int4_weight *w) {
    free((void *)w->lines), free((void *)w->scales), free((void *)w->zeros);
}

static void products(void) {
    const int64_t groups[] = {8, 24, 32, 128, 136, 512};
    for (int shape = 0; shape < 6; shape++) {
        for (int64_t outputs = 16; outputs <= 48; outputs += 32) {
            const int64_t inputs = groups[shape] * (1 + shape % 3);
            struct int4_weight w = weight(outputs, inputs, groups[shape], shape % 2);
            uint16_t *dense = numbers((size_t)(outputs * inputs));
            pixedge_int4_unpack(&w, dense);
            struct int8_weight eight = {.outputs = outputs - 5, .inputs = inputs};
            uint8_t *lines = filled((size_t)(outputs * inputs), 256);
            float *scales = filled((size_t)(4 * outputs), 1);
            pixedge_int8_round(dense, shape % 2, inputs, outputs - 5, lines, scales);
            eight.lines = lines, eight.scales = scales;
            for (int64_t rows = 0; rows <= 19; rows++) {
                uint16_t *x = numbers((size_t)(rows * inputs)), *y = filled((size_t)(2 * rows * outputs), 1);
                uint16_t *z = filled((size_t)(2 * rows * (outputs - 5)), 1);
                if (pixedge_int4_few_rows(&w, x, rows, y) || pixedge_int8_few_rows(&eight, x, rows, z)) {
                    abort();
                }
                for (int64_t row = 0; row < rows; row++) {
                    keep(y + row * outputs, outputs), keep(z + row * (outputs - 5), outputs - 5);
                }
                free(x), free(y), free(z);
            }
            drop(&w);
            free(dense), free(lines), free(scales);
        }
    }
}

/* A step of three sequences, 1 to 16 tokens in all, whose last page is only partly written. */
static void layers(int64_t head_dim, int bytes, int32_t tokens) {
    enum { DIM = 64, KV = 2, HEADS = 6, FFN = 96, PAGES = 64, WIDTH = 20, LAYERS = 2 };
    struct layer l = {.dim = DIM, .heads = HEADS, .kv_heads = KV, .head_dim = head_dim, .ffn = FFN, .eps = 1e-5};
    l.q = weight(HEADS * head_dim, DIM, 32, 0), l.k = weight(KV * head_dim, DIM, 32, 1);
    l.v = weight(KV * head_dim, DIM, 32, 0), l.o = weight(DIM, HEADS * head_dim, head_dim, 0);
    l.gate = weight(FFN, DIM, 64, 0), l.up = weight(FFN, DIM, 64, 0), l.down = weight(DIM, FFN, 96, 0);
    float *norm = filled(4 * DIM, 1);
    for (int i = 0; i < DIM; i++) {
        norm[i] = 1.0f;
    }
    l.input_norm = l.post_norm = norm;
    const int32_t starts[] = {0, 15, 300 - tokens}, counts[] = {1, 2, tokens};
    const size_t numbers_held = (size_t)(LAYERS * PAGES * KV * PAGE * head_dim);
    int32_t *tables = filled(4 * 3 * WIDTH, 1);
    for (int i = 0; i < 3 * WIDTH; i++) {
        tables[i] = PAGES - 1 - i;
    }
    struct step s = {.rows = 3 + tokens, .sequences = 3, .max_pages = WIDTH, .tables = tables, .pages = PAGES};
    s.starts = starts, s.counts = counts;
    float *turns = filled((size_t)(4 * s.rows * (head_dim / 2)), 1);
    s.cos = s.sin = turns;
    s.keys = bytes ? filled(numbers_held, 256) : (void *)numbers(numbers_held);
    s.values = bytes ? filled(numbers_held, 256) : (void *)numbers(numbers_held);
    s.key_scales = bytes ? halves(numbers_held / (size_t)head_dim) : NULL;
    s.value_scales = bytes ? halves(numbers_held / (size_t)head_dim) : NULL;
    s.scratch = filled((size_t)pixedge_step_bytes(&l, &s), 1);
    uint16_t *x = numbers((size_t)(s.rows * DIM));
    for (int64_t index = 0; index < LAYERS; index++) {
        pixedge_layer(&l, &s, index, x, x);
    }
    for (int64_t row = 0; row < s.rows; row++) {
        keep(x + row * DIM, DIM);
    }
    for (int64_t i = 0; i < s.rows * DIM; i++) {
        if ((x[i] & 0x7f80) == 0x7f80) {
            printf("not a number\n");
            exit(1);
        }
    }
    struct int4_weight *weights[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
    for (int i = 0; i < 7; i++) {
        drop(weights[i]);
    }
    free(norm), free(tables), free(turns), free(s.keys), free(s.values), free(s.key_scales), free(s.value_scales);
    free(s.scratch), free(x);
}

static void everything(int threads) {
    state = 1;
    computed.held = computed.rows = 0;
    pixedge_set_threads(threads);
    products();
    for (int bytes = 0; bytes < 2; bytes++) {
        layers(128, bytes, 1), layers(128, bytes, 13), layers(32, bytes, 3), layers(48, bytes, 1);
    }
}

int main(void) {
    const char *const names[] = {"c", "amx", "avx512", "avx2", "neon"};
    for (int i = 0; i < 5; i++) {
        if (pixedge_choose(names[i])) {
            continue;
        }
        for (int threads = 1; threads <= 5; threads += 2) {
            everything(threads);
            if (i == 0 && threads == 1) {
                expected = computed;
                computed = (struct results){0};
            } else if (!(difference() < 0.01)) { /* bfloat16 has 8 bits, and a layer rounds several times */
                printf("%s with %d threads is off by %g\n", names[i], threads, difference());
                return 1;
            }
        }
        printf("%s\n", names[i]);
    }
    return 0;
}
