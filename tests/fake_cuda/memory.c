/* Memory and copies. */
#include "driver.h"

long copy_count;

enum kind { DEVICE, PINNED };

struct block {
    char *start;
    size_t size;
    enum kind kind;
    int device;
    struct block *next;
};
static struct block *blocks;

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

void complete(long order) { /* those up to the order-th: what they read must be as it was */
    pthread_mutex_lock(&mutex);
    for (int i = waiting_count - 1; i >= 0; i--) {
        if (waiting[i].order > order) continue;
        stats.overwritten += sum_of(waiting[i].from, waiting[i].size) != waiting[i].sum;
        forget(i);
    }
    pthread_mutex_unlock(&mutex);
}

/* What a copy engine cannot do alone, from or to pageable memory, cannot be captured. */

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

cudaError_t synchronize(long order) {
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
