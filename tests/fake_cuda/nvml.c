/* NVIDIA's management library, as far as doctor asks it, and torch where memory runs out; see card.c for the variables. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long long number(const char *name, unsigned long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    const char *version = getenv("FAKE_DRIVER");
    snprintf(text, size, "%s", version && *version ? version : "580.95.05");
    return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = number("FAKE_CUDA", 13000), 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { return *count = number("FAKE_DEVICES", 1), 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { return *device = (void *)8, 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) { return *device = (void *)8, 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    snprintf(text, size, "Stand-in for a GeForce RTX 4090");
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
    unsigned long long total = number("FAKE_VRAM_MIB", 24564) << 20, used = 450 << 20;
    total_free_used[0] = total;
    total_free_used[1] = total - used;
    total_free_used[2] = used;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, void *processes) { return *count = 0, 0; }
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *processes) { return *count = 0, 0; }
