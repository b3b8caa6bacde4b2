/* Which instructions this CPU has, and which of the tables serves. */

#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

const struct kernels *pixedge_kernels = &pixedge_plain;
static const char *chosen = "c";

#if defined(__x86_64__)
/* Matrix tiles: Linux gives their registers to a process that asks. */
static int has_amx(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    unsigned a, b, c, d, needed = 1u << 22 | 1u << 24 | 1u << 25; /* bfloat16, tiles, int8 */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & needed) == needed &&
           __builtin_cpu_supports("avx512bf16") && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 0;
#endif
}

static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}
#endif

static int has(const char *name) {
    if (strcmp(name, "c") == 0) {
        return 1;
    }
#if defined(__x86_64__)
    /* the builtin asks too whether the system saves the registers */
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vnni");
    if (strcmp(name, "avx2") == 0) {
        return avx2;
    }
    return avx512 && (strcmp(name, "avx512") == 0 || has_amx());
#elif defined(__aarch64__) && defined(__linux__)
    return strcmp(name, "neon") == 0 && (getauxval(AT_HWCAP) & 1ul << 20) != 0; /* HWCAP_ASIMDDP */
#elif defined(__aarch64__) && defined(__APPLE__)
    return strcmp(name, "neon") == 0;
#else
    return 0;
#endif
}

/* Best first. The matrix tiles serve many rows only; few rows are read from memory anyway. */
static const struct variant {
    const char *name;
    const struct kernels *table;
} variants[] = {
#if defined(__x86_64__)
    {"amx", &pixedge_avx512},
    {"avx512", &pixedge_avx512},
    {"avx2", &pixedge_avx2},
#elif defined(__aarch64__)
    {"neon", &pixedge_neon},
#endif
    {"c", &pixedge_plain},
};

int pixedge_choose(const char *name) {
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        if ((name == NULL || strcmp(name, variants[i].name) == 0) && has(variants[i].name)) {
            pixedge_kernels = variants[i].table;
            chosen = variants[i].name;
            return 0;
        }
    }
    return 1;
}

const char *pixedge_chosen(void) {
    return chosen;
}
