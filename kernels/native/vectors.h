// Vectors of the width this processor has, the number formats that fit them, and exp. GCC/Clang vector extensions.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16, PANEL = 2, ROWS = 8;  // 16 accumulators and 2 panel vectors of 32 registers
#elif defined(__AVX2__)
constexpr int W = 8, PANEL = 2, ROWS = 6;  // 12 accumulators of 16 registers
#else
constexpr int W = 4, PANEL = 4, ROWS = 4;  // NEON: 32 registers of 4
#endif
constexpr int NR = W * PANEL;
constexpr int AHEAD = 2048;  // bytes that memory is asked for before they are needed

typedef float vec __attribute__((vector_size(W * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(W * 4), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(W * 2), aligned(2)));
typedef _Float16 fvec __attribute__((vector_size(W * 2), aligned(2)));

struct bf16 { uint16_t bits; };

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) { uint32_t u = (uint32_t)x.bits << 16; float f; memcpy(&f, &u, 4); return f; }
static inline float widen(_Float16 x) { return (float)x; }
template <typename T> static inline T narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline _Float16 narrow<_Float16>(float x) { return (_Float16)x; }
template <> inline bf16 narrow<bf16>(float x) {
    uint32_t u; memcpy(&u, &x, 4);
    return bf16{(uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16)};  // to nearest, ties to even, as torch rounds
}
static inline vec load(const float* p) { return *(const vec*)p; }
static inline vec load(const bf16* p) {
    ivec wide = __builtin_convertvector(*(const hvec*)p, ivec) << 16;
    return (vec)wide;
}
// W numbers of fp16. GCC 12 makes W single moves of most conversions of vectors, so x86 is told the instruction.
static inline vec widened_half(const void* p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    return __builtin_convertvector(*(const fvec*)p, vec);
#endif
}
static inline vec load(const _Float16* p) { return widened_half(p); }
static inline vec splat(float x) { return x - (vec){}; }
static inline float sum(vec v) { float s = 0; for (int i = 0; i < W; i++) s += v[i]; return s; }
static inline vec vmax(vec a, vec b) { return a > b ? a : b; }

// exp(x) to about 2 ulp, from -87 to 88 and with the ends' values beyond: Cody-Waite reduction and a polynomial of
// degree 6 (Cephes expf).
static inline vec vexp(vec x) {
    x = vmax(x, splat(-87.0f));
    x = x < splat(88.0f) ? x : splat(88.0f);
    vec n = x * 1.44269504088896341f;
    ivec k = __builtin_convertvector(n + (n >= 0 ? splat(0.5f) : splat(-0.5f)), ivec);
    vec f = __builtin_convertvector(k, vec);
    vec r = x - f * 0.693359375f + f * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((k + 127) << 23);
}
