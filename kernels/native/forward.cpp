// Forward pass of the Llama family over a paged KV cache, for CPUs. Plain C++ with GCC/Clang vector extensions: no
// intrinsics, so one source serves AVX-512, AVX2 and NEON. Weights fp32, bf16 or fp16; activations and sums fp32.
//
// Every token of a batch is one row: its position says how far it attends, its row of the block table says where the
// keys and values of its sequence lie. Decoding, prefill, chunks of a prefill and verification of drafts are thus the
// same call. Keys and values of all rows are written before any row attends, layer by layer.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "team.h"

#if defined(__AVX512F__)
constexpr int W = 16, PANEL = 2, ROWS = 8;  // 16 accumulators and 2 panel vectors of 32 registers
#elif defined(__AVX2__)
constexpr int W = 8, PANEL = 2, ROWS = 6;  // 12 accumulators of 16 registers
#else
constexpr int W = 4, PANEL = 4, ROWS = 4;  // NEON: 32 registers of 4
#endif
constexpr int NR = W * PANEL;
constexpr int BLOCK = 16;  // tokens of a KV block

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
static inline vec load(const _Float16* p) { return __builtin_convertvector(*(const fvec*)p, vec); }
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

// ---- y[rows, n] = x[rows, k] W^T + bias, W packed by `pack`: [n / NR][k][NR] -----------------------------------------

template <typename T, int R>
static void tile(const float* x, int ldx, const T* w, int k, float* y, int ldy, int n, const float* bias, bool add) {
    vec acc[R][PANEL];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j++) acc[r][j] = (vec){};
    for (int i = 0; i < k; i++, w += NR) {
        vec b[PANEL];
        // One row is bound by memory: ask for the panel well before it is needed.
        if (R == 1) __builtin_prefetch((const char*)w + 2048);
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j++) b[j] = load(w + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float a = x[(size_t)r * ldx + i];
#pragma GCC unroll 4
            for (int j = 0; j < PANEL; j++) acc[r][j] += a * b[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        float* out = y + (size_t)r * ldy;
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j++) {
            if ((j + 1) * W <= n) {
                vec v = acc[r][j];
                if (bias) v += load(bias + j * W);
                if (add) v += load(out + j * W);
                *(vec*)(out + j * W) = v;
            } else {
                for (int i = 0; i < W && j * W + i < n; i++) {
                    const int c = j * W + i;
                    out[c] = acc[r][j][i] + (bias ? bias[c] : 0.0f) + (add ? out[c] : 0.0f);
                }
            }
        }
    }
}

template <typename T>
static void rows_of_panel(int m, const float* x, int ldx, const T* w, int k, float* y, int ldy, int n,
                          const float* bias, bool add) {
    int r = 0;
    for (; r + ROWS <= m; r += ROWS)
        tile<T, ROWS>(x + (size_t)r * ldx, ldx, w, k, y + (size_t)r * ldy, ldy, n, bias, add);
    const float* xr = x + (size_t)r * ldx;
    float* yr = y + (size_t)r * ldy;
    switch (m - r) {
        case 1: tile<T, 1>(xr, ldx, w, k, yr, ldy, n, bias, add); break;
        case 2: tile<T, 2>(xr, ldx, w, k, yr, ldy, n, bias, add); break;
        case 3: tile<T, 3>(xr, ldx, w, k, yr, ldy, n, bias, add); break;
        case 4: tile<T, 4>(xr, ldx, w, k, yr, ldy, n, bias, add); break;
        case 5: tile<T, 5>(xr, ldx, w, k, yr, ldy, n, bias, add); break;
#if defined(__AVX512F__)
        case 6: tile<T, 6>(xr, ldx, w, k, yr, ldy, n, bias, add); break;
        case 7: tile<T, 7>(xr, ldx, w, k, yr, ldy, n, bias, add); break;
#endif
    }
}

// To be called by all threads of the team, like everything that shares out work.
template <typename T>
static void linear(int m, const float* x, int ldx, const T* w, int k, float* y, int n, const float* bias, bool add) {
    const int panels = (n + NR - 1) / NR;
    // Few rows: a panel each. Many rows: the rows are cut as well, in pieces whose inputs stay in the first caches.
    const int piece = ROWS * 6;
    const int pieces = (m + piece - 1) / piece;
    Team::get().share(panels * pieces, [=](int t) {
        const int p = t / pieces, r = t % pieces * piece;
        const int rows = m - r < piece ? m - r : piece;
        const int cols = n - p * NR < NR ? n - p * NR : NR;
        rows_of_panel<T>(rows, x + (size_t)r * ldx, ldx, w + (size_t)p * k * NR, k, y + (size_t)r * n + p * NR, n,
                         cols, bias ? bias + p * NR : nullptr, add);
    });
}

template <typename T>
static void pack_panels(const T* w, int n, int k, T* out) {
    Team::get().share((n + NR - 1) / NR, [=](int p) {
        for (int i = 0; i < k; i++)
            for (int j = 0; j < NR; j++) {
                const int row = p * NR + j;
                T v;
                memset(&v, 0, sizeof v);
                out[((size_t)p * k + i) * NR + j] = row < n ? w[(size_t)row * k + i] : v;
            }
    });
}

// ---- small operations ------------------------------------------------------------------------------------------------

static inline void rms_row(const float* x, const float* w, float eps, int n, float* y) {
    float s = 0;
    for (int i = 0; i < n; i++) s += x[i] * x[i];
    const float scale = 1.0f / sqrtf(s / n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

static void rms_norm(int m, const float* x, const float* w, float eps, int n, float* y) {
    Team::get().share(m, [=](int r) { rms_row(x + (size_t)r * n, w, eps, n, y + (size_t)r * n); });
}

// x[:, :n] = silu(x[:, :n]) * x[:, n:]
static void swiglu(int m, float* x, int n) {
    Team::get().share(m, [=](int r) {
        float* gate = x + (size_t)r * 2 * n;
        const float* up = gate + n;
        int i = 0;
        for (; i + W <= n; i += W) {
            vec g = load(gate + i);
            *(vec*)(gate + i) = g / (1.0f + vexp(-g)) * load(up + i);
        }
        for (; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    });
}

// The rotation of Su et al. 2021 in transformers' order: the first half of a head is paired with its second half.
static inline void rotate(float* x, const float* cos, const float* sin, int d) {
    const int h = d / 2;
    for (int i = 0; i < h; i++) {
        const float a = x[i], b = x[i + h];
        x[i] = a * cos[i] - b * sin[i];
        x[i + h] = b * cos[i + h] + a * sin[i + h];
    }
}

// ---- paged attention -------------------------------------------------------------------------------------------------

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

// ---- the model -------------------------------------------------------------------------------------------------------

struct Layer {
    const float *norm_in, *norm_mlp;                 // [hidden]
    const void *qkv, *o, *gate_up, *down;            // packed
    const float *qkv_bias, *o_bias;                  // or null
    const float *q_norm, *k_norm;                    // [dim] or null
    void *keys, *values;                             // the layer's KV blocks
    int32_t window, rotary;                          // positions seen at most, 0: all; whether positions rotate
};

struct Model {
    int32_t layers, hidden, mlp, vocab, query, kv, dim, weights, cache;  // weights, cache: 0 fp32, 1 bf16, 2 fp16
    float eps, scale;
    const void *embedding, *head;                    // [vocab, hidden]; packed
    const float *norm, *head_bias, *cos, *sin;       // [hidden]; [vocab] or null; [positions, dim]
    const Layer* layer;
};

struct Rows {
    int32_t m, width;                                // rows; width of the block tables
    const int32_t *positions, *table_row, *tables;   // [m], [m], [sequences, width]
};

template <typename T, typename C>
static void layer_rows(const Model& md, const Layer& l, const Rows& b, float* x, float* work, float* scratch,
                       size_t per_thread, bool only_kv) {
    const int qd = md.query * md.dim, kd = md.kv * md.dim, n = qd + 2 * kd;
    float *normed = work, *mid = normed + (size_t)b.m * (md.hidden > qd ? md.hidden : qd);
    rms_norm(b.m, x, l.norm_in, md.eps, md.hidden, normed);
    linear<T>(b.m, normed, md.hidden, (const T*)l.qkv, md.hidden, mid, n, l.qkv_bias, false);
    Team::get().share(b.m, [&, qd, kd, n, mid](int r) {
        float* row = mid + (size_t)r * n;
        const int at = b.positions[r];
        const float *cos = md.cos + (size_t)at * md.dim, *sin = md.sin + (size_t)at * md.dim;
        for (int h = 0; h < md.query + md.kv; h++) {
            float* head = row + h * md.dim;
            const float* norm = h < md.query ? l.q_norm : l.k_norm;
            if (norm) rms_row(head, norm, md.eps, md.dim, head);
            if (l.rotary) rotate(head, cos, sin, md.dim);
        }
        const int64_t block = b.tables[(size_t)b.table_row[r] * b.width + at / BLOCK];
        store_kv<C>((C*)l.keys, (C*)l.values, md.kv, md.dim, row + qd, row + qd + kd, block, at % BLOCK);
    });
    if (only_kv) return;
    const Heads a{md.query, md.kv, md.dim, md.scale, 0.0f, l.window, nullptr};
    attend<C>(b.m, mid, n, (const C*)l.keys, (const C*)l.values, a, b.tables, b.width, b.table_row, b.positions,
              scratch, per_thread, normed);
    linear<T>(b.m, normed, qd, (const T*)l.o, qd, x, md.hidden, l.o_bias, true);
    rms_norm(b.m, x, l.norm_mlp, md.eps, md.hidden, normed);
    linear<T>(b.m, normed, md.hidden, (const T*)l.gate_up, md.hidden, mid, 2 * md.mlp, nullptr, false);
    swiglu(b.m, mid, md.mlp);
    linear<T>(b.m, mid, 2 * md.mlp, (const T*)l.down, md.mlp, x, md.hidden, nullptr, true);
}

template <typename T, typename C>
static void run_layers(const Model& md, int from, int to, const Rows& b, float* x, float* work, float* scratch,
                       size_t per_thread, bool only_kv) {
    Team::get().run([&] {
        for (int l = from; l < to; l++) layer_rows<T, C>(md, md.layer[l], b, x, work, scratch, per_thread, only_kv);
    });
}

// The first of the highest values. Two passes, for the compiler makes vectors of the first one and of most of the second.
static int highest(const float* values, int n) {
    float most = values[0];
    for (int i = 1; i < n; i++) most = values[i] > most ? values[i] : most;
    for (int i = 0; i < n; i++)
        if (values[i] == most) return i;
    return 0;  // none equals NaN
}

template <typename T>
static void run_head(const Model& md, int n, const int32_t* rows, const float* x, float* hidden, float* logits,
                     int32_t* best) {
    Team::get().run([&] {
        Team::get().share(n, [&](int i) {
            rms_row(x + (size_t)rows[i] * md.hidden, md.norm, md.eps, md.hidden, hidden + (size_t)i * md.hidden);
        });
        if (logits) linear<T>(n, hidden, md.hidden, (const T*)md.head, md.hidden, logits, md.vocab, md.head_bias, false);
        if (best) Team::get().share(n, [&](int i) { best[i] = highest(logits + (size_t)i * md.vocab, md.vocab); });
    });
}

template <typename T>
static void run_embed(const Model& md, int m, const int32_t* tokens, float* x) {
    const T* table = (const T*)md.embedding;
    for (int r = 0; r < m; r++)
        for (int i = 0; i < md.hidden; i++) x[(size_t)r * md.hidden + i] = widen(table[(size_t)tokens[r] * md.hidden + i]);
}

#define BY_TYPE(code, CALL)                          \
    switch (code) {                                  \
        case 0: { typedef float T; CALL; break; }    \
        case 1: { typedef bf16 T; CALL; break; }     \
        case 2: { typedef _Float16 T; CALL; break; } \
    }

extern "C" {

int isoquant_panel() { return NR; }
int isoquant_block() { return BLOCK; }
void isoquant_threads(int n) { Team::get().resize(n); }
int isoquant_team() { return Team::get().wanted(); }

void isoquant_pack(int type, const void* w, int n, int k, void* out) {
    Team::get().run([&] { BY_TYPE(type, pack_panels<T>((const T*)w, n, k, (T*)out)); });
}

void isoquant_linear(int type, int m, const float* x, int ldx, const void* w, int k, float* y, int n,
                     const float* bias, int add) {
    Team::get().run([&] { BY_TYPE(type, linear<T>(m, x, ldx, (const T*)w, k, y, n, bias, add)); });
}

void isoquant_embed(const Model* md, int m, const int32_t* tokens, float* x) {
    BY_TYPE(md->weights, run_embed<T>(*md, m, tokens, x));
}

void isoquant_layers(const Model* md, int from, int to, const Rows* b, float* x, float* work, float* scratch,
                     int64_t per_thread, int only_kv) {
    BY_TYPE(md->weights, {
        typedef T Weight;
        BY_TYPE(md->cache, (run_layers<Weight, T>(*md, from, to, *b, x, work, scratch, per_thread, only_kv)));
    });
}

void isoquant_head(const Model* md, int n, const int32_t* rows, const float* x, float* hidden, float* logits,
                   int32_t* best) {
    BY_TYPE(md->weights, run_head<T>(*md, n, rows, x, hidden, logits, best));
}

void isoquant_attend(int type, const Heads* a, const Rows* b, const float* q, int ldq, const void* keys,
                     const void* values, float* scratch, int64_t per_thread, float* out) {
    Team::get().run([&] {
        BY_TYPE(type, attend<T>(b->m, q, ldq, (const T*)keys, (const T*)values, *a, b->tables, b->width, b->table_row,
                                b->positions, scratch, per_thread, out));
    });
}

void isoquant_store(int type, int heads, int dim, const Rows* b, const float* k, int ldk, const float* v, int ldv,
                    void* keys, void* values) {
    for (int r = 0; r < b->m; r++) {
        const int at = b->positions[r];
        const int64_t block = b->tables[(size_t)b->table_row[r] * b->width + at / BLOCK];
        BY_TYPE(type, store_kv<T>((T*)keys, (T*)values, heads, dim, k + (size_t)r * ldk, v + (size_t)r * ldv, block,
                                  at % BLOCK));
    }
}

}  // extern "C"
