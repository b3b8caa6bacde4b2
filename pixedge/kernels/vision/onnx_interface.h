/* The part of ONNX Runtime's C interface that the operators need.

   The interface is a table of functions to which each version adds at the end (its documentation, "C API"); the
   few entries that are needed stand here by their place, so that nothing of ONNX Runtime is needed to compile. */

#ifndef PIXEDGE_ONNX_INTERFACE_H
#define PIXEDGE_ONNX_INTERFACE_H

#include <stddef.h>
#include <stdint.h>

#define API_VERSION 18 /* of the entries used and of struct operator; ONNX Runtime 1.18 was the first to have it */

typedef struct status status; /* NULL: success */
typedef void (*api_entry)(void);

enum { /* places in the table */
    CREATE_STATUS = 0,
    CREATE_DOMAIN = 26,
    ADD_OPERATOR = 27,
    ADD_DOMAIN = 28,
    TENSOR_DATA = 51,
    TENSOR_DIMENSION_COUNT = 61,
    TENSOR_DIMENSIONS = 62,
    TENSOR_SHAPE = 65,
    ATTRIBUTE_FLOAT = 85,
    ATTRIBUTE_INTEGER = 86,
    INPUT = 90,
    OUTPUT = 91,
    RELEASE_SHAPE = 99,
    INPUT_COUNT = 230,
    CONSTANT_INPUT = 249,
};

enum { FAIL = 1, INVALID_ARGUMENT = 2 };           /* error codes */
enum { TYPE_FLOAT = 1, TYPE_FLOAT16 = 10 };        /* element types */
enum { REQUIRED = 0, OPTIONAL = 1, MOST_RANK = 8 }; /* input kinds */

struct api_base {
    const api_entry *(*get_api)(uint32_t version);
    const char *(*version)(void);
};

struct operator { /* what ONNX Runtime reads of an operator, up to API_VERSION */
    uint32_t version;
    void *create_without_status;
    const char *(*name)(const struct operator *);
    const char *(*provider)(const struct operator *);
    int (*input_type)(const struct operator *, size_t);
    size_t (*input_count)(const struct operator *);
    int (*output_type)(const struct operator *, size_t);
    size_t (*output_count)(const struct operator *);
    void *compute_without_status;
    void (*destroy)(void *);
    int (*input_kind)(const struct operator *, size_t);
    int (*output_kind)(const struct operator *, size_t);
    int (*input_memory)(const struct operator *, size_t);
    int (*least_variadic_inputs)(const struct operator *);
    int (*same_variadic_inputs)(const struct operator *);
    int (*least_variadic_outputs)(const struct operator *);
    int (*same_variadic_outputs)(const struct operator *);
    status *(*create)(const struct operator *, const api_entry *, const void *, void **);
    status *(*compute)(void *, void *);
    status *(*infer_shape)(const struct operator *, void *);
    int (*first_version)(const struct operator *);
    int (*last_version)(const struct operator *);
    size_t (*in_place)(int **, int **);
    void (*free_in_place)(int *, int *);
    size_t (*aliases)(int **, int **);
    void (*free_aliases)(int *, int *);
};

/* Call an entry of the table `api` that takes the given types. */
#define CALL(api, place, ...) (((status * (*)(__VA_ARGS__))(api)[place]))

struct shape {
    size_t rank;
    int64_t sides[MOST_RANK];
};

/* A failure that ONNX Runtime raises as an exception with this text. */
status *pixedge_onnx_error(const api_entry *api, int code, const char *text);

/* When a kernel is made: read a constant float16 input. */
status *pixedge_onnx_weight(const api_entry *api, const void *info, size_t index, struct shape *shape,
                            const uint16_t **data);

/* When a kernel runs: read a float32 input, make the float32 output [rows, columns]. */
status *pixedge_onnx_input(const api_entry *api, void *context, size_t index, struct shape *shape, const float **data);
status *pixedge_onnx_output(const api_entry *api, void *context, int64_t rows, int64_t columns, float **data);

#endif
