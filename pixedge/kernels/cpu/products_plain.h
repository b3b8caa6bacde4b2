/* The products of one block in plain C. */

TARGET static void int4_block(const struct int4_weight *w, int64_t block, const struct bytes_rows *x, float *sum) {
    const uint8_t *line = w->lines + block * (w->inputs / 8) * LINE;
    const int8_t *q = x->q;
    int64_t groups = w->inputs / w->group;
    memset(sum, 0, sizeof(float) * BLOCK * (size_t)x->rows);
    for (int64_t g = 0; g < x->inputs / x->group; g++) {
        int32_t dot[MOST_ROWS][BLOCK] = {{0}};
        for (int64_t i = 0; i < x->group; i += 8, line += LINE) {
            for (int row = 0; row < x->rows; row++, q += 8) {
                for (int r = 0; r < BLOCK; r++) {
                    for (int j = 0; j < 4; j++) {
                        int byte = line[4 * r + j];
                        dot[row][r] += (byte & 15) * q[j] + (byte >> 4) * q[4 + j];
                    }
                }
            }
        }
        int64_t at = (block * groups + g * x->group / w->group) * BLOCK;
        for (int row = 0; row < x->rows; row++) {
            float scale = x->scales[g * x->rows + row];
            int32_t total = x->sums[g * x->rows + row];
            for (int r = 0; r < BLOCK; r++) {
                int32_t zero = w->zeros ? w->zeros[at + r] : 8;
                sum[row * BLOCK + r] += (float)(dot[row][r] - zero * total) * (half_to_float(w->scales[at + r]) * scale);
            }
        }
    }
}

TARGET static void int8_block(const struct int8_weight *w, int64_t block, const struct bytes_rows *x, float *sum) {
    const uint8_t *line = w->lines + block * (w->inputs / 4) * LINE;
    const int8_t *q = x->q;
    memset(sum, 0, sizeof(float) * BLOCK * (size_t)x->rows);
    for (int64_t g = 0; g < x->inputs / x->group; g++) {
        int32_t dot[MOST_ROWS][BLOCK] = {{0}};
        for (int64_t i = 0; i < x->group; i += 8, line += 2 * LINE) {
            for (int row = 0; row < x->rows; row++, q += 8) {
                for (int r = 0; r < BLOCK; r++) {
                    for (int j = 0; j < 4; j++) {
                        dot[row][r] += line[4 * r + j] * q[j] + line[LINE + 4 * r + j] * q[4 + j];
                    }
                }
            }
        }
        for (int row = 0; row < x->rows; row++) {
            int32_t offset = 128 * x->sums[g * x->rows + row];
            for (int r = 0; r < BLOCK; r++) {
                sum[row * BLOCK + r] += (float)(dot[row][r] - offset) * x->scales[g * x->rows + row];
            }
        }
    }
    for (int row = 0; row < x->rows; row++) {
        for (int r = 0; r < BLOCK; r++) {
            sum[row * BLOCK + r] *= w->scales[block * BLOCK + r];
        }
    }
}
