/* The vision encoder's kernels as operators of ONNX Runtime, in the domain "pixedge":

     EncoderLayer(x, cos, sin, nine weights; heads, epsilon) -> x       encoder_layer.h's layer
     Linear(x, weight, bias?; gelu) -> x                                encoder_layer.h's linear

   Weights are float16 constants, packed when the session is made. ONNX Runtime's C interface is a table of
   functions to which each version adds at the end (its documentation, "C API"); the few entries that are needed
   stand here by their place, so that nothing of ONNX Runtime is needed to compile. */

#include "encoder_layer.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static status *error(const api_entry *api, int code, const char *text) {
    return ((status * (*)(int, const char *)) api[CREATE_STATUS])(code, text);
}

#ifdef PIXEDGE_VISION

struct shape {
    size_t rank;
    int64_t sides[MOST_RANK];
};

static status *read_tensor(const api_entry *api, const void *value, struct shape *shape, void **data) {
    void *info = NULL;
    status *failed = CALL(api, TENSOR_SHAPE, const void *, void **)(value, &info);
    if (failed) {
        return failed;
    }
    failed = CALL(api, TENSOR_DIMENSION_COUNT, const void *, size_t *)(info, &shape->rank);
    if (!failed && shape->rank > MOST_RANK) {
        failed = error(api, INVALID_ARGUMENT, "pixedge: a tensor has too many dimensions");
    }
    if (!failed) {
        failed = CALL(api, TENSOR_DIMENSIONS, const void *, int64_t *, size_t)(info, shape->sides, shape->rank);
    }
    ((void (*)(void *))api[RELEASE_SHAPE])(info);
    return failed ? failed : CALL(api, TENSOR_DATA, const void *, void **)(value, data);
}

/* Read a constant float16 input. */
static status *read_weight(const api_entry *api, const void *info, size_t index, struct shape *shape,
                           const uint16_t **data) {
    int constant = 0;
    const void *value = NULL;
    status *failed = CALL(api, CONSTANT_INPUT, const void *, size_t, int *, const void **)(info, index, &constant, &value);
    if (!failed && (!constant || !value)) {
        failed = error(api, INVALID_ARGUMENT, "pixedge: a weight is not a constant");
    }
    void *found = NULL;
    failed = failed ? failed : read_tensor(api, value, shape, &found);
    *data = found;
    return failed;
}

static status *read_input(const api_entry *api, void *context, size_t index, struct shape *shape, const float **data) {
    const void *value = NULL;
    void *found = NULL;
    status *failed = CALL(api, INPUT, const void *, size_t, const void **)(context, index, &value);
    failed = failed ? failed : read_tensor(api, value, shape, &found);
    *data = found;
    return failed;
}

static status *make_output(const api_entry *api, void *context, int64_t rows, int64_t columns, float **data) {
    const int64_t sides[2] = {rows, columns};
    void *value = NULL, *found = NULL;
    status *failed = CALL(api, OUTPUT, void *, size_t, const int64_t *, size_t, void **)(context, 0, sides, 2, &value);
    failed = failed ? failed : CALL(api, TENSOR_DATA, const void *, void **)(value, &found);
    *data = found;
    return failed;
}

static int is_matrix(const struct shape *shape, long rows, long columns) {
    return shape->rank == 2 && shape->sides[0] == rows && shape->sides[1] == columns;
}

static int64_t elements(const struct shape *shape) {
    int64_t count = 1;
    for (size_t i = 0; i < shape->rank; i++) {
        count *= shape->sides[i];
    }
    return count;
}

/* EncoderLayer */

enum { LAYER_INPUTS = 3 + PIXEDGE_LAYER_WEIGHTS };

struct layer_kernel {
    const api_entry *api;
    struct pixedge_encoder_layer *layer;
    long dim, heads;
};

static status *layer_create(const struct operator *self, const api_entry *api, const void *info, void **kernel) {
    (void)self;
    int64_t heads = 0;
    float eps = 0;
    status *failed = CALL(api, ATTRIBUTE_INTEGER, const void *, const char *, int64_t *)(info, "heads", &heads);
    failed = failed ? failed : CALL(api, ATTRIBUTE_FLOAT, const void *, const char *, float *)(info, "epsilon", &eps);
    const uint16_t *weights[PIXEDGE_LAYER_WEIGHTS];
    struct shape shapes[PIXEDGE_LAYER_WEIGHTS];
    for (size_t i = 0; i < PIXEDGE_LAYER_WEIGHTS && !failed; i++) {
        failed = read_weight(api, info, 3 + i, &shapes[i], &weights[i]);
    }
    if (failed) {
        return failed;
    }
    const long dim = elements(&shapes[PIXEDGE_ATTENTION_NORM]), ffn_dim = shapes[PIXEDGE_GATE].sides[0];
    int fits = heads > 0 && dim % heads == 0 && dim / heads % 2 == 0 && dim / heads <= PIXEDGE_WIDEST_HEAD &&
               elements(&shapes[PIXEDGE_FFN_NORM]) == dim && is_matrix(&shapes[PIXEDGE_GATE], ffn_dim, dim) &&
               is_matrix(&shapes[PIXEDGE_UP], ffn_dim, dim) && is_matrix(&shapes[PIXEDGE_DOWN], dim, ffn_dim);
    for (int i = PIXEDGE_QUERY; i <= PIXEDGE_OUT; i++) {
        fits = fits && is_matrix(&shapes[i], dim, dim);
    }
    if (!fits) {
        return error(api, INVALID_ARGUMENT, "pixedge.EncoderLayer: the weights' shapes do not fit each other");
    }
    struct layer_kernel *made = malloc(sizeof *made);
    if (made) {
        *made = (struct layer_kernel){api, pixedge_encoder_layer_new(dim, (long)heads, ffn_dim, eps, weights), dim, (long)heads};
    }
    if (!made || !made->layer) {
        free(made);
        return error(api, FAIL, "pixedge.EncoderLayer: bad allocation while packing weights");
    }
    *kernel = made;
    return NULL;
}

static status *layer_compute(void *kernel, void *context) {
    const struct layer_kernel *k = kernel;
    const float *x, *cos, *sin;
    float *out;
    struct shape shape, turns[2];
    status *failed = read_input(k->api, context, 0, &shape, &x);
    failed = failed ? failed : read_input(k->api, context, 1, &turns[0], &cos);
    failed = failed ? failed : read_input(k->api, context, 2, &turns[1], &sin);
    if (failed) {
        return failed;
    }
    const int64_t patches = shape.sides[0], angles = patches * (k->dim / k->heads / 2);
    if (!is_matrix(&shape, patches, k->dim) || elements(&turns[0]) != angles || elements(&turns[1]) != angles) {
        return error(k->api, INVALID_ARGUMENT, "pixedge.EncoderLayer: the inputs' shapes do not fit the weights");
    }
    failed = make_output(k->api, context, patches, k->dim, &out);
    if (!failed && patches && pixedge_encoder_layer_run(k->layer, x, cos, sin, patches, out)) {
        failed = error(k->api, FAIL, "pixedge.EncoderLayer: bad allocation");
    }
    return failed;
}

static void layer_destroy(void *kernel) {
    pixedge_encoder_layer_free(((struct layer_kernel *)kernel)->layer);
    free(kernel);
}

/* Linear */

struct linear_kernel {
    const api_entry *api;
    struct pixedge_encoder_linear *linear;
    long in, out;
};

static status *linear_create(const struct operator *self, const api_entry *api, const void *info, void **kernel) {
    (void)self;
    int64_t gelu = 0;
    size_t inputs = 0;
    struct shape shape, bias_shape;
    const uint16_t *weight, *bias = NULL;
    status *failed = CALL(api, ATTRIBUTE_INTEGER, const void *, const char *, int64_t *)(info, "gelu", &gelu);
    failed = failed ? failed : CALL(api, INPUT_COUNT, const void *, size_t *)(info, &inputs);
    failed = failed ? failed : read_weight(api, info, 1, &shape, &weight);
    if (!failed && inputs > 2) {
        failed = read_weight(api, info, 2, &bias_shape, &bias);
    }
    if (failed) {
        return failed;
    }
    if (shape.rank != 2 || (bias && elements(&bias_shape) != shape.sides[0])) {
        return error(api, INVALID_ARGUMENT, "pixedge.Linear: the weights' shapes do not fit each other");
    }
    struct linear_kernel *made = malloc(sizeof *made);
    if (made) {
        const long out = shape.sides[0], in = shape.sides[1];
        *made = (struct linear_kernel){api, pixedge_encoder_linear_new(in, out, gelu != 0, weight, bias), in, out};
    }
    if (!made || !made->linear) {
        free(made);
        return error(api, FAIL, "pixedge.Linear: bad allocation while packing weights");
    }
    *kernel = made;
    return NULL;
}

static status *linear_compute(void *kernel, void *context) {
    const struct linear_kernel *k = kernel;
    const float *x;
    float *out;
    struct shape shape;
    status *failed = read_input(k->api, context, 0, &shape, &x);
    if (failed) {
        return failed;
    }
    if (!is_matrix(&shape, shape.sides[0], k->in)) {
        return error(k->api, INVALID_ARGUMENT, "pixedge.Linear: the input's shape does not fit the weight");
    }
    failed = make_output(k->api, context, shape.sides[0], k->out, &out);
    if (!failed && shape.sides[0] && pixedge_encoder_linear_run(k->linear, x, shape.sides[0], out)) {
        failed = error(k->api, FAIL, "pixedge.Linear: bad allocation");
    }
    return failed;
}

static void linear_destroy(void *kernel) {
    pixedge_encoder_linear_free(((struct linear_kernel *)kernel)->linear);
    free(kernel);
}

/* What both say of themselves */

static const struct operator layer_operator, linear_operator;

static const char *name(const struct operator *self) {
    return self == &layer_operator ? "EncoderLayer" : "Linear";
}

static const char *any_provider(const struct operator *self) {
    (void)self;
    return NULL; /* the CPU's */
}

static int input_type(const struct operator *self, size_t index) {
    return index < (self == &layer_operator ? 3 : 1) ? TYPE_FLOAT : TYPE_FLOAT16;
}

static size_t input_count(const struct operator *self) {
    return self == &layer_operator ? LAYER_INPUTS : 3;
}

static int output_type(const struct operator *self, size_t index) {
    (void)self, (void)index;
    return TYPE_FLOAT;
}

static size_t one_output(const struct operator *self) {
    (void)self;
    return 1;
}

static int input_kind(const struct operator *self, size_t index) {
    return self == &linear_operator && index == 2 ? OPTIONAL : REQUIRED;
}

static int required(const struct operator *self, size_t index) {
    (void)self, (void)index;
    return REQUIRED; /* also: memory of the default kind, which is 0 too */
}

static int none(const struct operator *self) {
    (void)self;
    return 0;
}

static int first_version(const struct operator *self) {
    (void)self;
    return 1;
}

static int last_version(const struct operator *self) {
    (void)self;
    return INT_MAX;
}

/* A layer may write its result over its input: rows are read before they are written. */
static size_t over_input(int **inputs, int **outputs) {
    *inputs = calloc(1, sizeof(int));
    *outputs = calloc(1, sizeof(int));
    return *inputs && *outputs ? 1 : 0;
}

static void free_over_input(int *inputs, int *outputs) {
    free(inputs);
    free(outputs);
}

#define COMMON                                                                                                         \
    .version = API_VERSION, .name = name, .provider = any_provider, .input_type = input_type,                          \
    .input_count = input_count, .output_type = output_type, .output_count = one_output, .input_kind = input_kind,      \
    .output_kind = required, .input_memory = required, .least_variadic_inputs = none, .same_variadic_inputs = none,    \
    .least_variadic_outputs = none, .same_variadic_outputs = none, .first_version = first_version,                     \
    .last_version = last_version

static const struct operator layer_operator = {COMMON, .create = layer_create, .compute = layer_compute,
                                               .destroy = layer_destroy, .in_place = over_input,
                                               .free_in_place = free_over_input};
static const struct operator linear_operator = {COMMON, .create = linear_create, .compute = linear_compute,
                                                .destroy = linear_destroy};

/* Sessions refer to the domain as long as they live, so there is one for all of them. */
static pthread_mutex_t domain_mutex = PTHREAD_MUTEX_INITIALIZER;
static void *domain;

static status *make_domain(const api_entry *api) {
    void *made = NULL;
    status *failed = CALL(api, CREATE_DOMAIN, const char *, void **)("pixedge", &made);
    failed = failed ? failed : CALL(api, ADD_OPERATOR, void *, const struct operator *)(made, &layer_operator);
    failed = failed ? failed : CALL(api, ADD_OPERATOR, void *, const struct operator *)(made, &linear_operator);
    domain = failed ? NULL : made;
    return failed;
}

#endif

/* ONNX Runtime looks this name up in a library of operators. */
PIXEDGE_API status *RegisterCustomOps(void *options, const struct api_base *base);

status *RegisterCustomOps(void *options, const struct api_base *base) {
    const api_entry *api = base->get_api(API_VERSION);
    if (!api) {
        return error(base->get_api(1), FAIL, "pixedge: this ONNX Runtime is older than 1.18");
    }
#ifdef PIXEDGE_VISION
    if (pixedge_vision_best() == PIXEDGE_VISION_NONE) {
        return error(api, FAIL, "pixedge: this CPU has no kernels for the vision encoder");
    }
    pthread_mutex_lock(&domain_mutex);
    status *failed = domain ? NULL : make_domain(api);
    pthread_mutex_unlock(&domain_mutex);
    return failed ? failed : CALL(api, ADD_DOMAIN, void *, void *)(options, domain);
#else
    (void)options;
    return error(api, FAIL, "pixedge: this platform has no kernels for the vision encoder");
#endif
}
