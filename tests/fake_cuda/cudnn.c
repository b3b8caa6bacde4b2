/* What cuDNN answers that is more than success; build.py writes the rest. */
#include <stdlib.h>

int cudnnCreate(void **handle) {
    *handle = calloc(1, 4096);
    return 0;
}
size_t cudnnGetVersion(void) { return CUDNN_VERSION; } /* of the library that it stands in for, by build.py */
size_t cudnnGetCudartVersion(void) { return 13000; }
int cudnnGetProperty(int which, int *value) {
    const int parts[] = {CUDNN_VERSION / 10000, CUDNN_VERSION / 100 % 100, CUDNN_VERSION % 100};
    *value = parts[which];
    return 0;
}
const char *cudnnGetErrorString(int error) { return "error of the stand-in cuDNN"; }
