/* A CUDA driver and runtime for a machine without a card: memory is real, kernels do nothing.
 *
 * Loaded ahead of libcuda, libcudart and cuBLAS (LD_PRELOAD), it lets the CUDA builds of torch, triton and ONNX
 * Runtime run unmodified. Device memory is host memory that is reserved and not touched until it is used.
 * What a real card would refuse while a graph is captured is counted; an allocation beyond the card's memory
 * fails as it does there. Functions that are not here do nothing and succeed: build.py writes them. */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MIB ((size_t)1 << 20)
#define SEGMENT (2 * MIB) /* a driver maps memory in pieces of this size */
#define HANDLE 4096       /* bytes of what a handle points to, which nobody looks into but us */
#define MOST_DEVICES 4
#define SOME_POINTER ((void *)8)

/* The card, as the environment describes it. */

static size_t total = 24564 * MIB;
static size_t context = 450 * MIB; /* missing from what is free; a real context's size is not known */
static int taken_by_others; /* whether nothing more can be had */
static int devices = 1, major = 8, minor = 9, multiprocessors = 128, copying = 1, cuda_version = 13000;

/* What happened, in the order of tests/fake_cuda/card.py. */

static struct stats {
    long used, peak;                              /* bytes of all devices */
    long mallocs, launches, triton_launches;      /* launches: of torch and ONNX Runtime */
    long graphs, replays, to_device, to_host, syncs;
    long captured_mallocs, captured_syncs, captured_pageable; /* each a fault on a real card */
    long captured_nodes, captured_triton;         /* nodes of the last graph, those of Triton among them */
    long overwritten; /* copies whose page-locked source changed before anybody waited for them */
    long used_on[MOST_DEVICES];
} stats;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *capturing; /* the stream */
static int capture;     /* whether one is under way */
static unsigned long long captures;
static long nodes_before, triton_before;

enum kind { DEVICE, PINNED };

struct block {
    char *start;
    size_t size;
    enum kind kind;
    int device;
    struct block *next;
};
static struct block *blocks;

static size_t number(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void begin(void) {
    total = number("FAKE_VRAM_MIB", total / MIB) * MIB;
    context = number("FAKE_CONTEXT_MIB", context / MIB) * MIB;
    devices = number("FAKE_DEVICES", devices);
    if (devices > MOST_DEVICES) devices = MOST_DEVICES;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible && (!*visible || *visible == '-')) devices = 0;
    major = number("FAKE_CC", 89) / 10;
    minor = number("FAKE_CC", 89) % 10;
    multiprocessors = number("FAKE_SMS", multiprocessors);
    cuda_version = number("FAKE_CUDA", cuda_version);
    copying = !getenv("FAKE_NOCOPY");
}

__attribute__((destructor)) static void end(void) {
    if (!getenv("FAKE_REPORT")) return;
    fprintf(stderr,
            "[fake] at most %.1f MiB in %ld allocations; %ld launches and %ld of Triton's; %ld graphs, the last "
            "of %ld nodes, %ld replays; while capturing %ld allocations, %ld synchronisations, %ld pageable "
            "copies; %ld copies to the device, %ld of them overwritten too early, %ld to the host, %ld "
            "synchronisations\n",
            stats.peak / (double)MIB, stats.mallocs, stats.launches, stats.triton_launches, stats.graphs,
            stats.captured_nodes, stats.replays, stats.captured_mallocs, stats.captured_syncs,
            stats.captured_pageable, stats.to_device, stats.overwritten, stats.to_host, stats.syncs);
}

/* For tests: read what happened, and let other programs take the rest of the card. */

void fake_stats(struct stats *out) { *out = stats; }
void fake_full(int yes) { taken_by_others = yes; }

/* Errors. */

static __thread cudaError_t last_error;

static cudaError_t fail(cudaError_t error) { return last_error = error; }
cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
const char *cudaGetErrorString(cudaError_t error) {
    static __thread char text[64];
    if (error == cudaErrorMemoryAllocation) return "out of memory";
    if (error == cudaErrorNoDevice) return "no CUDA-capable device is detected";
    snprintf(text, sizeof text, "error %d of the stand-in driver", error);
    return text;
}
const char *cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOfTheStandIn";
}
CUresult cuGetErrorString(CUresult error, const char **text) { return *text = "error of the stand-in driver", 0; }
CUresult cuGetErrorName(CUresult error, const char **text) { return *text = "CUDA_ERROR", 0; }

/* Devices. */

static __thread int current;

cudaError_t cudaGetDeviceCount(int *count) {
    *count = devices;
    if (cuda_version / 1000 < CUDART_VERSION / 1000) return *count = 0, fail(cudaErrorInsufficientDriver);
    return devices ? cudaSuccess : fail(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int *device) { return *device = current, 0; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= devices) return fail(cudaErrorInvalidDevice);
    current = device;
    return 0;
}
cudaError_t cudaDriverGetVersion(int *version) { return *version = cuda_version, 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, 0; }

static int attribute(int which) {
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 101376;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 102400;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 1536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrClockRate: return 2520000;           /* kHz */
    case cudaDevAttrMemoryClockRate: return 10501000;    /* kHz */
    case cudaDevAttrGlobalMemoryBusWidth: return 384;    /* bits */
    case cudaDevAttrL2CacheSize: return 72 * MIB;
    case cudaDevAttrMultiProcessorCount: return multiprocessors;
    case cudaDevAttrComputeCapabilityMajor: return major;
    case cudaDevAttrComputeCapabilityMinor: return minor;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrCooperativeLaunch: return 1;
    }
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    return *value = attribute(which), 0;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "Stand-in for a GeForce RTX 4090");
    p->totalGlobalMem = total;
    p->major = major;
    p->minor = minor;
    p->multiProcessorCount = multiprocessors;
    p->warpSize = attribute(cudaDevAttrWarpSize);
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = attribute(cudaDevAttrMaxBlockDimX);
    p->maxThreadsDim[2] = attribute(cudaDevAttrMaxBlockDimZ);
    p->maxGridSize[0] = attribute(cudaDevAttrMaxGridDimX);
    p->maxGridSize[1] = p->maxGridSize[2] = attribute(cudaDevAttrMaxGridDimY);
    p->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    p->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    p->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    p->regsPerBlock = p->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerBlock);
    p->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    p->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    p->memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth);
    p->concurrentKernels = p->unifiedAddressing = 1;
    p->asyncEngineCount = 2;
    return 0;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:%02d:00.0", device + 1);
    return 0;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, 0; }

/* Memory. */

static void complete(long order);
static long copy_count;

static struct block *find(const void *pointer) {
    for (struct block *block = blocks; block; block = block->next)
        if ((char *)pointer >= block->start && (char *)pointer < block->start + block->size) return block;
    return NULL;
}

static size_t round_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

static void *take(size_t size, enum kind kind) {
    struct block *block = malloc(sizeof *block);
    void *start = mmap(NULL, round_up(size ? size : 1, SEGMENT), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *block = (struct block){start, size, kind, current, blocks};
    blocks = block;
    return start;
}

static void give_back(void *start) {
    for (struct block **at = &blocks; *at; at = &(*at)->next) {
        struct block *block = *at;
        if (block->start != start) continue;
        *at = block->next;
        if (block->kind == DEVICE) {
            stats.used -= block->size;
            stats.used_on[block->device] -= block->size;
        }
        munmap(start, round_up(block->size ? block->size : 1, SEGMENT));
        free(block);
        return;
    }
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all) {
    size_t used = stats.used_on[current] + context;
    *all = total;
    *free_bytes = total > used && !taken_by_others ? total - used : 0;
    return 0;
}
cudaError_t cudaMalloc(void **pointer, size_t size) {
    size = round_up(size, size >= MIB ? SEGMENT : 512);
    pthread_mutex_lock(&mutex);
    int full = taken_by_others || stats.used_on[current] + size + context > total;
    *pointer = NULL;
    if (!full) {
        *pointer = take(size, DEVICE);
        stats.used += size;
        stats.used_on[current] += size;
        stats.mallocs++;
        stats.captured_mallocs += capture;
        if (stats.used > stats.peak) stats.peak = stats.used;
    }
    pthread_mutex_unlock(&mutex);
    return full ? fail(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaFree(void *pointer) {
    complete(copy_count);
    pthread_mutex_lock(&mutex);
    if (pointer) give_back(pointer);
    pthread_mutex_unlock(&mutex);
    return 0;
}
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    pthread_mutex_lock(&mutex);
    *pointer = take(size, PINNED);
    pthread_mutex_unlock(&mutex);
    return 0;
}
cudaError_t cudaMallocAsync(void **p, size_t size, cudaStream_t s) { return cudaMalloc(p, size); }
cudaError_t cudaMallocHost(void **p, size_t size) { return cudaHostAlloc(p, size, 0); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return cudaFree(p); }
cudaError_t cudaFreeHost(void *p) { return cudaFree(p); }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { return *pool = SOME_POINTER, 0; }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    memset(found, 0, sizeof *found);
    pthread_mutex_lock(&mutex);
    struct block *block = find(pointer);
    found->type = !block               ? cudaMemoryTypeUnregistered
                  : block->kind == DEVICE ? cudaMemoryTypeDevice
                                          : cudaMemoryTypeHost;
    if (block) {
        found->device = block->device;
        found->devicePointer = (void *)pointer;
        found->hostPointer = block->kind == PINNED ? (void *)pointer : NULL;
    }
    pthread_mutex_unlock(&mutex);
    return 0;
}
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute which, CUdeviceptr pointer) {
    if (which != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return *(int *)data = 0, 0;
    pthread_mutex_lock(&mutex);
    int known = find((void *)pointer) != NULL;
    pthread_mutex_unlock(&mutex);
    *(CUdeviceptr *)data = pointer;
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Copies. What a copy engine cannot do alone, from or to pageable memory, cannot be captured. */

/* Copies from page-locked memory that nobody has waited for: a card may still read their source. */

#define MOST_COPIES 1024
static struct copy {
    const void *from;
    size_t size;
    uint64_t sum;
    long order;
} waiting[MOST_COPIES];
static int waiting_count;

static uint64_t sum_of(const char *bytes, size_t size) {
    uint64_t sum = size, word;
    for (; size >= sizeof word; size -= sizeof word, bytes += sizeof word) {
        memcpy(&word, bytes, sizeof word);
        sum = sum * 31 + word;
    }
    for (; size; size--) sum = sum * 31 + (unsigned char)*bytes++;
    return sum;
}

static void forget(int index) { waiting[index] = waiting[--waiting_count]; }

static void complete(long order) { /* those up to the order-th: what they read must be as it was */
    pthread_mutex_lock(&mutex);
    for (int i = waiting_count - 1; i >= 0; i--) {
        if (waiting[i].order > order) continue;
        stats.overwritten += sum_of(waiting[i].from, waiting[i].size) != waiting[i].sum;
        forget(i);
    }
    pthread_mutex_unlock(&mutex);
}

static void account(const void *target, const void *source, size_t size) {
    pthread_mutex_lock(&mutex);
    struct block *to = find(target), *from = find(source);
    int to_device = to && to->kind == DEVICE, from_device = from && from->kind == DEVICE;
    stats.to_device += to_device && !from_device;
    if (to_device && from && from->kind == PINNED && waiting_count < MOST_COPIES)
        waiting[waiting_count++] = (struct copy){source, size, sum_of(source, size), ++copy_count};
    stats.to_host += from_device && !to_device;
    stats.captured_pageable += capture && ((to_device && !from) || (from_device && !to));
    stats.captured_nodes += capture;
    pthread_mutex_unlock(&mutex);
}

static cudaError_t synchronize(long order) {
    stats.syncs++;
    complete(order);
    if (!capture) return 0;
    stats.captured_syncs++;
    return fail(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind k, cudaStream_t s) {
    account(to, from, size);
    if (copying) memcpy(to, from, size);
    return 0;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    cudaError_t error = synchronize(copy_count);
    return error ? error : cudaMemcpyAsync(to, from, size, kind, NULL);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    account(to, from, 0);
    for (size_t row = 0; row < height && copying; row++)
        memcpy((char *)to + row * to_pitch, (char *)from + row * from_pitch, width);
    return 0;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
    stats.captured_nodes += capture;
    if (copying) memset(to, value, size);
    return 0;
}
cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }

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
