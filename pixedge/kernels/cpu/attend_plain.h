/* Attention over one span in plain C: scores, weights relative to the largest so far, weighted values. */

#define KEYS_AT_ONCE 8

TARGET static void token_to_float(const void *page, const uint16_t *scales, int token, int64_t n, float *y) {
    if (scales) {
        const int8_t *q = (const int8_t *)page + token * n;
        float scale = half_to_float(scales[token]);
        for (int64_t i = 0; i < n; i++) {
            y[i] = (float)q[i] * scale;
        }
    } else {
        widen((const uint16_t *)page + token * n, n, y);
    }
}

TARGET static float dot(const float *a, const float *b, int64_t n) {
    float sums[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            sums[j] += a[i + j] * b[i + j];
        }
    }
    float sum = 0;
    for (; i < n; i++) {
        sum += a[i] * b[i];
    }
    for (int j = 0; j < LANES; j++) {
        sum += sums[j];
    }
    return sum;
}

/* Turn one query's scores [SPAN] into weights relative to its new largest score; `seen` of them count. */
TARGET static void weigh(const struct gathering *to, int64_t query, int seen, float *scores) {
    float most = to->most[query];
    for (int t = 0; t < seen; t++) {
        most = scores[t] > most ? scores[t] : most;
    }
    if (most > to->most[query]) { /* else what has been gathered keeps its weight */
        float factor = exponential(to->most[query] - most);
        to->total[query] *= factor;
        float *sum = to->sum + query * to->head_dim;
        for (int64_t i = 0; i < to->head_dim; i++) {
            sum[i] *= factor;
        }
        to->most[query] = most;
    }
    float total = 0;
    for (int t = 0; t < SPAN; t++) {
        scores[t] = t < seen ? exponential(scores[t] - most) : 0.0f;
    }
    for (int t = 0; t < seen; t++) {
        total += scores[t];
    }
    to->total[query] += total;
}

TARGET static void attend(const struct gathering *to, const struct span *span) {
    int64_t n = to->head_dim;
    float scores[4][SPAN], wide[512];
    for (int64_t first = 0; first < to->queries; first += 4) {
        int64_t last = first + 4 < to->queries ? first + 4 : to->queries;
        int tokens = 0;
        for (int64_t query = first; query < last; query++) {
            tokens = span->seen[query] > tokens ? span->seen[query] : tokens;
        }
        for (int t = 0; t < tokens; t++) {
            token_to_float(span->keys[t / PAGE], span->key_scales[t / PAGE], t % PAGE, n, wide);
            for (int64_t query = first; query < last; query++) {
                scores[query - first][t] = dot(to->q + query * n, wide, n);
            }
        }
        for (int64_t query = first; query < last; query++) {
            weigh(to, query, span->seen[query], scores[query - first]);
        }
        for (int t = 0; t < tokens; t++) {
            token_to_float(span->values[t / PAGE], span->value_scales[t / PAGE], t % PAGE, n, wide);
            for (int64_t query = first; query < last; query++) {
                float weight = scores[query - first][t];
                float *sum = to->sum + query * n;
                for (int64_t i = 0; i < n; i++) {
                    sum[i] += weight * wide[i];
                }
            }
        }
    }
}
