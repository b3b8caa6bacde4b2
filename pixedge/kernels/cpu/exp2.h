/* Powers of 2 in AVX-512, for weights that are rounded to bfloat16 afterwards. */
#ifndef PIXEDGE_EXP2_H
#define PIXEDGE_EXP2_H

#include <immintrin.h>

/* 2^x within 4e-6 of its size; 0 from -200 down, infinity where float32 ends; NaN stays. */
__attribute__((target("avx512f"), always_inline)) static inline __m512 exp2_ps(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x); /* this order keeps NaN */
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole); /* within 1/2; Chebyshev interpolation of 2^rest */
    __m512 y = _mm512_fmadd_ps(rest, _mm512_set1_ps(0.00966636852f), _mm512_set1_ps(0.0559219758f));
    y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(0.24022349f));
    y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(0.693121045f));
    y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

#endif
