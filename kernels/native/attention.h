// Attention of queries over a paged KV cache, and the writing of it.

#pragma once

#include "team.h"
#include "vectors.h"

constexpr int BLOCK = 16;  // tokens of a KV block

// Keys lie transposed in their block, [heads][dim][BLOCK], so that one vector holds one dimension of all its tokens and
// no sum across a vector is needed; values lie [heads][BLOCK][dim].
template <typename T>
static void store_kv(T* keys, T* values, int heads, int d, const float* k, const float* v, int64_t block, int slot) {
    T* kb = keys + block * heads * d * BLOCK;
    T* vb = values + block * heads * d * BLOCK;
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < d; i++) {
            kb[((size_t)h * d + i) * BLOCK + slot] = narrow<T>(k[h * d + i]);
            vb[((size_t)h * BLOCK + slot) * d + i] = narrow<T>(v[h * d + i]);
        }
}

struct Heads {
    int query, kv, dim;
    float scale, softcap;
    int window;          // positions seen at most; 0: all
    const float* sinks;  // [query] or null
};

// out[g] += sum over t of s[g][t] * v[t], for C vectors of the head's dimensions.
template <typename T, int G, int C>
static inline void weigh(const float* s, size_t span, const T* v, int d, int upto, float* out) {
    vec acc[G][C];
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) acc[g][c] = load(out + g * d + c * W);
    for (int t = 0; t < upto; t++) {
        vec row[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) row[c] = load(v + t * d + c * W);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++)
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) acc[g][c] += s[g * span + t] * row[c];
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) *(vec*)(out + g * d + c * W) = acc[g][c];
}

// G query heads of one row against one key/value head. `scores` holds G * span floats, span a multiple of BLOCK.
template <typename T, int G>
static void attend_group(const float* q, const T* keys, const T* values, const Heads& a, int kv_head, int first_head,
                         const int32_t* table, int position, float* scores, float* out) {
    const int d = a.dim, begin = a.window && position >= a.window ? position - a.window + 1 : 0;
    const int first = begin / BLOCK, last = position / BLOCK;
    const int span = (last - first + 1) * BLOCK;
    const size_t stride = (size_t)a.kv * d * BLOCK;
    vec top[G];
    for (int g = 0; g < G; g++) top[g] = splat(a.sinks ? a.sinks[first_head + g] : -INFINITY);
    for (int b = first; b <= last; b++) {
        const T* kb = keys + table[b] * stride + (size_t)kv_head * d * BLOCK;
        const T* next = keys + table[b < last ? b + 1 : b] * stride + (size_t)kv_head * d * BLOCK;
        vec acc[G][BLOCK / W], odd[G][BLOCK / W];  // two sums each: one alone would wait for its own last addition
#pragma GCC unroll 4
        for (int g = 0; g < G; g++)
#pragma GCC unroll 4
            for (int j = 0; j < BLOCK / W; j++) acc[g][j] = odd[g][j] = (vec){};
        for (int i = 0; i < d; i += 2) {
            __builtin_prefetch(next + i * BLOCK);
            __builtin_prefetch(next + i * BLOCK + BLOCK);
#pragma GCC unroll 4
            for (int j = 0; j < BLOCK / W; j++) {
                const vec k = load(kb + i * BLOCK + j * W), l = load(kb + (i + 1) * BLOCK + j * W);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) {
                    acc[g][j] += q[g * d + i] * k;
                    odd[g][j] += q[g * d + i + 1] * l;
                }
            }
        }
        const bool edge = b == last || b * BLOCK < begin;
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
            float* s = scores + (size_t)g * span + (b - first) * BLOCK;
#pragma GCC unroll 4
            for (int j = 0; j < BLOCK / W; j++) *(vec*)(s + j * W) = (acc[g][j] + odd[g][j]) * a.scale;
            if (a.softcap > 0)
                for (int i = 0; i < BLOCK; i++) s[i] = a.softcap * tanhf(s[i] / a.softcap);
            if (edge)
                for (int i = 0; i < BLOCK; i++)
                    if (b * BLOCK + i > position || b * BLOCK + i < begin) s[i] = -INFINITY;
#pragma GCC unroll 4
            for (int j = 0; j < BLOCK / W; j++) top[g] = vmax(top[g], load(s + j * W));
        }
    }
    for (int g = 0; g < G; g++) {
        float* s = scores + (size_t)g * span;
        float highest = top[g][0];
        for (int i = 1; i < W; i++) highest = top[g][i] > highest ? top[g][i] : highest;
        vec total = (vec){};
        for (int i = 0; i < span; i += W) {
            // A masked place holds -inf, which vexp would clamp: its weight is set to zero here.
            const vec x = load(s + i);
            const vec e = x == splat(-INFINITY) ? (vec){} : vexp(x - highest);
            *(vec*)(s + i) = e;
            total += e;
        }
        float whole = sum(total);
        if (a.sinks) whole += expf(a.sinks[first_head + g] - highest);
        const vec scale = splat(1.0f / whole);
        for (int i = 0; i < span; i += W) *(vec*)(s + i) = load(s + i) * scale;
        memset(out + g * d, 0, d * sizeof(float));
    }
    for (int b = first; b <= last; b++) {
        const T* vb = values + table[b] * stride + (size_t)kv_head * BLOCK * d;
        const int upto = b == last ? position - b * BLOCK + 1 : BLOCK;
        const T* next = values + table[b < last ? b + 1 : b] * stride + (size_t)kv_head * BLOCK * d;
        for (size_t i = 0; i < BLOCK * d * sizeof(T); i += 64) __builtin_prefetch((const char*)next + i);
        const float* s = scores + (b - first) * BLOCK;
        int i = 0;
        for (; i + 2 * W <= d; i += 2 * W) weigh<T, G, 2>(s, span, vb + i, d, upto, out + i);
        for (; i + W <= d; i += W) weigh<T, G, 1>(s, span, vb + i, d, upto, out + i);
        for (; i < d; i++)
            for (int t = 0; t < upto; t++)
                for (int g = 0; g < G; g++) out[g * d + i] += s[(size_t)g * span + t] * widen(vb[t * d + i]);
    }
}

template <typename T>
static void attend_some(int g, const float* q, const T* keys, const T* values, const Heads& a, int kv_head, int head,
                        const int32_t* table, int position, float* scores, float* out) {
    // Groups wider than four run four heads at a time: their accumulators fit the registers.
    while (g > 0) {
        const int n = g >= 4 ? 4 : g;
        switch (n) {
            case 4: attend_group<T, 4>(q, keys, values, a, kv_head, head, table, position, scores, out); break;
            case 3: attend_group<T, 3>(q, keys, values, a, kv_head, head, table, position, scores, out); break;
            case 2: attend_group<T, 2>(q, keys, values, a, kv_head, head, table, position, scores, out); break;
            case 1: attend_group<T, 1>(q, keys, values, a, kv_head, head, table, position, scores, out); break;
        }
        g -= n; head += n; q += n * a.dim; out += n * a.dim;
    }
}

// out[m, query * dim] of q[m, ldq]. To be called by all threads; `scratch` holds 4 * span floats for each.
template <typename T>
static void attend(int m, const float* q, int ldq, const T* keys, const T* values, const Heads& a,
                   const int32_t* tables, int width, const int32_t* table_row, const int32_t* positions,
                   float* scratch, size_t per_thread, float* out) {
    float* scores = scratch + per_thread * Team::tid();
    const int group = a.query / a.kv;
    Team::get().deal(m * a.kv, [=, &a](int t) {
        const int r = t / a.kv, h = t % a.kv;
        attend_some<T>(group, q + (size_t)r * ldq + h * group * a.dim, keys, values, a, h, h * group,
                       tables + (size_t)table_row[r] * width, positions[r], scores,
                       out + (size_t)r * a.query * a.dim + h * group * a.dim);
    });
}
