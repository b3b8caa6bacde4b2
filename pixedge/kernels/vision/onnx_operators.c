/* The vision encoder's kernels as operators of ONNX Runtime, in the domain "pixedge":

     EncoderLayer(x, cos, sin, nine weights; heads, epsilon) -> x       encoder_layer.h's layer
     Linear(x, weight, bias?; gelu) -> x                                encoder_layer.h's linear

   Weights are float16 constants, packed when the session is made. */

#include "encoder_layer.h"
#include "onnx_interface.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>

#ifdef PIXEDGE_VISION

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
        failed = pixedge_onnx_weight(api, info, 3 + i, &shapes[i], &weights[i]);
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
        return pixedge_onnx_error(api, INVALID_ARGUMENT,
                                  "pixedge.EncoderLayer: the weights' shapes do not fit each other");
    }
    struct layer_kernel *made = malloc(sizeof *made);
    if (made) {
        struct pixedge_encoder_layer *layer = pixedge_encoder_layer_new(dim, (long)heads, ffn_dim, eps, weights);
        *made = (struct layer_kernel){api, layer, dim, (long)heads};
    }
    if (!made || !made->layer) {
        free(made);
        return pixedge_onnx_error(api, FAIL, "pixedge.EncoderLayer: bad allocation while packing weights");
    }
    *kernel = made;
    return NULL;
}

static status *layer_compute(void *kernel, void *context) {
    const struct layer_kernel *k = kernel;
    const float *x, *cos, *sin;
    float *out;
    struct shape shape, turns[2];
    status *failed = pixedge_onnx_input(k->api, context, 0, &shape, &x);
    failed = failed ? failed : pixedge_onnx_input(k->api, context, 1, &turns[0], &cos);
    failed = failed ? failed : pixedge_onnx_input(k->api, context, 2, &turns[1], &sin);
    if (failed) {
        return failed;
    }
    const int64_t patches = shape.sides[0], angles = patches * (k->dim / k->heads / 2);
    if (!is_matrix(&shape, patches, k->dim) || elements(&turns[0]) != angles || elements(&turns[1]) != angles) {
        return pixedge_onnx_error(k->api, INVALID_ARGUMENT,
                                  "pixedge.EncoderLayer: the inputs' shapes do not fit the weights");
    }
    failed = pixedge_onnx_output(k->api, context, patches, k->dim, &out);
    if (!failed && patches && pixedge_encoder_layer_run(k->layer, x, cos, sin, patches, out)) {
        failed = pixedge_onnx_error(k->api, FAIL, "pixedge.EncoderLayer: bad allocation");
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
    failed = failed ? failed : pixedge_onnx_weight(api, info, 1, &shape, &weight);
    if (!failed && inputs > 2) {
        failed = pixedge_onnx_weight(api, info, 2, &bias_shape, &bias);
    }
    if (failed) {
        return failed;
    }
    if (shape.rank != 2 || (bias && elements(&bias_shape) != shape.sides[0])) {
        return pixedge_onnx_error(api, INVALID_ARGUMENT, "pixedge.Linear: the weights' shapes do not fit each other");
    }
    struct linear_kernel *made = malloc(sizeof *made);
    if (made) {
        const long out = shape.sides[0], in = shape.sides[1];
        *made = (struct linear_kernel){api, pixedge_encoder_linear_new(in, out, gelu != 0, weight, bias), in, out};
    }
    if (!made || !made->linear) {
        free(made);
        return pixedge_onnx_error(api, FAIL, "pixedge.Linear: bad allocation while packing weights");
    }
    *kernel = made;
    return NULL;
}

static status *linear_compute(void *kernel, void *context) {
    const struct linear_kernel *k = kernel;
    const float *x;
    float *out;
    struct shape shape;
    status *failed = pixedge_onnx_input(k->api, context, 0, &shape, &x);
    if (failed) {
        return failed;
    }
    if (!is_matrix(&shape, shape.sides[0], k->in)) {
        return pixedge_onnx_error(k->api, INVALID_ARGUMENT,
                                  "pixedge.Linear: the input's shape does not fit the weight");
    }
    failed = pixedge_onnx_output(k->api, context, shape.sides[0], k->out, &out);
    if (!failed && shape.sides[0] && pixedge_encoder_linear_run(k->linear, x, shape.sides[0], out)) {
        failed = pixedge_onnx_error(k->api, FAIL, "pixedge.Linear: bad allocation");
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
        return pixedge_onnx_error(base->get_api(1), FAIL, "pixedge: this ONNX Runtime is older than 1.18");
    }
#ifdef PIXEDGE_VISION
    if (pixedge_vision_best() == PIXEDGE_VISION_NONE) {
        return pixedge_onnx_error(api, FAIL, "pixedge: this CPU has no kernels for the vision encoder");
    }
    pthread_mutex_lock(&domain_mutex);
    status *failed = domain ? NULL : make_domain(api);
    pthread_mutex_unlock(&domain_mutex);
    return failed ? failed : CALL(api, ADD_DOMAIN, void *, void *)(options, domain);
#else
    (void)options;
    return pixedge_onnx_error(api, FAIL, "pixedge: this platform has no kernels for the vision encoder");
#endif
}
