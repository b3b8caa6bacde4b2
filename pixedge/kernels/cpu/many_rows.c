/* 4-bit weights against many rows on AMX: the weight is unpacked to bfloat16 piece by piece, just before its use.
 *
 * A thread takes `wide` outputs of one chunk of rows at a time and keeps their float32 sums in L2. It goes through the
 * inputs in slices: the activations of a slice stay in L2 while 32 outputs after another are unpacked into L1 and
 * multiplied with all rows of the chunk. So a weight is unpacked once per chunk, and what comes from beyond L2 is the
 * activations once per `wide` outputs and the packed weight once.
 */
#define _GNU_SOURCE
#include "many_rows.h"

#include "tiles.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <sys/mman.h>

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))
#define INLINE static inline __attribute__((always_inline))

enum {
    SLICE = 256,  /* inputs: 32 outputs of them are 16 KiB of bfloat16, and stay in L1 beside the next 32 */
    CHUNK = 512,  /* most rows at a time */
    WIDEST = 512, /* most outputs at a time: CHUNK x WIDEST sums are 1 MiB, half of L2 */
};

struct product {
    const uint16_t *x;
    const uint8_t *weight, *zeros;
    const uint16_t *scales;
    const uint16_t *residual; /* or null */
    uint16_t *y;
    long rows, in, out, group;
    long chunk, wide;    /* rows and outputs at a time */
    char *packed;        /* a chunk of x as A blocks, slice after slice */
    char *scratch;       /* of each thread: unpacked weight, then sums */
    size_t scratch_size; /* of one thread */
    atomic_int *taken;   /* [chunks] output ranges taken */
};

/* One group's scales as the weight's lanes want them: each output's twice, for two inputs that lie together. */
struct grid {
    __m512 low_scale, high_scale; /* outputs 0 to 7, 8 to 15 */
    __m512 low_shift, high_shift; /* -(128 + zero) * scale */
};

AMX INLINE struct grid load_grid(const uint16_t *scales, const uint8_t *zeros)
{
    const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i high = _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
    __m512 zero = _mm512_set1_ps(-136.0f);
    if (zeros)
        zero = _mm512_sub_ps(_mm512_set1_ps(-128.0f),
                             _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)zeros))));
    const __m512 shift = _mm512_mul_ps(zero, scale); /* 8 + 11 bits: exact */
    struct grid grid = {_mm512_permutexvar_ps(low, scale), _mm512_permutexvar_ps(high, scale),
                        _mm512_permutexvar_ps(low, shift), _mm512_permutexvar_ps(high, shift)};
    return grid;
}

/* Two inputs of each of 16 outputs, from nibbles that `turn` rotates to bits 16 to 19 of their lanes.
 *
 * There, under the exponent of 128, a nibble q reads as the float 128 + q, so one fused multiply-add gives the exact
 * (q - zero) * scale. */
AMX INLINE __m512i two_inputs(__m512i low, __m512i high, __m512i turn, const struct grid *grid)
{
    const __m512i nibble = _mm512_set1_epi32(0x000f0000), exponent = _mm512_set1_epi32(0x43000000);
    const __m512i low_bits = _mm512_ternarylogic_epi32(exponent, _mm512_rolv_epi32(low, turn), nibble, 0xf8);
    const __m512i high_bits = _mm512_ternarylogic_epi32(exponent, _mm512_rolv_epi32(high, turn), nibble, 0xf8);
    const __m512 first = _mm512_fmadd_ps(_mm512_castsi512_ps(low_bits), grid->low_scale, grid->low_shift);
    const __m512 second = _mm512_fmadd_ps(_mm512_castsi512_ps(high_bits), grid->high_scale, grid->high_shift);
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

/* Unpack a line of 16 outputs x 8 inputs to four rows of a B tile. */
AMX INLINE void unpack_line(const uint8_t *line, const struct grid *grid, char *to)
{
    const __m512i low_outputs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i high_outputs = _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
    const __m512i bytes = _mm512_loadu_si512(line);
    const __m512i low = _mm512_permutexvar_epi32(low_outputs, bytes);
    const __m512i high = _mm512_permutexvar_epi32(high_outputs, bytes);
#define PAIR(even, odd) _mm512_set1_epi64((long long)(odd) << 32 | (even))
    _mm512_store_si512(to, two_inputs(low, high, PAIR(16, 8), grid));
    _mm512_store_si512(to + 64, two_inputs(low, high, PAIR(0, 24), grid));
    _mm512_store_si512(to + 128, two_inputs(low, high, PAIR(12, 4), grid));
    _mm512_store_si512(to + 192, two_inputs(low, high, PAIR(28, 20), grid));
#undef PAIR
}

static long least(long a, long b) { return a < b ? a : b; }

/* The 32 outputs from `output` on of the slice of inputs from `slice` on. */
struct panel {
    long output, slice;
};

INLINE long slice_inputs(const struct product *p, long slice) { return least(SLICE, p->in - slice); }
INLINE long slice_steps(const struct product *p, long slice) { return (slice_inputs(p, slice) + 31) / 32; }

/* Unpack tile `tile` of a panel (a step has two, of 16 outputs each), with zeros for inputs that do not exist. */
AMX static void unpack_tile(const struct product *p, struct panel panel, long tile, char *unpacked)
{
    const long lines = p->in / 8, lines_per_group = p->group / 8, groups = p->in / p->group;
    const long block = panel.output / 16 + tile % 2, first = panel.slice / 8 + tile / 2 * 4;
    if (block * 16 >= p->out)
        return;
    const uint8_t *from = p->weight + (block * lines + first) * 64;
    const uint16_t *scales = p->scales + block * groups * 16;
    const uint8_t *zeros = p->zeros ? p->zeros + block * groups * 16 : 0;
    char *to = unpacked + tile * 1024;
    if (lines_per_group % 4 == 0) {
        const long group = first / lines_per_group * 16;
        const struct grid grid = load_grid(scales + group, zeros ? zeros + group : 0);
        for (long line = 0; line < 4; line++)
            unpack_line(from + line * 64, &grid, to + line * 256);
        return;
    }
    for (long line = 0; line < 4; line++) {
        if (first + line >= lines) {
            memset(to + line * 256, 0, 256);
            continue;
        }
        const long group = (first + line) / lines_per_group * 16;
        const struct grid grid = load_grid(scales + group, zeros ? zeros + group : 0);
        unpack_line(from + line * 64, &grid, to + line * 256);
    }
}

/* Bring the packed weight of a tile into L2. A panel's lines lie in short runs, too short for the core to foresee. */
AMX static void prefetch_tile(const struct product *p, struct panel panel, long tile)
{
    const char *from = (const char *)p->weight + (panel.output / 16 + tile % 2) * p->in * 8;
    for (long line = 0; line < 4; line++)
        _mm_prefetch(from + (panel.slice / 8 + tile / 2 * 4 + line) * 64, _MM_HINT_T1);
}

INLINE struct panel panel_after(struct panel panel, long output, long end)
{
    panel.output += 32;
    if (panel.output >= end)
        panel.output = output, panel.slice += SLICE;
    return panel;
}

AMX INLINE __m512 widen(__m256i halves)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Round the finished sums of 32 rows x 32 outputs (columns of which exist) to bfloat16, onto the residual if any. */
AMX static void store_block(const float *sums, long rows, long columns, const uint16_t *residual, uint16_t *y,
                            long stride)
{
    const __mmask32 mask = columns < 32 ? 0xffffu : ~0u;
    for (long row = 0; row < rows; row++) {
        const float *from = sums + row / 16 * 512 + row % 16 * 16;
        __m512 low = _mm512_load_ps(from), high = _mm512_load_ps(from + 256);
        if (residual) {
            const __m512i old = _mm512_maskz_loadu_epi16(mask, residual + row * stride);
            low = _mm512_add_ps(low, widen(_mm512_castsi512_si256(old)));
            high = _mm512_add_ps(high, widen(_mm512_extracti64x4_epi64(old, 1)));
        }
        const __m512i line = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_mask_storeu_epi16(y + row * stride, mask, line);
    }
}

/* Outputs from `output` on for the chunk of rows from `start` on.
 *
 * Between two blocks' products lies a piece of other work that the core does while its tile unit is busy: a share of
 * the next panel is unpacked, and a share of the next slice of activations is brought into L2. */
AMX static void outputs(const struct product *p, long start, long output, char *scratch)
{
    const long rows = least(p->chunk, p->rows - start), blocks = (rows + 31) / 32;
    const long end = least(output + p->wide, p->out), panels = (end - output + 31) / 32;
    char *unpacked = scratch, *next_unpacked = scratch + SLICE * 64;
    float *sums = (float *)(scratch + 2 * SLICE * 64);
    struct panel next = {output, 0};
    for (long tile = 0; tile < 2 * slice_steps(p, 0); tile++)
        unpack_tile(p, next, tile, next_unpacked);
    while (next.slice < p->in) {
        const struct panel panel = next;
        char *other = unpacked;
        unpacked = next_unpacked, next_unpacked = other;
        next = panel_after(next, output, end);
        const struct panel later = panel_after(next, output, end);
        const int more = next.slice < p->in, done = panel.slice + SLICE >= p->in;
        const long steps = slice_steps(p, panel.slice), tiles = more ? 2 * slice_steps(p, next.slice) : 0;
        const long ahead = done ? 0 : panel.slice + SLICE, index = (panel.output - output) / 32;
        const long ahead_lines = slice_steps(p, ahead) * 32;
        const char *a = p->packed + panel.slice / 32 * blocks * 2048;
        const char *ahead_a = p->packed + ahead / 32 * blocks * 2048;
        float *c = sums + index * blocks * 1024;
        for (long block = 0; block < blocks; block++) {
            const long left = least(32, rows - block * 32);
            for (long line = ahead_lines * index / panels; line < ahead_lines * (index + 1) / panels; line++)
                _mm_prefetch(ahead_a + (block * ahead_lines + line) * 64, _MM_HINT_T1);
            pixedge_tiles_bf16(a + block * steps * 2048, unpacked, steps, left > 16 ? 2 : 1, panel.slice > 0,
                               c + block * 1024);
            for (long tile = tiles * block / blocks; tile < tiles * (block + 1) / blocks; tile++)
                prefetch_tile(p, later, tile), unpack_tile(p, next, tile, next_unpacked);
            if (done) {
                const long at = (start + block * 32) * p->out + panel.output;
                store_block(c + block * 1024, left, end - panel.output, p->residual ? p->residual + at : 0, p->y + at,
                            p->out);
            }
        }
    }
}

/* Pack each slice of a chunk of x as A blocks of its own; threads share the work by blocks. */
static void pack_chunk(const struct product *p, long start, int thread, int threads)
{
    const long rows = least(p->chunk, p->rows - start), blocks = (rows + 31) / 32;
    for (long block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++)
        for (long slice = 0; slice < p->in; slice += SLICE) {
            const long inputs = least(SLICE, p->in - slice);
            pixedge_tiles_pack_a(p->x + (start + block * 32) * p->in + slice, least(32, rows - block * 32), inputs * 2,
                                 p->in * 2,
                                 p->packed + slice / 32 * blocks * 2048 + block * ((inputs + 31) / 32) * 2048);
        }
}

static void task(void *context, int thread, int threads)
{
    const struct product *p = context;
    char *scratch = p->scratch + (size_t)thread * p->scratch_size;
    pixedge_tiles_begin();
    for (long start = 0; start < p->rows; start += p->chunk) {
        pack_chunk(p, start, thread, threads);
        pixedge_barrier();
        for (;;) {
            const long output = pixedge_next(&p->taken[start / p->chunk]) * p->wide;
            if (output >= p->out)
                break;
            outputs(p, start, output, scratch);
        }
        pixedge_barrier(); /* the next chunk is packed over this one */
    }
    pixedge_tiles_end();
}

/* Scratch that outlives a call, because fresh pages would cost more than some products do. It is in huge pages where
 * the system gives them: the walk over A and the sums touches more small pages than the core's tables hold. A second
 * caller at the same time, or a child forked in the middle of a call, finds it taken and allocates its own. */
static atomic_flag kept_taken = ATOMIC_FLAG_INIT;
static char *kept;
static size_t kept_size;

static char *new_scratch(size_t size)
{
    enum { HUGE_PAGE = 2 << 20 };
    const size_t whole = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *memory = aligned_alloc(HUGE_PAGE, whole);
    if (memory)
        madvise(memory, whole, MADV_HUGEPAGE);
    return memory;
}

static char *take_scratch(size_t size, int *is_kept)
{
    *is_kept = !atomic_flag_test_and_set(&kept_taken);
    if (!*is_kept)
        return new_scratch(size);
    if (kept_size < size) {
        free(kept);
        kept = new_scratch(size);
        kept_size = kept ? size : 0;
        if (!kept)
            atomic_flag_clear(&kept_taken);
    }
    return kept;
}

static void give_scratch(char *memory, int is_kept)
{
    if (is_kept)
        atomic_flag_clear(&kept_taken);
    else
        free(memory);
}

static size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

int pixedge_int4_many_rows_onto(const uint16_t *x, long rows, long in, const uint8_t *weight, const uint16_t *scales,
                                const uint8_t *zeros, long out, long group, const uint16_t *residual, uint16_t *y)
{
    if (!pixedge_tiles_usable())
        return 1;
    if (rows <= 0 || out <= 0)
        return 0;
    const int threads = pixedge_threads();
    struct product p = {.x = x, .weight = weight, .zeros = zeros, .scales = scales};
    p.residual = residual, p.y = y;
    p.rows = rows, p.in = in, p.out = out, p.group = group;
    const long chunks = (rows + CHUNK - 1) / CHUNK;
    p.chunk = ((rows + chunks - 1) / chunks + 31) / 32 * 32;
    /* Four ranges or more for each thread, so that one that is held up does not hold up the others for long. */
    p.wide = least(WIDEST, (out / (4 * threads) + 31) / 32 * 32);
    if (p.wide < 32)
        p.wide = 32;
    const size_t packed = whole_lines((size_t)p.chunk * (size_t)((in + 31) / 32) * 64);
    p.scratch_size = 2 * SLICE * 64 + (size_t)(p.chunk * p.wide) * 4;
    const size_t counts = whole_lines((size_t)chunks * sizeof(atomic_int));
    int is_kept;
    char *memory = take_scratch(packed + counts + (size_t)threads * p.scratch_size, &is_kept);
    if (!memory)
        return 2;
    p.packed = memory;
    p.scratch = memory + packed;
    p.taken = (atomic_int *)(memory + packed + (size_t)threads * p.scratch_size);
    memset(p.taken, 0, counts);
    pixedge_parallel(task, &p);
    give_scratch(memory, is_kept);
    return 0;
}

#else

int pixedge_int4_many_rows_onto(const uint16_t *x, long rows, long in, const uint8_t *weight, const uint16_t *scales,
                                const uint8_t *zeros, long out, long group, const uint16_t *residual, uint16_t *y)
{
    (void)x, (void)rows, (void)in, (void)weight, (void)scales, (void)zeros, (void)out, (void)group, (void)residual;
    (void)y;
    return 1;
}

#endif

int pixedge_int4_many_rows(const uint16_t *x, long rows, long in, const uint8_t *weight, const uint16_t *scales,
                           const uint8_t *zeros, long out, long group, uint16_t *y)
{
    return pixedge_int4_many_rows_onto(x, rows, in, weight, scales, zeros, out, group, 0, y);
}
