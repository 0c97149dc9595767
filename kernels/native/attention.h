// Attention of queries over a paged KV cache.

#pragma once

#include "cache.h"
#include "team.h"

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
static void attend_group(const float* q, const Cache& c, const Heads& a, int kv_head, int first_head,
                         const int32_t* table, int position, float* scores, float* out) {
    const T *keys = (const T*)c.keys, *values = (const T*)c.values;
    const int d = a.dim, begin = a.window && position >= a.window ? position - a.window + 1 : 0;
    const int first = begin / BLOCK, last = position / BLOCK;
    const int span = (last - first + 1) * BLOCK;
    const size_t stride = (size_t)a.kv * d * BLOCK;
    const auto place = [&](int block) { return ((size_t)block * a.kv + kv_head) * BLOCK; };  // of its scales
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
        vec by[BLOCK / W];
        for (int j = 0; j < BLOCK / W; j++)
            by[j] = CODED<T> ? load(c.key_scales + place(table[b]) + j * W) * (a.scale * UNIT<T>) : splat(a.scale);
        const bool edge = b == last || b * BLOCK < begin;
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
            float* s = scores + (size_t)g * span + (b - first) * BLOCK;
#pragma GCC unroll 4
            for (int j = 0; j < BLOCK / W; j++) *(vec*)(s + j * W) = (acc[g][j] + odd[g][j]) * by[j];
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
        float* s = scores + (b - first) * BLOCK;
        if (CODED<T>) {  // the scale of a value goes into its weight, once for all dimensions
            const float* by = c.value_scales + place(table[b]);
            for (int g = 0; g < G; g++)
                for (int j = 0; j < BLOCK; j += W)
                    *(vec*)(s + g * (size_t)span + j) = load(s + g * (size_t)span + j) * (load(by + j) * UNIT<T>);
        }
        int i = 0;
        for (; i + 2 * W <= d; i += 2 * W) weigh<T, G, 2>(s, span, vb + i, d, upto, out + i);
        for (; i + W <= d; i += W) weigh<T, G, 1>(s, span, vb + i, d, upto, out + i);
        for (; i < d; i++)
            for (int t = 0; t < upto; t++)
                for (int g = 0; g < G; g++) out[g * d + i] += s[(size_t)g * span + t] * widen(vb[t * d + i]);
    }
}

template <typename T>
static void attend_some(int g, const float* q, const Cache& c, const Heads& a, int kv_head, int head,
                        const int32_t* table, int position, float* scores, float* out) {
    // Groups wider than four run four heads at a time: their accumulators fit the registers.
    while (g > 0) {
        const int n = g >= 4 ? 4 : g;
        switch (n) {
            case 4: attend_group<T, 4>(q, c, a, kv_head, head, table, position, scores, out); break;
            case 3: attend_group<T, 3>(q, c, a, kv_head, head, table, position, scores, out); break;
            case 2: attend_group<T, 2>(q, c, a, kv_head, head, table, position, scores, out); break;
            case 1: attend_group<T, 1>(q, c, a, kv_head, head, table, position, scores, out); break;
        }
        g -= n; head += n; q += n * a.dim; out += n * a.dim;
    }
}

// out[m, query * dim] of q[m, ldq]. To be called by all threads; `scratch` holds 4 * span floats for each.
template <typename T>
static void attend(int m, const float* q, int ldq, const Cache& c, const Heads& a, const int32_t* tables,
                   int width, const int32_t* table_row, const int32_t* positions, float* scratch, size_t per_thread, float* out) {
    float* scores = scratch + per_thread * Team::tid();
    const int group = a.query / a.kv;
    Team::get().deal(m * a.kv, [=, &a, &c](int t) {
        const int r = t / a.kv, h = t % a.kv;
        attend_some<T>(group, q + (size_t)r * ldq + h * group * a.dim, c, a, h, h * group,
                       tables + (size_t)table_row[r] * width, positions[r], scores,
                       out + (size_t)r * a.query * a.dim + h * group * a.dim);
    });
}
