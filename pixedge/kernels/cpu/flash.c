/* Attention block by block with a running maximum and sum (Dao et al., arXiv 2205.14135), on AMX tiles.
 *
 * The query heads that share a key head are rows of one product: row r of a key head is token r / shared, head
 * r % shared. A thread takes one key head and a chunk of such rows, whose sums it keeps in L2, and goes through the keys
 * 256 at a time: it packs their keys and values as B operands once for all its rows, and then, 32 rows after another,
 * forms the scores, turns them into weights in bfloat16 and adds the weighted values.
 */
#define _GNU_SOURCE
#include "flash.h"

#include "tiles.h"

#if defined(__x86_64__) && defined(__linux__)

#include "exp2.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c")))
#define INLINE static inline __attribute__((always_inline))

enum {
    PAGE = 16,        /* tokens */
    KEYS = 256,       /* keys at a time: the scores of 32 rows are 32 KiB */
    MOST_ROWS = 1024, /* rows of a chunk: their sums of 128 channels are 512 KiB */
    WIDEST = 256,     /* channels of a head */
};

struct flash {
    const uint16_t *q;
    long tokens, heads, kv_heads, head_dim, start, shared;
    const char *keys, *values;
    const uint16_t *key_scales, *value_scales;
    const int32_t *table;
    uint16_t *out;
    long chunk, chunks; /* rows of a key head at a time, a multiple of 32 */
    char *scratch;
    size_t scratch_size; /* of one thread */
    atomic_int taken;
};

/* A thread's scratch. All operands are in the order that tiles.h describes. */
struct scratch {
    uint16_t *q;       /* [chunk / 32] A blocks */
    float *sums;       /* [chunk / 32, head_dim / 32] C blocks */
    float *most, *all; /* [chunk] the largest score so far, times log2 e; the sum of weights */
    uint16_t *k, *v;   /* B blocks: [KEYS / 32] over head_dim, [head_dim / 32] over KEYS */
    float *scores;     /* [KEYS / 32] C blocks */
    uint16_t *weights; /* an A block over KEYS */
    uint16_t *page;    /* [16, head_dim] a page in bfloat16 */
};

static long least(long a, long b) { return a < b ? a : b; }

/* Find 16 tokens of a page as rows of bfloat16; those from `held` on are zeros. */
AMX static void page_rows(const struct flash *f, const char *pages, const uint16_t *scales, long page, long head,
                          long held, uint16_t *buffer, const uint16_t *rows[PAGE])
{
    static const uint16_t zeros[WIDEST] __attribute__((aligned(64)));
    const long first = (page * f->kv_heads + head) * PAGE;
    for (long token = 0; token < PAGE; token++) {
        rows[token] = token < held ? buffer + token * f->head_dim : zeros;
        if (token >= held)
            continue;
        if (!scales) {
            rows[token] = (const uint16_t *)pages + (first + token) * f->head_dim;
            continue;
        }
        const __m512 scale = _mm512_set1_ps(_cvtsh_ss(scales[first + token]));
        for (long d = 0; d < f->head_dim; d += 16) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *)(pages + (first + token) * f->head_dim + d));
            const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale);
            _mm256_storeu_si256((__m256i *)(buffer + token * f->head_dim + d), (__m256i)_mm512_cvtneps_pbh(value));
        }
    }
}

/* A tile of B for 16 keys and 32 channels: the transpose of their rows, two channels staying together. */
AMX static void transpose(const uint16_t *const rows[PAGE], long channel, char *tile)
{
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = _mm512_loadu_si512(rows[i] + channel);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
        }
    /* a[4 g + c] holds column 4 l + c of rows 4 g ... 4 g + 3 in its lane l */
    for (int c = 0; c < 4; c++) {
        const __m512i p = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44), q = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xee);
        const __m512i r = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x44),
                      s = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xee);
        _mm512_store_si512(tile + 64 * c, _mm512_shuffle_i32x4(p, r, 0x88));
        _mm512_store_si512(tile + 64 * (4 + c), _mm512_shuffle_i32x4(p, r, 0xdd));
        _mm512_store_si512(tile + 64 * (8 + c), _mm512_shuffle_i32x4(q, s, 0x88));
        _mm512_store_si512(tile + 64 * (12 + c), _mm512_shuffle_i32x4(q, s, 0xdd));
    }
}

/* Pack the keys and values from token `first` on, `count` of them, for a key head; what is beyond is zero. */
AMX static void pack_keys(const struct flash *f, const struct scratch *s, long head, long first, long count)
{
    const long steps = f->head_dim / 32;
    for (long at = 0; at < (count + 31) / 32 * 32; at += PAGE) {
        const uint16_t *rows[PAGE];
        const long held = count - at > 0 ? least(PAGE, count - at) : 0;
        const long page = held ? f->table[(first + at) / PAGE] : 0;
        page_rows(f, f->keys, f->key_scales, page, head, held, s->page, rows);
        for (long step = 0; step < steps; step++)
            transpose(rows, 32 * step, (char *)s->k + (at / 32 * steps + step) * 2048 + at % 32 / 16 * 1024);
        page_rows(f, f->values, f->value_scales, page, head, held, s->page, rows);
        for (long token = 0; token < PAGE; token += 2)
            for (long d = 0; d < f->head_dim; d += 16) {
                char *tile = (char *)s->v + (d / 32 * (KEYS / 32) + at / 32) * 2048 + d % 32 / 16 * 1024;
                const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(rows[token] + d)));
                const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(rows[token + 1] + d)));
                _mm512_store_si512(tile + (at % 32 + token) * 32, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
            }
    }
}

/* Turn a row's scores into weights; return their sum. `seen` keys count, of `blocks` blocks of 32. */
AMX INLINE float weigh(const float *scores, long blocks, long seen, int masked, float scale, float *most, float *shrink,
                       uint16_t *weights)
{
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __m512 high = nothing;
#define SEEN(key) (seen - (key) >= 16 ? 0xffff : seen - (key) <= 0 ? 0 : (1 << (seen - (key))) - 1)
    for (long block = 0; block < blocks; block++)
        for (int half = 0; half < 2; half++) {
            __m512 score = _mm512_load_ps(scores + block * 1024 + half * 256);
            if (masked)
                score = _mm512_mask_mov_ps(nothing, (__mmask16)SEEN(block * 32 + half * 16), score);
            high = _mm512_max_ps(high, score);
        }
    const float before = *most, block_most = _mm512_reduce_max_ps(high) * scale;
    *most = block_most > before ? block_most : before;
    *shrink = _mm512_cvtss_f32(exp2_ps(_mm512_set1_ps(before - *most)));
    const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(-*most);
    __m512 sum = _mm512_setzero_ps(), sum_high = sum;
    for (long block = 0; block < blocks; block++) {
        const float *at = scores + block * 1024;
        __m512 low = exp2_ps(_mm512_fmadd_ps(_mm512_load_ps(at), factor, shift));
        __m512 up = exp2_ps(_mm512_fmadd_ps(_mm512_load_ps(at + 256), factor, shift));
        if (masked) {
            low = _mm512_maskz_mov_ps((__mmask16)SEEN(block * 32), low);
            up = _mm512_maskz_mov_ps((__mmask16)SEEN(block * 32 + 16), up);
        }
        sum = _mm512_add_ps(sum, low);
        sum_high = _mm512_add_ps(sum_high, up);
        _mm512_store_si512(weights + block * 1024, (__m512i)_mm512_cvtne2ps_pbh(up, low));
    }
#undef SEEN
    return _mm512_reduce_add_ps(_mm512_add_ps(sum, sum_high));
}

/* Let 32 rows (the chunk's block `block`, the first of them row `row` of the key head) see one run of keys. */
AMX static void see(const struct flash *f, const struct scratch *s, long block, long row, long rows, long first,
                    long count)
{
    const long steps = f->head_dim / 32, last = f->start + (row + rows - 1) / f->shared; /* the last token's place */
    if (first > last)
        return;
    count = least(count, last + 1 - first);
    const long blocks = (count + 31) / 32;
    const int row_tiles = rows > 16 ? 2 : 1;
    const float scale = 1.44269504f / sqrtf((float)f->head_dim); /* log2 e: weights are powers of 2 */
    for (long b = 0; b < blocks; b++)
        pixedge_tiles_bf16(s->q + block * steps * 1024, s->k + b * steps * 1024, steps, row_tiles, 0,
                           s->scores + b * 1024);
    float *sums = s->sums + block * steps * 1024;
    for (long r = 0; r < rows; r++) {
        const float *scores = s->scores + r / 16 * 512 + r % 16 * 16;
        uint16_t *weights = s->weights + r / 16 * 512 + r % 16 * 32;
        const long seen = f->start + (row + r) / f->shared + 1 - first;
        float *most = s->most + block * 32 + r, *all = s->all + block * 32 + r, shrink;
        const float sum = seen >= blocks * 32 ? weigh(scores, blocks, seen, 0, scale, most, &shrink, weights)
                                              : weigh(scores, blocks, seen, 1, scale, most, &shrink, weights);
        *all = *all * shrink + sum;
        if (first > 0 && shrink != 1.0f)
            for (long d = 0; d < f->head_dim; d += 16) {
                float *at = sums + d / 32 * 1024 + d % 32 / 16 * 256 + r / 16 * 512 + r % 16 * 16;
                _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(shrink)));
            }
    }
    for (long d = 0; d < steps; d++)
        pixedge_tiles_bf16(s->weights, s->v + d * (KEYS / 32) * 1024, blocks, row_tiles, first > 0, sums + d * 1024);
}

AMX static void attend_chunk(const struct flash *f, const struct scratch *s, long head, long start_row)
{
    const long rows = least(f->chunk, f->tokens * f->shared - start_row), steps = f->head_dim / 32;
    for (long r = 0; r < (rows + 31) / 32 * 32; r++) {
        const long row = start_row + r;
        const uint16_t *from = f->q + (row / f->shared * f->heads + head * f->shared + row % f->shared) * f->head_dim;
        for (long step = 0; step < steps; step++)
            _mm512_store_si512(s->q + (r / 32 * steps + step) * 1024 + r % 32 * 32,
                               r < rows ? _mm512_loadu_si512(from + step * 32) : _mm512_setzero_si512());
        s->most[r] = -INFINITY;
        s->all[r] = 0.0f;
    }
    const long end = f->start + (start_row + rows - 1) / f->shared + 1;
    for (long first = 0; first < end; first += KEYS) {
        const long count = least(KEYS, end - first);
        pack_keys(f, s, head, first, count);
        for (long r = 0; r < rows; r += 32)
            see(f, s, r / 32, start_row + r, least(32, rows - r), first, count);
    }
    for (long r = 0; r < rows; r++) {
        const long row = start_row + r;
        uint16_t *to = f->out + (row / f->shared * f->heads + head * f->shared + row % f->shared) * f->head_dim;
        const __m512 part = _mm512_set1_ps(1.0f / s->all[r]);
        const float *sums = s->sums + r / 32 * steps * 1024 + r % 32 / 16 * 512 + r % 16 * 16;
        for (long step = 0; step < steps; step++)
            _mm512_storeu_si512(to + 32 * step, (__m512i)_mm512_cvtne2ps_pbh(
                                                    _mm512_mul_ps(_mm512_load_ps(sums + step * 1024 + 256), part),
                                                    _mm512_mul_ps(_mm512_load_ps(sums + step * 1024), part)));
    }
}

/* Lay a thread's scratch out at `memory`; return its size. */
static size_t lay_out(const struct flash *f, char *memory, struct scratch *s)
{
    const long rows = f->chunk, d = f->head_dim;
    char *at = memory;
    s->sums = (float *)at, at += rows * d * 4;
    s->scores = (float *)at, at += 32 * KEYS * 4;
    s->q = (uint16_t *)at, at += rows * d * 2;
    s->k = (uint16_t *)at, at += KEYS * d * 2;
    s->v = (uint16_t *)at, at += KEYS * d * 2;
    s->weights = (uint16_t *)at, at += 32 * KEYS * 2;
    s->page = (uint16_t *)at, at += PAGE * d * 2;
    s->most = (float *)at, at += rows * 4;
    s->all = (float *)at, at += rows * 4;
    return (size_t)(at - memory);
}

static void task(void *context, int thread, int threads)
{
    struct flash *f = context;
    struct scratch s;
    (void)threads;
    lay_out(f, f->scratch + (size_t)thread * f->scratch_size, &s);
    pixedge_tiles_begin();
    for (;;) {
        const long item = pixedge_next(&f->taken);
        if (item >= f->chunks * f->kv_heads)
            break;
        /* The last rows see the most keys, and go first. */
        attend_chunk(f, &s, item % f->kv_heads, (f->chunks - 1 - item / f->kv_heads) * f->chunk);
    }
    pixedge_tiles_end();
}

int pixedge_flash(const uint16_t *q, long tokens, long heads, const void *keys, const void *values,
                  const uint16_t *key_scales, const uint16_t *value_scales, long kv_heads, long head_dim,
                  const int32_t *table, long start, uint16_t *out)
{
    if (!pixedge_tiles_usable() || head_dim % 32 || head_dim > WIDEST || heads % kv_heads)
        return 1;
    if (tokens <= 0)
        return 0;
    struct flash f = {q,      tokens, heads, kv_heads,   head_dim,     start,
                      heads / kv_heads, keys,   values, key_scales, value_scales, table, out, 0, 0, 0, 0, 0};
    const long rows = tokens * f.shared;
    const int threads = pixedge_threads();
    const long wanted = (4 * threads + kv_heads - 1) / kv_heads; /* chunks of each head, for every thread to have four */
    const long most = (rows + wanted - 1) / wanted;
    f.chunk = (least(MOST_ROWS, most < 128 ? 128 : most) + 31) / 32 * 32;
    f.chunk = least(f.chunk, (rows + 31) / 32 * 32);
    f.chunks = (rows + f.chunk - 1) / f.chunk;
    struct scratch unused;
    f.scratch_size = (lay_out(&f, 0, &unused) + 63) / 64 * 64;
    f.scratch = aligned_alloc(64, (size_t)threads * f.scratch_size);
    if (!f.scratch)
        return 2;
    pixedge_parallel(task, &f);
    free(f.scratch);
    return 0;
}

#else

int pixedge_flash(const uint16_t *q, long tokens, long heads, const void *keys, const void *values,
                  const uint16_t *key_scales, const uint16_t *value_scales, long kv_heads, long head_dim,
                  const int32_t *table, long start, uint16_t *out)
{
    (void)q, (void)tokens, (void)heads, (void)keys, (void)values, (void)key_scales, (void)value_scales;
    (void)kv_heads, (void)head_dim, (void)table, (void)start, (void)out;
    return 1;
}

#endif
