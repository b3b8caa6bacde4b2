/* Streams, graphs, kernels, and the functions of the driver and of cuBLAS. */
#include "driver.h"

int capture;
static void *capturing; /* the stream */
static unsigned long long captures;
static long nodes_before, triton_before;

/* Streams and events. */

static cudaError_t make(void *handle) {
    *(void **)handle = calloc(1, HANDLE);
    return 0;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return make(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return make(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned f, int p) { return make(stream); }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return make(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return make(event); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { return *ms = 1.0f, 0; }
/* An event is the number of copies that it was recorded behind. */
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return *(long *)event = copy_count, 0; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return complete(*(long *)event), 0; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return synchronize(*(long *)event); }
cudaError_t cudaDeviceSynchronize(void) { return synchronize(copy_count); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (!capture || stream == capturing) return synchronize(copy_count);
    complete(copy_count);
    return stats.syncs++, 0;
}

/* Graphs. Only one stream is captured at a time. */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    capturing = stream;
    capture = 1;
    captures++;
    stats.captured_nodes = 0;
    nodes_before = stats.launches + stats.triton_launches;
    triton_before = stats.triton_launches;
    return 0;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = NULL;
    capture = 0;
    stats.graphs++;
    stats.captured_nodes += stats.launches + stats.triton_launches - nodes_before;
    stats.captured_triton = stats.triton_launches - triton_before;
    return make(graph);
}
static int captured(cudaStream_t stream) { return capture && stream == capturing; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return 0;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                     const cudaGraphEdgeData **edges, size_t *count) {
    if (status) cudaStreamIsCapturing(stream, status);
    if (id) *id = captures;
    if (graph) *graph = SOME_POINTER;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return 0;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t g, unsigned long long f) { return make(made); }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t g, unsigned long long flags) {
    return make(made);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    return *count = stats.captured_nodes, 0;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { return stats.replays++, 0; }

/* Kernels of torch and ONNX Runtime. */

static cudaError_t launch(void) { return stats.launches++, 0; }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) { return launch(); }
cudaError_t __cudaLaunchKernel(void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) { return launch(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launch(); }
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) {
    return launch();
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    static const int built_for[] = {75, 80, 86, 90, 100, 120}; /* torch.cuda.get_arch_list() */
    memset(found, 0, sizeof *found);
    for (unsigned i = 0; i < sizeof built_for / sizeof *built_for; i++)
        if (built_for[i] <= major * 10 + minor) found->binaryVersion = found->ptxVersion = built_for[i];
    found->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
    found->maxDynamicSharedSizeBytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    found->numRegs = 32;
    return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *f, int block, size_t shared) {
    return *count = 2, 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *f, int block,
                                                                   size_t shared, unsigned flags) {
    return *count = 2, 0;
}
void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[8];
    return handle;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = *block = (dim3){1, 1, 1};
    *shared = 0;
    *(void **)stream = NULL;
    return 0;
}
cudaError_t __cudaGetKernel(void **kernel, const void *function) { return *kernel = (void *)function, 0; }
cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) {
    static void *somewhere;
    if (!somewhere) cudaMalloc(&somewhere, MIB);
    return *pointer = somewhere, 0;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *o, void **v,
                                unsigned n, enum cudaLibraryOption *lo, void **lv, unsigned ln) {
    return *library = SOME_POINTER, 0;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t l, const char *name) {
    return *kernel = SOME_POINTER, 0;
}

/* The driver's functions, which Triton calls. */

static CUresult nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
    void *here = dlsym(RTLD_DEFAULT, name);
    *function = here ? here : (void *)nothing;
    if (found) *found = cudaDriverEntryPointSuccess;
    return 0;
}
#undef cuGetProcAddress
CUresult cuGetProcAddress_v2(const char *name, void **function, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *found) {
    cudaGetDriverEntryPointByVersion(name, function, version, flags, NULL);
    if (found) *found = CU_GET_PROC_ADDRESS_SUCCESS;
    return 0;
}
CUresult cuInit(unsigned flags) { return devices ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
CUresult cuDriverGetVersion(int *version) { return *version = cuda_version, 0; }
CUresult cuDeviceGetCount(int *count) { return *count = devices, 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = ordinal, 0; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    return *value = attribute((int)which), 0;
}
CUresult cuCtxGetCurrent(CUcontext *found) { return *found = SOME_POINTER, 0; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = current, 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *found, CUdevice device) { return *found = SOME_POINTER, 0; }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    return *flags = 0, *active = 1, 0;
}
CUresult cuModuleLoadData(CUmodule *module, const void *image) { return *module = SOME_POINTER, 0; }
CUresult cuModuleLoadDataEx(CUmodule *module, const void *i, unsigned n, CUjit_option *o, void **v) {
    return *module = SOME_POINTER, 0;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule m, const char *n) { return *function = SOME_POINTER, 0; }
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
    *value = which == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 32
             : which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? attribute(cudaDevAttrMaxThreadsPerBlock)
                                                                : 0;
    return 0;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **arguments, void **extra) {
    return stats.triton_launches++, 0;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
    return stats.triton_launches++, 0;
}
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction f, const CUlaunchConfig *c) { return *count = 1, 0; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, CUfunction f, int block, size_t shared) {
    return *count = 2, 0;
}
CUresult cuCtxGetLimit(size_t *value, CUlimit which) { return *value = 0, 0; }

/* cuBLAS: handles, and an algorithm for each product. */

int cublasCreate_v2(void **handle) { return make(handle); }
int cublasLtCreate(void **handle) { return make(handle); }
int cublasGetMathMode(void *handle, int *mode) { return *mode = 0, 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0, 0; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *o, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, void *results, int *found) {
    memset(results, 0, 96); /* one cublasLtMatmulHeuristicResult_t: no workspace, no error */
    return *found = 1, 0;
}
