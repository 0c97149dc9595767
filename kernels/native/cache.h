// The numbers of a KV cache: floats, or codes of one byte with a scale for each token of a head, and the writing of them.

#pragma once

#include "formats.h"

constexpr int BLOCK = 16;  // tokens of a KV block

struct code8 { int8_t bits; };
struct code_e4m3 { uint8_t bits; };

template <typename T> constexpr bool CODED = sizeof(T) == 1;
template <typename T> constexpr float LARGEST = 127.0f;  // the largest number that a code can be
template <> constexpr float LARGEST<code_e4m3> = 448.0f;
template <typename T> constexpr float UNIT = 1.0f;       // what a loaded code is to be multiplied by
template <> constexpr float UNIT<code_e4m3> = Fp8::UNIT;

static inline vec load(const code8* p) { return Int8::read((const char*)p); }
static inline vec load(const code_e4m3* p) { return Fp8::read((const char*)p); }
static inline float widen(code8 x) { return x.bits; }
static inline float widen(code_e4m3 x) {
    const int16_t wide = ((int16_t)(int8_t)x.bits << 7) & (int16_t)0xBF80;  // see Fp8
    _Float16 half; memcpy(&half, &wide, 2);
    return (float)half;
}
template <> inline code8 narrow<code8>(float x) { return code8{(int8_t)rintf(x)}; }
// To nearest, ties to even, as torch rounds; what is too large becomes the largest. NaN is not asked for.
template <> inline code_e4m3 narrow<code_e4m3>(float x) {
    uint32_t u; memcpy(&u, &x, 4);
    const uint8_t sign = (u >> 24) & 0x80;
    u &= 0x7fffffff;
    if (fabsf(x) < 0x1p-6f) return code_e4m3{(uint8_t)(sign | (uint8_t)rintf(fabsf(x) * 0x1p9f))};  // steps of 2^-9
    u = (u + 0x7ffff + ((u >> 20) & 1)) >> 20;  // three bits of the mantissa; then the exponent counts from -7, not -127
    u -= 120 << 3;
    return code_e4m3{(uint8_t)(sign | (u > 0x7e ? 0x7e : u))};
}

// The blocks of one layer. Keys lie transposed in their block, [heads][dim][BLOCK], so that one vector holds one
// dimension of all its tokens and no sum across a vector is needed; values lie [heads][BLOCK][dim], scales [heads][BLOCK].
struct Cache {
    void *keys, *values;
    float *key_scales, *value_scales;  // null where the numbers are floats
};

// What d numbers are multiplied by before they become codes; its inverse is kept. A number that is none shows in it.
template <typename T>
static inline float coding(const float* x, int d, float* scale) {
    float most = 0, poison = 0;
    for (int i = 0; i < d; i++) {
        most = fmaxf(most, fabsf(x[i]));
        poison += x[i] * 0.0f;
    }
    *scale = fmaxf(most / LARGEST<T>, 1e-8f) + poison;
    return 1.0f / *scale;
}

template <typename T>
static void store_kv(const Cache& c, int heads, int d, const float* k, const float* v, int64_t block, int slot) {
    T* kb = (T*)c.keys + block * heads * d * BLOCK;
    T* vb = (T*)c.values + block * heads * d * BLOCK;
    for (int h = 0; h < heads; h++) {
        float by_key = 1.0f, by_value = 1.0f;
        if constexpr (CODED<T>) {
            const size_t at = (block * heads + h) * BLOCK + slot;
            by_key = coding<T>(k + h * d, d, c.key_scales + at);
            by_value = coding<T>(v + h * d, d, c.value_scales + at);
        }
        for (int i = 0; i < d; i++) {
            kb[((size_t)h * d + i) * BLOCK + slot] = narrow<T>(k[h * d + i] * by_key);
            vb[((size_t)h * BLOCK + slot) * d + i] = narrow<T>(v[h * d + i] * by_value);
        }
    }
}
