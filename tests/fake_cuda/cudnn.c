/* What cuDNN answers that is more than success; build.py writes the rest. */
#include <stdlib.h>

int cudnnCreate(void **handle) {
    *handle = calloc(1, 4096);
    return 0;
}
size_t cudnnGetVersion(void) { return 92000; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int error) { return "error of the stand-in cuDNN"; }
