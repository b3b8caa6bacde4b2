#include "onnx_interface.h"

status *pixedge_onnx_error(const api_entry *api, int code, const char *text) {
    return ((status * (*)(int, const char *)) api[CREATE_STATUS])(code, text);
}

static status *read_tensor(const api_entry *api, const void *value, struct shape *shape, void **data) {
    void *info = NULL;
    status *failed = CALL(api, TENSOR_SHAPE, const void *, void **)(value, &info);
    if (failed) {
        return failed;
    }
    failed = CALL(api, TENSOR_DIMENSION_COUNT, const void *, size_t *)(info, &shape->rank);
    if (!failed && shape->rank > MOST_RANK) {
        failed = pixedge_onnx_error(api, INVALID_ARGUMENT, "pixedge: a tensor has too many dimensions");
    }
    if (!failed) {
        failed = CALL(api, TENSOR_DIMENSIONS, const void *, int64_t *, size_t)(info, shape->sides, shape->rank);
    }
    ((void (*)(void *))api[RELEASE_SHAPE])(info);
    return failed ? failed : CALL(api, TENSOR_DATA, const void *, void **)(value, data);
}

status *pixedge_onnx_weight(const api_entry *api, const void *info, size_t index, struct shape *shape,
                            const uint16_t **data) {
    int constant = 0;
    const void *value = NULL;
    status *failed =
        CALL(api, CONSTANT_INPUT, const void *, size_t, int *, const void **)(info, index, &constant, &value);
    if (!failed && (!constant || !value)) {
        failed = pixedge_onnx_error(api, INVALID_ARGUMENT, "pixedge: a weight is not a constant");
    }
    void *found = NULL;
    failed = failed ? failed : read_tensor(api, value, shape, &found);
    *data = found;
    return failed;
}

status *pixedge_onnx_input(const api_entry *api, void *context, size_t index, struct shape *shape, const float **data) {
    const void *value = NULL;
    void *found = NULL;
    status *failed = CALL(api, INPUT, const void *, size_t, const void **)(context, index, &value);
    failed = failed ? failed : read_tensor(api, value, shape, &found);
    *data = found;
    return failed;
}

status *pixedge_onnx_output(const api_entry *api, void *context, int64_t rows, int64_t columns, float **data) {
    const int64_t sides[2] = {rows, columns};
    void *value = NULL, *found = NULL;
    status *failed = CALL(api, OUTPUT, void *, size_t, const int64_t *, size_t, void **)(context, 0, sides, 2, &value);
    failed = failed ? failed : CALL(api, TENSOR_DATA, const void *, void **)(value, &found);
    *data = found;
    return failed;
}
