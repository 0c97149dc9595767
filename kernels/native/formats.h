// Number formats of packed weights: how many steps of k one load brings, and how a step becomes fp32 numbers.
//
// A panel of NR columns lies unit after unit. A unit is one number of each column (STEP = 1), or one 32-bit word of each
// column that holds STEP numbers, the first in its lowest bits. The word's order is that in which the canonical codes
// lie in a row, so packing moves words and never bits.

#pragma once

#include "vectors.h"

typedef int8_t bytes __attribute__((vector_size(W), aligned(1)));
typedef int16_t words __attribute__((vector_size(W * 2), aligned(2)));

// Signed bytes in wider words.
static inline ivec widened(const char* p) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    return __builtin_convertvector(*(const bytes*)p, ivec);
#endif
}
static inline words halves(const char* p) {
#if defined(__AVX512F__)
    return (words)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (words)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p));
#else
    return __builtin_convertvector(*(const bytes*)p, words);
#endif
}

enum Kind : int32_t { FP32, BF16, FP16, INT8, INT4, NF4, FP8, INT8_BY_INT8 };

template <typename T>
struct Plain {
    static constexpr int STEP = 1, BYTES = W * sizeof(T);  // BYTES: of one unit of W columns
    static constexpr bool SCALED = false;
    static constexpr float UNIT = 1.0f;
    typedef vec Raw;
    static Raw read(const char* p) { return load((const T*)p); }
    static vec number(Raw raw, int) { return raw; }
};

struct Int8 {
    static constexpr int STEP = 1, BYTES = W;
    static constexpr bool SCALED = true;
    static constexpr float UNIT = 1.0f;
    typedef vec Raw;
    static Raw read(const char* p) { return __builtin_convertvector(widened(p), vec); }
    static vec number(Raw raw, int) { return raw; }
};

// e4m3 as the upper bits of fp16, whose exponent is one bit longer and 8 higher: its numbers become 2^-8 of what they
// are, the subnormal ones too, and nothing is subnormal any more once it is fp32.
struct Fp8 {
    static constexpr int STEP = 1, BYTES = W;
    static constexpr bool SCALED = true;
    static constexpr float UNIT = 256.0f;
    typedef vec Raw;
    static Raw read(const char* p) {
        const words wide = (halves(p) << 7) & (int16_t)0xBF80;
        return widened_half(&wide);
    }
    static vec number(Raw raw, int) { return raw; }
};

struct Int4Table {
    static constexpr float at[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    static vec number(ivec code) { return __builtin_convertvector(code - 8, vec); }
};
// Dettmers et al. 2023, arXiv 2305.14314, appendix E.
struct Nf4Table {
    static constexpr float at[16] = {
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
        -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
        0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
    static vec number(ivec code) {
        vec found;
        for (int i = 0; i < W; i++) found[i] = at[code[i]];
        return found;
    }
};

// Eight codes of four bits in a word. Where there are permutes of sixteen floats, they look up both kinds at once, and
// read no more than the four bits that count: a shift and a permute make sixteen weights.
template <typename Table>
struct HalfByte {
    static constexpr int STEP = 8, BYTES = W * 4;
    static constexpr bool SCALED = true;
    static constexpr float UNIT = 1.0f;
    typedef ivec Raw;
    static Raw read(const char* p) { return *(const ivec*)p; }
    static vec number(Raw raw, int s) {
#if defined(__AVX512F__)
        return (vec)_mm512_permutexvar_ps((__m512i)(raw >> (4 * s)), _mm512_loadu_ps(Table::at));
#else
        return Table::number((raw >> (4 * s)) & 15);
#endif
    }
};

// Four codes of eight bits in a word, the order of integer dot products.
struct Int8Words {
    static constexpr int STEP = 4, BYTES = W * 4;
    static constexpr bool SCALED = true;
    static constexpr float UNIT = 1.0f;
    typedef ivec Raw;
    static Raw read(const char* p) { return *(const ivec*)p; }
    static vec number(Raw raw, int s) { return __builtin_convertvector((raw << (24 - 8 * s)) >> 24, vec); }
};

typedef HalfByte<Int4Table> Int4;
typedef HalfByte<Nf4Table> Nf4;

// sums[lane] += the four products of x's bytes, unsigned, with the lane's four, signed. The same integers either way.
static inline ivec dot4(ivec sums, int32_t x, ivec w) {
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(x), (__m512i)w);
#else
    for (int s = 0; s < 4; s++) sums += ((w << (24 - 8 * s)) >> 24) * ((x >> (8 * s)) & 255);
    return sums;
#endif
}
