/* Runs the kernels of prompts on odd sizes, in memory that ends where it must, for the sanitizers to watch. */

#include <stdio.h>
#include <stdlib.h>

#include "flash.h"
#include "many_rows.h"
#include "prompt_rows.h"
#include "tiles.h"

static uint32_t state = 1;

static long draw(long below) {
    state = state * 1664525u + 1013904223u;
    return (long)((state >> 8) % (uint32_t)below);
}

/* Exactly `bytes` bytes, aligned as little as the kernels allow. */
static void *filled(long bytes, size_t alignment) {
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, bytes ? (size_t)bytes : 1)) {
        abort();
    }
    for (long i = 0; i < bytes; i++) {
        ((uint8_t *)memory)[i] = (uint8_t)draw(256);
    }
    return memory;
}

/* 16-bit numbers with these bits of the exponent, any sign and fraction: bfloat16 0x3f00, float16 0x1400. */
static uint16_t *halves(long count, uint16_t exponent, uint16_t free_bits) {
    uint16_t *memory = filled(2 * count, 8);
    for (long i = 0; i < count; i++) {
        memory[i] = (uint16_t)(exponent | (memory[i] & free_bits));
    }
    return memory;
}

static uint16_t *numbers(long count) { return halves(count, 0x3f00, 0x80ff); }
static uint16_t *scales(long count) { return halves(count, 0x1400, 0x3ff); }

static float *floats(long count) {
    float *memory = filled(4 * count, 8);
    for (long i = 0; i < count; i++) {
        memory[i] = (float)draw(1000) / 500.0f - 1.0f;
    }
    return memory;
}

static int product(int many) {
    static const long sizes[] = {8, 24, 32, 40, 64, 128, 296};
    const long group = sizes[draw(7)], groups = 1 + draw(5), in = group * groups, out = 16 * (1 + draw(40));
    const long rows = many ? 500 + draw(600) : 1 + draw(70);
    uint16_t *x = numbers(rows * in), *y = numbers(rows * out), *scale = scales(out * groups);
    uint8_t *lines = filled(in * out / 2, 64), *zeros = draw(2) ? filled(out * groups, 8) : NULL;
    int failed = pixedge_int4_many_rows(x, rows, in, lines, scale, zeros, out, group, y);
    failed |= pixedge_int4_many_rows_onto(x, rows, in, lines, scale, zeros, out, group, y, y);
    free(x), free(y), free(scale), free(lines), free(zeros);
    return failed;
}

static int attention(int bytes) {
    const long width = 32 * (1 + draw(8)), kv_heads = 1 + draw(3), heads = kv_heads * (1 + draw(5));
    const long tokens = 1 + draw(100), start = draw(600), pages = (start + tokens + 15) / 16;
    const long count = pages * kv_heads * 16;
    uint16_t *q = numbers(tokens * heads * width), *out = numbers(tokens * heads * width);
    void *keys = bytes ? filled(count * width, 8) : (void *)numbers(count * width);
    void *values = bytes ? filled(count * width, 8) : (void *)numbers(count * width);
    uint16_t *key_scales = bytes ? scales(count) : NULL, *value_scales = bytes ? scales(count) : NULL;
    int32_t *table = filled(4 * pages, 8);
    for (long page = 0; page < pages; page++) {
        table[page] = (int32_t)(pages - 1 - page);
    }
    int failed = pixedge_flash(q, tokens, heads, keys, values, key_scales, value_scales, kv_heads, width, table, start, out);
    free(q), free(out), free(keys), free(values), free(key_scales), free(value_scales), free(table);
    return failed;
}

static int rows(void) {
    const long count = 1 + draw(40), heads = 1 + draw(4), width = 2 * (1 + draw(90));
    uint16_t *x = numbers(count * heads * width), *y = numbers(count * heads * width);
    float *weight = floats(heads * width), *cos = floats(count * width / 2), *sin = floats(count * width / 2);
    int failed = pixedge_norm_rows(x, weight, 1e-5f, count, heads * width, y);
    failed |= pixedge_turn_rows(y, count, heads, width, cos, sin);
    failed |= pixedge_gate_rows(x, y, count, heads * width);
    free(x), free(y), free(weight), free(cos), free(sin);
    return failed;
}

static void tiles(int width) {
    const long count = 1 + draw(100), in = 1 + draw(300), out = 1 + draw(100), lines = (in * width + 63) / 64;
    void *x = filled(count * in * width, 8), *w = filled(out * in * width, 8);
    void *a = filled((count + 31) / 32 * lines * 2048, 64), *b = filled((out + 31) / 32 * lines * 2048, 64);
    float *y = floats(count * out), *row_scales = floats(count), *out_scales = floats(out);
    pixedge_tiles_pack_a(x, count, in * width, in * width, a);
    pixedge_tiles_pack_b(w, out, in * width, in * width, width, b);
    for (int part = 0; part < 3; part++) {
        if (width == 1) {
            pixedge_tiles_int8_product(a, b, count, in, out, row_scales, out_scales, NULL, y, out, part == 1, part, 3);
        } else {
            pixedge_tiles_bf16_product(a, b, count, in, out, out_scales, y, out, part == 1, part, 3);
        }
    }
    free(x), free(w), free(a), free(b), free(y), free(row_scales), free(out_scales);
}

int main(void) {
    if (!pixedge_tiles_usable()) {
        return 0;
    }
    for (int turn = 0; turn < 60; turn++) {
        pixedge_set_threads(1 + turn % 4);
        if (product(turn % 15 == 0) || attention(turn % 2) || rows()) {
            return 1;
        }
        tiles(1 + turn % 2);
    }
    puts("amx");
    return 0;
}
