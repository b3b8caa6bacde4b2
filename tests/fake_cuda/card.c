/* A CUDA driver and runtime for a machine without a card: memory is real, kernels do nothing.
 *
 * Loaded ahead of libcuda, libcudart and cuBLAS (LD_PRELOAD), it lets the CUDA builds of torch, triton and ONNX
 * Runtime run unmodified. Device memory is host memory that is reserved and not touched until it is used.
 * What a real card would refuse while a graph is captured is counted; an allocation beyond the card's memory
 * fails as it does there. Functions that are not here do nothing and succeed: build.py writes them. */
#include "driver.h"

/* The card, as the environment describes it; a real context's size is not known. */

size_t total = 24564 * MIB, context = 450 * MIB;
int taken_by_others, devices = 1, major = 8, minor = 9, multiprocessors = 128, copying = 1, cuda_version = 13000;

struct stats stats;
pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

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

cudaError_t fail(cudaError_t error) { return last_error = error; }
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

__thread int current;

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

int attribute(int which) {
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
