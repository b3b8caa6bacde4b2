#include "attention.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define FEWEST_PAGES 8 /* of a chunk: below that, putting together costs more than sharing saves */
#define QUERIES_AT_ONCE 256

static int64_t pages_of(const struct step *s, int64_t sequence) {
    return (s->starts[sequence] + s->counts[sequence] + PAGE - 1) / PAGE;
}

static int64_t chunks_of(const struct step *s, int64_t sequence) {
    return (pages_of(s, sequence) + s->chunk_pages - 1) / s->chunk_pages;
}

int64_t pixedge_chunk_pages(const struct step *s, int64_t kv_heads, int threads) {
    int64_t work = 0;
    for (int64_t i = 0; i < s->sequences; i++) {
        work += pages_of(s, i) * kv_heads;
    }
    /* 16 pieces a thread, in whole spans */
    const int64_t size = (work / (16 * threads) + SPAN / PAGE) / (SPAN / PAGE) * (SPAN / PAGE);
    return size < FEWEST_PAGES ? FEWEST_PAGES : size;
}

int64_t pixedge_gathered(const struct step *s, const struct heads *h) {
    int64_t units = 0;
    for (int64_t i = 0; i < s->sequences; i++) {
        units += chunks_of(s, i) * s->counts[i];
    }
    return units * h->heads;
}

int64_t pixedge_cache_row(const struct step *s, const struct heads *h, int64_t layer, int64_t sequence, int64_t token,
                          int64_t kv_head) {
    const int64_t page = s->tables[sequence * s->max_pages + token / PAGE];
    return ((layer * s->pages + page) * h->kv_heads + kv_head) * PAGE + token % PAGE;
}

static size_t bytes_of_number(const struct step *s) {
    return s->key_scales ? 1 : 2;
}

/* Lay out the span that begins with page `first` of a sequence, at most up to page `last`. */
static struct span span_at(const struct attention *a, int64_t sequence, int64_t kv_head, int64_t first, int64_t last) {
    const struct step *s = a->step;
    struct span span = {.pages = 0};
    for (int64_t page = first; page < last && span.pages < SPAN / PAGE; page++, span.pages++) {
        const int64_t row = pixedge_cache_row(s, &a->heads, a->layer, sequence, page * PAGE, kv_head);
        const size_t at = (size_t)row * (size_t)a->heads.head_dim * bytes_of_number(s);
        span.keys[span.pages] = (const char *)s->keys + at;
        span.values[span.pages] = (const char *)s->values + at;
        span.key_scales[span.pages] = s->key_scales ? s->key_scales + row : NULL;
        span.value_scales[span.pages] = s->key_scales ? s->value_scales + row : NULL;
    }
    return span;
}

/* The queries [first, first + count) of a sequence and key-value head over one chunk. */
static void gather_chunk(const struct attention *a, int64_t sequence, int64_t kv_head, int64_t chunk, int64_t row,
                         int64_t unit, int64_t first, int64_t count) {
    const struct step *s = a->step;
    const int64_t n = a->heads.head_dim, groups = a->heads.heads / a->heads.kv_heads;
    const int64_t query = (kv_head * s->rows + row) * groups + first;
    const int64_t place = unit * a->heads.heads + kv_head * s->counts[sequence] * groups + first;
    struct gathering to = {.q = a->q + query * n, .q16 = a->q16 + query * n, .q_scale = a->q_scale + query};
    to.most = a->most + place, to.total = a->total + place, to.sum = a->sum + place * n;
    to.queries = count, to.head_dim = n;
    for (int64_t i = 0; i < count; i++) {
        to.most[i] = -INFINITY;
        to.total[i] = 0;
    }
    memset(to.sum, 0, sizeof(float) * (size_t)(count * n));
    const int64_t begin = chunk * s->chunk_pages, pages = pages_of(s, sequence);
    const int64_t end = begin + s->chunk_pages < pages ? begin + s->chunk_pages : pages;
    struct span span, next = span_at(a, sequence, kv_head, begin, end);
    int32_t seen[QUERIES_AT_ONCE];
    for (int64_t page = begin; page < end; page += SPAN / PAGE) {
        span = next;
        next = span_at(a, sequence, kv_head, page + SPAN / PAGE, end);
        for (int64_t i = 0; i < count; i++) {
            int64_t left = s->starts[sequence] + (first + i) / groups + 1 - page * PAGE;
            seen[i] = left < 0 ? 0 : left > SPAN ? SPAN : (int32_t)left;
        }
        span.seen = seen;
        span.next = &next;
        pixedge_kernels->attend(&to, &span);
    }
}

void pixedge_gather(struct attention *a) {
    const struct step *s = a->step;
    const int64_t groups = a->heads.heads / a->heads.kv_heads;
    int64_t item = pixedge_next(&a->next_item), before = 0, row = 0, unit = 0;
    for (int64_t i = 0; i < s->sequences; i++) {
        const int64_t chunks = chunks_of(s, i), items = chunks * a->heads.kv_heads, queries = s->counts[i] * groups;
        for (; item < before + items; item = pixedge_next(&a->next_item)) {
            const int64_t kv_head = (item - before) % a->heads.kv_heads, chunk = (item - before) / a->heads.kv_heads;
            for (int64_t first = 0; first < queries; first += QUERIES_AT_ONCE) {
                const int64_t count = queries - first < QUERIES_AT_ONCE ? queries - first : QUERIES_AT_ONCE;
                gather_chunk(a, i, kv_head, chunk, row, unit + chunk * s->counts[i], first, count);
            }
        }
        before += items;
        row += s->counts[i];
        unit += chunks * s->counts[i];
    }
}

void pixedge_put_together(struct attention *a, float *out) {
    const struct step *s = a->step;
    const int64_t n = a->heads.head_dim, heads = a->heads.heads, groups = heads / a->heads.kv_heads;
    int64_t item = pixedge_next(&a->next_sum), row = 0, unit = 0;
    for (int64_t i = 0; i < s->sequences; i++) {
        const int64_t chunks = chunks_of(s, i), count = s->counts[i];
        for (; item < (row + count) * heads; item = pixedge_next(&a->next_sum)) {
            const int64_t t = item / heads - row, head = item % heads;
            const int64_t inside = (head / groups * count + t) * groups + head % groups;
            float *to = out + item * n, most = -INFINITY, total = 0;
            memset(to, 0, sizeof(float) * (size_t)n);
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                most = fmaxf(most, a->most[(unit + chunk * count) * heads + inside]);
            }
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                const int64_t place = (unit + chunk * count) * heads + inside;
                if (a->total[place] != 0) { /* else the token saw nothing there */
                    const float weight = expf(a->most[place] - most);
                    total += weight * a->total[place];
                    for (int64_t j = 0; j < n; j++) {
                        to[j] += weight * a->sum[place * n + j];
                    }
                }
            }
            for (int64_t j = 0; j < n; j++) {
                to[j] /= total;
            }
        }
        row += count;
        unit += chunks * count;
    }
}
