// Matrices of any format in panels of NR columns, and tiles of products with them. Sums of a row run over k in one
// order, group by group or slice by slice, whatever the tile: a row's result does not depend on the rows beside it.

#pragma once

#include <type_traits>

#include "formats.h"

// y[n] = x[k] W^T + bias.
struct Matrix {
    int32_t kind, n, k, group;  // group: weights along k that share a scale, k for a whole row
    int32_t scale_kind;         // FP32 or BF16
    const void *data, *scales;  // [n / NR] panels, see formats.h; [n / NR][k / group][NR]
    const int8_t* zeros;        // zero points as the scales lie, or null
    const int32_t* sums;        // [n / NR][NR], of each column's codes, for integer dot products
    const float* bias;          // [n] or null
    const Matrix* next;         // the second factor where this is a low-rank pair's first one, or null
    float input_scale;          // of inputs that become int8 by a fixed scale; 0: each row by its largest magnitude
};

// The rows that a matrix is multiplied with, and what was computed of them beforehand.
struct Input {
    const float* x;        // [m, ld]
    int ld;
    const float* sums;     // [m, k / group]: of each group, where there are zero points
    const uint8_t* codes;  // [m, whole words of k]: int8 plus 128, for integer dot products
    const float* scales;   // [m], of the codes

    Input at(int row, const Matrix& w) const {
        const size_t r = row, words = (w.k + 3) / 4;
        return Input{x + r * ld, ld, sums ? sums + r * (w.k / w.group) : nullptr, codes ? codes + r * words * 4 : nullptr,
                     scales ? scales + r : nullptr};
    }
};

// A matrix's scales and zero points, as vectors: of group g, for vector j of a panel.
struct Scales {
    const void* scales;
    const int8_t* zeros;
    bool wide;
    size_t groups;

    explicit Scales(const Matrix& w)
        : scales(w.scales), zeros(w.zeros), wide(w.scale_kind == FP32), groups(w.k / w.group) {}
    size_t at(int panel, int g, int j) const { return (panel * groups + g) * NR + j * W; }
    vec scale(int panel, int g, int j) const {
        return wide ? load((const float*)scales + at(panel, g, j)) : load((const bf16*)scales + at(panel, g, j));
    }
    vec zero(int panel, int g, int j) const { return Int8::read((const char*)zeros + at(panel, g, j)); }
};

// y = v + bias + what stood there, for the columns of a panel's vector j that there are.
static inline void put(const Matrix& w, int panel, int j, vec v, float* y, bool add) {
    const int column = panel * NR + j * W, n = w.n - column;
    const float* bias = w.bias ? w.bias + column : nullptr;
    y += column;
    if (n >= W) {
        if (bias) v += load(bias);
        if (add) v += load(y);
        *(vec*)y = v;
    } else {
        for (int i = 0; i < n; i++) y[i] = v[i] + (bias ? bias[i] : 0.0f) + (add ? y[i] : 0.0f);
    }
}

constexpr int SLICE = 128;       // of k: summed on its own, for fewer roundings; in fp32 it is half of the first cache
constexpr int PIECE = ROWS * 6;  // rows that are served with one slice

// One row by P panels, each number used as it comes: bound by memory.
template <typename F, int P>
static void row_tile(const Matrix& w, int panel, const Input& in, float* y, bool add) {
    constexpr int V = P * PANEL, LINE = PANEL * F::BYTES;
    const size_t bytes = (size_t)((w.k + F::STEP - 1) / F::STEP) * LINE;
    const char* at[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) at[p] = (const char*)w.data + (panel + p) * bytes;
    vec acc[V], total[V];
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) total[j] = (vec){};
    const Scales of(w);
    const bool grouped = w.group < w.k, zeroed = w.zeros;
    const int span = grouped ? w.group : SLICE;
    for (int begin = 0, g = 0; begin < w.k; begin += span, g++) {
        const int end = begin + span < w.k ? begin + span : w.k;
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) acc[j] = (vec){};
        for (int i = begin; i < end; i += F::STEP) {
            typename F::Raw raw[V];
#pragma GCC unroll 16
            for (int j = 0; j < V; j++) raw[j] = F::read(at[j / PANEL] + j % PANEL * F::BYTES);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
#pragma GCC unroll 4
                for (int b = 0; b < LINE; b += 64) __builtin_prefetch(at[p] + AHEAD + b);
                at[p] += LINE;
            }
            const auto step = [&](int s) __attribute__((always_inline)) {
                const float a = in.x[i + s];
#pragma GCC unroll 16
                for (int j = 0; j < V; j++) acc[j] += a * F::number(raw[j], s);
            };
            if (F::STEP == 1 || i + F::STEP <= end) {
#pragma GCC unroll 8
                for (int s = 0; s < F::STEP; s++) step(s);
            } else {
                for (int s = 0; s < end - i; s++) step(s);
            }
        }
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) {
            const int p = panel + j / PANEL;
            if (zeroed && grouped) acc[j] -= in.sums[g] * of.zero(p, g, j % PANEL);
            if (F::SCALED && grouped) total[j] += acc[j] * (of.scale(p, g, j % PANEL) * F::UNIT);
            else total[j] += acc[j];
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) {
        const int p = panel + j / PANEL;
        if (zeroed && !grouped) total[j] -= in.sums[0] * of.zero(p, 0, j % PANEL);
        if (F::SCALED && !grouped) total[j] *= of.scale(p, 0, j % PANEL) * F::UNIT;
        put(w, p, j % PANEL, total[j], y, add);
    }
}

// R rows by a slice of a panel, added to `sums` [R][NR]; where `scales` [NR] are given, the slice is a group of its own,
// whose sums are scaled before they are added.
template <int R>
static void slice_tile(const float* b, int steps, const float* x, int ld, const float* scales, const float* zeros,
                       const float* x_sums, size_t groups, float* sums) {
    vec acc[R][PANEL];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j++) acc[r][j] = (vec){};
    for (int i = 0; i < steps; i++, b += NR) {
        vec w[PANEL];
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j++) w[j] = load(b + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float a = x[(size_t)r * ld + i];
#pragma GCC unroll 4
            for (int j = 0; j < PANEL; j++) acc[r][j] += a * w[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j++) {
            float* total = sums + r * NR + j * W;
            if (zeros) acc[r][j] -= x_sums[r * groups] * load(zeros + j * W);
            if (scales) *(vec*)total = load(total) + acc[r][j] * load(scales + j * W);
            else *(vec*)total = load(total) + acc[r][j];
        }
}

// call(R) with the number of rows, at most ROWS, as a constant.
template <int R = ROWS, typename F>
static inline void by_rows(int rows, F call) {
    if constexpr (R > 1) {
        if (rows < R) return by_rows<R - 1>(rows, call);
    }
    call(std::integral_constant<int, R>());
}

// `steps` of k of a panel as fp32 numbers [steps][NR]; returns where the next slice begins. A last unit that k does not
// fill is written whole: the slice has room, and nobody reads it.
template <typename F>
static const char* to_slice(const char* at, int steps, float* slice) {
    constexpr int LINE = PANEL * F::BYTES;
    for (int i = 0; i < steps; i += F::STEP, at += LINE) {
        typename F::Raw raw[PANEL];
        for (int c = 0; c < LINE; c += 64) __builtin_prefetch(at + AHEAD + c);
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j++) raw[j] = F::read(at + j * F::BYTES);
#pragma GCC unroll 8
        for (int s = 0; s < F::STEP; s++, slice += NR)
#pragma GCC unroll 4
            for (int j = 0; j < PANEL; j++) *(vec*)(slice + j * W) = F::number(raw[j], s);
    }
    return at;
}

// Up to PIECE rows by one panel, whose numbers become fp32 once for all of them, slice by slice.
template <typename F>
static void rows_by_panel(const Matrix& w, int panel, int m, const Input& in, float* y, int ldy, bool add) {
    constexpr int LINE = PANEL * F::BYTES;
    const char* at = (const char*)w.data + (size_t)panel * ((w.k + F::STEP - 1) / F::STEP) * LINE;
    const Scales of(w);
    const bool grouped = w.group < w.k, zeroed = w.zeros;
    const int span = grouped ? w.group : SLICE;
    float slice[SLICE * NR], sums[PIECE * NR], scales[NR], zeros[NR];
    memset(sums, 0, (size_t)m * NR * sizeof(float));
    for (int begin = 0, g = 0; begin < w.k; begin += span, g++) {
        const int steps = w.k - begin < span ? w.k - begin : span;
        const float* numbers = slice;
        if (std::is_same<F, Plain<float>>::value) {
            numbers = (const float*)at;  // they are fp32 already
            at += (size_t)steps * LINE;
        } else {
            at = to_slice<F>(at, steps, slice);
        }
        for (int j = 0; j < PANEL && F::SCALED && (grouped || g == 0); j++) {
            *(vec*)(scales + j * W) = of.scale(panel, g, j) * F::UNIT;
            if (zeroed) *(vec*)(zeros + j * W) = of.zero(panel, g, j);
        }
        for (int r = 0; r < m; r += ROWS) {
            const float *x = in.x + (size_t)r * in.ld + begin, *x_sums = in.sums ? in.sums + r * of.groups + g : nullptr;
            by_rows(m - r, [&](auto rows) {
                slice_tile<rows>(numbers, steps, x, in.ld, grouped ? scales : nullptr, grouped && zeroed ? zeros : nullptr,
                                 x_sums, of.groups, sums + r * NR);
            });
        }
    }
    for (int r = 0; r < m; r++)
        for (int j = 0; j < PANEL; j++) {
            vec v = load(sums + r * NR + j * W);
            if (zeroed && !grouped) v -= in.sums[r] * load(zeros + j * W);
            if (F::SCALED && !grouped) v *= load(scales + j * W);
            put(w, panel, j, v, y + (size_t)r * ldy, add);
        }
}

// R rows by P panels by integer dot products. The codes of x are 128 too high: that times a column's sum is taken off.
template <int R, int P>
static void integer_tile(const Matrix& w, int panel, const Input& in, float* y, int ldy, bool add) {
    constexpr int V = P * PANEL;
    const int words = (w.k + 3) / 4;
    const ivec* at[P];
    ivec acc[R][V];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) at[p] = (const ivec*)w.data + (size_t)(panel + p) * words * PANEL;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) acc[r][j] = (ivec){};
    for (int i = 0; i < words; i++) {
        ivec b[V];
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) b[j] = at[j / PANEL][j % PANEL];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            for (int c = 0; c < NR * 4; c += 64) __builtin_prefetch((const char*)at[p] + AHEAD + c);
            at[p] += PANEL;
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            int32_t a;
            memcpy(&a, in.codes + ((size_t)r * words + i) * 4, 4);
#pragma GCC unroll 16
            for (int j = 0; j < V; j++) acc[r][j] = dot4(acc[r][j], a, b[j]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) {
        const int p = panel + j / PANEL;
        const ivec extra = *(const ivec*)(w.sums + p * NR + j % PANEL * W) * 128;
        const vec scale = Scales(w).scale(p, 0, j % PANEL);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec v = __builtin_convertvector(acc[r][j] - extra, vec) * (scale * in.scales[r]);
            put(w, p, j % PANEL, v, y + (size_t)r * ldy, add);
        }
    }
}

// A format's two ways under one name each: one row by several panels, and some rows by one.
template <typename F>
struct Product {
    template <int P>
    static void row(const Matrix& w, int panel, const Input& in, float* y, bool add) {
        row_tile<F, P>(w, panel, in, y, add);
    }
    static void rows(const Matrix& w, int panel, int m, const Input& in, float* y, int ldy, bool add) {
        rows_by_panel<F>(w, panel, m, in, y, ldy, add);
    }
};
template <>
struct Product<Int8Words> {
    template <int P>
    static void row(const Matrix& w, int panel, const Input& in, float* y, bool add) {
        integer_tile<1, P>(w, panel, in, y, 0, add);
    }
    static void rows(const Matrix& w, int panel, int m, const Input& in, float* y, int ldy, bool add) {
        for (int r = 0; r < m; r += ROWS)
            by_rows(m - r, [&](auto rows) {
                integer_tile<rows, 1>(w, panel, in.at(r, w), y + (size_t)r * ldy, ldy, add);
            });
    }
};

// Panels `from` to `to` by up to PIECE rows. One row takes four panels at once: more sums that do not wait for each other.
template <typename F>
static void panels(const Matrix& w, int from, int to, int m, const Input& in, float* y, int ldy, bool add) {
    int p = from;
    if (m == 1) {
        for (; p + 4 <= to; p += 4) Product<F>::template row<4>(w, p, in, y, add);
        for (; p < to; p++) Product<F>::template row<1>(w, p, in, y, add);
    }
    for (; p < to; p++) Product<F>::rows(w, p, m, in, y, ldy, add);
}

#define BY_FORMAT(kind, CALL)                               \
    switch (kind) {                                         \
        case FP32: { typedef Plain<float> F; CALL; break; } \
        case BF16: { typedef Plain<bf16> F; CALL; break; }  \
        case FP16: { typedef Plain<_Float16> F; CALL; break; } \
        case INT8: { typedef Int8 F; CALL; break; }         \
        case INT4: { typedef Int4 F; CALL; break; }         \
        case NF4: { typedef Nf4 F; CALL; break; }           \
        case FP8: { typedef Fp8 F; CALL; break; }           \
        case INT8_BY_INT8: { typedef Int8Words F; CALL; break; } \
    }

// The numbers of one column, out[k]: an embedding that shares the head's matrix is looked up so.
template <typename F>
static void numbers_of(const Matrix& w, int column, float* out) {
    const int panel = column / NR, j = column % NR / W, lane = column % W;
    const size_t line = (size_t)PANEL * F::BYTES, units = (w.k + F::STEP - 1) / F::STEP;
    const char* at = (const char*)w.data + panel * units * line + j * F::BYTES;
    const Scales of(w);
    for (int i = 0; i < w.k; i++) {
        const float number = F::number(F::read(at + i / F::STEP * line), i % F::STEP)[lane];
        if (!F::SCALED) {
            out[i] = number;
            continue;
        }
        const int g = i / w.group;
        const float zero = of.zeros ? of.zeros[of.at(panel, g, j) + lane] : 0;
        out[i] = (number - zero) * (of.scale(panel, g, j)[lane] * F::UNIT);
    }
}

static void column_of(const Matrix& w, int column, float* out) { BY_FORMAT(w.kind, numbers_of<F>(w, column, out)); }
